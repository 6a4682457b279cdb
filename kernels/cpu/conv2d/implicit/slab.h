// Slabs: copies of a part of some images with the channels of a pixel side by side, padding included, from
// which implicit GEMM reads windows in place.
//
//   slab[image][row][column][channel]     `pitch` elements between columns
//
// A window is then kernel_height stretches of memory (or one per tap), at the same distances from every
// pixel's corner, so nothing is packed per window: a 3x3 convolution of stride 2 copies each number 1 time
// instead of 2.25, and stride, padding, dilation and NCHW are resolved in this copy alone. Only a slab's
// worth of an image exists at a time, sized for the second-level cache.
#pragma once

#include "kernels/cpu/conv2d/im2col.h"
#include "kernels/cpu/gemm/windows.h"

namespace pydl::cpu::PYDL_ISA::implicit {

using namespace gemm;

// How one axis of a problem maps positions of its grid to the axis that is read: position i reads i * step +
// low .. i * step + low + extent - 1.
struct Reach {
  int64_t step, low, extent;
  int64_t covered(int64_t count) const { return (count - 1) * step + extent; }  // by `count` positions
};

// A part of the grid of a problem.
struct Region {
  int64_t image, images, row, rows, column, columns;
  int64_t pixels() const { return images * rows * columns; }
};

// How a grid of images x rows x columns is cut into regions whose slabs fit `budget` elements.
struct Regions {
  int64_t batch, height, width;   // of the grid
  int64_t images, rows, columns;  // of a region
  int64_t slab;                   // elements of the largest slab

  // most_pixels bounds what else a region needs.
  Regions(int64_t batch, int64_t height, int64_t width, const Reach& y, const Reach& x, int64_t pitch,
          int64_t budget, int64_t most_pixels)
      : batch(max_of(batch, 1)), height(height), width(width), images(1) {
    auto size = [&](int64_t some_rows, int64_t some_columns) {
      return y.covered(some_rows) * x.covered(some_columns) * pitch;
    };
    columns = max_of(1, min_of(width, most_pixels));
    while (columns > 14 && size(1, columns) > budget) columns = ceil_div(columns, 2);
    if (columns < width) {  // pieces of about the same size, in whole tiles of the widest microkernel
      columns = ceil_div(width, ceil_div(width, columns));
      columns = min_of(width, ceil_div(columns, 14) * 14);
    }
    rows = max_of(1, min_of(height, most_pixels / columns));
    while (rows > 1 && size(rows, columns) > budget) --rows;
    rows = ceil_div(height, ceil_div(height, rows));
    if (rows == height && columns == width)
      images = max_of(
          1, min_of(min_of(this->batch, budget / size(rows, columns)), most_pixels / (rows * columns)));
    images = ceil_div(this->batch, ceil_div(this->batch, images));
    slab = images * size(rows, columns);
  }

