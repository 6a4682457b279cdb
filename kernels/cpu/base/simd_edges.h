// Vectors that hang over the ends of a row, every second element of a row, and vectors of small integers.
#pragma once

#include "kernels/cpu/base/simd.h"

namespace pydl::cpu::PYDL_ISA {

// ---- the ends of a row

// The lanes [low, high) of v, `fill` in the others.
template <class A>
PYDL_INLINE vec<A> fill_outside(vec<A> v, int64_t low, int64_t high, A fill) {
  mask<A> lane;
#pragma GCC unroll 16
  for (int i = 0; i < lanes<A>; ++i) lane[i] = i;
  typedef decltype(lane[0] + lane[0]) Lane;
  const Lane first = static_cast<Lane>(max_of(low, 0)), last = static_cast<Lane>(min_of(high, lanes<A>));
  return ((lane >= first) & (lane < last)) ? v : broadcast(fill);
}

// Lanes [low, high) of what lies at p; the others are `fill` and their memory is not touched.
#if defined(PYDL_AVX512)
PYDL_INLINE vec<float> load_between(const float* p, int64_t low, int64_t high, float fill) {
  return (vec<float>)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)between_mask(low, high), p);
}
PYDL_INLINE vec<double> load_between(const double* p, int64_t low, int64_t high, double fill) {
  return (vec<double>)_mm512_mask_loadu_pd(_mm512_set1_pd(fill), (__mmask8)between_mask(low, high), p);
}
template <class T>
PYDL_INLINE vec<float> load_between(const T* p, int64_t low, int64_t high, float fill) {
  const __mmask16 inside = (__mmask16)between_mask(low, high);
  return (vec<float>)_mm512_mask_mov_ps(_mm512_set1_ps(fill), inside, (__m512)load_between(p, low, high));
}
#elif defined(PYDL_AVX2)
PYDL_INLINE vec<float> load_between(const float* p, int64_t low, int64_t high, float fill) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(max_of(low, 0))), lane);
  const __m256i above = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(min_of(high, 8))), lane);
  const __m256i inside = _mm256_andnot_si256(below, above);
  const __m256 v = _mm256_maskload_ps(p, inside);
  return (vec<float>)_mm256_blendv_ps(_mm256_set1_ps(fill), v, _mm256_castsi256_ps(inside));
}
template <class T>
PYDL_INLINE vec<acc_t<T>> load_between(const T* p, int64_t low, int64_t high, acc_t<T> fill) {
  return fill_outside<acc_t<T>>(load_between(p, low, high), low, high, fill);
}
#else
template <class T>
PYDL_INLINE vec<acc_t<T>> load_between(const T* p, int64_t low, int64_t high, acc_t<T> fill) {
  return fill_outside<acc_t<T>>(load_between(p, low, high), low, high, fill);
}
#endif

// Writes the lanes [low, high) of v.
template <class T>
PYDL_INLINE void store_between(T* p, vec<acc_t<T>> v, int64_t low, int64_t high) {
  constexpr int64_t all = lanes<acc_t<T>>;
  low = max_of(low, 0);
  high = min_of(high, all);
  if (low == 0 && high == all) return store(p, v);
  if (low >= high) return;
  if (low == 0) return store_n(p, v, high);
  T some[all];
  store(some, v);
  for (int64_t i = low; i < high; ++i) p[i] = some[i];
}

// ---- every second element: the shuffles of simd.h where the compiler makes less of the general form

#if defined(PYDL_AVX512)
PYDL_INLINE vec<double> odd_lanes(vec<double> a, vec<double> b) {
  const __m512i index = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
  return (vec<double>)_mm512_permutex2var_pd((__m512d)a, index, (__m512d)b);
}
PYDL_INLINE vec<double> interleave_lanes_low(vec<double> a, vec<double> b) {
  const __m512i index = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  return (vec<double>)_mm512_permutex2var_pd((__m512d)a, index, (__m512d)b);
}
PYDL_INLINE vec<double> interleave_lanes_high(vec<double> a, vec<double> b) {
  const __m512i index = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
  return (vec<double>)_mm512_permutex2var_pd((__m512d)a, index, (__m512d)b);
}
#elif defined(PYDL_AVX2)
PYDL_INLINE vec<float> odd_lanes(vec<float> a, vec<float> b) {
  return (vec<float>)_mm256_permute4x64_pd((__m256d)_mm256_shuffle_ps((__m256)a, (__m256)b, 0xdd), 0xd8);
}
PYDL_INLINE vec<float> interleave_lanes_low(vec<float> a, vec<float> b) {
  const __m256 p = _mm256_unpacklo_ps((__m256)a, (__m256)b), q = _mm256_unpackhi_ps((__m256)a, (__m256)b);
  return (vec<float>)_mm256_permute2f128_ps(p, q, 0x20);
}
PYDL_INLINE vec<float> interleave_lanes_high(vec<float> a, vec<float> b) {
  const __m256 p = _mm256_unpacklo_ps((__m256)a, (__m256)b), q = _mm256_unpackhi_ps((__m256)a, (__m256)b);
  return (vec<float>)_mm256_permute2f128_ps(p, q, 0x31);
}
#endif

