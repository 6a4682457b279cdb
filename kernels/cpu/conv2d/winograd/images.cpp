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
      for (int64_t j = begin; j < end; ++j, from += image.column)
        store(strip + j * L, count == L ? load(from) : load_n(from, count));
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

}  // namespace

template <class S, class T, bool kGradient>
void transform_tiles(const Image& image, const Tiles<S>& tiles, int64_t begin, int64_t end, int64_t pad_y,
                     int64_t pad_x, float* to, int64_t tile_stride, int64_t frequency_stride) {
  constexpr int L = lanes<float>, kStep = kGradient ? 1 : S::kStep;
  constexpr int kReach = S::inputs(S::kSide), kNext = S::kSide * kStep;
  auto read = [](int positions) { return kGradient ? positions : S::inputs(positions); };
  alignas(64) float strip[kStripFloats<S>];
  for (int64_t index = begin; index < end;) {
    const Tile tile = tiles[index];
    const int64_t y = tile.y * kStep - pad_y, height = read(tile.rows);
    const int64_t all = min_of(tile.run, end - index);
    for (int64_t done = 0, run; done < all; done += run) {
      float* row = to + (index + done - begin) * tile_stride;
      const int64_t x = (tile.x + done * S::kSide) * kStep - pad_x;
      run = min_of(all - done, kInPlace<S, T> && image.channel == 1 ? 1 : kStripTiles<S>);
      const int64_t width = (run - 1) * kNext + read(tile.columns);
      const T* from =
          static_cast<const T*>(image.data) + tile.n * image.batch + y * image.row + x * image.column;
      Window<T, kReach> window;  // of adjacent channels, which are read where they are
      window.first = min_of(max_of(0, -x), width);
      window.last = min_of(width, image.width - x);
      for (int64_t c = 0; c < image.channels; c += L) {
        const int64_t count = min_of(L, image.channels - c);
        float* v = row + c;
        if constexpr (kInPlace<S, T>) {
          if (image.channel == 1 && count == L) {
            const float* next = c + L < image.channels ? v + L : row + tile_stride;
            if constexpr (kGradient) {
              transform_gradient(S{}, from + c, image.row, image.column, tile.rows, tile.columns, v,
                                 frequency_stride, next);
            } else {
              for (int64_t i = 0; i < kReach; ++i) {
                const bool inside = i < height && y + i >= 0 && y + i < image.height;
                window.row[i] = inside ? from + c + i * image.row : kZeros<T>;
                window.step[i] = inside ? image.column : 0;
              }
              if (window.last == width)  // the pixels that the next tile adds
                for (int64_t i = 0; i < height; ++i)
                  for (int64_t j = 0; j < kNext; ++j) prefetch(window.row[i] + (width + j) * window.step[i]);
              transform_input(S{}, window, tile.rows, tile.columns, v, frequency_stride, next);
            }
            continue;
          }
        }
        const int64_t ahead =
            c + L < image.channels ? L * image.channel : run * kNext * image.column - c * image.channel;
        load_strip<T>(image, tile.n, c, count, y, x, height, width, ahead, strip);
        for (int64_t t = 0; t < run; ++t, v += tile_stride) {
          const float* pixels = strip + t * kNext * L;
          if constexpr (kGradient) {
            transform_gradient(S{}, pixels, width * L, L, tile.rows, tile.columns, v, frequency_stride,
                               v + tile_stride);
          } else {
            Window<float, kReach> within{{}, {}, 0, read(tile.columns)};
            for (int64_t i = 0; i < kReach; ++i) {
              within.row[i] = pixels + min_of(i, height - 1) * width * L;
              within.step[i] = L;
            }
            transform_input(S{}, within, tile.rows, tile.columns, v, frequency_stride, v + tile_stride);
          }
        }
      }
    }
    index += all;
  }
}

#define PYDL_TRANSFORM_TILES(S, T, gradient)                                                              \
  template void transform_tiles<S, T, gradient>(const Image&, const Tiles<S>&, int64_t, int64_t, int64_t, \
                                                int64_t, float*, int64_t, int64_t);
PYDL_TRANSFORM_TILES(Dense<3>, float, false)
PYDL_TRANSFORM_TILES(Dense<3>, float, true)
PYDL_TRANSFORM_TILES(Dense<5>, float, false)
PYDL_TRANSFORM_TILES(Dense<5>, float, true)
PYDL_TRANSFORM_TILES(Strided, float, false)
PYDL_TRANSFORM_TILES(Strided, float, true)
PYDL_TRANSFORM_TILES(Transposed, float, false)
PYDL_TRANSFORM_TILES(StridedOf4, float, false)
PYDL_TRANSFORM_TILES(StridedOf4, float, true)
PYDL_TRANSFORM_TILES(TransposedOf4, float, false)
PYDL_TRANSFORM_TILES(Dense<3>, bf16, false)
PYDL_TRANSFORM_TILES(Dense<3>, bf16, true)
PYDL_TRANSFORM_TILES(Dense<5>, bf16, false)
PYDL_TRANSFORM_TILES(Dense<5>, bf16, true)
PYDL_TRANSFORM_TILES(Strided, bf16, false)
PYDL_TRANSFORM_TILES(Strided, bf16, true)
PYDL_TRANSFORM_TILES(Transposed, bf16, false)

}  // namespace pydl::cpu::PYDL_ISA::winograd