  int64_t count() const {
    return ceil_div(batch, images) * ceil_div(height, rows) * ceil_div(width, columns);
  }
  Region at(int64_t i) const {
    const int64_t across = ceil_div(width, columns), down = ceil_div(height, rows);
    const int64_t column = i % across * columns, row = i / across % down * rows,
                  image = i / across / down * images;
    return {image,  min_of(images, batch - image),  row, min_of(rows, height - row),
            column, min_of(columns, width - column)};
  }
};

// Elements between the pixels of a slab. An odd number of cache lines, so that neighbours fall into different
// cache sets; few channels lie without gaps, so that a row of a window is one stretch.
static PYDL_INLINE int64_t slab_pitch(int64_t elements) {
  return elements <= 32 ? elements : (ceil_div(elements, 16) | 1) * 16;
}

template <class E>
static PYDL_INLINE void zero_elements(E* to, int64_t count) {
  memset(to, 0, static_cast<size_t>(count) * sizeof(E));
}

// square[pixel] = the elements [c, c + lanes) of n pixels, from channels of neighbouring pixels.
template <class T, class E>
static PYDL_INLINE void load_square(const T* from, int64_t channel_stride, int64_t channels, int64_t c,
                                    int64_t n, vec<acc_of<E>> (&square)[lanes<acc_of<E>>]) {
  using A = acc_of<E>;
  constexpr int64_t all = lanes<A>;
  for (int64_t i = 0; i < all; ++i) {
    square[i] = vec<A>{};
    const int64_t channel = (c + i) * per_element<E>;
    if (channel >= channels) continue;
    const T* row = from + channel * channel_stride;
    if constexpr (__is_same(E, bf16_pair)) {
      const u16h high = channel + 1 < channels ? load_bits_n(row + channel_stride, n) : u16h{};
      square[i] = bit_cast<vec<float>>(side_by_side(load_bits_n(row, n), high));
    } else {
      square[i] = n == all ? load(row) : load_n(row, n);
    }
  }
  transpose(square);
}

#if defined(PYDL_AVX512)
// transpose_line of three channels without gaps, of which a square would have 3 rows of 16: pictures.
template <class T>
static void interleave_3(const T* from, int64_t channel_stride, int64_t pixels, float* to) {
  constexpr int L = lanes<float>;
  mask<float> of_two[3], of_all[3];  // which number of the first two planes, and of these and the third
#pragma GCC unroll 3
  for (int v = 0; v < 3; ++v)
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      const int pixel = (v * L + i) / 3, channel = (v * L + i) % 3;
      of_two[v][i] = channel == 1 ? L + pixel : pixel;
      of_all[v][i] = channel == 2 ? L + pixel : i;
    }
  for (int64_t j = 0; j < pixels; j += L) {
    const int64_t n = min_of(L, pixels - j);
    vec<float> plane[3];
    for (int c = 0; c < 3; ++c) {
      const T* row = from + c * channel_stride + j;
      plane[c] = n == L ? load(row) : load_n(row, n);
    }
#pragma GCC unroll 3
    for (int v = 0; v < 3; ++v, to += L) {
      const vec<float> mixed = permute(permute(plane[0], plane[1], of_two[v]), plane[2], of_all[v]);
      if (const int64_t left = 3 * n - v * L; left >= L)
        store(to, mixed);
      else if (left > 0)
        store_n(to, mixed, left);
    }
  }
}
#endif

// to[pixel * pitch + channel] = from[channel * channel_stride + pixel], by squares transposed in registers.
template <class T, class E>
static void transpose_line(const T* from, int64_t channel_stride, int64_t channels, int64_t pixels, E* to,
                           int64_t pitch) {
  using A = acc_of<E>;
  constexpr int64_t all = lanes<A>;
  const int64_t elements = ceil_div(channels, per_element<E>);
  int64_t whole = 0;  // channels that fill vectors
#if defined(PYDL_AVX512)
  if constexpr (__is_same(E, float))
    if (channels == 3 && pitch == 3) return interleave_3(from, channel_stride, pixels, to);
#endif
  if constexpr (__is_same(E, float))
    for (; whole + all <= channels; whole += all)
      transpose_in(from + whole * channel_stride, channel_stride, all, pixels, to + whole, pitch,
                   from + (whole + 2 * all <= channels ? whole + all : 0) * channel_stride);
  for (int64_t j = 0; j < pixels && whole < elements; j += all) {
    const int64_t n = min_of(all, pixels - j);
    for (int64_t c = whole; c < elements; c += all) {
      vec<A> square[all];
      load_square<T, E>(from + j, channel_stride, channels, c, n, square);
      A* at = reinterpret_cast<A*>(to + j * pitch + c);
      const int64_t width = min_of(all, elements - c);
      for (int64_t i = 0; i < n; ++i, at += pitch)
        width == all ? store(at, square[i]) : store_n(at, square[i], width);
    }
  }
}