// Lane i: element x + i * kStep of a row of `width` elements at p, `fill` outside of the row. kStep: 1 or 2.
template <int kStep, class T>
PYDL_INLINE vec<acc_t<T>> load_row(const T* p, int64_t x, int64_t width, acc_t<T> fill) {
  constexpr int64_t all = lanes<acc_t<T>>;
  if constexpr (kStep == 1) {
    if (x >= 0 && x + all <= width) return load(p + x);
    return load_between(p + x, -x, width - x, fill);
  } else {
    if (x >= 0 && x + 2 * all <= width) return even_lanes(load(p + x), load(p + x + all));
    return even_lanes(load_between(p + x, -x, width - x, fill),
                      load_between(p + x + all, -x - all, width - x - all, fill));
  }
}

// ---- small integers, one for each lane of a vector of A

template <class A>
PYDL_INLINE mask<A> splat_integer(int64_t n) {
  return mask<A>{} + static_cast<decltype(mask<A>{}[0] + 0)>(n);
}

// The first n of v, as they are stored: bytes or int32.
PYDL_INLINE void store_integers(int32_t* p, i32v v, int64_t n) {
  if (n >= lanes<float>) {
    memcpy(p, &v, sizeof v);
  } else {
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
  }
}
template <class P>
PYDL_INLINE void store_integers(P* p, i64v v, int64_t n) {
#if defined(PYDL_AVX512)
  if constexpr (sizeof(P) == 1)
    return _mm512_mask_cvtepi64_storeu_epi8(p, (__mmask8)lane_mask(n), (__m512i)v);
#endif
  for (int64_t i = 0; i < min_of(n, lanes<double>); ++i) p[i] = static_cast<P>(v[i]);
}
PYDL_INLINE void store_integers(uint8_t* p, i32v v, int64_t n) {
#if defined(PYDL_AVX512)
  if (n >= lanes<float>) return (void)_mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)v));
  _mm512_mask_cvtepi32_storeu_epi8(p, (__mmask16)lane_mask(n), (__m512i)v);
#else
  uint8_t bytes[lanes<float>];
#if defined(PYDL_AVX2)
  const __m256i low_bytes = _mm256_set1_epi64x(0x0c080400);
  const __m256i packed = _mm256_shuffle_epi8((__m256i)v, low_bytes);  // 4 bytes at the start of each half
  const __m128i both =
      _mm_unpacklo_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1));
  memcpy(bytes, &both, sizeof bytes);
#else
  for (int i = 0; i < lanes<float>; ++i) bytes[i] = static_cast<uint8_t>(v[i]);
#endif
  if (n >= lanes<float>) {
    memcpy(p, bytes, sizeof bytes);
  } else {
    for (int64_t i = 0; i < n; ++i) p[i] = bytes[i];
  }
#endif
}

