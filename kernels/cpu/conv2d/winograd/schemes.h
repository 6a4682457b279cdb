// What a Winograd convolution does along one dimension.
//
// Dense: stride 1, F(m, r) as it stands. V has as many frequencies as U.
//
// Strided: stride 2 of 3 taps, by phases. Outputs y[o] = w0 x[2o] + w1 x[2o+1] + w2 x[2o+2] are a convolution
// of 2 taps over the even inputs, F(m, 2), plus w1 times the odd ones. With m = 4 that is 5 + 4 products for
// 4 outputs instead of 12, in two dimensions 81 instead of 144. The frequencies are
//
//   V   0 to 4: the even inputs at five points     5 to 8: the odd inputs
//   U   0 to 4: (w0, w2) at the points             5: w1, which all of V's 5 to 8 are multiplied with
//
// Transposed: its input gradient, for odd padding. Position o has two pixels: w1 g[o], and w2 g[o] + w0 g[o+1],
// again F(m, 2) and a product of its own.
//
// With 4 taps both phases have two, F(m, 2) of each, 100 products instead of 256. The strided convolution adds the two
// up, which it may as well do before it interpolates: V has the even and the odd inputs at five points each, M five sums.
// The transposed one, for odd padding, has them for two pixels: w3 g[o-1] + w1 g[o], and w2 g[o] + w0 g[o+1].
//
// A scheme has, for tiles of m positions along the dimension,
//   - kTaps, kSide: positions of a whole tile, kAlong: V's frequencies;
//   - inputs(m): pixels that a tile reads;
//   - kStep, kOutputStep: pixels of the input and of the output to a position;
//   - has(i, m): whether a tile has frequency i of V, of_weights(i): the frequency of U that goes with it, of kWeights;
//   - of_sums(i): the frequency of M, or of the gradient's Z, that goes with it, of kSums;
//   - input<m>, output<m>, weights: the transforms of pixels, products and taps;
//   - gradient<m>, taps: those of the weight gradient, of outputs' gradients and back to taps.
//
//   - Taps: of schemes that share the last two, the one that stands for all.
//
// Dense's input and gradient have functions for both dimensions at once (transforms.h);
// those that are transposed have no weight gradient.
#pragma once

#include "kernels/cpu/conv2d/winograd/points.h"

