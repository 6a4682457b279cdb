// The tiles of depthwise.h, unrolled for kernels 3, 5 and 7 wide with strides 1 and 2; any other runs
// the same sums without sharing loads.
#include "kernels/cpu/conv2d/depthwise/depthwise.h"

namespace pydl::cpu::PYDL_ISA::depthwise {
namespace {

constexpr int kP = kTilePixels;

template <class T, int kTaps, int kStep>
void strided_tile(const Tile<T>& tile) {
  using A = acc_t<T>;
  each_block(tile, [&](int64_t c, int64_t block) PYDL_INLINE_LAMBDA {
    const vec<A> bias = tile.bias ? load(tile.bias + block) : vec<A>{};
    vec<A> sum[kP];
#pragma GCC unroll 16
    for (int i = 0; i < kP; ++i) sum[i] = bias;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const T* const* from = tile.sources + r * tile.pitch;
      const A* w = tile.weights + block + tile.row_weights[r];
      vec<A> x[(kP - 1) * kStep + kTaps];
#pragma GCC unroll 32
      for (int j = 0; j < (kP - 1) * kStep + kTaps; ++j) x[j] = load(from[j] + c);
#pragma GCC unroll 8
      for (int t = 0; t < kTaps; ++t) {
        const vec<A> weight = load(w + t * lanes<A>);
#pragma GCC unroll 16
        for (int i = 0; i < kP; ++i) sum[i] += weight * x[i * kStep + t];
      }
    }
    finish_tile<T, kP>(tile, sum, c);
  });
}

// Result u of the padded image, u = 2a + b, is reached by taps t = b + 2j from gradient a - j.
template <class T, int kTaps>
void transposed_tile(const Tile<T>& tile) {
  using A = acc_t<T>;
  constexpr int kEven = (kTaps + 1) / 2, kOdd = kTaps / 2;
  each_block(tile, [&](int64_t c, int64_t block) PYDL_INLINE_LAMBDA {
    vec<A> sum[2 * kP] = {};
    for (int64_t r = 0; r < tile.rows; ++r) {
      const T* const* from = tile.sources + r * tile.pitch;
      const A* w = tile.weights + block + tile.row_weights[r];
      vec<A> x[kP + kEven - 1];
#pragma GCC unroll 16
      for (int j = 0; j < kP + kEven - 1; ++j) x[j] = load(from[j] + c);
#pragma GCC unroll 4
      for (int j = 0; j < kEven; ++j) {
        const vec<A> weight = load(w + 2 * j * lanes<A>);
#pragma GCC unroll 16
        for (int i = 0; i < kP; ++i) sum[2 * i] += weight * x[i - j + kEven - 1];
      }
#pragma GCC unroll 4
      for (int j = 0; j < kOdd; ++j) {
        const vec<A> weight = load(w + (2 * j + 1) * lanes<A>);
#pragma GCC unroll 16
        for (int i = 0; i < kP; ++i) sum[2 * i + 1] += weight * x[i - j + kEven - 1];
      }
    }
    finish_tile<T, 2 * kP>(tile, sum, c);
  });
}

template <class T>
void any_tile(const Tile<T>& tile) {
  using A = acc_t<T>;
  each_block(tile, [&](int64_t c, int64_t block) PYDL_INLINE_LAMBDA {
    const vec<A> bias = tile.bias ? load(tile.bias + block) : vec<A>{};
    vec<A> sum[kP];
#pragma GCC unroll 16
    for (int i = 0; i < kP; ++i) sum[i] = bias;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const T* const* from = tile.sources + r * tile.pitch;
      const A* w = tile.weights + block + tile.row_weights[r];
      for (int64_t t = 0; t < tile.taps; ++t, from += kP) {
        const vec<A> weight = load(w + t * lanes<A>);
#pragma GCC unroll 16
        for (int i = 0; i < kP; ++i) sum[i] += weight * load(from[i] + c);
      }
    }
    finish_tile<T, kP>(tile, sum, c);
  });
}

template <class T, int kTaps, int kStep>
void weight_tile(const Tile<T>& tile) {
  using A = acc_t<T>;
  each_block(tile, [&](int64_t c, int64_t block) PYDL_INLINE_LAMBDA {
    vec<A> grad[kP];
#pragma GCC unroll 16
    for (int i = 0; i < kP; ++i) grad[i] = load(tile.gradients[i] + c);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const T* const* from = tile.sources + r * tile.pitch;
      A* to = tile.sums + block + tile.row_weights[r];
      vec<A> sum[kTaps];
#pragma GCC unroll 8
      for (int t = 0; t < kTaps; ++t) sum[t] = load(to + t * lanes<A>);
#pragma GCC unroll 16
      for (int i = 0; i < kP; ++i)
#pragma GCC unroll 8
        for (int t = 0; t < kTaps; ++t) sum[t] += grad[i] * load(from[i * kStep + t] + c);
#pragma GCC unroll 8
      for (int t = 0; t < kTaps; ++t) store(to + t * lanes<A>, sum[t]);
    }
  });
}

template <class T>
void any_weight_tile(const Tile<T>& tile) {
  using A = acc_t<T>;
  each_block(tile, [&](int64_t c, int64_t block) PYDL_INLINE_LAMBDA {
    vec<A> grad[kP];
#pragma GCC unroll 16
    for (int i = 0; i < kP; ++i) grad[i] = load(tile.gradients[i] + c);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const T* const* from = tile.sources + r * tile.pitch;
      A* to = tile.sums + block + tile.row_weights[r];
      for (int64_t t = 0; t < tile.taps; ++t, from += kP, to += lanes<A>) {
        vec<A> sum = load(to);
#pragma GCC unroll 16
        for (int i = 0; i < kP; ++i) sum += grad[i] * load(from[i] + c);
        store(to, sum);
      }
    }
  });
}

}  // namespace

template <class T>
RunTile<T> depthwise_tile(const TileShape& s) {
  if (s.pattern == TileShape::strided && s.step == 1) {
    if (s.taps == 3) return &strided_tile<T, 3, 1>;
    if (s.taps == 5) return &strided_tile<T, 5, 1>;
    return &strided_tile<T, 7, 1>;
  }
  if (s.pattern == TileShape::strided) {
    if (s.taps == 3) return &strided_tile<T, 3, 2>;
    if (s.taps == 5) return &strided_tile<T, 5, 2>;
    return &strided_tile<T, 7, 2>;
  }
  if (s.pattern == TileShape::transposed) {
    if (s.taps == 3) return &transposed_tile<T, 3>;
    if (s.taps == 5) return &transposed_tile<T, 5>;
    return &transposed_tile<T, 7>;
  }
  return &any_tile<T>;
}

template <class T>
RunTile<T> depthwise_weight_tile(const TileShape& s) {
  if (s.pattern == TileShape::any) return &any_weight_tile<T>;
  if (s.step == 1) {
    if (s.taps == 3) return &weight_tile<T, 3, 1>;
    if (s.taps == 5) return &weight_tile<T, 5, 1>;
    return &weight_tile<T, 7, 1>;
  }
  if (s.taps == 3) return &weight_tile<T, 3, 2>;
  if (s.taps == 5) return &weight_tile<T, 5, 2>;
  return &weight_tile<T, 7, 2>;
}

template RunTile<float> depthwise_tile<float>(const TileShape&);
template RunTile<bf16> depthwise_tile<bf16>(const TileShape&);
template RunTile<float> depthwise_weight_tile<float>(const TileShape&);
template RunTile<bf16> depthwise_weight_tile<bf16>(const TileShape&);

}  // namespace pydl::cpu::PYDL_ISA::depthwise