#if defined(PYDL_BF16_DOT)
// Pixels that lie side by side, of an odd number of channels up to a vector's lanes: a zero fills the last pair of each.
[[maybe_unused]] static void fill_pairs(const bf16* from, int64_t channels, int64_t pixels, bf16_pair* to) {
  const int64_t elements = ceil_div(channels, 2), step = lanes<float> / elements;
  uint16_t words[2 * lanes<float>] = {};
  uint32_t kept = 0;
  for (int64_t i = 0; i < 2 * elements * step; ++i)
    if (const int64_t channel = i % (2 * elements); channel < channels) {
      words[i] = static_cast<uint16_t>(i / (2 * elements) * channels + channel);
      kept |= uint32_t{1} << i;
    }
  u32v index;
  memcpy(&index, words, sizeof index);
  for (int64_t j = 0; j < pixels; j += step) {
    const int64_t n = min_of(step, pixels - j);
    const u32v x = load_pairs_n(from + j * channels, n * channels);
    store_pairs_n(to + j * elements, pick_words(x, index, kept), n * 2 * elements);
  }
}
#endif

// One line of a slab, from the pixels at `from`.
template <class T, class E>
static void copy_line(const T* from, const int64_t* stride, int64_t channels, int64_t pixels, E* to,
                      int64_t pitch) {
  if (stride[1] == 1 || channels == 1) {  // the only channel of planes lies as channels_last would
    if constexpr (__is_same(E, bf16_pair)) {
#if defined(PYDL_BF16_DOT)
      if (channels % 2 && channels <= lanes<float> && stride[3] == channels && pitch == ceil_div(channels, 2))
        return fill_pairs(from, channels, pixels, to);
#endif
      for (int64_t j = 0; j < pixels; ++j, from += stride[3], to += pitch) {
        copy_strided(reinterpret_cast<float*>(to), reinterpret_cast<const float*>(from), 1, channels / 2);
        if (channels % 2) to[channels / 2] = {from[channels - 1], {0}};
      }
    } else if (pitch == channels && stride[3] == channels) {
      copy_strided(to, from, 1, pixels * channels);
    } else {
      for (int64_t j = 0; j < pixels; ++j) copy_strided(to + j * pitch, from + j * stride[3], 1, channels);
    }
  } else if (stride[3] == 1) {
    transpose_line(from, stride[1], channels, pixels, to, pitch);
  } else {
    for (int64_t j = 0; j < pixels; ++j, from += stride[3], to += pitch)
      for (int64_t c = 0; c < channels; ++c) {
        const T* at = from + c * stride[1];
        if constexpr (__is_same(E, bf16_pair)) {
          (c % 2 ? to[c / 2].high : to[c / 2].low) = *at;
          if (c % 2 == 0) to[c / 2].high = {0};
        } else {
          to[c] = load_n(at, 1)[0];
        }
      }
  }
}

// Calls line(from, pixels, to, outside) for every line of the slab that shows a part of an image: `from` is
// its first pixel, which goes to `to`, after `outside` pixels of zeros. The rest becomes zero.
template <class T, class E, class F>
static void each_line(const Windows<T>& w, const Region& region, const Reach& y, const Reach& x, E* slab,
                      int64_t pitch, const F& line) {
  const int64_t rows = y.covered(region.rows), columns = x.covered(region.columns);
  const int64_t first_row = region.row * y.step + y.low, first_column = region.column * x.step + x.low;
  const int64_t low = min_of(columns, max_of(0, -first_column));
  const int64_t high = max_of(low, min_of(columns, w.x.in_size - first_column));
  for (int64_t n = 0; n < region.images; ++n)
    for (int64_t r = 0; r < rows; ++r, slab += columns * pitch) {
      const int64_t row = first_row + r;
      if (row < 0 || row >= w.y.in_size || low == high) {
        zero_elements(slab, columns * pitch);
        continue;
      }
      zero_elements(slab, low * pitch);
      line(w.data + (region.image + n) * w.stride[0] + row * w.stride[2] + (first_column + low) * w.stride[3],
           high - low, slab + low * pitch, low);
      zero_elements(slab + high * pitch, (columns - high) * pitch);
    }
}

