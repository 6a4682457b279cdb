// exp and log over vectors, in the compiler's arithmetic: float and double, any instruction set.
//
//   function     largest relative error            special values
//   exp<float>   1.5e-7, 3e-7 where it underflows  exp(-inf) = 0, exp(inf) = inf, nan stays; subnormal
//   exp<double>  3.0e-16                           results are rounded once
//   kHalf        5e-7                              for what is rounded to half types or summed up
//   log<float>   1.0e-7                            log(0) = -inf, log(x < 0) = nan, log(inf) = inf, nan
//   log<double>  2.0e-16                           stays; subnormal arguments are exact
//   tanh, sigmoid  2e-7, 4e-16                     exact at the ends; nan stays
//
// exp_nonpositive_group is exp for x <= 0, -inf or nan: what a softmax needs, without the upper clamp. With
// kMinusOne it is exp(x) - 1, to the last digits where x is near 0.
//
// exp(x) = 2^n e^r with n = round(x / ln 2), r = x - n ln 2: in two steps, so that r keeps its last bits, or
// for float in one where multiply-add is fused (ln 2 as a float is off by 2e-9, and n is below 152). The
// polynomial interpolates (e^r - 1 - r) / r^2 at Chebyshev nodes: exact at r = 0, where softmax has its
// largest terms.
#pragma once

#include "kernels/cpu/base/simd.h"

namespace pydl::cpu::PYDL_ISA {

template <class A>
struct MathConstants;
template <>
struct MathConstants<float> {
  static constexpr int mantissa_bits = 23, exponent_bias = 127;
  static constexpr float largest = 3.40282347e+38f, smallest_normal = 0x1p-126f;
  static constexpr float log2_e = 1.44269504f;
  static constexpr float ln2 = 0.693147182f, ln2_high = 0.693359375f,
                         ln2_low = -2.12194440e-4f;               // high has 9 bits: n * high is exact
  static constexpr float round_magic = 0x1.8p23f;                 // adding it rounds to an integer
  static constexpr float exp_below = -104.0f, exp_above = 89.0f;  // 0 below, inf above
  static constexpr int32_t sqrt_half = 0x3f3504f3;
};
template <>
struct MathConstants<double> {
  static constexpr int mantissa_bits = 52, exponent_bias = 1023;
  static constexpr double largest = 1.7976931348623157e+308, smallest_normal = 0x1p-1022;
  static constexpr double log2_e = 1.4426950408889634;
  static constexpr double ln2 = 0.6931471805599453, ln2_high = 6.93147180369123816490e-01,
                          ln2_low = 1.90821492927058770002e-10;
  static constexpr double round_magic = 0x1.8p52;
  static constexpr double exp_below = -746.0, exp_above = 710.0;
  static constexpr int64_t sqrt_half = 0x3fe6a09e667f3bcd;
};

// Coefficients of e^r on |r| <= ln(2) / 2, highest power first.
template <class A, bool kHalf>
struct ExpPolynomial;
template <>
struct ExpPolynomial<float, false> {
  static constexpr int terms = 7;
  static constexpr float c[terms] = {0.0013926326f, 0.0083632926f, 0.0416665524f, 0.1666657627f, 0.5f, 1, 1};
};
template <>
struct ExpPolynomial<float, true> {
  static constexpr int terms = 6;
  static constexpr float c[terms] = {0.0083572958f, 0.0418344736f, 0.1666662991f, 0.4999974668f, 1, 1};
};
template <>
struct ExpPolynomial<double, false> {
  static constexpr int terms = 12;
  static constexpr double c[terms] = {2.5100596799245586e-08,
                                      2.762032764604765e-07,
                                      2.7557267967812913e-06,
                                      2.480152079133074e-05,
                                      0.0001984126986342702,
                                      0.001388888891753995,
                                      0.008333333333329963,
                                      0.04166666666662347,
                                      0.16666666666666669,
                                      0.5,
                                      1,
                                      1};
};

// x * 2^n for whole n. Without the instruction: two exact powers, so that only the last product rounds.
#if defined(PYDL_AVX512)
PYDL_INLINE vec<float> scale_by_power(vec<float> x, vec<float> n) {
  return (vec<float>)_mm512_scalef_ps((__m512)x, (__m512)n);
}
PYDL_INLINE vec<double> scale_by_power(vec<double> x, vec<double> n) {
  return (vec<double>)_mm512_scalef_pd((__m512d)x, (__m512d)n);
}
#else
template <class A>
PYDL_INLINE vec<A> scale_by_power_vector(vec<A> x, vec<A> n) {
  using C = MathConstants<A>;
  const vec<A> magic = broadcast<A>(C::round_magic);
  const mask<A> power = bit_cast<mask<A>>(n + magic) - bit_cast<mask<A>>(magic);
  const mask<A> half = power >> 1, rest = power - half;
  return x * bit_cast<vec<A>>((half + C::exponent_bias) << C::mantissa_bits) *
         bit_cast<vec<A>>((rest + C::exponent_bias) << C::mantissa_bits);
}
PYDL_INLINE vec<float> scale_by_power(vec<float> x, vec<float> n) {
  return scale_by_power_vector<float>(x, n);
}
PYDL_INLINE vec<double> scale_by_power(vec<double> x, vec<double> n) {
  return scale_by_power_vector<double>(x, n);
}
#endif

// exp of kCount vectors, x <= 0, -inf or nan, in place. Step by step for all of them: one exp is a chain of
// 14 dependent instructions, and written one after another eight such chains fill the scheduler before the
// first is done (8 cycles for each vector; 4 in step, Zen 5).
template <bool kHalf, class A, bool kMinusOne = false, int kCount>
PYDL_INLINE void exp_nonpositive_group(vec<A> (&x)[kCount]) {
  using C = MathConstants<A>;
  using P = ExpPolynomial<A, kHalf>;
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  constexpr bool kOneStep = sizeof(A) == 4;
#else
  constexpr bool kOneStep = false;
#endif
  vec<A> n[kCount], y[kCount];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) x[i] = max(broadcast<A>(C::exp_below), x[i]);  // x[i] where it is nan
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) n[i] = x[i] * C::log2_e + C::round_magic;
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) n[i] = n[i] - C::round_magic;
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    if constexpr (kOneStep)
      x[i] = x[i] - n[i] * C::ln2;
    else
      x[i] = (x[i] - n[i] * C::ln2_high) - n[i] * C::ln2_low;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) y[i] = x[i] * P::c[0] + P::c[1];
