// Stand-ins: constants, memory, shuffles.
#pragma once

#include "tests/support/avx512/lanes.h"

#undef _mm512_setr_epi32  // macros in g++'s headers, unlike the rest
#undef _mm512_setr_epi64

namespace pydl::cpu::PYDL_ISA {

// ---- constants and casts

PYDL_EMULATED __m512 _mm512_set1_ps(float x) { return emulation::every<emulation::Floats>(x); }
PYDL_EMULATED __m512d _mm512_set1_pd(double x) { return emulation::every<emulation::Doubles>(x); }
PYDL_EMULATED __m512i _mm512_set1_epi32(int x) { return emulation::every<emulation::Ints>(x); }
PYDL_EMULATED __m512i _mm512_set1_epi64(long long x) { return emulation::every<emulation::Longs>(x); }
PYDL_EMULATED __m512 _mm512_setzero_ps() { return emulation::every<emulation::Floats>(0); }
template <class... E>
PYDL_EMULATED __m512i _mm512_setr_epi32(E... e) {
  static_assert(sizeof...(e) == 16);
  emulation::Ints v;
  int i = 0;
  ((v.at[i++] = static_cast<int32_t>(e)), ...);
  return v;
}
template <class... E>
PYDL_EMULATED __m512i _mm512_setr_epi64(E... e) {
  static_assert(sizeof...(e) == 8);
  emulation::Longs v;
  int i = 0;
  ((v.at[i++] = static_cast<int64_t>(e)), ...);
  return v;
}
PYDL_EMULATED __m512d _mm512_castps_pd(__m512 v) { return (__m512d)v; }
PYDL_EMULATED __m512 _mm512_castpd_ps(__m512d v) { return (__m512)v; }
// What the upper half holds is not defined: here something that shows.
PYDL_EMULATED __m512i _mm512_castsi256_si512(__m256i v) {
  return emulation::HalfInts(v, _mm256_set1_epi8(0x5a));
}
PYDL_EMULATED __m512i _mm512_inserti64x4(__m512i a, __m256i b, int half) {
  const emulation::HalfInts v(a);
  return half ? emulation::HalfInts(v.low, b) : emulation::HalfInts(b, v.high);
}

// ---- memory

PYDL_EMULATED __m512 _mm512_mask_loadu_ps(__m512 other, __mmask16 mask, const void* p) {
  return emulation::load<emulation::Floats>(mask, other, p);
}
PYDL_EMULATED __m512d _mm512_mask_loadu_pd(__m512d other, __mmask8 mask, const void* p) {
  return emulation::load<emulation::Doubles>(mask, other, p);
}
PYDL_EMULATED __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* p) {
  return emulation::load<emulation::Floats>(mask, __m512{}, p);
}
PYDL_EMULATED __m512d _mm512_maskz_loadu_pd(__mmask8 mask, const void* p) {
  return emulation::load<emulation::Doubles>(mask, __m512d{}, p);
}
PYDL_EMULATED __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* p) {
  return emulation::load<emulation::Lanes<int16_t, __m256i>>(mask, __m256i{}, p);
}
PYDL_EMULATED __m512i _mm512_maskz_loadu_epi16(__mmask32 mask, const void* p) {
  return emulation::load<emulation::Lanes<int16_t, __m512i>>(mask, __m512i{}, p);
}
PYDL_EMULATED __m128i _mm_maskz_loadu_epi8(__mmask16 mask, const void* p) {
  return emulation::load<emulation::Lanes<int8_t, __m128i>>(mask, __m128i{}, p);
}
PYDL_EMULATED void _mm512_mask_storeu_ps(void* p, __mmask16 mask, __m512 v) {
  emulation::store<float>(mask, emulation::Floats(v), p);
}
PYDL_EMULATED void _mm512_mask_storeu_pd(void* p, __mmask8 mask, __m512d v) {
  emulation::store<double>(mask, emulation::Doubles(v), p);
}
PYDL_EMULATED void _mm256_mask_storeu_epi16(void* p, __mmask16 mask, __m256i v) {
  emulation::store<int16_t>(mask, emulation::Lanes<int16_t, __m256i>(v), p);
}
PYDL_EMULATED void _mm512_mask_storeu_epi16(void* p, __mmask32 mask, __m512i v) {
  emulation::store<int16_t>(mask, emulation::Lanes<int16_t, __m512i>(v), p);
}
PYDL_EMULATED void _mm512_mask_cvtepi32_storeu_epi8(void* p, __mmask16 mask, __m512i v) {
  emulation::store<int8_t>(mask, emulation::Ints(v), p);
}
PYDL_EMULATED void _mm512_mask_cvtepi64_storeu_epi8(void* p, __mmask8 mask, __m512i v) {
  emulation::store<int8_t>(mask, emulation::Longs(v), p);
}
PYDL_EMULATED void _mm512_stream_si512(__m512i* p, __m512i v) {
  if (reinterpret_cast<uintptr_t>(p) % 64 != 0) __builtin_trap();  // as the instruction faults
  memcpy(p, &v, sizeof v);
}
PYDL_EMULATED __m512 _mm512_mask_i32gather_ps(__m512 other, __mmask16 mask, __m512i index, const void* p,
                                              int scale) {
  emulation::Floats v(other);
  const emulation::Ints at(index);
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) memcpy(&v.at[i], static_cast<const char*>(p) + int64_t{at.at[i]} * scale, 4);
  return v;
}

