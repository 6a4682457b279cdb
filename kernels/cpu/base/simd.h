// SIMD for the CPU kernels: the compiler's vector types, wrapped just enough that one source serves every
// set.
//
// vec<float> and vec<double> are as wide as the set being compiled (16, 32 or 64 bytes); + - * / and
// comparisons are the compiler's. A kernel loads any storage type into its accumulation type and stores it
// back:
//
//   load(p)          vec<float> from const float*, bf16* or f16*; vec<double> from const double*
//   store(q, x)      rounds to nearest even for half types
//   load_n(p, n)     the first n lanes; the others read as zero
//   store_n(q, x, n) the first n lanes; the others are not written
//   stream(q, x)     past the caches; q aligned to the bytes written
//
// Intrinsics stay in this file. Everything lives in the namespace of its instruction set, so that no inline
// function compiled for a wide set can be linked into a narrow one.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/common.h"

#ifndef PYDL_ISA
#error "PYDL_ISA names the instruction set being compiled (CMakeLists.txt)"
#endif

#define PYDL_INLINE inline __attribute__((always_inline))
// [&](int64_t i) PYDL_INLINE_LAMBDA { ... }: a body called from several places of a hot loop stays part of it
#define PYDL_INLINE_LAMBDA __attribute__((always_inline))

namespace pydl::cpu::PYDL_ISA {

#if defined(__AVX512F__)
#define PYDL_AVX512 1
static constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
#define PYDL_AVX2 1
static constexpr int kVectorBytes = 32;
#else
static constexpr int kVectorBytes = 16;
#endif

// Whether the build wants small kernels rather than fast ones (CMakeLists.txt: x86 without AVX2).
#if defined(PYDL_PLAIN)
static constexpr bool kPlain = true;
#else
static constexpr bool kPlain = false;
#endif

template <class A>
struct vector_of;
template <>
struct vector_of<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct vector_of<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using vec = typename vector_of<A>::type;
// What a comparison of vec<A> gives: lanes of 0 or -1, for `mask ? a : b` and bit operations.
template <class A>
using mask = typename vector_of<A>::mask;

typedef int32_t i32v __attribute__((vector_size(kVectorBytes)));
typedef uint32_t u32v __attribute__((vector_size(kVectorBytes)));
typedef int64_t i64v __attribute__((vector_size(kVectorBytes)));
typedef uint64_t u64v __attribute__((vector_size(kVectorBytes)));
typedef uint16_t u16h __attribute__((vector_size(kVectorBytes / 2)));  // as many lanes as vec<float>

template <class A>
static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(A));

template <class A>
PYDL_INLINE vec<A> broadcast(A a) {
  return vec<A>{} + a;  // -0.0 becomes +0.0, which no caller tells apart
}

// The same without the addition that -0.0 forces on the compiler: x - 0.0 is x, so one broadcast remains. For
// inner loops.
template <class A>
PYDL_INLINE vec<A> splat(A a) {
  return a - vec<A>{};
}

template <class To, class From>
PYDL_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// ---- float <-> half, lane by lane

// 16-bit lanes to 32 bits, and the low halves of 32-bit lanes back. gcc 12 takes its own vectors apart for
// both.
PYDL_INLINE u32v widen_bits(u16h bits) {
#if defined(PYDL_AVX512)
  return (u32v)_mm512_cvtepu16_epi32((__m256i)bits);
#elif defined(PYDL_AVX2)
  return (u32v)_mm256_cvtepu16_epi32((__m128i)bits);
#else
  return __builtin_convertvector(bits, u32v);
#endif
}
PYDL_INLINE u16h narrow_bits(u32v bits) {
#if defined(PYDL_AVX512)
  return (u16h)_mm512_cvtepi32_epi16((__m512i)bits);
#else
  return __builtin_convertvector(bits, u16h);
#endif
}

