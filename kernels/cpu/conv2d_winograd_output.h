// The way from sums of products to outputs: Y = A^T M A, plus bias, through the activation, into an image of
// either memory format.
#pragma once

#include "kernels/cpu/conv2d_winograd_gemm.h"
#include "kernels/cpu/conv2d_winograd_images.h"
#include "kernels/cpu/math.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// Out of line: rare, and the common activations should not pay for its registers.
__attribute__((noinline)) vec<float> sigmoid(vec<float> y) { return 1.0f / (1.0f + exp(-y)); }

// Outputs of tiles [begin, end), channels from o on, out of m.
template <int kTaps, class T>
void finish(const Image& out, const void* bias_data, Activation activation, const Tiles<kTaps>& tiles,
            int64_t begin, int64_t end, int64_t o, const float* m) {
  constexpr int L = lanes<float>;
  const int64_t channels_end = min_of(o + kPanel, out.channels);
  alignas(64) float strip[kTile<kTaps> * kStripTiles<kTaps> * kTile<kTaps> * L];
  for (int64_t index = begin; index < end;) {
    const Tile tile = tiles[index];
    const int64_t run = out.channel == 1 ? 1 : min_of(min_of(tile.run, end - index), kStripTiles<kTaps>);
    const int64_t width = (run - 1) * kTile<kTaps> + tile.columns;
    for (int64_t c = o; c < channels_end; c += L) {
      const int64_t count = min_of(L, channels_end - c);
      const vec<float> bias = bias_data ? load_n(static_cast<const T*>(bias_data) + c, count) : vec<float>{};
      auto activate = [&](vec<float> y) __attribute__((always_inline)) {
        y += bias;
        if (activation == Activation::relu) return max(vec<float>{}, y);  // nan stays nan
        if (activation == Activation::sigmoid) return sigmoid(y);
        return y;
      };
      const float* from = m + (index - begin) * kFrequencies * kPanel + (c - o);
      if (out.channel == 1 && count == L) {
        T* to = static_cast<T*>(out.data) + tile.n * out.batch + tile.y * out.row + tile.x * out.column + c;
        transform_output<kTaps>(from, kPanel, tile.rows, tile.columns,
                                [&](int i, int j, vec<float> y) __attribute__((always_inline)) {
                                  store(to + i * out.row + j * out.column, activate(y));
                                });
        continue;
      }
      for (int64_t t = 0; t < run; ++t)
        transform_output<kTaps>(from + t * kFrequencies * kPanel, kPanel, tile.rows, tile.columns,
                                [&](int i, int j, vec<float> y) __attribute__((always_inline)) {
                                  store(strip + (i * width + t * kTile<kTaps> + j) * L, activate(y));
                                });
      store_strip<T>(out, tile.n, c, count, tile.y, tile.x, tile.rows, width, strip);
    }
    index += run;
  }
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