#pragma GCC unroll 12
  for (int k = 2; k < P::terms - kMinusOne; ++k) {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) y[i] = y[i] * x[i] + P::c[k];
  }
  if constexpr (
      kMinusOne) {  // 2^n (e^r - 1) + (2^n - 1), and e^r - 1 is the polynomial without its last term
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      const vec<A> power = scale_by_power(broadcast<A>(1), n[i]);
      x[i] = y[i] * x[i] * power + (power - A(1));
    }
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) x[i] = scale_by_power(y[i], n[i]);
  }
}

template <class A>
PYDL_INLINE vec<A> absolute(vec<A> x) {
  const mask<A> sign = bit_cast<mask<A>>(-vec<A>{});
  return bit_cast<vec<A>>(bit_cast<mask<A>>(x) & ~sign);
}

// |x| with the sign of s.
template <class A>
PYDL_INLINE vec<A> copy_sign(vec<A> x, vec<A> s) {
  const mask<A> sign = bit_cast<mask<A>>(-vec<A>{});
  return bit_cast<vec<A>>((bit_cast<mask<A>>(x) & ~sign) | (bit_cast<mask<A>>(s) & sign));
}

template <class V>
PYDL_INLINE V exp_vector(V x) {
  using A = decltype(x[0] + x[0]);
  const vec<A> above = broadcast<A>(MathConstants<A>::exp_above);
  vec<A> one[1] = {x > above ? above : x};
  exp_nonpositive_group<false, A>(one);
  return one[0];
}
PYDL_INLINE vec<float> exp(vec<float> x) { return exp_vector(x); }
PYDL_INLINE vec<double> exp(vec<double> x) { return exp_vector(x); }

// tanh x = x + x z p(z) with z = x^2 below 5/8, p by Chebyshev nodes, and (1 - e) / (1 + e) with e = exp(-2 |x|) beyond;
// sigmoid x = 1 / (1 + e) or e / (1 + e) with e = exp(-|x|). The exponents of a caller's group are taken in step.
template <class A>
struct TanhPolynomial;
template <>
struct TanhPolynomial<float> {
  static constexpr int terms = 5;
  static constexpr float c[terms] = {-0.00609671418f, 0.0209971797f, -0.0538509078f, 0.133327693f,
                                     -0.333333284f};
};
template <>
struct TanhPolynomial<double> {
  static constexpr int terms = 12;
  static constexpr double c[terms] = {6.485163482793113e-06,  -3.12011014257974e-05, 9.257116129556769e-05,
                                      -0.0002375906496055562, 0.0005896606577757043, -0.0014557754120478055,
                                      0.0035921217511549622,  -0.008863235103240878, 0.021869488519008305,
                                      -0.05396825396789699,   0.13333333333333042,   -0.3333333333333333};
};

