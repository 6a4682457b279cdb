// One-dimensional Winograd transforms F(m, r): m outputs of r taps (Toom-Cook; Lavin, Gray: "Fast Algorithms
// for Convolutional Neural Networks", CVPR 2016), over vectors of channels.
//
//   y = A^T [ (G g) * (B^T d) ]   d: n = m + r - 1 inputs, g: r taps, y: m outputs, n products instead of m r
//
// A polynomial product is evaluated at n points, multiplied point by point, and interpolated. The points are
//
//   0, infinity, 2/3, -2/3, 3/2, -3/2        F(m, r) takes the first n
//
// so that 3 taps have tiles of up to 4 outputs and 5 taps tiles of up to 2.
//
// Why these points: the error of a Winograd convolution grows with the powers of its points. 2/3 and 3/2 keep
// every coefficient of F(4, 3) between 0.12 and 3.4, where the usual 1 and 2 reach 8; the result is as
// accurate as a direct convolution in float32. Their product is 1, which makes two coefficients of B one.
//
// Why nested sets: an image's last row and column of tiles may be smaller than the others. F(m, r) there uses
// a subset of the same points and the same transformed weights, so a small tile just skips the frequencies it
// does not have, and no output is computed twice or thrown away.
//
// The weight gradient correlates m outputs' gradients with the n inputs into r taps: F(r, m), with the same
// points, the same B, and the transposed roles of A and G.
#pragma once

#include "kernels/cpu/base/simd.h"