PYDL_INLINE vec<float> widen_bf16(u16h bits) { return bit_cast<vec<float>>(widen_bits(bits) << 16); }

PYDL_INLINE u16h narrow_bf16(vec<float> x) {
  const u32v bits = bit_cast<u32v>(x);
  const u32v rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const u32v quiet_nan = u32v{} + 0x7fc0u;
  return narrow_bits(x == x ? rounded : quiet_nan);
}

#if defined(PYDL_AVX512)
PYDL_INLINE vec<float> widen_f16(u16h bits) { return (vec<float>)_mm512_cvtph_ps((__m256i)bits); }
PYDL_INLINE u16h narrow_f16(vec<float> x) {
  return (u16h)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(PYDL_AVX2)
PYDL_INLINE vec<float> widen_f16(u16h bits) { return (vec<float>)_mm256_cvtph_ps((__m128i)bits); }
PYDL_INLINE u16h narrow_f16(vec<float> x) {
  return (u16h)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#else
// Calls on x86-64, where CPUs without the instructions are few by now: inlined everywhere, these thirty would
// be a large part of what the baseline takes to compile.
#if defined(__x86_64__)
#define PYDL_CONVERSION [[maybe_unused]] __attribute__((noinline)) static
#else
#define PYDL_CONVERSION PYDL_INLINE
#endif
// In integers, for sets without a conversion instruction: exponent and mantissa are moved, and a
// multiplication by a power of two puts subnormals right.
PYDL_CONVERSION vec<float> widen_f16(u16h half) {
  const u32v bits = __builtin_convertvector(half, u32v);
  const u32v sign = (bits & 0x8000u) << 16, body = (bits & 0x7fffu) << 13;
  const u32v finite = bit_cast<u32v>(bit_cast<vec<float>>(body) * 0x1p112f);
  const u32v special = body | 0x7f800000u;
  return bit_cast<vec<float>>((body >= (0x7c00u << 13) ? special : finite) | sign);
}
PYDL_CONVERSION u16h narrow_f16(vec<float> x) {
  const u32v bits = bit_cast<u32v>(x), sign = (bits >> 16) & 0x8000u, body = bits & 0x7fffffffu;
  // normal halves: rebias the exponent by 127 - 15 and round the 13 lost bits to nearest even
  const u32v normal = (body - (112u << 23) + 0xfffu + ((body >> 13) & 1u)) >> 13;
  // subnormal halves: adding 0.5 leaves the half's mantissa, rounded by the addition, in the low bits
  const u32v subnormal = bit_cast<u32v>(bit_cast<vec<float>>(body) + 0.5f) - 0x3f000000u;
  const u32v infinite = u32v{} + 0x7c00u, nan = u32v{} + 0x7e00u;
  u32v half = body < (113u << 23) ? subnormal : normal;
  half = body >= 0x477ff000u ? infinite : half;  // 65520, the first value that rounds beyond the largest half
  half = body > 0x7f800000u ? nan : half;
  return __builtin_convertvector(half | sign, u16h);
}
#endif

// ---- loads and stores

PYDL_INLINE vec<float> load(const float* p) {
  vec<float> v;
  memcpy(&v, p, sizeof v);
  return v;
}
PYDL_INLINE vec<double> load(const double* p) {
  vec<double> v;
  memcpy(&v, p, sizeof v);
  return v;
}
PYDL_INLINE vec<float> load(const bf16* p) {
  u16h v;
  memcpy(&v, p, sizeof v);
  return widen_bf16(v);
}
PYDL_INLINE vec<float> load(const f16* p) {
  u16h v;
  memcpy(&v, p, sizeof v);
  return widen_f16(v);
}

PYDL_INLINE void store(float* p, vec<float> v) { memcpy(p, &v, sizeof v); }
PYDL_INLINE void store(double* p, vec<double> v) { memcpy(p, &v, sizeof v); }
PYDL_INLINE void store(bf16* p, vec<float> v) {
  const u16h h = narrow_bf16(v);
  memcpy(p, &h, sizeof h);
}
PYDL_INLINE void store(f16* p, vec<float> v) {
  const u16h h = narrow_f16(v);
  memcpy(p, &h, sizeof h);
}

#if defined(PYDL_AVX512)
PYDL_INLINE uint32_t lane_mask(int64_t n) { return n >= 32 ? ~0u : (1u << n) - 1u; }
PYDL_INLINE u16h load_bits_n(const void* p, int64_t n) {
  return (u16h)_mm256_maskz_loadu_epi16((__mmask16)lane_mask(n), p);
}
PYDL_INLINE void store_bits_n(void* p, u16h v, int64_t n) {
  _mm256_mask_storeu_epi16(p, (__mmask16)lane_mask(n), (__m256i)v);
}
PYDL_INLINE vec<float> load_n(const float* p, int64_t n) {
  return (vec<float>)_mm512_maskz_loadu_ps((__mmask16)lane_mask(n), p);
}
PYDL_INLINE vec<double> load_n(const double* p, int64_t n) {
  return (vec<double>)_mm512_maskz_loadu_pd((__mmask8)lane_mask(n), p);
}
PYDL_INLINE void store_n(float* p, vec<float> v, int64_t n) {
  _mm512_mask_storeu_ps(p, (__mmask16)lane_mask(n), (__m512)v);
}
PYDL_INLINE void store_n(double* p, vec<double> v, int64_t n) {
  _mm512_mask_storeu_pd(p, (__mmask8)lane_mask(n), (__m512d)v);
}
#elif defined(PYDL_AVX2)
// Masked loads, and stores of 16, 8, 4 and 2 bytes: masked stores are microcode on AMD's, and memcpy of a
// number of bytes that is not known is a call.
alignas(32) static constexpr int32_t kFirstLanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
PYDL_INLINE __m256i lane_mask(int64_t dwords) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirstLanes + 8 - dwords));
}
// Out of line, like its counterpart below: a dozen branches at each end of a row of 16-bit numbers.
[[maybe_unused]] __attribute__((noinline)) static u16h load_bits_n(const void* p, int64_t n) {
  u16h v;
  if (n >= 8) {
    memcpy(&v, p, sizeof v);
    return v;
  }
  const char* at = static_cast<const char*>(p);
  uint64_t low = 0, rest = 0;
  uint32_t pair = 0;
  uint16_t one = 0;
  if (n & 4) {
    memcpy(&low, at, 8);
    at += 8;
  }
  if (n & 2) {
    memcpy(&pair, at, 4);
    at += 4;
  }
  if (n & 1) memcpy(&one, at, 2);
  rest = pair | static_cast<uint64_t>(one) << (n & 2 ? 32 : 0);
  return n & 4 ? (u16h)_mm_set_epi64x(static_cast<int64_t>(rest), static_cast<int64_t>(low))
               : (u16h)_mm_set_epi64x(0, static_cast<int64_t>(rest));
}
[[maybe_unused]] __attribute__((noinline)) static void store_bits_n(void* p, u16h v, int64_t n) {
  __m128i x = (__m128i)v;
  char* at = static_cast<char*>(p);
  if (n >= 8) return _mm_storeu_si128(static_cast<__m128i*>(p), x);
  if (n & 4) {
    _mm_storeu_si64(at, x);
    x = _mm_srli_si128(x, 8);
    at += 8;
  }
  if (n & 2) {
    _mm_storeu_si32(at, x);
    x = _mm_srli_si128(x, 4);
    at += 4;
  }
  if (n & 1) _mm_storeu_si16(at, x);
}
PYDL_INLINE vec<float> load_n(const float* p, int64_t n) {
  return (vec<float>)_mm256_maskload_ps(p, lane_mask(n));
}
PYDL_INLINE vec<double> load_n(const double* p, int64_t n) {
  return (vec<double>)_mm256_maskload_pd(p, lane_mask(2 * n));
}
PYDL_INLINE void store_n(float* p, vec<float> v, int64_t n) {
  if (n >= 8) return _mm256_storeu_ps(p, (__m256)v);
  __m128 x = _mm256_castps256_ps128((__m256)v);
  if (n & 4) {
    _mm_storeu_ps(p, x);
    x = _mm256_extractf128_ps((__m256)v, 1);
    p += 4;
  }
  if (n & 2) {
    _mm_storeu_si64(p, _mm_castps_si128(x));
    x = _mm_movehl_ps(x, x);
    p += 2;
  }
  if (n & 1) _mm_store_ss(p, x);
}
PYDL_INLINE void store_n(double* p, vec<double> v, int64_t n) {
  if (n >= 4) return _mm256_storeu_pd(p, (__m256d)v);
  __m128d x = _mm256_castpd256_pd128((__m256d)v);
  if (n & 2) {
    _mm_storeu_pd(p, x);
    x = _mm256_extractf128_pd((__m256d)v, 1);
    p += 2;
  }
  if (n & 1) _mm_store_sd(p, x);
}
#else
PYDL_INLINE u16h load_bits_n(const void* p, int64_t n) {
  u16h v{};
  memcpy(&v, p, static_cast<size_t>(n) * 2);
  return v;
}
PYDL_INLINE void store_bits_n(void* p, u16h v, int64_t n) { memcpy(p, &v, static_cast<size_t>(n) * 2); }
PYDL_INLINE vec<float> load_n(const float* p, int64_t n) {
  vec<float> v{};
  memcpy(&v, p, static_cast<size_t>(n) * 4);
  return v;
}
PYDL_INLINE vec<double> load_n(const double* p, int64_t n) {
  vec<double> v{};
  memcpy(&v, p, static_cast<size_t>(n) * 8);
  return v;
}
PYDL_INLINE void store_n(float* p, vec<float> v, int64_t n) { memcpy(p, &v, static_cast<size_t>(n) * 4); }
PYDL_INLINE void store_n(double* p, vec<double> v, int64_t n) { memcpy(p, &v, static_cast<size_t>(n) * 8); }
#endif
PYDL_INLINE vec<float> load_n(const bf16* p, int64_t n) { return widen_bf16(load_bits_n(p, n)); }
PYDL_INLINE vec<float> load_n(const f16* p, int64_t n) { return widen_f16(load_bits_n(p, n)); }
PYDL_INLINE void store_n(bf16* p, vec<float> v, int64_t n) { store_bits_n(p, narrow_bf16(v), n); }
PYDL_INLINE void store_n(f16* p, vec<float> v, int64_t n) { store_bits_n(p, narrow_f16(v), n); }

