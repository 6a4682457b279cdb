// Stand-ins: conversions, masks, arithmetic.
#pragma once

#include "tests/support/avx512/lanes.h"

namespace pydl::cpu::PYDL_ISA {
namespace emulation {

// x * 2^floor(n), rounded once. For an infinite n: x times infinity or zero.
PYDL_EMULATED double power_of_two(double n) {
  const int64_t exponent = static_cast<int64_t>(n) + 1023;
  const int64_t bits = exponent << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  return power;
}
PYDL_EMULATED float scale(float x, float n) {
  if (x != x || n != n) return x + n;
  if (n - n != 0) return n > 0 ? x * n : x * 0.0f;
  n = __builtin_floorf(n < -500 ? -500 : n > 500 ? 500 : n);
  return static_cast<float>(x * power_of_two(n));  // exact in double, whose exponents are enough
}
PYDL_EMULATED double scale(double x, double n) {
  if (x != x || n != n) return x + n;
  if (n - n != 0) return n > 0 ? x * n : x * 0.0;
  return __builtin_ldexp(x, static_cast<int>(__builtin_floor(n < -3000 ? -3000 : n > 3000 ? 3000 : n)));
}

// The bf16 instructions read and write zero for what is subnormal, whatever the control register says.
PYDL_EMULATED uint16_t to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  if (x != x) return static_cast<uint16_t>(u >> 16 | 0x40);
  if ((u & 0x7f800000u) == 0) return static_cast<uint16_t>(u >> 16 & 0x8000u);
  return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
PYDL_EMULATED __m256 flush(__m256 x) {
  const __m256 sign = _mm256_and_ps(x, _mm256_set1_ps(-0.0f));
  const __m256 small = _mm256_cmp_ps(_mm256_xor_ps(x, sign), _mm256_set1_ps(0x1p-126f), _CMP_LT_OQ);
  return _mm256_blendv_ps(x, sign, small);
}
// a * b + sum in one rounding. Zero is what would be subnormal if exponents had no end, though it be rounded to the
// smallest normal number where they have.
PYDL_EMULATED __m256 multiply_add(__m256 a, __m256 b, __m256 sum) {
  const __m256 result = flush(_mm256_fmadd_ps(a, b, sum));
  float x[8], y[8], z[8], r[8];
  memcpy(x, &a, sizeof x);
  memcpy(y, &b, sizeof y);
  memcpy(z, &sum, sizeof z);
  memcpy(r, &result, sizeof r);
  for (int i = 0; i < 8; ++i) {
    const double exact = static_cast<double>(x[i]) * y[i] + z[i];
    if (__builtin_fabsf(r[i]) == 0x1p-126f && __builtin_fabs(exact) < 0x1p-126 - 0x1p-151)
      r[i] = __builtin_copysignf(0, r[i]);
  }
  return _mm256_loadu_ps(r);
}
// The upper product is added first.
PYDL_EMULATED __m256 dot(__m256 sum, __m256i a, __m256i b) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  const __m256 high_a = (__m256)_mm256_and_si256(a, upper), high_b = (__m256)_mm256_and_si256(b, upper);
  const __m256 low_a = (__m256)_mm256_slli_epi32(a, 16), low_b = (__m256)_mm256_slli_epi32(b, 16);
  sum = multiply_add(flush(high_a), flush(high_b), flush(sum));
  return multiply_add(flush(low_a), flush(low_b), sum);
}

}  // namespace emulation

// ---- conversions

PYDL_EMULATED __m512i _mm512_cvtepu16_epi32(__m256i v) {
  const emulation::HalfShorts h(v);
  return emulation::HalfInts(_mm256_cvtepu16_epi32(h.low), _mm256_cvtepu16_epi32(h.high));
}
PYDL_EMULATED __m512i _mm512_cvtepu8_epi32(__m128i v) {
  return emulation::HalfInts(_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8)));
}
PYDL_EMULATED __m512i _mm512_cvtepu8_epi64(__m128i v) {
  return emulation::HalfInts(_mm256_cvtepu8_epi64(v), _mm256_cvtepu8_epi64(_mm_srli_si128(v, 4)));
}
PYDL_EMULATED __m256i _mm512_cvtepi32_epi16(__m512i v) {
  const emulation::Ints x(v);
  return emulation::each<emulation::Lanes<int16_t, __m256i>>([&](int i)
                                                                 PYDL_EMULATED_LAMBDA { return x.at[i]; });
}
PYDL_EMULATED __m512 _mm512_cvtph_ps(__m256i v) {
  const emulation::HalfShorts h(v);
  return emulation::HalfFloats(_mm256_cvtph_ps(h.low), _mm256_cvtph_ps(h.high));
}
PYDL_EMULATED __m256i _mm512_cvtps_ph(__m512 v, int) {  // to nearest even: what the kernels ask for
  const emulation::HalfFloats h(v);
  return emulation::HalfShorts(_mm256_cvtps_ph(h.low, _MM_FROUND_TO_NEAREST_INT),
                               _mm256_cvtps_ph(h.high, _MM_FROUND_TO_NEAREST_INT));
}
PYDL_EMULATED __m256bh _mm512_cvtneps_pbh(__m512 v) {
  const emulation::Floats x(v);
  return emulation::each<emulation::Lanes<uint16_t, __m256bh>>(
      [&](int i) PYDL_EMULATED_LAMBDA { return emulation::to_bf16(x.at[i]); });
}
PYDL_EMULATED __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
  return emulation::Halves<int64_t, __m256bh, __m512bh>(_mm512_cvtneps_pbh(low), _mm512_cvtneps_pbh(high));
}

