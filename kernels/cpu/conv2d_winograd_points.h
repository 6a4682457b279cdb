// One-dimensional Winograd transforms F(m, 3), m = 1..4 (Toom-Cook; Lavin, Gray: "Fast Algorithms for
// Convolutional Neural Networks", CVPR 2016), over vectors of channels.
//
//   y = A^T [ (G g) * (B^T d) ]      d: m + 2 inputs, g: 3 taps, y: m outputs, m + 2 products instead of 3 m
//
// A polynomial product is evaluated at m + 2 points, multiplied point by point, and interpolated. The points
// are
//
//   0, infinity, 2/3, -2/3, 3/2, -3/2        F(m, 3) takes the first m + 2
//
// Why these: the error of a Winograd convolution grows with the powers p^0 .. p^3 of its points. 2/3 and 3/2
// keep every coefficient between 0.12 and 3.4, where the usual 1 and 2 reach 8; the result is as accurate as
// a direct convolution in float32. Their product is 1, which makes two coefficients of B one.
//
// Why nested sets: an image's last row and column of tiles may be smaller than 4. F(m, 3) there uses a subset
// of the same points and the same transformed weights, so a small tile just skips the frequencies it does not
// have, and no output is computed twice or thrown away.
//
// The weight gradient correlates m outputs' gradients with the m + 2 inputs into 3 taps: F(3, m), with the
// same points, the same B, and the transposed roles of A and G.
#pragma once

#include "kernels/cpu/simd.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int kTile = 4;      // outputs per tile and dimension
constexpr int kPoints = 6;    // inputs per tile and dimension, and points
constexpr int kInfinity = 1;  // index of the point at infinity
constexpr int kFrequencies = kPoints * kPoints;

constexpr double kPointA = 2.0 / 3.0, kPointB = 3.0 / 2.0;
constexpr double kPoint[kPoints] = {0.0, 0.0, kPointA, -kPointA, kPointB, -kPointB};

constexpr double power(double x, int n) { return n == 0 ? 1.0 : x * power(x, n - 1); }

// 1 / prod (p - q) over the finite points q != p among the first n: what interpolation divides by.
constexpr double lagrange(int n, int p) {
  double product = 1.0;
  for (int q = 0; q < n; ++q)
    if (q != p && q != kInfinity) product *= kPoint[p] - kPoint[q];
  return 1.0 / product;
}

// B^T of F(m, 3): row p holds the coefficients of prod (x - q) over the finite q != p, row infinity those of
// the product over all. G is shared by every m, so the row is scaled from the full set's interpolation to
// this one's.
template <int kOutputs>
struct InputMatrix {
  static constexpr int n = kOutputs + 2;
  float row[n][n];
  constexpr InputMatrix() : row{} {
    for (int p = 0; p < n; ++p) {
      double polynomial[n + 1] = {1.0};
      int degree = 0;
      for (int q = 0; q < n; ++q) {
        if (q == p || q == kInfinity) continue;
        for (int j = ++degree; j > 0; --j) polynomial[j] = polynomial[j - 1] - kPoint[q] * polynomial[j];
        polynomial[0] *= -kPoint[q];
      }
      const double scale = p == kInfinity ? 1.0 : lagrange(n, p) / lagrange(kPoints, p);
      for (int j = 0; j < n; ++j) row[p][j] = static_cast<float>(scale * polynomial[j]);
    }
  }
};

template <int kOutputs>
PYDL_INLINE void transform_input_1d(const vec<float>* d, vec<float>* v) {
  if constexpr (kOutputs == 4) {  // the symmetric points share their even and odd halves
    constexpr float a = kPointA, b = kPointB, a2 = kPointA * kPointA, b2 = kPointB * kPointB, sum = a2 + b2;
    const vec<float> even_a = d[4] - b2 * d[2], odd_a = d[3] - b2 * d[1];
    const vec<float> even_b = d[4] - a2 * d[2], odd_b = d[3] - a2 * d[1];
    v[0] = (d[0] + d[4]) - sum * d[2];
    v[1] = (d[5] + d[1]) - sum * d[3];
    v[2] = even_a + a * odd_a;
    v[3] = even_a - a * odd_a;
    v[4] = even_b + b * odd_b;
    v[5] = even_b - b * odd_b;
  } else {
    constexpr InputMatrix<kOutputs> matrix;
#pragma GCC unroll 6
    for (int p = 0; p < kOutputs + 2; ++p) {
      vec<float> sum{};
#pragma GCC unroll 6
      for (int j = 0; j < kOutputs + 2; ++j)
        if (matrix.row[p][j] != 0.0f) sum += matrix.row[p][j] * d[j];
      v[p] = sum;
    }
  }
}