// Lanes [low, high) of what lies at p; the others read as zero and their memory is not touched.
#if defined(PYDL_AVX512)
PYDL_INLINE uint32_t between_mask(int64_t low, int64_t high) {
  return lane_mask(max_of(high, 0)) & ~lane_mask(max_of(low, 0));
}
PYDL_INLINE vec<float> load_between(const float* p, int64_t low, int64_t high) {
  return (vec<float>)_mm512_maskz_loadu_ps((__mmask16)between_mask(low, high), p);
}
PYDL_INLINE vec<double> load_between(const double* p, int64_t low, int64_t high) {
  return (vec<double>)_mm512_maskz_loadu_pd((__mmask8)between_mask(low, high), p);
}
PYDL_INLINE u16h load_bits_between(const void* p, int64_t low, int64_t high) {
  return (u16h)_mm256_maskz_loadu_epi16((__mmask16)between_mask(low, high), p);
}
PYDL_INLINE vec<float> load_between(const bf16* p, int64_t low, int64_t high) {
  return widen_bf16((u16h)_mm256_maskz_loadu_epi16((__mmask16)between_mask(low, high), p));
}
PYDL_INLINE vec<float> load_between(const f16* p, int64_t low, int64_t high) {
  return widen_f16((u16h)_mm256_maskz_loadu_epi16((__mmask16)between_mask(low, high), p));
}
#else
#if defined(PYDL_AVX2)
PYDL_INLINE vec<float> load_between(const float* p, int64_t low, int64_t high) {
  const __m256i outside = lane_mask(max_of(min_of(low, 8), 0)), below = lane_mask(max_of(min_of(high, 8), 0));
  return (vec<float>)_mm256_maskload_ps(p, _mm256_andnot_si256(outside, below));
}
#endif
template <class T>
PYDL_INLINE vec<acc_t<T>> load_between(const T* p, int64_t low, int64_t high) {
  constexpr int64_t all = lanes<acc_t<T>>;
  low = max_of(low, 0);
  high = min_of(high, all);
  if (low == 0 && high == all) return load(p);
  T some[all] = {};
  for (int64_t i = low; i < high; ++i) some[i] = p[i];
  return load(some);
}
#endif

