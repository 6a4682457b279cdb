// Vectors that hang over the ends of a row, every second element of a row, and vectors of small integers.
#pragma once

#include "kernels/cpu/simd.h"

namespace pydl::cpu::PYDL_ISA {

// ---- the ends of a row

// The lanes [low, high) of v, `fill` in the others.
template <class A>
PYDL_INLINE vec<A> fill_outside(vec<A> v, int64_t low, int64_t high, A fill) {
  mask<A> lane;
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

// ---- every second element

#if defined(PYDL_AVX512)
PYDL_INLINE vec<double> every_second(vec<double> a, vec<double> b) {
  const __m512i index = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
  return (vec<double>)_mm512_permutex2var_pd((__m512d)a, index, (__m512d)b);
}
PYDL_INLINE vec<double> every_other(vec<double> a, vec<double> b) {
  const __m512i index = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
  return (vec<double>)_mm512_permutex2var_pd((__m512d)a, index, (__m512d)b);
}
PYDL_INLINE void weave(vec<double> a, vec<double> b, vec<double>& low, vec<double>& high) {
  const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const __m512i second = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
  low = (vec<double>)_mm512_permutex2var_pd((__m512d)a, first, (__m512d)b);
  high = (vec<double>)_mm512_permutex2var_pd((__m512d)a, second, (__m512d)b);
}
#elif defined(PYDL_AVX2)
PYDL_INLINE vec<double> every_second(vec<double> a, vec<double> b) {
  return (vec<double>)_mm256_permute4x64_pd(_mm256_unpacklo_pd((__m256d)a, (__m256d)b), 0xd8);
}
PYDL_INLINE vec<float> every_other(vec<float> a, vec<float> b) {
  return (vec<float>)_mm256_permute4x64_pd((__m256d)_mm256_shuffle_ps((__m256)a, (__m256)b, 0xdd), 0xd8);
}
PYDL_INLINE vec<double> every_other(vec<double> a, vec<double> b) {
  return (vec<double>)_mm256_permute4x64_pd(_mm256_unpackhi_pd((__m256d)a, (__m256d)b), 0xd8);
}
PYDL_INLINE void weave(vec<float> a, vec<float> b, vec<float>& low, vec<float>& high) {
  const __m256 p = _mm256_unpacklo_ps((__m256)a, (__m256)b), q = _mm256_unpackhi_ps((__m256)a, (__m256)b);
  low = (vec<float>)_mm256_permute2f128_ps(p, q, 0x20);
  high = (vec<float>)_mm256_permute2f128_ps(p, q, 0x31);
}
PYDL_INLINE void weave(vec<double> a, vec<double> b, vec<double>& low, vec<double>& high) {
  const __m256d p = _mm256_unpacklo_pd((__m256d)a, (__m256d)b),
                q = _mm256_unpackhi_pd((__m256d)a, (__m256d)b);
  low = (vec<double>)_mm256_permute2f128_pd(p, q, 0x20);
  high = (vec<double>)_mm256_permute2f128_pd(p, q, 0x31);
}
#endif
// The even lanes of a followed by those of b; the odd ones; and a[0], b[0], a[1], b[1], ... in two vectors.
template <class V>
PYDL_INLINE V every_second(V a, V b) {
  return even_lanes(a, b);
}
template <class V>
PYDL_INLINE V every_other(V a, V b) {
  return odd_lanes(a, b);
}
template <class V>
PYDL_INLINE void weave(V a, V b, V& low, V& high) {
  low = interleave_lanes_low(a, b);
  high = interleave_lanes_high(a, b);
}

// Lane i: element x + i * kStep of a row of `width` elements at p, `fill` outside of the row. kStep: 1 or 2.
template <int kStep, class T>
PYDL_INLINE vec<acc_t<T>> load_row(const T* p, int64_t x, int64_t width, acc_t<T> fill) {
  constexpr int64_t all = lanes<acc_t<T>>;
  if constexpr (kStep == 1) {
    if (x >= 0 && x + all <= width) return load(p + x);
    return load_between(p + x, -x, width - x, fill);
  } else {
    if (x >= 0 && x + 2 * all <= width) return every_second(load(p + x), load(p + x + all));
    return every_second(load_between(p + x, -x, width - x, fill),
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
