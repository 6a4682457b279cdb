// The tiles of depthwise.h for groups of several channels, as many out as in, which divide a vector.
//
// The lanes of a vector are results of `all / inputs` groups. Result o of a group sums over the group's
// channels i; for one i, every lane of the group needs channel i of its group: the source's vector with its
// lanes rearranged. That is done once per source and i, and serves all taps and pixels of the tile that read
// the source; products waste no lane, however few channels a group has.
#include "kernels/cpu/conv2d/depthwise/depthwise.h"

namespace pydl::cpu::PYDL_ISA::depthwise {
namespace {

constexpr int kP = kTilePixels;

// For every lane, that of its group's first channel. `inputs` divides the lanes: it is a power of two.
template <class A>
PYDL_INLINE mask<A> group_lanes(int64_t inputs) {
  mask<A> lane{};
#pragma GCC unroll 16
  for (int l = 0; l < lanes<A>; ++l) lane[l] = l;
  return lane & static_cast<__typeof__(lane[0] + 0)>(-inputs);
}

template <class T, int kTaps, int kStep>
void strided_tile(const Tile<T>& tile) {
  using A = acc_t<T>;
  const mask<A> first = group_lanes<A>(tile.inputs);
  each_block(tile, [&](int64_t c, int64_t block) PYDL_INLINE_LAMBDA {
    const vec<A> bias = tile.bias ? load(tile.bias + block) : vec<A>{};
    vec<A> sum[kP];
#pragma GCC unroll 16
    for (int i = 0; i < kP; ++i) sum[i] = bias;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const T* const* from = tile.sources + r * tile.pitch;
      const A* w = tile.weights + block + tile.row_weights[r];
      mask<A> index = first;
      for (int64_t input = 0; input < tile.inputs; ++input, index += 1, w += kTaps * lanes<A>) {
        vec<A> x[(kP - 1) * kStep + kTaps];
#pragma GCC unroll 32
        for (int j = 0; j < (kP - 1) * kStep + kTaps; ++j) x[j] = permute(load(from[j] + c), index);
#pragma GCC unroll 8
        for (int t = 0; t < kTaps; ++t) {
          const vec<A> weight = load(w + t * lanes<A>);
#pragma GCC unroll 16
          for (int i = 0; i < kP; ++i) sum[i] += weight * x[i * kStep + t];
        }
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
  const mask<A> first = group_lanes<A>(tile.inputs);
  each_block(tile, [&](int64_t c, int64_t block) PYDL_INLINE_LAMBDA {
    vec<A> sum[2 * kP] = {};
    for (int64_t r = 0; r < tile.rows; ++r) {
      const T* const* from = tile.sources + r * tile.pitch;
      const A* w = tile.weights + block + tile.row_weights[r];
      mask<A> index = first;
      for (int64_t input = 0; input < tile.inputs; ++input, index += 1, w += kTaps * lanes<A>) {
        vec<A> x[kP + kEven - 1];
#pragma GCC unroll 16
        for (int j = 0; j < kP + kEven - 1; ++j) x[j] = permute(load(from[j] + c), index);
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
    }
    finish_tile<T, 2 * kP>(tile, sum, c);
  });
}

template <class T>
void any_tile(const Tile<T>& tile) {
  using A = acc_t<T>;
  const mask<A> first = group_lanes<A>(tile.inputs);
  each_block(tile, [&](int64_t c, int64_t block) PYDL_INLINE_LAMBDA {
    const vec<A> bias = tile.bias ? load(tile.bias + block) : vec<A>{};
    vec<A> sum[kP];
#pragma GCC unroll 16
    for (int i = 0; i < kP; ++i) sum[i] = bias;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const A* w = tile.weights + block + tile.row_weights[r];
      mask<A> index = first;
      for (int64_t input = 0; input < tile.inputs; ++input, index += 1) {
        const T* const* from = tile.sources + r * tile.pitch;
        for (int64_t t = 0; t < tile.taps; ++t, from += kP, w += lanes<A>) {
          const vec<A> weight = load(w);
#pragma GCC unroll 16
          for (int i = 0; i < kP; ++i) sum[i] += weight * permute(load(from[i] + c), index);
        }
      }
    }
    finish_tile<T, kP>(tile, sum, c);
  });
}

template <class T, int kTaps, int kStep>
void weight_tile(const Tile<T>& tile) {
  using A = acc_t<T>;
  const mask<A> first = group_lanes<A>(tile.inputs);
  each_block(tile, [&](int64_t c, int64_t block) PYDL_INLINE_LAMBDA {
    vec<A> grad[kP];
#pragma GCC unroll 16
    for (int i = 0; i < kP; ++i) grad[i] = load(tile.gradients[i] + c);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const T* const* from = tile.sources + r * tile.pitch;
      A* to = tile.sums + block + tile.row_weights[r];
      mask<A> index = first;
      for (int64_t input = 0; input < tile.inputs; ++input, index += 1, to += kTaps * lanes<A>) {
        vec<A> x[(kP - 1) * kStep + kTaps];
#pragma GCC unroll 32
        for (int j = 0; j < (kP - 1) * kStep + kTaps; ++j) x[j] = permute(load(from[j] + c), index);
        vec<A> sum[kTaps];
#pragma GCC unroll 8
        for (int t = 0; t < kTaps; ++t) sum[t] = load(to + t * lanes<A>);
#pragma GCC unroll 16
        for (int i = 0; i < kP; ++i)
#pragma GCC unroll 8
          for (int t = 0; t < kTaps; ++t) sum[t] += grad[i] * x[i * kStep + t];
#pragma GCC unroll 8
        for (int t = 0; t < kTaps; ++t) store(to + t * lanes<A>, sum[t]);
      }
    }
  });
}

template <class T>
void any_weight_tile(const Tile<T>& tile) {
  using A = acc_t<T>;
  const mask<A> first = group_lanes<A>(tile.inputs);
  each_block(tile, [&](int64_t c, int64_t block) PYDL_INLINE_LAMBDA {
    vec<A> grad[kP];
#pragma GCC unroll 16
    for (int i = 0; i < kP; ++i) grad[i] = load(tile.gradients[i] + c);
    for (int64_t r = 0; r < tile.rows; ++r) {
      A* to = tile.sums + block + tile.row_weights[r];
      mask<A> index = first;
      for (int64_t input = 0; input < tile.inputs; ++input, index += 1) {
        const T* const* from = tile.sources + r * tile.pitch;
        for (int64_t t = 0; t < tile.taps; ++t, from += kP, to += lanes<A>) {
          vec<A> sum = load(to);
#pragma GCC unroll 16
          for (int i = 0; i < kP; ++i) sum += grad[i] * permute(load(from[i] + c), index);
          store(to, sum);
        }
      }
    }
  });
}

}  // namespace

template <class T>
RunTile<T> grouped_tile(const TileShape& s) {
  if (s.pattern == TileShape::strided) return s.step == 1 ? &strided_tile<T, 3, 1> : &strided_tile<T, 3, 2>;
  if (s.pattern == TileShape::transposed) return &transposed_tile<T, 3>;
  return &any_tile<T>;
}

template <class T>
RunTile<T> grouped_weight_tile(const TileShape& s) {
  if (s.pattern == TileShape::any) return &any_weight_tile<T>;
  return s.step == 1 ? &weight_tile<T, 3, 1> : &weight_tile<T, 3, 2>;
}

template RunTile<float> grouped_tile<float>(const TileShape&);
template RunTile<bf16> grouped_tile<bf16>(const TileShape&);
template RunTile<float> grouped_weight_tile<float>(const TileShape&);
template RunTile<bf16> grouped_weight_tile<bf16>(const TileShape&);

}  // namespace pydl::cpu::PYDL_ISA::depthwise