// Non-temporal stores save the read of the line that is about to be overwritten; call stream_fence() once
// after the last one. They pay when the output is larger than about half of the last-level cache and cost 5×
// when it fits.
#if defined(PYDL_AVX512)
PYDL_INLINE void stream_bytes(void* p, u32v v) { _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v); }
PYDL_INLINE void stream_half_bytes(void* p, u16h v) {
  _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
}
#elif defined(PYDL_AVX2)
PYDL_INLINE void stream_bytes(void* p, u32v v) { _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v); }
PYDL_INLINE void stream_half_bytes(void* p, u16h v) {
  _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)v);
}
#elif defined(__x86_64__)
PYDL_INLINE void stream_bytes(void* p, u32v v) { _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)v); }
PYDL_INLINE void stream_half_bytes(void* p, u16h v) {
  _mm_stream_si64(static_cast<long long*>(p), (long long)v);
}
#else
PYDL_INLINE void stream_bytes(void* p, u32v v) { memcpy(p, &v, sizeof v); }
PYDL_INLINE void stream_half_bytes(void* p, u16h v) { memcpy(p, &v, sizeof v); }
#endif
PYDL_INLINE void stream(float* p, vec<float> v) { stream_bytes(p, bit_cast<u32v>(v)); }
PYDL_INLINE void stream(double* p, vec<double> v) { stream_bytes(p, bit_cast<u32v>(v)); }
PYDL_INLINE void stream(bf16* p, vec<float> v) { stream_half_bytes(p, narrow_bf16(v)); }
PYDL_INLINE void stream(f16* p, vec<float> v) { stream_half_bytes(p, narrow_f16(v)); }

