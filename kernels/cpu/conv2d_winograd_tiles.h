// How images are cut into tiles, and the transforms between images and tiles.
//
// A tile covers 4 x 4 outputs and reads 6 x 6 inputs; the last row and column of tiles of an image cover what
// is left, 1 to 4. Tiles are numbered by kind, so that the tiles that have a frequency are one range of
// numbers:
//
//   group            0                 1                 2                 3
//   rows x columns   4 x last          4 x 4             last x 4          last x last
//
//   a row frequency that the last row lacks: groups 0, 1; a column frequency that the last column lacks:
//   groups 1, 2; both: group 1; neither: all.
//
// Within a group: image, then row, then column. Images are read and written where they are, in either memory
// format: lanes are channels, loaded directly when channels are adjacent (channels_last); otherwise a strip
// of rows is transposed through the L1 cache on the way in and out. Padding is never stored: what lies
// outside is zero.
#pragma once

#include "kernels/conv2d.h"
#include "kernels/cpu/conv2d_winograd_points.h"
#include "kernels/cpu/simd_transpose.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

struct Image {
  void* data;
  int64_t batch, channel, row, column;  // strides in elements
  int64_t channels, height, width;
};

struct Tile {
  int64_t n, y, x;    // image, and position of its first output
  int rows, columns;  // outputs, 1 to 4 each
  int64_t run;        // how many tiles from this one on are adjacent in a row of the image and alike
};

struct Tiles {
  int64_t full_rows, full_columns, rows, columns;  // of tiles per image: those with 4 outputs, and all
  int last_row, last_column;                       // outputs of the last
  int64_t start[5];                                // first tile of each group, and the number of tiles

  Tiles(int64_t batch, int64_t height, int64_t width) {
    rows = ceil_div(height, kTile);
    columns = ceil_div(width, kTile);
    last_row = static_cast<int>(height - (rows - 1) * kTile);
    last_column = static_cast<int>(width - (columns - 1) * kTile);
    full_rows = rows - (last_row < kTile);
    full_columns = columns - (last_column < kTile);
    start[0] = 0;
    start[1] = batch * full_rows * (columns - full_columns);
    start[2] = start[1] + batch * full_rows * full_columns;
    start[3] = start[2] + batch * (rows - full_rows) * full_columns;
    start[4] = start[3] + batch * (rows - full_rows) * (columns - full_columns);
  }

  int64_t count() const { return start[4]; }

  Tile operator[](int64_t index) const {
    int group = 0;
    while (index >= start[group + 1]) ++group;
    const bool last_rows = group >= 2, last_columns = group == 0 || group == 3;
    const int64_t width = last_columns ? columns - full_columns : full_columns;
    const int64_t height = last_rows ? rows - full_rows : full_rows;
    const int64_t within = index - start[group], x = within % width, y = within / width % height;
    return {within / width / height,
            (last_rows ? full_rows + y : y) * kTile,
            (last_columns ? full_columns + x : x) * kTile,
            last_rows ? last_row : kTile,
            last_columns ? last_column : kTile,
            width - x};
  }

  // The tiles of [begin, end) that have frequency (i, j), counted from begin.
  void range(int i, int j, int64_t begin, int64_t end, int64_t& first, int64_t& last) const {
    const bool all_rows = i < last_row + 2, all_columns = j < last_column + 2;
    first = max_of(all_columns ? 0 : start[1], begin) - begin;
    last = min_of(all_columns ? (all_rows ? start[4] : start[2]) : (all_rows ? start[3] : start[2]), end) -
           begin;
  }
};

template <int kValue>
struct Size {
  static constexpr int value = kValue;
};

template <class F>
PYDL_INLINE void with_size(int size, const F& body) {  // size as a constant
  switch (size) {
    case 1:
      return body(Size<1>{});
    case 2:
      return body(Size<2>{});
    case 3:
      return body(Size<3>{});
    default:
      return body(Size<4>{});
  }
}