namespace pydl::cpu::PYDL_ISA::winograd {

enum class Kind : int8_t { dense_3, dense_5, strided, transposed, strided_of_4, transposed_of_4 };

template <int kTapCount>
struct Dense {
  static constexpr Kind kKind = kTapCount == 3 ? Kind::dense_3 : Kind::dense_5;
  using Taps = Dense;
  static constexpr int kTaps = kTapCount, kSide = kTile<kTapCount>, kAlong = kPoints, kWeights = kPoints,
                       kSums = kPoints, kStep = 1, kOutputStep = 1;
  static constexpr int inputs(int m) { return m + kTaps - 1; }
  static constexpr bool has(int i, int m) { return i < inputs(m); }
  static constexpr int of_weights(int i) { return i; }
  static constexpr int of_sums(int i) { return i; }
  template <int m>
  static PYDL_INLINE void output(const vec<float>* products, vec<float>* y) {
    transform_output_1d<kTaps, m>(products, y);
  }
  static PYDL_INLINE void weights(const vec<float>* g, vec<float>* u) { transform_weight_1d<kTaps>(g, u); }
  static PYDL_INLINE void taps(const vec<float>* d, vec<float>* w) {
    transform_weight_gradient_1d<kTaps>(d, w);
  }
};

// The two phases of stride 2.
struct Phases {
  using Taps = Phases;
  static constexpr int kTaps = 3, kSide = 4, kEven = kSide + 1, kAlong = kEven + kSide, kWeights = kPoints,
                       kSums = kAlong;
  static constexpr bool has(int i, int m) { return i < kEven ? i <= m : i - kEven < m; }
  static constexpr int of_weights(int i) { return i < kEven ? i : kEven; }
  static constexpr int of_sums(int i) { return i; }
  static PYDL_INLINE void weights(const vec<float>* g, vec<float>* u) {
    const vec<float> outer[2] = {g[0], g[2]};
    evaluate_1d<kEven, 2>(kTable.scaled, outer, u);
    u[kEven] = g[1];
  }
  static PYDL_INLINE void taps(const vec<float>* d, vec<float>* w) {
    vec<float> outer[2];
    interpolate_1d<kEven, 2>(kTable.scaled, d, outer);
    w[0] = outer[0];
    w[1] = d[kEven];
    w[2] = outer[1];
  }
};
static_assert(Phases::of_weights(Phases::kAlong - 1) < kPoints);
struct Strided : Phases {
  static constexpr Kind kKind = Kind::strided;
  static constexpr int kStep = 2, kOutputStep = 1;
  static constexpr int inputs(int m) { return 2 * m + 1; }
  template <int m>
  static PYDL_INLINE void input(const vec<float>* d, vec<float>* v) {
    vec<float> even[m + 1];
#pragma GCC unroll 5
    for (int k = 0; k <= m; ++k) even[k] = d[2 * k];
    transform_input_1d<m + 1>(even, v);
#pragma GCC unroll 4
    for (int k = 0; k < m; ++k) v[kEven + k] = d[2 * k + 1];
  }
  template <int m>
  static PYDL_INLINE void output(const vec<float>* products, vec<float>* y) {
    interpolate_1d<m + 1, m>(kTable.power, products, y);
#pragma GCC unroll 4
    for (int k = 0; k < m; ++k) y[k] += products[kEven + k];
  }
  template <int m>
  static PYDL_INLINE void gradient(const vec<float>* g, vec<float>* z) {
    evaluate_1d<m + 1, m>(kTable.power, g, z);
#pragma GCC unroll 4
    for (int k = 0; k < m; ++k) z[kEven + k] = g[k];
  }
};
struct Transposed : Phases {
  static constexpr Kind kKind = Kind::transposed;
  static constexpr int kStep = 1, kOutputStep = 2;
  static constexpr int inputs(int m) { return m + 1; }
  template <int m>
  static PYDL_INLINE void input(const vec<float>* d, vec<float>* v) {
    transform_input_1d<m + 1>(d, v);
#pragma GCC unroll 4
    for (int k = 0; k < m; ++k) v[kEven + k] = d[k];
  }
  template <int m>
  static PYDL_INLINE void output(const vec<float>* products, vec<float>* y) {
    vec<float> even[m];
    interpolate_1d<m + 1, m>(kTable.power, products, even);
#pragma GCC unroll 4
    for (int k = 0; k < m; ++k) {
      y[2 * k] = products[kEven + k];
      y[2 * k + 1] = even[k];
    }
  }
};

// The two phases of stride 2 where both have two taps.
struct EqualPhases {
  using Taps = EqualPhases;
  static constexpr int kTaps = 4, kSide = 4, kOf = kSide + 1, kAlong = 2 * kOf, kWeights = kAlong;
  static constexpr bool has(int i, int m) { return i % kOf <= m; }
  static constexpr int of_weights(int i) { return i; }
  static PYDL_INLINE void weights(const vec<float>* g, vec<float>* u) {
    const vec<float> even[2] = {g[0], g[2]}, odd[2] = {g[1], g[3]};
    evaluate_1d<kOf, 2>(kTable.scaled, even, u);
    evaluate_1d<kOf, 2>(kTable.scaled, odd, u + kOf);
  }
  static PYDL_INLINE void taps(const vec<float>* d, vec<float>* w) {
    vec<float> even[2], odd[2];
    interpolate_1d<kOf, 2>(kTable.scaled, d, even);
    interpolate_1d<kOf, 2>(kTable.scaled, d + kOf, odd);
    w[0] = even[0];
    w[1] = odd[0];
    w[2] = even[1];
    w[3] = odd[1];
  }
};
struct StridedOf4 : EqualPhases {
  static constexpr Kind kKind = Kind::strided_of_4;
  static constexpr int kStep = 2, kOutputStep = 1, kSums = kOf;
  static constexpr int inputs(int m) { return 2 * m + 2; }
  static constexpr int of_sums(int i) { return i % kOf; }
  template <int m>
  static PYDL_INLINE void input(const vec<float>* d, vec<float>* v) {
    vec<float> even[m + 1], odd[m + 1];
#pragma GCC unroll 5
    for (int k = 0; k <= m; ++k) {
      even[k] = d[2 * k];
      odd[k] = d[2 * k + 1];
    }
    transform_input_1d<m + 1>(even, v);
    transform_input_1d<m + 1>(odd, v + kOf);
  }
  template <int m>
  static PYDL_INLINE void output(const vec<float>* sums, vec<float>* y) {
    interpolate_1d<m + 1, m>(kTable.power, sums, y);
  }
  template <int m>
  static PYDL_INLINE void gradient(const vec<float>* g, vec<float>* z) {
    evaluate_1d<m + 1, m>(kTable.power, g, z);
  }
};
struct TransposedOf4 : EqualPhases {
  static constexpr Kind kKind = Kind::transposed_of_4;
  static constexpr int kStep = 1, kOutputStep = 2, kSums = kAlong;
  static constexpr int inputs(int m) { return m + 2; }
  static constexpr int of_sums(int i) { return i; }
  template <int m>
  static PYDL_INLINE void input(const vec<float>* d, vec<float>* v) {
    transform_input_1d<m + 1>(d, v);
    transform_input_1d<m + 1>(d + 1, v + kOf);
  }
  template <int m>
  static PYDL_INLINE void output(const vec<float>* products, vec<float>* y) {
    vec<float> first[m], second[m];
    interpolate_1d<m + 1, m>(kTable.power, products, first);
    interpolate_1d<m + 1, m>(kTable.power, products + kOf, second);
#pragma GCC unroll 4
    for (int k = 0; k < m; ++k) {
      y[2 * k] = first[k];
      y[2 * k + 1] = second[k];
    }
  }
};

// Calls body(S{}) with the scheme of a kind.
template <class F>
PYDL_INLINE auto with_scheme(Kind kind, const F& body) {
  switch (kind) {
    case Kind::dense_3:
      return body(Dense<3>{});
    case Kind::dense_5:
      return body(Dense<5>{});
    case Kind::strided:
      return body(Strided{});
    case Kind::transposed:
      return body(Transposed{});
    case Kind::strided_of_4:
      return body(StridedOf4{});
    case Kind::transposed_of_4:
      return body(TransposedOf4{});
  }
  __builtin_unreachable();
}

// A scheme as data. Whatever walks over tiles and frequencies and leaves their numbers to the transforms and products
// is one function for all schemes.
struct Scheme {
  static constexpr int kMostAlong = 10, kMostSide = 4, kMostReach = 10;