// ---- shuffles

PYDL_EMULATED __m512 _mm512_unpacklo_ps(__m512 a, __m512 b) {
  const emulation::HalfFloats x(a), y(b);
  return emulation::HalfFloats(_mm256_unpacklo_ps(x.low, y.low), _mm256_unpacklo_ps(x.high, y.high));
}
PYDL_EMULATED __m512 _mm512_unpackhi_ps(__m512 a, __m512 b) {
  const emulation::HalfFloats x(a), y(b);
  return emulation::HalfFloats(_mm256_unpackhi_ps(x.low, y.low), _mm256_unpackhi_ps(x.high, y.high));
}
PYDL_EMULATED __m512d _mm512_unpacklo_pd(__m512d a, __m512d b) {
  const emulation::HalfDoubles x(a), y(b);
  return emulation::HalfDoubles(_mm256_unpacklo_pd(x.low, y.low), _mm256_unpacklo_pd(x.high, y.high));
}
PYDL_EMULATED __m512d _mm512_unpackhi_pd(__m512d a, __m512d b) {
  const emulation::HalfDoubles x(a), y(b);
  return emulation::HalfDoubles(_mm256_unpackhi_pd(x.low, y.low), _mm256_unpackhi_pd(x.high, y.high));
}
// Within each 16 bytes.
PYDL_EMULATED __m512 _mm512_shuffle_ps(__m512 a, __m512 b, int how) {
  const emulation::HalfFloats x(a), y(b);
  return emulation::HalfFloats(_mm256_shuffle_ps(x.low, y.low, how), _mm256_shuffle_ps(x.high, y.high, how));
}
PYDL_EMULATED __m512i _mm512_shuffle_epi32(__m512i a, int how) {
  return (__m512i)_mm512_shuffle_ps((__m512)a, (__m512)a, how);
}
// The argument as an int: the enumeration of the compiler's would bring its own function back, by its namespace.
#define _mm512_shuffle_epi32(a, how) _mm512_shuffle_epi32(a, static_cast<int>(how))
// 16 bytes at a time.
PYDL_EMULATED __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int how) {
  const emulation::Lanes<__m128, __m512> x(a), y(b);
  return emulation::each<emulation::Lanes<__m128, __m512>>(
      [&](int i) PYDL_EMULATED_LAMBDA { return (i & 2 ? y : x).at[how >> 2 * i & 3]; });
}
PYDL_EMULATED __m512i _mm512_maskz_permutexvar_epi16(__mmask32 mask, __m512i index, __m512i v) {
  const emulation::Lanes<int16_t, __m512i> at(index), x(v);
  return emulation::each<emulation::Lanes<int16_t, __m512i>>(
      [&](int i) PYDL_EMULATED_LAMBDA { return mask >> i & 1 ? x.at[at.at[i] & 31] : int16_t{0}; });
}
PYDL_EMULATED __m512 _mm512_permutexvar_ps(__m512i index, __m512 v) {
  const emulation::Ints at(index);
  const emulation::Floats x(v);
  return emulation::each<emulation::Floats>([&](int i) PYDL_EMULATED_LAMBDA { return x.at[at.at[i] & 15]; });
}
PYDL_EMULATED __m512d _mm512_permutexvar_pd(__m512i index, __m512d v) {
  const emulation::Longs at(index);
  const emulation::Doubles x(v);
  return emulation::each<emulation::Doubles>([&](int i) PYDL_EMULATED_LAMBDA { return x.at[at.at[i] & 7]; });
}
PYDL_EMULATED __m512 _mm512_permutex2var_ps(__m512 a, __m512i index, __m512 b) {
  const emulation::Ints at(index);
  const emulation::Floats x(a), y(b);
  return emulation::each<emulation::Floats>(
      [&](int i) PYDL_EMULATED_LAMBDA { return (at.at[i] & 16 ? y : x).at[at.at[i] & 15]; });
}
PYDL_EMULATED __m512d _mm512_permutex2var_pd(__m512d a, __m512i index, __m512d b) {
  const emulation::Longs at(index);
  const emulation::Doubles x(a), y(b);
  return emulation::each<emulation::Doubles>(
      [&](int i) PYDL_EMULATED_LAMBDA { return (at.at[i] & 8 ? y : x).at[at.at[i] & 7]; });
}

}  // namespace pydl::cpu::PYDL_ISA