// The integers at p in the lanes [low, high), -1 in the others, whose memory is not touched.
template <class A, class P>
PYDL_INLINE mask<A> load_integers(const P* p, int64_t low, int64_t high) {
#if defined(PYDL_AVX512)
  if constexpr (sizeof(P) == 1 && sizeof(A) == 4) {
    const __mmask16 inside = (__mmask16)between_mask(low, high);
    const __m128i bytes = _mm_maskz_loadu_epi8(inside, p);
    return (mask<A>)_mm512_mask_cvtepu8_epi32(_mm512_set1_epi32(-1), inside, bytes);
  }
#elif defined(PYDL_AVX2)
  if constexpr (sizeof(P) == 1 && sizeof(A) == 4) {
    if (low <= 0 && high >= lanes<A>)
      return (mask<A>)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
#endif
  mask<A> v;
  for (int i = 0; i < lanes<A>; ++i) v[i] = -1;
  for (int64_t i = max_of(low, 0); i < min_of(high, lanes<A>); ++i) v[i] = p[i];
  return v;
}

// ---- the same for lanes that are known before a loop: what they are made of is computed once

#if defined(PYDL_AVX512)
struct Lanes {
  uint32_t bits;
};
PYDL_INLINE Lanes lanes_between(int64_t low, int64_t high) { return {between_mask(low, high)}; }
PYDL_INLINE vec<float> load_lanes(const float* p, Lanes inside, float fill) {
  return (vec<float>)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)inside.bits, p);
}
PYDL_INLINE vec<double> load_lanes(const double* p, Lanes inside, double fill) {
  return (vec<double>)_mm512_mask_loadu_pd(_mm512_set1_pd(fill), (__mmask8)inside.bits, p);
}
PYDL_INLINE vec<float> fill_others(vec<float> v, Lanes inside, float fill) {
  return (vec<float>)_mm512_mask_mov_ps(_mm512_set1_ps(fill), (__mmask16)inside.bits, (__m512)v);
}
PYDL_INLINE vec<float> load_lanes(const bf16* p, Lanes inside, float fill) {
  return fill_others(widen_bf16((u16h)_mm256_maskz_loadu_epi16((__mmask16)inside.bits, p)), inside, fill);
}
PYDL_INLINE vec<float> load_lanes(const f16* p, Lanes inside, float fill) {
  return fill_others(widen_f16((u16h)_mm256_maskz_loadu_epi16((__mmask16)inside.bits, p)), inside, fill);
}
template <class A, class P>
PYDL_INLINE mask<A> load_integers(const P* p, Lanes inside) {
  if constexpr (sizeof(A) == 4) {
    const __m128i bytes = _mm_maskz_loadu_epi8((__mmask16)inside.bits, p);
    return (mask<A>)_mm512_cvtepu8_epi32(bytes);
  } else {
    const __m128i bytes = _mm_maskz_loadu_epi8((__mmask16)(inside.bits & 0xff), p);
    return (mask<A>)_mm512_cvtepu8_epi64(bytes);
  }
}
PYDL_INLINE void store_lanes(float* p, vec<float> v, Lanes inside) {
  _mm512_mask_storeu_ps(p, (__mmask16)inside.bits, (__m512)v);
}
PYDL_INLINE void store_lanes(double* p, vec<double> v, Lanes inside) {
  _mm512_mask_storeu_pd(p, (__mmask8)inside.bits, (__m512d)v);
}
PYDL_INLINE void store_lanes(bf16* p, vec<float> v, Lanes inside) {
  _mm256_mask_storeu_epi16(p, (__mmask16)inside.bits, (__m256i)narrow_bf16(v));
}
PYDL_INLINE void store_lanes(f16* p, vec<float> v, Lanes inside) {
  _mm256_mask_storeu_epi16(p, (__mmask16)inside.bits, (__m256i)narrow_f16(v));
}
#else
struct Lanes {
  int64_t low, high;
};
PYDL_INLINE Lanes lanes_between(int64_t low, int64_t high) { return {low, high}; }
template <class T>
PYDL_INLINE vec<acc_t<T>> load_lanes(const T* p, Lanes inside, acc_t<T> fill) {
  if (inside.low <= 0 && inside.high >= lanes<acc_t<T>>) return load(p);
  return load_between(p, inside.low, inside.high, fill);
}
template <class A, class P>
PYDL_INLINE mask<A> load_integers(const P* p, Lanes inside) {
  return load_integers<A>(p, inside.low, inside.high);
}
template <class T>
PYDL_INLINE void store_lanes(T* p, vec<acc_t<T>> v, Lanes inside) {
  store_between(p, v, inside.low, inside.high);
}
#endif

// ---- choosing

// Where `value` is greater than `best`, or a nan, it becomes the best, and its place the best's.
template <class A>
PYDL_INLINE void take_greater(vec<A>& best, mask<A>& place, vec<A> value, mask<A> its_place) {
#if defined(PYDL_AVX512)
  if constexpr (sizeof(A) == 4) {
    const __mmask16 takes = _mm512_cmp_ps_mask((__m512)value, (__m512)best, _CMP_GT_OQ) |
                            _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_UNORD_Q);
    best = (vec<A>)_mm512_mask_mov_ps((__m512)best, takes, (__m512)value);
    place = (mask<A>)_mm512_mask_mov_epi32((__m512i)place, takes, (__m512i)its_place);
  } else {
    const __mmask8 takes = _mm512_cmp_pd_mask((__m512d)value, (__m512d)best, _CMP_GT_OQ) |
                           _mm512_cmp_pd_mask((__m512d)value, (__m512d)value, _CMP_UNORD_Q);
    best = (vec<A>)_mm512_mask_mov_pd((__m512d)best, takes, (__m512d)value);
    place = (mask<A>)_mm512_mask_mov_epi64((__m512i)place, takes, (__m512i)its_place);
  }
#else
  const mask<A> takes = (value > best) | (value != value);
  best = takes ? value : best;
  place = takes ? its_place : place;
#endif
}

// sum, with `value` added where `wanted` is `place`.
template <class A>
PYDL_INLINE vec<A> add_where_equal(vec<A> sum, vec<A> value, mask<A> place, mask<A> wanted) {
#if defined(PYDL_AVX512)
  if constexpr (sizeof(A) == 4) {
    const __mmask16 equal = _mm512_cmpeq_epi32_mask((__m512i)place, (__m512i)wanted);
    return (vec<A>)_mm512_mask_add_ps((__m512)sum, equal, (__m512)sum, (__m512)value);
  } else {
    const __mmask8 equal = _mm512_cmpeq_epi64_mask((__m512i)place, (__m512i)wanted);
    return (vec<A>)_mm512_mask_add_pd((__m512d)sum, equal, (__m512d)sum, (__m512d)value);
  }
#else
  // bits, not a product: what is not wanted may be inf or nan
  return sum + bit_cast<vec<A>>((place == wanted) & bit_cast<mask<A>>(value));
#endif
}

}  // namespace pydl::cpu::PYDL_ISA