// A^T of F(m, 3): y[j] = sum_p p^j m[p], the point at infinity only in the last.
template <int kOutputs>
PYDL_INLINE void transform_output_1d(const vec<float>* m, vec<float>* y) {
  constexpr float a = kPointA, a2 = power(kPointA, 2), a3 = power(kPointA, 3);
  constexpr float b = kPointB, b2 = power(kPointB, 2), b3 = power(kPointB, 3);
  if constexpr (kOutputs == 4) {
    const vec<float> even_a = m[2] + m[3], odd_a = m[2] - m[3], even_b = m[4] + m[5], odd_b = m[4] - m[5];
    y[0] = m[0] + even_a + even_b;
    y[1] = a * odd_a + b * odd_b;
    y[2] = a2 * even_a + b2 * even_b;
    y[3] = a3 * odd_a + b3 * odd_b + m[1];
  } else if constexpr (kOutputs == 3) {
    const vec<float> even_a = m[2] + m[3], odd_a = m[2] - m[3];
    y[0] = m[0] + even_a + m[4];
    y[1] = a * odd_a + b * m[4];
    y[2] = a2 * even_a + b2 * m[4] + m[1];
  } else if constexpr (kOutputs == 2) {
    y[0] = m[0] + (m[2] + m[3]);
    y[1] = a * (m[2] - m[3]) + m[1];
  } else {
    y[0] = m[0] + m[2] + m[1];
  }
}

// G: u[p] = N_p (g0 + p g1 + p^2 g2), u[infinity] = g2; N_p = lagrange(6, p), which is 1 at 0.
PYDL_INLINE void transform_weight_1d(const vec<float>* g, vec<float>* u) {
  constexpr double na = lagrange(kPoints, 2), nb = lagrange(kPoints, 4);
  constexpr float a0 = na, a1 = na * kPointA, a2 = na * kPointA * kPointA;
  constexpr float b0 = nb, b1 = nb * kPointB, b2 = nb * kPointB * kPointB;
  const vec<float> even_a = a0 * g[0] + a2 * g[2], even_b = b0 * g[0] + b2 * g[2];
  u[0] = g[0];
  u[1] = g[2];
  u[2] = even_a + a1 * g[1];
  u[3] = even_a - a1 * g[1];
  u[4] = even_b + b1 * g[1];
  u[5] = even_b - b1 * g[1];
}

// The weight gradient's two: G of F(3, m) without its factors N_p, which the sum over tiles takes once at the
// end ...
template <int kOutputs>
PYDL_INLINE void transform_gradient_1d(const vec<float>* g, vec<float>* z) {
  constexpr float a = kPointA, a2 = power(kPointA, 2), a3 = power(kPointA, 3);
  constexpr float b = kPointB, b2 = power(kPointB, 2), b3 = power(kPointB, 3);
  z[0] = g[0];
  z[1] = g[kOutputs - 1];
  if constexpr (kOutputs == 4) {
    const vec<float> even_a = g[0] + a2 * g[2], odd_a = a * g[1] + a3 * g[3];
    const vec<float> even_b = g[0] + b2 * g[2], odd_b = b * g[1] + b3 * g[3];
    z[2] = even_a + odd_a;
    z[3] = even_a - odd_a;
    z[4] = even_b + odd_b;
    z[5] = even_b - odd_b;
  } else if constexpr (kOutputs == 3) {
    const vec<float> even_a = g[0] + a2 * g[2];
    z[2] = even_a + a * g[1];
    z[3] = even_a - a * g[1];
    z[4] = g[0] + b * g[1] + b2 * g[2];
  } else if constexpr (kOutputs == 2) {
    z[2] = g[0] + a * g[1];
    z[3] = g[0] - a * g[1];
  } else {
    z[2] = g[0];
  }
}

// ... and A^T of F(3, m) with them: w[j] = sum_p N_p p^j d[p], the point at infinity only in w[2].
PYDL_INLINE void transform_weight_gradient_1d(const vec<float>* d, vec<float>* w) {
  constexpr double na = lagrange(kPoints, 2), nb = lagrange(kPoints, 4);
  constexpr float a0 = na, a1 = na * kPointA, a2 = na * kPointA * kPointA;
  constexpr float b0 = nb, b1 = nb * kPointB, b2 = nb * kPointB * kPointB;
  const vec<float> even_a = d[2] + d[3], odd_a = d[2] - d[3], even_b = d[4] + d[5], odd_b = d[4] - d[5];
  w[0] = d[0] + a0 * even_a + b0 * even_b;
  w[1] = a1 * odd_a + b1 * odd_b;
  w[2] = a2 * even_a + b2 * even_b + d[1];
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
