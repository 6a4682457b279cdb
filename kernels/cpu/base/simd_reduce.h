// Sums and maxima of several vectors at once, each in the tree of reduce_add: lane i with lane i + half, and so on.
#pragma once

#include "kernels/cpu/base/simd.h"

namespace pydl::cpu::PYDL_ISA {

#if defined(PYDL_AVX2)
PYDL_INLINE __m128 fold_to_four(vec<float> v) {
  return _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
}
PYDL_INLINE float maximum_of(vec<float> v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}
PYDL_INLINE float sum_of_four(__m128 v) {
  const __m128 two = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
template <int kCount>
PYDL_INLINE void reduce_add_each(const vec<float> (&v)[kCount], float (&sum)[kCount]) {
  if constexpr (kCount % 4 == 0) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; i += 4) {
      __m128 a = fold_to_four(v[i]), b = fold_to_four(v[i + 1]), c = fold_to_four(v[i + 2]),
             d = fold_to_four(v[i + 3]);
      _MM_TRANSPOSE4_PS(a, b, c, d);
      _mm_storeu_ps(sum + i, _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d)));
    }
  } else {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) sum[i] = sum_of_four(fold_to_four(v[i]));
  }
}
#else
PYDL_INLINE float maximum_of(vec<float> v) { return reduce_max(v); }
template <int kCount>
PYDL_INLINE void reduce_add_each(const vec<float> (&v)[kCount], float (&sum)[kCount]) {
  for (int i = 0; i < kCount; ++i) sum[i] = reduce_add(v[i]);
}
#endif
PYDL_INLINE double maximum_of(vec<double> v) { return reduce_max(v); }
template <int kCount>
PYDL_INLINE void reduce_add_each(const vec<double> (&v)[kCount], double (&sum)[kCount]) {
  for (int i = 0; i < kCount; ++i) sum[i] = reduce_add(v[i]);
}

}  // namespace pydl::cpu::PYDL_ISA