// ---- masks

PYDL_EMULATED __mmask16 _mm512_movepi32_mask(__m512i v) {
  const emulation::HalfInts h(v);
  return static_cast<__mmask16>(_mm256_movemask_ps((__m256)h.low) | _mm256_movemask_ps((__m256)h.high) << 8);
}
PYDL_EMULATED __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int how) {
  const emulation::HalfFloats x(a), y(b);
  const emulation::HalfFloats m = how == _CMP_GT_OQ
                                      ? emulation::HalfFloats(_mm256_cmp_ps(x.low, y.low, _CMP_GT_OQ),
                                                              _mm256_cmp_ps(x.high, y.high, _CMP_GT_OQ))
                                      : emulation::HalfFloats(_mm256_cmp_ps(x.low, y.low, _CMP_UNORD_Q),
                                                              _mm256_cmp_ps(x.high, y.high, _CMP_UNORD_Q));
  if (how != _CMP_GT_OQ && how != _CMP_UNORD_Q) __builtin_trap();  // no kernel asks for another
  return static_cast<__mmask16>(_mm256_movemask_ps(m.low) | _mm256_movemask_ps(m.high) << 8);
}
PYDL_EMULATED __mmask8 _mm512_cmp_pd_mask(__m512d a, __m512d b, int how) {
  const emulation::Doubles x(a), y(b);
  if (how != _CMP_GT_OQ && how != _CMP_UNORD_Q) __builtin_trap();
  return static_cast<__mmask8>(emulation::bits<emulation::Doubles>([&](int i) PYDL_EMULATED_LAMBDA {
    return how == _CMP_GT_OQ ? x.at[i] > y.at[i] : __builtin_isunordered(x.at[i], y.at[i]);
  }));
}
PYDL_EMULATED __mmask16 _mm512_cmpeq_epi32_mask(__m512i a, __m512i b) {
  const emulation::HalfInts x(a), y(b);
  return _mm512_movepi32_mask(
      emulation::HalfInts(_mm256_cmpeq_epi32(x.low, y.low), _mm256_cmpeq_epi32(x.high, y.high)));
}
PYDL_EMULATED __mmask8 _mm512_cmpeq_epi64_mask(__m512i a, __m512i b) {
  const emulation::Longs x(a), y(b);
  return static_cast<__mmask8>(
      emulation::bits<emulation::Longs>([&](int i) PYDL_EMULATED_LAMBDA { return x.at[i] == y.at[i]; }));
}
PYDL_EMULATED __mmask16 _mm512_cmpge_epu32_mask(__m512i a, __m512i b) {
  const emulation::HalfInts x(a), y(b);
  return _mm512_cmpeq_epi32_mask(
      emulation::HalfInts(_mm256_max_epu32(x.low, y.low), _mm256_max_epu32(x.high, y.high)), a);
}
PYDL_EMULATED __m512 _mm512_mask_mov_ps(__m512 clear, __mmask16 mask, __m512 set) {
  return (__m512)(__m512i)emulation::blend(emulation::spread_32(mask), (__m512i)clear, (__m512i)set);
}
PYDL_EMULATED __m512d _mm512_mask_mov_pd(__m512d clear, __mmask8 mask, __m512d set) {
  return (__m512d)(__m512i)emulation::blend(emulation::spread_64(mask), (__m512i)clear, (__m512i)set);
}
PYDL_EMULATED __m512i _mm512_mask_mov_epi32(__m512i clear, __mmask16 mask, __m512i set) {
  return (__m512i)(__m512i)emulation::blend(emulation::spread_32(mask), (__m512i)clear, (__m512i)set);
}
PYDL_EMULATED __m512i _mm512_mask_mov_epi64(__m512i clear, __mmask8 mask, __m512i set) {
  return (__m512i)(__m512i)emulation::blend(emulation::spread_64(mask), (__m512i)clear, (__m512i)set);
}
PYDL_EMULATED __m512i _mm512_mask_cvtepu8_epi32(__m512i clear, __mmask16 mask, __m128i v) {
  return _mm512_mask_mov_epi32(clear, mask, _mm512_cvtepu8_epi32(v));
}

// ---- arithmetic