// The squares of transpose_line over rows that follow each other in memory, for images narrower than a
// vector: the pixels of a square go to several lines of the slab, line_pitch elements apart.
template <class T, class E>
static void transpose_rows(const T* from, int64_t channel_stride, int64_t channels, int64_t rows,
                           int64_t width, E* to, int64_t pitch, int64_t line_pitch) {
  using A = acc_of<E>;
  constexpr int64_t all = lanes<A>;
  const int64_t elements = ceil_div(channels, per_element<E>), pixels = rows * width;
  int64_t row = 0, column = 0;
  for (int64_t j = 0; j < pixels; j += all) {
    const int64_t n = min_of(all, pixels - j), row0 = row, column0 = column;
    for (int64_t c = 0; c < elements; c += all) {
      vec<A> square[all];
      load_square<T, E>(from + j, channel_stride, channels, c, n, square);
      row = row0;
      column = column0;
      for (int64_t i = 0; i < n; ++i) {
        store_n(reinterpret_cast<A*>(to + row * line_pitch + column * pitch + c), square[i],
                min_of(all, elements - c));
        if (++column == width) {
          column = 0;
          ++row;
        }
      }
    }
  }
}

template <class T, class E>
static void copy_slab(const Windows<T>& w, const Region& region, const Reach& y, const Reach& x, E* slab,
                      int64_t pitch) {
  const int64_t rows = y.covered(region.rows), columns = x.covered(region.columns);
  const int64_t width = w.x.in_size, left = -(region.column * x.step + x.low);
  if (w.stride[3] == 1 && w.stride[1] != 1 && w.stride[2] == width && width < lanes<acc_of<E>> && left >= 0 &&
      left + width <= columns) {
    zero_elements(slab, region.images * rows * columns * pitch);
    const int64_t above = -(region.row * y.step + y.low), first = max_of(0, above);
    const int64_t last = min_of(rows, w.y.in_size + above);
    for (int64_t n = 0; n < region.images && first < last; ++n)
      transpose_rows(w.data + (region.image + n) * w.stride[0] + (first - above) * width, w.stride[1],
                     w.channels, last - first, width, slab + ((n * rows + first) * columns + left) * pitch,
                     pitch, columns * pitch);
    return;
  }
  each_line(w, region, y, x, slab, pitch, [&](const T* from, int64_t pixels, E* to, int64_t) {
    copy_line(from, w.stride, w.channels, pixels, to, pitch);
  });
}

#if defined(PYDL_BF16_DOT)
// The slab of a single channel whose elements pair a row with the next one that a window's column sees; `alone`: after
// each line one of the row alone.
[[maybe_unused]] static void copy_rows_in_pairs(const Windows<bf16>& w, const Region& region, const Reach& y,
                                                const Reach& x, bf16_pair* slab, bool alone) {
  const int64_t rows = y.covered(region.rows), columns = x.covered(region.columns);
  const int64_t first_row = region.row * y.step + y.low, first_column = region.column * x.step + x.low;
  const auto bits = [&](const bf16* image, int64_t row, int64_t j) {
    if (row < 0 || row >= w.y.in_size) return u16h{};
    const int64_t column = first_column + j;
    return load_bits_between(image + row * w.stride[2] + column, -column, w.x.in_size - column);
  };
  for (int64_t n = 0; n < region.images; ++n) {
    const bf16* image = w.data + (region.image + n) * w.stride[0];
    for (int64_t r = 0; r < rows; ++r, slab += (alone ? 2 : 1) * columns)
      for (int64_t j = 0; j < columns; j += lanes<float>) {
        const int64_t count = min_of(lanes<float>, columns - j), row = first_row + r;
        const u16h here = bits(image, row, j), below = bits(image, row + w.y.spacing, j);
        float* to = reinterpret_cast<float*>(slab + j);
        store_n(to, bit_cast<vec<float>>(side_by_side(here, below)), count);
        if (alone) store_n(to + columns, bit_cast<vec<float>>(widen_bits(here)), count);
      }
  }
}
#endif

}  // namespace pydl::cpu::PYDL_ISA::implicit
