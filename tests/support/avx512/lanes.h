// Vectors of 512 bits as arrays of lanes and as pairs of halves: what the stand-ins of emulated.h are written in.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

// a vector type as a template's argument loses may_alias, which memcpy does not need
#pragma GCC diagnostic ignored "-Wignored-attributes"

#define PYDL_EMULATED inline __attribute__((always_inline))
#define PYDL_EMULATED_LAMBDA __attribute__((always_inline))

namespace pydl::cpu::PYDL_ISA {
namespace emulation {

// A vector as an array of its lanes.
template <class E, class V>
struct Lanes {
  typedef E Element;
  static constexpr int count = static_cast<int>(sizeof(V) / sizeof(E));
  E at[count];

  Lanes() = default;
  PYDL_EMULATED Lanes(V v) { memcpy(at, &v, sizeof v); }
  PYDL_EMULATED operator V() const {
    V v;
    memcpy(&v, at, sizeof v);
    return v;
  }
};
using Floats = Lanes<float, __m512>;
using Doubles = Lanes<double, __m512d>;
using Ints = Lanes<int32_t, __m512i>;
using Longs = Lanes<int64_t, __m512i>;

template <class L, class F>
PYDL_EMULATED L each(const F& f) {
  L v;
  for (int i = 0; i < L::count; ++i) v.at[i] = static_cast<typename L::Element>(f(i));
  return v;
}
template <class L>
PYDL_EMULATED L every(typename L::Element e) {
  return each<L>([&](int) PYDL_EMULATED_LAMBDA { return e; });
}
template <class L, class F>
PYDL_EMULATED uint32_t bits(const F& f) {
  uint32_t mask = 0;
  for (int i = 0; i < L::count; ++i) mask |= (f(i) ? 1u : 0u) << i;
  return mask;
}
template <class L>
PYDL_EMULATED L load(uint64_t mask, L other, const void* p) {
  const auto* from = static_cast<const char*>(p);
  for (int i = 0; i < L::count; ++i)
    if (mask >> i & 1) memcpy(&other.at[i], from + i * sizeof other.at[0], sizeof other.at[0]);
  return other;
}
// The low bytes of each lane, as E.
template <class E, class L>
PYDL_EMULATED void store(uint64_t mask, L v, void* p) {
  auto* to = static_cast<char*>(p);
  for (int i = 0; i < L::count; ++i)
    if (mask >> i & 1) memcpy(to + i * sizeof(E), &v.at[i], sizeof(E));
}

// Two halves side by side, for what AVX2 has. They are taken out by shuffles of elements E and put together in memory,
// which the compiler sees through: between one stand-in and the next they stay in registers.
template <class E, class H, class V>
struct Halves {
  H low, high;
  typedef E Whole __attribute__((vector_size(sizeof(V))));
  PYDL_EMULATED Halves(H l, H h) : low(l), high(h) {}
  PYDL_EMULATED Halves(V v)
      : low((H)__builtin_shufflevector((Whole)v, (Whole)v, 0, 1, 2, 3)),
        high((H)__builtin_shufflevector((Whole)v, (Whole)v, 4, 5, 6, 7)) {}
  PYDL_EMULATED operator V() const {
    V v;
    memcpy(&v, &low, sizeof low);
    memcpy(reinterpret_cast<char*>(&v) + sizeof low, &high, sizeof high);
    return v;
  }
};
using HalfFloats = Halves<int64_t, __m256, __m512>;
using HalfDoubles = Halves<int64_t, __m256d, __m512d>;
using HalfInts = Halves<int64_t, __m256i, __m512i>;
using HalfShorts = Halves<int32_t, __m128i, __m256i>;

// -1 in the lanes of 32 or 64 bits whose bit of the mask is set, 0 in the others.
PYDL_EMULATED HalfInts spread_32(uint32_t mask) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i low = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bit);
  const __m256i high = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask >> 8)), bit);
  return HalfInts(_mm256_cmpeq_epi32(low, bit), _mm256_cmpeq_epi32(high, bit));
}
PYDL_EMULATED HalfInts spread_64(uint32_t mask) {
  const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
  const __m256i low = _mm256_and_si256(_mm256_set1_epi64x(mask), bit);
  const __m256i high = _mm256_and_si256(_mm256_set1_epi64x(mask >> 4), bit);
  return HalfInts(_mm256_cmpeq_epi64(low, bit), _mm256_cmpeq_epi64(high, bit));
}
// `set` where the lanes of the mask are -1, `clear` where they are 0.
PYDL_EMULATED HalfInts blend(HalfInts mask, HalfInts clear, HalfInts set) {
  return HalfInts(_mm256_blendv_epi8(clear.low, set.low, mask.low),
                  _mm256_blendv_epi8(clear.high, set.high, mask.high));
}

}  // namespace emulation
}  // namespace pydl::cpu::PYDL_ISA