// e = exp(-|x|)
template <class A>
PYDL_INLINE vec<A> sigmoid_of(vec<A> x, vec<A> e) {
  return (x < vec<A>{} ? e : broadcast<A>(1)) / (A(1) + e);
}
// e = exp(-2 |x|)
template <class A>
PYDL_INLINE vec<A> tanh_of(vec<A> x, vec<A> e) {
  using P = TanhPolynomial<A>;
  const vec<A> z = x * x;
  vec<A> y = z * P::c[0] + P::c[1];
#pragma GCC unroll 12
  for (int k = 2; k < P::terms; ++k) y = y * z + P::c[k];
  const vec<A> large = (A(1) - e) / (A(1) + e);
  return absolute<A>(x) < A(0.625) ? x + x * z * y : (x < vec<A>{} ? -large : large);
}

// log x = k ln 2 + log(1 + f), 1 + f in [sqrt(1/2), sqrt(2)); with s = f / (2 + f), log(1 + f) = 2 atanh(s),
// written as f - f^2/2 + s (f^2/2 + R(s^2)), whose first term is exact.
PYDL_INLINE vec<float> log_polynomial(vec<float> z) {
  return z * (z * (z * (z * 0.2222222222f + 0.2857142857f) + 0.4f) + 0.6666666667f);
}
PYDL_INLINE vec<double> log_polynomial(vec<double> z) {
  vec<double> q = z * (2.0 / 21) + 2.0 / 19;
  q = q * z + 2.0 / 17;
  q = q * z + 2.0 / 15;
  q = q * z + 2.0 / 13;
  q = q * z + 2.0 / 11;
  q = q * z + 2.0 / 9;
  q = q * z + 2.0 / 7;
  q = q * z + 2.0 / 5;
  return z * (q * z + 2.0 / 3);
}

template <class V>
PYDL_INLINE V log_vector(V x) {
  using A = decltype(x[0] + x[0]);
  using C = MathConstants<A>;
  constexpr int kLift = C::mantissa_bits + 2;  // subnormals are lifted by 2^kLift
  const mask<A> subnormal = x < C::smallest_normal;
  const vec<A> lift = broadcast<A>(
      bit_cast<A>(static_cast<decltype(C::sqrt_half + 0)>(C::exponent_bias + kLift) << C::mantissa_bits));
  const vec<A> scaled = subnormal ? x * lift : x;
  const mask<A> bits = bit_cast<mask<A>>(scaled) - C::sqrt_half;
  const mask<A> power = bits >> C::mantissa_bits;
  const mask<A> fraction = bits - (power << C::mantissa_bits) + C::sqrt_half;
  const vec<A> f = bit_cast<vec<A>>(fraction) - A(1);
  const vec<A> k = __builtin_convertvector(power, vec<A>) - (subnormal ? broadcast<A>(kLift) : vec<A>{});
  const vec<A> s = f / (f + A(2)), half_square = f * f * A(0.5);
  const vec<A> correction = s * (half_square + log_polynomial(s * s)) + k * C::ln2_low;
  vec<A> y = k * C::ln2_high - ((half_square - correction) - f);
  const vec<A> infinity = broadcast<A>(__builtin_inf()), nan = broadcast<A>(__builtin_nan(""));
  y = x == A(0) ? -infinity : y;
  y = x == infinity ? infinity : y;
  return x >= A(0) ? y : nan;
}
PYDL_INLINE vec<float> log(vec<float> x) { return log_vector(x); }
PYDL_INLINE vec<double> log(vec<double> x) { return log_vector(x); }

// One value: the few that a row needs.
template <class A>
PYDL_INLINE A exp_one(A x) {
  return exp(broadcast<A>(x))[0];
}
template <class A>
PYDL_INLINE A log_one(A x) {
  return log(broadcast<A>(x))[0];
}

}  // namespace pydl::cpu::PYDL_ISA