namespace pydl::cpu::PYDL_ISA::winograd {

constexpr int kPoints = 6;    // inputs per tile and dimension, and points
constexpr int kInfinity = 1;  // index of the point at infinity
constexpr int kFrequencies = kPoints * kPoints;

template <int kTaps>
constexpr int kTile = kPoints + 1 - kTaps;  // outputs per tile and dimension

constexpr double kPointA = 2.0 / 3.0, kPointB = 3.0 / 2.0;
inline constexpr double kPoint[kPoints] = {0.0, 0.0, kPointA, -kPointA, kPointB, -kPointB};

constexpr double power(double x, int n) { return n == 0 ? 1.0 : x * power(x, n - 1); }

// 1 / prod (p - q) over the finite points q != p among the first n: what interpolation divides by.
constexpr double lagrange(int n, int p) {
  double product = 1.0;
  for (int q = 0; q < n; ++q)
    if (q != p && q != kInfinity) product *= kPoint[p] - kPoint[q];
  return 1.0 / product;
}

// Powers of the points, rounded once: power[p][j] = p^j, and scaled[p][j] = N_p p^j with N_p = lagrange(6,
// p), the rows of G; N of the point 0 is 1.
struct PointTable {
  float power[kPoints][kPoints], scaled[kPoints][kPoints];
  constexpr PointTable() : power{}, scaled{} {
    for (int p = 0; p < kPoints; ++p)
      for (int j = 0; j < kPoints && p != kInfinity; ++j) {
        const double value = pydl::cpu::PYDL_ISA::winograd::power(kPoint[p], j);
        power[p][j] = static_cast<float>(value);
        scaled[p][j] = static_cast<float>(value * lagrange(kPoints, p));
      }
  }
};
inline constexpr PointTable kTable;

// B^T of the first n points: row p holds the coefficients of prod (x - q) over the finite q != p, row
// infinity those of the product over all. G is shared by every n, so the row is scaled from the full set's
// interpolation to this one's.
template <int n>
struct InputMatrix {
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

// v[0], v[1] = B^T d of all six inputs at the points 2 * kPair and 2 * kPair + 1, which share their halves.
template <int kPair>
PYDL_INLINE void transform_input_pair(const vec<float>* d, vec<float>* v) {
  constexpr float a2 = kPointA * kPointA, b2 = kPointB * kPointB;
  if constexpr (kPair == 0) {
    v[0] = (d[0] + d[4]) - (a2 + b2) * d[2];
    v[1] = (d[5] + d[1]) - (a2 + b2) * d[3];
  } else {  // symmetric: the sum and difference of an even and an odd part
    constexpr float x = kPair == 1 ? kPointA : kPointB, other = kPair == 1 ? b2 : a2;
    const vec<float> even = d[4] - other * d[2], odd = d[3] - other * d[1];
    v[0] = even + x * odd;
    v[1] = even - x * odd;
  }
}

// v = B^T d of n inputs.
template <int n>
PYDL_INLINE void transform_input_1d(const vec<float>* d, vec<float>* v) {
  if constexpr (n == kPoints) {
    transform_input_pair<0>(d, v);
    transform_input_pair<1>(d, v + 2);
    transform_input_pair<2>(d, v + 4);
  } else {
    constexpr InputMatrix<n> matrix;
#pragma GCC unroll 6
    for (int p = 0; p < n; ++p) {
      vec<float> sum{};
#pragma GCC unroll 6
      for (int j = 0; j < n; ++j)
        if (matrix.row[p][j] != 0.0f) sum += matrix.row[p][j] * d[j];
      v[p] = sum;
    }
  }
}

// y[j] = sum_p c[p][j] m[p] for j < count over n points, the point at infinity only in the last y: A^T of
// F(count, r), or with scaled powers that of F(r, m). Symmetric points share their sum and difference.
template <int n, int count>
PYDL_INLINE void interpolate_1d(const float (&c)[kPoints][kPoints], const vec<float>* m, vec<float>* y) {
  constexpr int kPairs = (n - 2) / 2;
  vec<float> even[kPairs + 1], odd[kPairs + 1];
#pragma GCC unroll 2
  for (int k = 0; k < kPairs; ++k) {
    even[k] = m[2 + 2 * k] + m[3 + 2 * k];
    odd[k] = m[2 + 2 * k] - m[3 + 2 * k];
  }
#pragma GCC unroll 6
  for (int j = 0; j < count; ++j) {
    vec<float> sum = j == 0 ? m[0] : j == count - 1 ? m[kInfinity] : vec<float>{};
    if (j == 0 && count == 1) sum += m[kInfinity];
#pragma GCC unroll 2
    for (int k = 0; k < kPairs; ++k) sum += c[2 + 2 * k][j] * (j % 2 ? odd[k] : even[k]);
    if constexpr (n % 2 == 1) sum += c[n - 1][j] * m[n - 1];
    y[j] = sum;
  }
}

// u[0], u[1] = sum_j c[p][j] g[j] over j < count at the points p = 2 * kPair and p + 1.
template <int kPair, int count>
PYDL_INLINE void evaluate_pair(const float (&c)[kPoints][kPoints], const vec<float>* g, vec<float>* u) {
  if constexpr (kPair == 0) {
    u[0] = g[0];
    u[kInfinity] = g[count - 1];
  } else {
    constexpr int p = 2 * kPair;
    vec<float> even = c[p][0] * g[0], odd{};
#pragma GCC unroll 6
    for (int j = 2; j < count; j += 2) even += c[p][j] * g[j];
    if constexpr (count > 1) odd = c[p][1] * g[1];
#pragma GCC unroll 6
    for (int j = 3; j < count; j += 2) odd += c[p][j] * g[j];
    u[0] = even + odd;
    u[1] = even - odd;
  }
}

// u[p] = sum_j c[p][j] g[j] over j < count, u[infinity] = g[count - 1]: G of F(m, count), or with plain
// powers that of F(r, count) without its factors N_p. Of an odd number of points the last has no partner.
template <int n, int count>
PYDL_INLINE void evaluate_1d(const float (&c)[kPoints][kPoints], const vec<float>* g, vec<float>* u) {
  vec<float> all[kPoints];
  evaluate_pair<0, count>(c, g, all);
  if constexpr (n > 2) evaluate_pair<1, count>(c, g, all + 2);
  if constexpr (n > 4) evaluate_pair<2, count>(c, g, all + 4);
#pragma GCC unroll 6
  for (int p = 0; p < n; ++p) u[p] = all[p];
}

// y = A^T m: kOutputs outputs of r taps.
template <int kTaps, int kOutputs>
PYDL_INLINE void transform_output_1d(const vec<float>* m, vec<float>* y) {
  interpolate_1d<kOutputs + kTaps - 1, kOutputs>(kTable.power, m, y);
}

// u = G g.
template <int kTaps>
PYDL_INLINE void transform_weight_1d(const vec<float>* g, vec<float>* u) {
  evaluate_1d<kPoints, kTaps>(kTable.scaled, g, u);
}

// The weight gradient's two: G of F(r, m) without its factors N_p, which the sum over tiles takes once at the
// end ...
template <int kTaps, int kOutputs>
PYDL_INLINE void transform_gradient_1d(const vec<float>* g, vec<float>* z) {
  evaluate_1d<kOutputs + kTaps - 1, kOutputs>(kTable.power, g, z);
}

template <int kTaps, int kPair>
PYDL_INLINE void transform_gradient_pair(const vec<float>* g, vec<float>* z) {  // of a whole tile
  evaluate_pair<kPair, kTile<kTaps>>(kTable.power, g, z);
}

// ... and A^T of F(r, m) with them.
template <int kTaps>
PYDL_INLINE void transform_weight_gradient_1d(const vec<float>* d, vec<float>* w) {
  interpolate_1d<kPoints, kTaps>(kTable.scaled, d, w);
}

}  // namespace pydl::cpu::PYDL_ISA::winograd