  Kind kind;
  int taps, side, along, weights, sums, step, output_step;
  int inputs[kMostSide + 1];  // by the tile's positions
  int of_weights[kMostAlong], of_sums[kMostAlong];
  bool has[kMostAlong][kMostSide + 1];

  template <class S>
  static constexpr Scheme of(S) {
    Scheme scheme{S::kKind, S::kTaps,       S::kSide, S::kAlong, S::kWeights, S::kSums,
                  S::kStep, S::kOutputStep, {},       {},        {},          {}};
    for (int m = 0; m <= S::kSide; ++m) scheme.inputs[m] = S::inputs(m);
    for (int i = 0; i < S::kAlong; ++i) {
      scheme.of_weights[i] = S::of_weights(i);
      scheme.of_sums[i] = S::of_sums(i);
      for (int m = 0; m <= S::kSide; ++m) scheme.has[i][m] = S::has(i, m);
    }
    return scheme;
  }

  // How many frequencies V has in two dimensions, U, and M and Z.
  constexpr int products() const { return along * along; }
  constexpr int weight_frequencies() const { return weights * weights; }
  constexpr int sum_frequencies() const { return sums * sums; }
  // The frequency of the weights, or of the sums, that frequency (i, j) of V goes with, and whether (i, j) is the
  // first that does.
  int weight_frequency(int i, int j) const { return of_weights[i] * weights + of_weights[j]; }
  int sum_frequency(int i, int j) const { return of_sums[i] * sums + of_sums[j]; }
  bool is_first_of_weights(int i, int j) const { return of_weights[i] == i && of_weights[j] == j; }
  bool is_first_of_sums(int i, int j) const { return of_sums[i] == i && of_sums[j] == j; }
  constexpr bool has_4_taps() const { return taps == 4; }
};
constexpr Scheme kSchemes[] = {Scheme::of(Dense<3>{}),   Scheme::of(Dense<5>{}),
                               Scheme::of(Strided{}),    Scheme::of(Transposed{}),
                               Scheme::of(StridedOf4{}), Scheme::of(TransposedOf4{})};

}  // namespace pydl::cpu::PYDL_ISA::winograd