PYDL_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

PYDL_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
PYDL_INLINE void prefetch_to_write(void* p) { __builtin_prefetch(p, 1, 3); }
PYDL_INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

// ---- arithmetic

// v itself, computed here whatever follows. `m ? load(p) : 0` becomes a masked load that waits for m, and
// with it a miss in the cache for the one before; `m ? pin(load(p)) : 0` keeps the loads independent.
template <class V>
PYDL_INLINE V pin(V v) {
#if defined(PYDL_EMULATE_AVX512)
  asm("" : "+m"(v));  // no register is as wide
#elif defined(PYDL_AVX512)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#endif
  return v;
}

// a > b ? a : b in each lane; b where either is nan, as the hardware does.
#if defined(PYDL_AVX512)
PYDL_INLINE vec<float> max(vec<float> a, vec<float> b) {
  return (vec<float>)_mm512_max_ps((__m512)a, (__m512)b);
}
PYDL_INLINE vec<double> max(vec<double> a, vec<double> b) {
  return (vec<double>)_mm512_max_pd((__m512d)a, (__m512d)b);
}
#elif defined(PYDL_AVX2)
PYDL_INLINE vec<float> max(vec<float> a, vec<float> b) {
  return (vec<float>)_mm256_max_ps((__m256)a, (__m256)b);
}
PYDL_INLINE vec<double> max(vec<double> a, vec<double> b) {
  return (vec<double>)_mm256_max_pd((__m256d)a, (__m256d)b);
}
#else
PYDL_INLINE vec<float> max(vec<float> a, vec<float> b) { return a > b ? a : b; }
PYDL_INLINE vec<double> max(vec<double> a, vec<double> b) { return a > b ? a : b; }
#endif