// V = B^T d B of one tile and one vector of channels: d(i, j) at from + i * row + j * column, rows + 2 by
// columns + 2 of them; frequency (i, j) goes to to + (6 i + j) * stride.
template <class T>
PYDL_INLINE void transform_input(const T* from, int64_t row, int64_t column, int rows, int columns, float* to,
                                 int64_t stride) {
  vec<float> half[kPoints][kPoints];  // half[j][i]: column j transformed
  with_size(rows, [&](auto size) __attribute__((always_inline)) {
    constexpr int n = decltype(size)::value + 2;
    for (int j = 0; j < columns + 2; ++j) {
      vec<float> d[n];
#pragma GCC unroll 6
      for (int i = 0; i < n; ++i) d[i] = load(from + i * row + j * column);
      transform_input_1d<n - 2>(d, half[j]);
    }
  });
  with_size(columns, [&](auto size) __attribute__((always_inline)) {
    constexpr int n = decltype(size)::value + 2;
    for (int i = 0; i < rows + 2; ++i) {
      vec<float> d[n], v[n];
#pragma GCC unroll 6
      for (int j = 0; j < n; ++j) d[j] = half[j][i];
      transform_input_1d<n - 2>(d, v);
#pragma GCC unroll 6
      for (int j = 0; j < n; ++j) store(to + (i * kPoints + j) * stride, v[j]);
    }
  });
}

// Z = G g G^T of one tile of output gradients (F(3, m), without the factors N_p), laid out as above.
template <class T>
PYDL_INLINE void transform_gradient(const T* from, int64_t row, int64_t column, int rows, int columns,
                                    float* to, int64_t stride) {
  vec<float> half[kTile][kPoints];
  with_size(rows, [&](auto size) __attribute__((always_inline)) {
    constexpr int m = decltype(size)::value;
    for (int j = 0; j < columns; ++j) {
      vec<float> d[m];
#pragma GCC unroll 4
      for (int i = 0; i < m; ++i) d[i] = load(from + i * row + j * column);
      transform_gradient_1d<m>(d, half[j]);
    }
  });
  with_size(columns, [&](auto size) __attribute__((always_inline)) {
    constexpr int m = decltype(size)::value;
    for (int i = 0; i < rows + 2; ++i) {
      vec<float> d[m], v[m + 2];
#pragma GCC unroll 4
      for (int j = 0; j < m; ++j) d[j] = half[j][i];
      transform_gradient_1d<m>(d, v);
#pragma GCC unroll 6
      for (int j = 0; j < m + 2; ++j) store(to + (i * kPoints + j) * stride, v[j]);
    }
  });
}

// Y = A^T M A of one tile and one vector of channels; put(i, j, vector) takes the outputs.
template <class F>
PYDL_INLINE void transform_output(const float* from, int64_t stride, int rows, int columns, const F& put) {
  vec<float> half[kPoints][kTile];  // half[j][i]: output row i, frequency column j
  with_size(rows, [&](auto size) __attribute__((always_inline)) {
    constexpr int m = decltype(size)::value;
    for (int j = 0; j < columns + 2; ++j) {
      vec<float> d[m + 2];
#pragma GCC unroll 6
      for (int i = 0; i < m + 2; ++i) d[i] = load(from + (i * kPoints + j) * stride);
      transform_output_1d<m>(d, half[j]);
    }
  });
  with_size(columns, [&](auto size) __attribute__((always_inline)) {
    constexpr int m = decltype(size)::value;
    for (int i = 0; i < rows; ++i) {
      vec<float> d[m + 2], y[m];
#pragma GCC unroll 6
      for (int j = 0; j < m + 2; ++j) d[j] = half[j][i];
      transform_output_1d<m>(d, y);
#pragma GCC unroll 4
      for (int j = 0; j < m; ++j) put(i, j, y[j]);
    }
  });
}

constexpr int kStripTiles = 14;  // widest strip: 6 x 58 pixels of a vector of channels, 22 KB
constexpr int kStripColumns = kStripTiles * kTile + 2;
constexpr int kStripFloats = kPoints * kStripColumns * lanes<float>;