PYDL_EMULATED __m512 _mm512_mask_add_ps(__m512 clear, __mmask16 mask, __m512 a, __m512 b) {
  return _mm512_mask_mov_ps(clear, mask, a + b);
}
PYDL_EMULATED __m512d _mm512_mask_add_pd(__m512d clear, __mmask8 mask, __m512d a, __m512d b) {
  return _mm512_mask_mov_pd(clear, mask, a + b);
}
PYDL_EMULATED __m512 _mm512_maskz_mul_ps(__mmask16 mask, __m512 a, __m512 b) {
  return _mm512_mask_mov_ps(__m512{}, mask, a * b);
}
PYDL_EMULATED __m512 _mm512_sqrt_ps(__m512 a) {
  const emulation::HalfFloats x(a);
  return emulation::HalfFloats(_mm256_sqrt_ps(x.low), _mm256_sqrt_ps(x.high));
}
PYDL_EMULATED __m512d _mm512_sqrt_pd(__m512d a) {
  const emulation::HalfDoubles x(a);
  return emulation::HalfDoubles(_mm256_sqrt_pd(x.low), _mm256_sqrt_pd(x.high));
}
PYDL_EMULATED __m512 _mm512_max_ps(__m512 a, __m512 b) {  // b where either is nan, in these as in those
  const emulation::HalfFloats x(a), y(b);
  return emulation::HalfFloats(_mm256_max_ps(x.low, y.low), _mm256_max_ps(x.high, y.high));
}
PYDL_EMULATED __m512d _mm512_max_pd(__m512d a, __m512d b) {
  const emulation::HalfDoubles x(a), y(b);
  return emulation::HalfDoubles(_mm256_max_pd(x.low, y.low), _mm256_max_pd(x.high, y.high));
}
// The reductions are sequences of the compiler's own, with the operands in its order.
PYDL_EMULATED float _mm512_reduce_add_ps(__m512 v) {
  const emulation::HalfFloats h(v);
  const __m256 eight = h.high + h.low;
  const __m128 four = _mm256_extractf128_ps(eight, 1) + _mm256_castps256_ps128(eight);
  return (four[0] + four[2]) + (four[1] + four[3]);
}
PYDL_EMULATED double _mm512_reduce_add_pd(__m512d v) {
  const emulation::HalfDoubles h(v);
  const __m256d four = h.high + h.low;
  const __m128d two = _mm256_extractf128_pd(four, 1) + _mm256_castpd256_pd128(four);
  return two[0] + two[1];
}
PYDL_EMULATED float _mm512_reduce_max_ps(__m512 v) {
  const emulation::HalfFloats h(v);
  const __m256 eight = _mm256_max_ps(h.high, h.low);
  const __m128 four = _mm_max_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  const __m128 two = _mm_max_ps(four, _mm_shuffle_ps(four, four, _MM_SHUFFLE(1, 0, 3, 2)));
  return _mm_max_ps(two, _mm_shuffle_ps(two, two, _MM_SHUFFLE(0, 1, 0, 1)))[0];
}
PYDL_EMULATED double _mm512_reduce_max_pd(__m512d v) {
  const emulation::HalfDoubles h(v);
  const __m256d four = _mm256_max_pd(h.high, h.low);
  const __m128d two = _mm_max_pd(_mm256_extractf128_pd(four, 1), _mm256_castpd256_pd128(four));
  return _mm_max_pd(two, _mm_shuffle_pd(two, two, 1))[0];
}
PYDL_EMULATED __m512 _mm512_scalef_ps(__m512 a, __m512 b) {
  const emulation::Floats x(a), n(b);
  return emulation::each<emulation::Floats>(
      [&](int i) PYDL_EMULATED_LAMBDA { return emulation::scale(x.at[i], n.at[i]); });
}
PYDL_EMULATED __m512d _mm512_scalef_pd(__m512d a, __m512d b) {
  const emulation::Doubles x(a), n(b);
  return emulation::each<emulation::Doubles>(
      [&](int i) PYDL_EMULATED_LAMBDA { return emulation::scale(x.at[i], n.at[i]); });
}
PYDL_EMULATED __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  const emulation::HalfFloats s(sum);
  const emulation::HalfInts x((__m512i)a), y((__m512i)b);
  return emulation::HalfFloats(emulation::dot(s.low, x.low, y.low), emulation::dot(s.high, x.high, y.high));
}
PYDL_EMULATED __m512i _mm512_mul_epu32(__m512i a, __m512i b) {
  const emulation::HalfInts x(a), y(b);
  return emulation::HalfInts(_mm256_mul_epu32(x.low, y.low), _mm256_mul_epu32(x.high, y.high));
}
// Bit 4 x + 2 y + z of `table` is the result for bits x, y and z.
PYDL_EMULATED __m512i _mm512_ternarylogic_epi64(__m512i x, __m512i y, __m512i z, int table) {
  __m512i v{};
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k)
    if (table >> k & 1) v |= (k & 4 ? x : ~x) & (k & 2 ? y : ~y) & (k & 1 ? z : ~z);
  return v;
}
PYDL_EMULATED __m512i _mm512_mask_ternarylogic_epi32(__m512i x, __mmask16 mask, __m512i y, __m512i z,
                                                     int table) {
  return _mm512_mask_mov_epi32(x, mask, _mm512_ternarylogic_epi64(x, y, z, table));
}

}  // namespace pydl::cpu::PYDL_ISA
