// Square roots of vectors: an instruction, which the compiler's vector types have no operator for.
#pragma once

#include "kernels/cpu/base/simd.h"

namespace pydl::cpu::PYDL_ISA {

// The square root of each lane, rounded right; nan below zero.
#if defined(PYDL_AVX512)
PYDL_INLINE vec<float> square_root(vec<float> v) { return (vec<float>)_mm512_sqrt_ps((__m512)v); }
PYDL_INLINE vec<double> square_root(vec<double> v) { return (vec<double>)_mm512_sqrt_pd((__m512d)v); }
#elif defined(PYDL_AVX2)
PYDL_INLINE vec<float> square_root(vec<float> v) { return (vec<float>)_mm256_sqrt_ps((__m256)v); }
PYDL_INLINE vec<double> square_root(vec<double> v) { return (vec<double>)_mm256_sqrt_pd((__m256d)v); }
#elif defined(__x86_64__)
PYDL_INLINE vec<float> square_root(vec<float> v) { return (vec<float>)_mm_sqrt_ps((__m128)v); }
PYDL_INLINE vec<double> square_root(vec<double> v) { return (vec<double>)_mm_sqrt_pd((__m128d)v); }
#else
PYDL_INLINE vec<float> square_root(vec<float> v) {
  for (int i = 0; i < lanes<float>; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
}
PYDL_INLINE vec<double> square_root(vec<double> v) {
  for (int i = 0; i < lanes<double>; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
}
#endif

}  // namespace pydl::cpu::PYDL_ISA
