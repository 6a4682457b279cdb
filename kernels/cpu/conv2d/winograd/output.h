// The way from sums of products to outputs: Y = A^T M A, plus bias, through the activation, into an image of
// either memory format.
#pragma once

#include "kernels/cpu/base/math.h"
#include "kernels/cpu/base/simd_transpose.h"
#include "kernels/cpu/conv2d/spoiled.h"
#include "kernels/cpu/conv2d/winograd/gemm.h"
#include "kernels/cpu/conv2d/winograd/images.h"
#include "kernels/cpu/conv2d/winograd/phases.h"

namespace pydl::cpu::PYDL_ISA::winograd {
namespace {

// Pixels of the most rows that a tile of outputs has.
constexpr int kMostNext = 2 * Scheme::kMostSide;

// rows x columns pixels from (y, x) on of image n, channels [c, c + count), out of strip[row][column][lanes],
// whose rows are `width` long.
template <class T>
void store_strip(const Image& image, int64_t n, int64_t c, int64_t count, int64_t y, int64_t x, int64_t rows,
                 int64_t columns, const float* strip, int64_t width) {
  constexpr int L = lanes<float>;
  if (image.column == 1 && image.row == image.width && columns == image.width)
    return transpose_out_rows(
        strip, width * L, rows, columns, count,
        static_cast<T*>(image.data) + n * image.batch + c * image.channel + y * image.row, image.channel);
  for (int64_t i = 0; i < rows; ++i, strip += width * L) {
    T* to = static_cast<T*>(image.data) + n * image.batch + c * image.channel + (y + i) * image.row +
            x * image.column;
    if (image.channel == 1) {
      for (int64_t j = 0; j < columns; ++j) store_n(to + j * image.column, load(strip + j * L), count);
    } else if (image.column == 1) {
      transpose_out(strip, L, columns, count, to, image.channel);
    } else {
      for (int64_t j = 0; j < columns; ++j)
        for (int64_t l = 0; l < count; ++l)
          store_n(to + j * image.column + l * image.channel, vec<float>{} + strip[j * L + l], 1);
    }
  }
}

// Of a strip, since it is rare: the common activations should not pay for its registers.
__attribute__((noinline, unused)) static void sigmoid(float* strip, int64_t floats) {
  for (int64_t i = 0; i < floats; i += lanes<float>) store(strip + i, 1.0f / (1.0f + exp(-load(strip + i))));
}

// The outputs of one tile and vector of channels: (i, j) goes to to[i * row + j * column].
template <class S, class T>
void put_tile(const float* from, int rows, int columns, T* to, int64_t row, int64_t column, vec<float> bias,
              vec<float> least, vec<float>& seen) {
  vec<float> watched{};
  auto put = [&](int i, int j, vec<float> y) __attribute__((always_inline)) {
    watch(y, watched);                                       // the activation might hide it
    store(to + i * row + j * column, max(least, y + bias));  // nan stays nan
  };
  Transform<S>::output(from, kPanel, rows, columns, put);
  seen += watched;
}

// That of a scheme, or none.
template <class T>
auto put_tile_of(Kind kind) {
  using Put = decltype(&put_tile<Dense<3>, T>);
  return with_scheme(kind, [](auto scheme) -> Put {
    using S = decltype(scheme);
    if constexpr (kInPlace<S, T>) return &put_tile<S, T>;
    return nullptr;
  });
}

// Outputs of tiles [begin, end), channels from o on, out of m.
template <class T>
void finish(const Image& out, const void* bias_data, Activation activation, const Tiles& tiles, int64_t begin,
            int64_t end, int64_t o, const float* m, int32_t* spoiled) {
  constexpr int L = lanes<float>;
  const Scheme& scheme = tiles.scheme;
  const auto put = put_tile_of<float>(scheme.kind);
  const auto put_in_place = put_tile_of<T>(scheme.kind);
  const int64_t step = scheme.output_step, beyond = scheme.side * step,
                tile_floats = scheme.sum_frequencies() * kPanel;
  const int64_t channels_end = min_of(o + kPanel, out.channels);
  const vec<float> least = activation == Activation::relu ? vec<float>{} : broadcast(-__builtin_inff());
  const bool adjacent = out.channel == 1 && put_in_place && activation != Activation::sigmoid;
  const int64_t most = out.channel == 1 ? 1 : strip_tiles(scheme);
  alignas(64) float strip[kMostNext * kStripColumns * L];
  vec<float> seen{};
  for (int64_t index = begin; index < end;) {
    const Tile tile = tiles[index];
    const int64_t run = min_of(min_of(tile.run, end - index), most);
    const int64_t y = tile.y * step, x = tile.x * step;
    const int64_t width = (run - 1) * beyond + tile.columns * step;
    // of two pixels of the last position the second may lie outside
    const int64_t rows = min_of(tile.rows * step, out.height - y), columns = min_of(width, out.width - x);
    const bool whole = rows == tile.rows * step && columns == width;
    for (int64_t c = o; c < channels_end; c += L) {
      const int64_t count = min_of(L, channels_end - c);
      const vec<float> bias = bias_data ? load_n(static_cast<const T*>(bias_data) + c, count) : vec<float>{};
      const float* from = m + (index - begin) * tile_floats + (c - o);
      if (adjacent && count == L && whole) {
        T* to = static_cast<T*>(out.data) + tile.n * out.batch + y * out.row + x * out.column + c;
        put_in_place(from, tile.rows, tile.columns, to, out.row, out.column, bias, least, seen);
        continue;
      }
      for (int64_t t = 0; t < run; ++t)
        put(from + t * tile_floats, tile.rows, tile.columns, strip + t * beyond * L, width * L, L, bias,
            least, seen);
      if (activation == Activation::sigmoid) sigmoid(strip, tile.rows * step * width * L);
      store_strip<T>(out, tile.n, c, count, y, x, rows, columns, strip, width);
    }
    index += run;
  }
  report_spoiled(seen, spoiled);
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::winograd