// Sums in a tree of fixed shape: lane i with lane i + half, and so on.
template <class A>
PYDL_INLINE A reduce_add_vector(vec<A> v) {
  A lane[lanes<A>];
  memcpy(lane, &v, sizeof v);
  for (int half = lanes<A> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}
template <class A>
PYDL_INLINE A reduce_max_vector(vec<A> v) {
  A lane[lanes<A>];
  memcpy(lane, &v, sizeof v);
  for (int half = lanes<A> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
  return lane[0];
}
#if defined(PYDL_AVX512)
PYDL_INLINE float reduce_add(vec<float> v) { return _mm512_reduce_add_ps((__m512)v); }
PYDL_INLINE double reduce_add(vec<double> v) { return _mm512_reduce_add_pd((__m512d)v); }
PYDL_INLINE float reduce_max(vec<float> v) { return _mm512_reduce_max_ps((__m512)v); }
PYDL_INLINE double reduce_max(vec<double> v) { return _mm512_reduce_max_pd((__m512d)v); }
#else
PYDL_INLINE float reduce_add(vec<float> v) { return reduce_add_vector<float>(v); }
PYDL_INLINE double reduce_add(vec<double> v) { return reduce_add_vector<double>(v); }
PYDL_INLINE float reduce_max(vec<float> v) { return reduce_max_vector<float>(v); }
PYDL_INLINE double reduce_max(vec<double> v) { return reduce_max_vector<double>(v); }
#endif

// ---- rearranging

#if defined(PYDL_AVX512)
// The even lanes of a followed by those of b.
PYDL_INLINE vec<float> even_lanes(vec<float> a, vec<float> b) {
  const __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return (vec<float>)_mm512_permutex2var_ps((__m512)a, index, (__m512)b);
}
#elif defined(PYDL_AVX2)
PYDL_INLINE vec<float> even_lanes(vec<float> a, vec<float> b) {
  const __m256d mixed = (__m256d)_mm256_shuffle_ps((__m256)a, (__m256)b, 0x88);
  return (vec<float>)_mm256_permute4x64_pd(mixed, 0xd8);
}
#else
PYDL_INLINE vec<float> even_lanes(vec<float> a, vec<float> b) { return vec<float>{a[0], a[2], b[0], b[2]}; }
#endif
PYDL_INLINE vec<double> even_lanes(vec<double> a, vec<double> b) {
  vec<double> even{};
  for (int i = 0; i < lanes<double> / 2; ++i) {
    even[i] = a[2 * i];
    even[lanes<double> / 2 + i] = b[2 * i];
  }
  return even;
}

#if defined(PYDL_AVX512)
// The odd lanes of a followed by those of b.
PYDL_INLINE vec<float> odd_lanes(vec<float> a, vec<float> b) {
  const __m512i index = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return (vec<float>)_mm512_permutex2var_ps((__m512)a, index, (__m512)b);
}
// a[0], b[0], a[1], b[1], ...: the first half of it, and the second.
PYDL_INLINE vec<float> interleave_lanes_low(vec<float> a, vec<float> b) {
  const __m512i index = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return (vec<float>)_mm512_permutex2var_ps((__m512)a, index, (__m512)b);
}
PYDL_INLINE vec<float> interleave_lanes_high(vec<float> a, vec<float> b) {
  const __m512i index = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return (vec<float>)_mm512_permutex2var_ps((__m512)a, index, (__m512)b);
}
#endif
template <class V>
PYDL_INLINE V odd_lanes(V a, V b) {
  constexpr int half = sizeof(V) / sizeof(a[0]) / 2;
  V odd{};
  for (int i = 0; i < half; ++i) {
    odd[i] = a[2 * i + 1];
    odd[half + i] = b[2 * i + 1];
  }
  return odd;
}
template <class V>
PYDL_INLINE V interleave_lanes_low(V a, V b) {
  V both{};
  for (size_t i = 0; i < sizeof(V) / sizeof(a[0]); ++i) both[i] = i % 2 ? b[i / 2] : a[i / 2];
  return both;
}
template <class V>
PYDL_INLINE V interleave_lanes_high(V a, V b) {
  constexpr size_t lanes_of_v = sizeof(V) / sizeof(a[0]);
  V both{};
  for (size_t i = 0; i < lanes_of_v; ++i) {
    const size_t from = (lanes_of_v + i) / 2;
    both[i] = i % 2 ? b[from] : a[from];
  }
  return both;
}

// Lane i of the result is lane index[i] of v.
#if defined(PYDL_AVX512)
PYDL_INLINE vec<float> permute(vec<float> v, mask<float> index) {
  return (vec<float>)_mm512_permutexvar_ps((__m512i)index, (__m512)v);
}
PYDL_INLINE vec<double> permute(vec<double> v, mask<double> index) {
  return (vec<double>)_mm512_permutexvar_pd((__m512i)index, (__m512d)v);
}
// The same of two, b's lanes counted on from a's last.
PYDL_INLINE vec<float> permute(vec<float> a, vec<float> b, mask<float> index) {
  return (vec<float>)_mm512_permutex2var_ps((__m512)a, (__m512i)index, (__m512)b);
}
#else
#if defined(PYDL_AVX2)
PYDL_INLINE vec<float> permute(vec<float> v, mask<float> index) {
  return (vec<float>)_mm256_permutevar8x32_ps((__m256)v, (__m256i)index);
}
#endif
template <class V, class I>
PYDL_INLINE V permute(V v, I index) {
  V moved{};
  for (size_t i = 0; i < sizeof(V) / sizeof(v[0]); ++i) moved[i] = v[index[i]];
  return moved;
}
#endif

// p[index] in the lanes where `inside` is -1, 0 in the others, whose index is not read. 18 cycles for 16
// lanes on Zen 5: worth it where a vector's numbers lie in three places or more.
PYDL_INLINE vec<float> gather(const float* p, i32v index, i32v inside) {
#if defined(PYDL_AVX512)
  return (vec<float>)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), _mm512_movepi32_mask((__m512i)inside),
                                              (__m512i)index, p, 4);
#elif defined(PYDL_AVX2)
  return (vec<float>)_mm256_mask_i32gather_ps(_mm256_setzero_ps(), p, (__m256i)index, (__m256)inside, 4);
#else
  vec<float> v{};
  for (int i = 0; i < lanes<float>; ++i)
    if (inside[i]) v[i] = p[index[i]];
  return v;
#endif
}