// Copies rows x columns pixels from (y, x) of image n, channels [c, c + count), into
// strip[rows][columns][lanes], with zeros outside the image and in the lanes beyond count.
template <class T>
void load_strip(const Image& image, int64_t n, int64_t c, int64_t count, int64_t y, int64_t x, int64_t rows,
                int64_t columns, float* strip) {
  constexpr int L = lanes<float>;
  const T* base = static_cast<const T*>(image.data) + n * image.batch + c * image.channel;
  const int64_t first = min_of(max_of(0, -x), columns),
                last = max_of(first, min_of(columns, image.width - x));
  for (int64_t i = 0; i < rows; ++i, strip += columns * L) {
    const bool inside = y + i >= 0 && y + i < image.height && first < last;
    const int64_t begin = inside ? first : columns, end = inside ? last : columns;
    for (int64_t j = 0; j < begin; ++j) store(strip + j * L, vec<float>{});
    for (int64_t j = end; j < columns; ++j) store(strip + j * L, vec<float>{});
    if (!inside) continue;
    const T* from = base + (y + i) * image.row + (x + begin) * image.column;
    if (image.channel == 1) {
      for (int64_t j = begin; j < end; ++j, from += image.column)
        store(strip + j * L, count == L ? load(from) : load_n(from, count));
    } else if (image.column == 1) {
      transpose_in(from, image.channel, count, end - begin, strip + begin * L, L);
    } else {
      for (int64_t j = begin; j < end; ++j, from += image.column) {
        vec<float> pixel{};
        for (int64_t l = 0; l < count; ++l) pixel[l] = load_n(from + l * image.channel, 1)[0];
        store(strip + j * L, pixel);
      }
    }
  }
}

// The way back, for the part of channels [c, c + count) that strip[rows][columns][lanes] holds.
template <class T>
void store_strip(const Image& image, int64_t n, int64_t c, int64_t count, int64_t y, int64_t x, int64_t rows,
                 int64_t columns, const float* strip) {
  constexpr int L = lanes<float>;
  for (int64_t i = 0; i < rows; ++i, strip += columns * L) {
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

// Transforms tiles [begin, end), all channels, into to[tile - begin][frequency][channel]. kGradient: the
// tile's own pixels by G (weight gradient) instead of its inputs by B^T.
template <class T, bool kGradient>
void transform_tiles(const Image& image, const Tiles& tiles, int64_t begin, int64_t end, int64_t pad_y,
                     int64_t pad_x, float* to, int64_t tile_stride, int64_t frequency_stride) {
  constexpr int L = lanes<float>, kHalo = kGradient ? 0 : 2;
  alignas(64) float strip[kStripFloats];
  auto transform = [&](auto from, int64_t row, int64_t column, const Tile& tile, float* v) {
    if constexpr (kGradient)
      transform_gradient(from, row, column, tile.rows, tile.columns, v, frequency_stride);
    else
      transform_input(from, row, column, tile.rows, tile.columns, v, frequency_stride);
  };
  for (int64_t index = begin; index < end;) {
    const Tile tile = tiles[index];
    const int64_t y = tile.y - pad_y, x = tile.x - pad_x, height = tile.rows + kHalo;
    const bool rows_inside = y >= 0 && y + height <= image.height;
    // tiles inside the image are read where they are when channels are adjacent
    const bool direct =
        image.channel == 1 && rows_inside && x >= 0 && x + tile.columns + kHalo <= image.width;
    const int64_t run = min_of(min_of(tile.run, end - index), image.channel == 1 ? 1 : kStripTiles);
    const int64_t width = (run - 1) * kTile + tile.columns + kHalo;
    const T* from =
        static_cast<const T*>(image.data) + tile.n * image.batch + y * image.row + x * image.column;
    for (int64_t c = 0; c < image.channels; c += L) {
      const int64_t count = min_of(L, image.channels - c);
      float* v = to + (index - begin) * tile_stride + c;
      if (direct && count == L) {
        for (int64_t i = 0; i < height; ++i)  // the pixels that the next tile adds
          for (int64_t j = 0; j < kTile; ++j)
            prefetch(from + c + i * image.row + (tile.columns + kHalo + j) * image.column);
        transform(from + c, image.row, image.column, tile, v);
        continue;
      }
      load_strip<T>(image, tile.n, c, count, y, x, height, width, strip);
      for (int64_t t = 0; t < run; ++t)
        transform(static_cast<const float*>(strip) + t * kTile * L, width * L, L, tile, v + t * tile_stride);
    }
    index += run;
  }
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
