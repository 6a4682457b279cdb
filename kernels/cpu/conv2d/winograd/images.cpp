// From images to transformed tiles, for the three passes of Winograd convolution.
#include "kernels/cpu/conv2d/winograd/images.h"

#include "kernels/cpu/base/simd_transpose.h"
#include "kernels/cpu/conv2d/winograd/phases.h"

namespace pydl::cpu::PYDL_ISA::winograd {
namespace {

// Copies rows x columns pixels from (y, x) of image n, channels [c, c + count), into
// strip[rows][columns][lanes], with zeros outside the image and in the lanes beyond count. `ahead` numbers after each
// pixel lies what is read next in its place.
template <class T>
void load_strip(const Image& image, int64_t n, int64_t c, int64_t count, int64_t y, int64_t x, int64_t rows,
                int64_t columns, int64_t ahead, float* strip) {
  constexpr int L = lanes<float>;
  const T* base = static_cast<const T*>(image.data) + n * image.batch + c * image.channel;
  const int64_t first = min_of(max_of(0, -x), columns),
                last = max_of(first, min_of(columns, image.width - x));
  const int64_t top = min_of(max_of(0, -y), rows), bottom = max_of(top, min_of(rows, image.height - y));
  const bool whole_rows = image.column == 1 && image.row == image.width && last - first == image.width;
  if (whole_rows)
    transpose_in_rows(base + (y + top) * image.row, image.channel, count, bottom - top, image.width,
                      strip + (top * columns + first) * L, columns * L);
  for (int64_t i = 0; i < rows; ++i, strip += columns * L) {
    const bool inside = y + i >= 0 && y + i < image.height && first < last;
    const int64_t begin = inside ? first : columns, end = inside ? last : columns;
    for (int64_t j = 0; j < begin; ++j) store(strip + j * L, vec<float>{});
    for (int64_t j = end; j < columns; ++j) store(strip + j * L, vec<float>{});
    if (!inside || whole_rows) continue;
    const T* from = base + (y + i) * image.row + (x + begin) * image.column;
    if (image.channel == 1) {
      for (int64_t j = begin; j < end; ++j, from += image.column) {
        prefetch(from + ahead);
        store(strip + j * L, count == L ? load(from) : load_n(from, count));
      }
    } else if (image.column == 1) {
      transpose_in(from, image.channel, count, end - begin, strip + begin * L, L, from + ahead);
    } else {
      for (int64_t j = begin; j < end; ++j, from += image.column) {
        vec<float> pixel{};
        for (int64_t l = 0; l < count; ++l) pixel[l] = load_n(from + l * image.channel, 1)[0];
        store(strip + j * L, pixel);
      }
    }
  }
}

template <class T>
using Input = void (*)(const Window<T>&, int, int, float*, int64_t, const float*);
template <class T>
using Gradient = void (*)(const T*, int64_t, int64_t, int, int, float*, int64_t, const float*);

// The transforms of a scheme that read T, or none.
template <class T>
Input<T> input_transform(Kind kind) {
  return with_scheme(kind, [](auto scheme) -> Input<T> {
    using S = decltype(scheme);
    if constexpr (kInPlace<S, T>) return &Transform<S>::template input<T>;
    return nullptr;
  });
}
template <class T>
Gradient<T> gradient_transform(Kind kind) {
  return with_scheme(kind, [](auto scheme) -> Gradient<T> {
    using S = decltype(scheme);
    if constexpr (kInPlace<S, T> && S::kOutputStep == 1) return &Transform<S>::template gradient<T>;
    return nullptr;
  });
}

template <class T>
alignas(64) constexpr T kZeros[lanes<float>] = {};

template <class T>
void transform_all(const Image& image, bool of_gradient, const Tiles& tiles, int64_t begin, int64_t end,
                   int64_t pad_y, int64_t pad_x, float* to, int64_t tile_stride, int64_t frequency_stride) {
  constexpr int L = lanes<float>;
  const Scheme& scheme = tiles.scheme;
  const auto transform_input = input_transform<float>(scheme.kind);
  const auto transform_gradient = gradient_transform<float>(scheme.kind);
  const auto input_in_place = input_transform<T>(scheme.kind);
  const auto gradient_in_place = gradient_transform<T>(scheme.kind);
  const bool adjacent =
      image.channel == 1 && (of_gradient ? gradient_in_place != nullptr : input_in_place != nullptr);
  const int64_t step = of_gradient ? 1 : scheme.step, beyond = scheme.side * step;
  auto read = [&](int positions) { return of_gradient ? positions : scheme.inputs[positions]; };
  const int reach = read(scheme.side);
  // adjacent channels: all of a tile's before the next tile's, so that lines are read once
  const int64_t most = image.channel == 1 ? 1 : strip_tiles(scheme);
  alignas(64) float strip[Scheme::kMostReach * kStripColumns * L];
  for (int64_t index = begin; index < end;) {
    const Tile tile = tiles[index];
    const int64_t y = tile.y * step - pad_y, height = read(tile.rows);
    const int64_t all = min_of(tile.run, end - index);
    for (int64_t done = 0, run; done < all; done += run) {
      float* row = to + (index + done - begin) * tile_stride;
      const int64_t x = (tile.x + done * scheme.side) * step - pad_x;
      run = min_of(all - done, most);
      const int64_t width = (run - 1) * beyond + read(tile.columns);
      const int64_t pixel = tile.n * image.batch + y * image.row + x * image.column;
      Window<T> window;  // of adjacent channels, which are read where they are
      window.first = min_of(max_of(0, -x), width);
      window.last = min_of(width, image.width - x);
      for (int64_t c = 0; c < image.channels; c += L) {
        const int64_t count = min_of(L, image.channels - c);
        float* v = row + c;
        if (adjacent && count == L) {
          const float* next = c + L < image.channels ? v + L : row + tile_stride;
          const T* from = static_cast<const T*>(image.data) + pixel + c;
          if (of_gradient) {
            gradient_in_place(from, image.row, image.column, tile.rows, tile.columns, v, frequency_stride,
                              next);
            continue;
          }
          for (int64_t i = 0; i < reach; ++i) {
            const bool inside = i < height && y + i >= 0 && y + i < image.height;
            window.row[i] = inside ? from + i * image.row : kZeros<T>;
            window.step[i] = inside ? image.column : 0;
          }
          if (window.last == width)  // the pixels that the next tile adds
            for (int64_t i = 0; i < height; ++i)
              for (int64_t j = 0; j < beyond; ++j) prefetch(window.row[i] + (width + j) * window.step[i]);
          input_in_place(window, tile.rows, tile.columns, v, frequency_stride, next);
          continue;
        }
        const int64_t ahead =
            c + L < image.channels ? L * image.channel : run * beyond * image.column - c * image.channel;
        load_strip<T>(image, tile.n, c, count, y, x, height, width, ahead, strip);
        if (of_gradient) {
          const float* pixels = strip;
          for (int64_t t = 0; t < run; ++t, v += tile_stride, pixels += beyond * L)
            transform_gradient(pixels, width * L, L, tile.rows, tile.columns, v, frequency_stride,
                               v + tile_stride);
          continue;
        }
        Window<float> within;
        within.first = 0;
        within.last = read(tile.columns);
        for (int64_t i = 0; i < Scheme::kMostReach; ++i) {
          within.row[i] = strip + min_of(i, height - 1) * width * L;
          within.step[i] = L;
        }
        for (int64_t t = 0; t < run; ++t, v += tile_stride) {
          transform_input(within, tile.rows, tile.columns, v, frequency_stride, v + tile_stride);
          for (int64_t i = 0; i < Scheme::kMostReach; ++i) within.row[i] += beyond * L;
        }
      }
    }
    index += all;
  }
}

}  // namespace

void transform_tiles(const Image& image, DType dtype, bool of_gradient, const Tiles& tiles, int64_t begin,
                     int64_t end, int64_t pad_y, int64_t pad_x, float* to, int64_t tile_stride,
                     int64_t frequency_stride) {
  const auto transform = dtype == DType::bf16 ? transform_all<bf16> : transform_all<float>;
  transform(image, of_gradient, tiles, begin, end, pad_y, pad_x, to, tile_stride, frequency_stride);
}

}  // namespace pydl::cpu::PYDL_ISA::winograd