// ---- products, element by element, of what a matrix product is made of

// Two bf16 side by side, as the dot-product instruction takes them.
struct bf16_pair {
  bf16 low, high;
};

// Two vectors of 16-bit numbers, lane by lane side by side.
PYDL_INLINE u32v side_by_side(u16h low, u16h high) { return widen_bits(low) | widen_bits(high) << 16; }
#if defined(PYDL_AVX512)
// Pairs that lie in memory, of the first n numbers; the others are zero.
PYDL_INLINE u32v load_pairs_n(const void* p, int64_t n) {
  return (u32v)_mm512_maskz_loadu_epi16((__mmask32)lane_mask(n), p);
}
#endif

// Vectors of elements as they lie, and one element in every lane.
PYDL_INLINE vec<float> load_elements(const float* p) { return load(p); }
PYDL_INLINE vec<double> load_elements(const double* p) { return load(p); }
PYDL_INLINE u32v load_elements(const bf16_pair* p) {
  u32v v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class E>
PYDL_INLINE auto splat_element(const void* p) {
  if constexpr (sizeof(E) == sizeof(bf16_pair) && !__is_same(E, float)) {
    uint32_t bits;
    memcpy(&bits, p, sizeof bits);
    return u32v{} + bits;
  } else {
    E a;
    memcpy(&a, p, sizeof a);
    return splat(a);
  }
}

// sum + a * b, in one rounding where the set has it.
PYDL_INLINE vec<float> multiply_add(vec<float> a, vec<float> b, vec<float> sum) { return a * b + sum; }
PYDL_INLINE vec<double> multiply_add(vec<double> a, vec<double> b, vec<double> sum) { return a * b + sum; }

#if defined(__AVX512BF16__)
#define PYDL_BF16_DOT 1  // compiled in; whether this CPU runs it is cpu_has_bf16_dot() of isa.h
// sum + a.low * b.low + a.high * b.high in each lane.
PYDL_INLINE vec<float> multiply_add(u32v a, u32v b, vec<float> sum) {
  return (vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
// The first n numbers of pairs go out; words by their index where `kept` has their bit, else 0.
PYDL_INLINE void store_pairs_n(void* p, u32v v, int64_t n) {
  _mm512_mask_storeu_epi16(p, (__mmask32)lane_mask(n), (__m512i)v);
}
PYDL_INLINE u32v pick_words(u32v x, u32v index, uint32_t kept) {
  return (u32v)_mm512_maskz_permutexvar_epi16(kept, (__m512i)index, (__m512i)x);
}
#endif

// Hides how a value came about, so that the compiler keeps it in a register instead of working it out again.
#define PYDL_OPAQUE(x) asm("" : "+r"(x))

// ---- integers, for the random generator

// Low 32 bits of each 64-bit lane times a 32-bit constant, to 64 bits.
PYDL_INLINE u64v multiply_low_halves(u64v a, uint32_t b) {
  const u64v wide = u64v{} + b;
#if defined(PYDL_AVX512)
  return (u64v)_mm512_mul_epu32((__m512i)a, (__m512i)wide);
#elif defined(PYDL_AVX2)
  return (u64v)_mm256_mul_epu32((__m256i)a, (__m256i)wide);
#elif defined(__x86_64__)
  return (u64v)_mm_mul_epu32((__m128i)a, (__m128i)wide);
#else
  return (a & 0xffffffffull) * wide;
#endif
}

// a, with the high half of each 64-bit lane xored with the high half of b and with key.
PYDL_INLINE u64v xor_high_halves(u64v a, u64v b, uint32_t key) {
#if defined(PYDL_AVX512)
  const __m512i keys = _mm512_set1_epi32(static_cast<int>(key));
  return (u64v)_mm512_mask_ternarylogic_epi32((__m512i)a, 0xAAAA, (__m512i)b, keys, 0x96);
#else
  return a ^ (b & 0xffffffff00000000ull) ^ (u64v{} + (static_cast<uint64_t>(key) << 32));
#endif
}

// Bit i of the result is set where lane i of a comparison of 32-bit lanes is true.
PYDL_INLINE uint32_t mask_bits(i32v m) {
#if defined(PYDL_AVX512)
  return static_cast<uint32_t>(_mm512_movepi32_mask((__m512i)m));
#elif defined(PYDL_AVX2)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)m));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)m));
#else
  uint32_t bits = 0;
  for (int i = 0; i < lanes<float>; ++i) bits |= (static_cast<uint32_t>(m[i]) & 1u) << i;
  return bits;
#endif
}

}  // namespace pydl::cpu::PYDL_ISA
