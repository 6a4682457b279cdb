// Convolutions whose kernel is as large as the stride or a few times that, as products of disjoint cells.
//
// The stride cuts the padded image into cells of stride x stride pixels. Cell (i, j) lies under the same taps of every
// window that reaches it: window (i - a, j - b) meets it with the part (a, b) of its kernel, of kernel / stride parts a
// side. So with rows (n, i, j), columns (channel, pixel of a cell) and depth (a, b, o), o being an output channel,
//
//   cells = gradients * weights        gradients[n, i, j][a, b, o] = grad_output[n][o][i - a][j - b]
//
// is the input gradient, and each pixel is written once; the weight gradient is gradients^T * cells, and the forward
// adds what cells * weights^T has for each part of a window. A large stride makes few rows of `gradients`, and columns
// that are pixels side by side.
#pragma once

#include "kernels/cpu/base/simd_edges.h"
#include "kernels/cpu/conv2d/algorithms.h"
#include "kernels/cpu/gemm/panel.h"

namespace pydl::cpu::PYDL_ISA::implicit {
namespace {

struct Cells {
  const Conv2dParams& p;
  int64_t parts_y, parts_x;  // of a kernel
  int64_t first_y, first_x;  // the cells before are padding
  int64_t height, width;     // how many reach the image

  explicit Cells(const Conv2dParams& p)
      : p(p),
        parts_y(p.kernel_height / p.stride_height),
        parts_x(p.kernel_width / p.stride_width),
        first_y(p.pad_top / p.stride_height),
        first_x(p.pad_left / p.stride_width),
        height((p.in_height + p.pad_top - 1) / p.stride_height - first_y + 1),
        width((p.in_width + p.pad_left - 1) / p.stride_width - first_x + 1) {}

  int64_t rows() const { return p.batch * height * width; }
  int64_t depth() const { return parts_y * parts_x * p.out_channels; }
  int64_t lines() const { return p.in_channels * p.stride_height; }  // (channel, row of a cell)
  // Lines of a task: they share what the second cache holds of the gradients.
  int64_t lines_at_once(int64_t threads) const { return max_of(1, min_of(8, lines() / (4 * threads))); }
  // Numbers from line to line of pixels in whole panels.
  template <class A>
  int64_t line_pitch() const {
    return ceil_div(p.stride_width, gemm::kNr<A>) * gemm::kNr<A>;
  }
  // Numbers between rows of the gradients, whose last vector may be written past their end.
  template <class A>
  int64_t pitch() const {
    return depth() + 2 * lanes<A>;
  }

  // Calls body(row, image, y, x) for the cells [begin, end), numbered by rows.
  template <class F>
  void each(int64_t begin, int64_t end, const F& body) const {
    int64_t x = begin % width, y = begin / width % height, image = begin / width / height;
    for (int64_t row = begin; row < end; ++row) {
      body(row, image, first_y + y, first_x + x);
      if (++x < width) continue;
      x = 0;
      if (++y < height) continue;
      y = 0;
      ++image;
    }
  }

  // Calls body(row - begin, pixels, low, high) for a line of each cell: pixels [low, high) of it lie in the image.
  template <class T, class F>
  void each_line(int64_t begin, int64_t end, int64_t line, const F& body) const {
    const int64_t channel = line / p.stride_height, line_y = line % p.stride_height;
    T* const image_0 = static_cast<T*>(p.input) + channel * p.input_stride[1];
    each(begin, end, [&](int64_t row, int64_t image, int64_t y, int64_t x) PYDL_INLINE_LAMBDA {
      const int64_t h = y * p.stride_height + line_y - p.pad_top, w = x * p.stride_width - p.pad_left;
      const bool outside = h < 0 || h >= p.in_height;
      T* const at = image_0 + image * p.input_stride[0] + h * p.input_stride[2] + w;
      body(row - begin, at, outside ? 0 : max_of(-w, 0),
           outside ? 0 : min_of(p.stride_width, p.in_width - w));
    });
  }

  // Adds `count` lines of the cells [begin, end), of one channel: of the first images, where there are many.
  template <class T>
  void add_lines(gemm::Ahead& ahead, int64_t begin, int64_t end, int64_t line, int64_t count) const {
    const int64_t one = height * width, from = begin / one;
    for (int64_t image = from; image < min_of(ceil_div(end, one), from + gemm::Ahead::kMost); ++image) {
      const int64_t top = max_of(begin - image * one, 0) / width,
                    bottom = ceil_div(min_of(end - image * one, one), width);
      const int64_t y = (first_y + top) * p.stride_height + line % p.stride_height - p.pad_top;
      const T* at = static_cast<const T*>(p.input) + image * p.input_stride[0] +
                    line / p.stride_height * p.input_stride[1] + y * p.input_stride[2];
      const int64_t row = p.input_stride[2] * static_cast<int64_t>(sizeof(T));
      ahead.add(at, p.stride_height * row, count * row, bottom - top);
    }
  }

  // Where the weights of number k of the depth have a line of a cell.
  template <class T>
  T* weights(int64_t k, int64_t line) const {
    const int64_t part = k / p.out_channels, o = k % p.out_channels;
    const int64_t y = part / parts_x * p.stride_height + line % p.stride_height;
    const int64_t x = part % parts_x * p.stride_width;
    const int64_t* stride = p.weight_stride;
    return static_cast<T*>(p.weight) + o * stride[0] + line / p.stride_height * stride[1] + y * stride[2] + x;
  }
};

// The left side: gradients[row][part, o] of the rows [begin, end), zeros where a part lies beyond them.
template <class T, class A>
void pack_gradients(const Cells& cells, int64_t begin, int64_t end, A* gradients) {
  const Conv2dParams& p = cells.p;
  cells.each(begin, end, [&](int64_t row, int64_t image, int64_t y, int64_t x) PYDL_INLINE_LAMBDA {
    A* to = gradients + row * cells.pitch<A>();
    for (int64_t part = 0; part < cells.parts_y * cells.parts_x; ++part) {
      const int64_t oy = y - part / cells.parts_x, ox = x - part % cells.parts_x;
      const bool inside = oy >= 0 && oy < p.out_height && ox >= 0 && ox < p.out_width;
      const T* from = static_cast<const T*>(p.output) + image * p.output_stride[0] + oy * p.output_stride[2] +
                      ox * p.output_stride[3];
      for (int64_t o = 0; o < p.out_channels; ++o)
        *to++ = inside ? load_n(from + o * p.output_stride[1], 1)[0] : A(0);
    }
  });
}

// to[row - begin] = a line of each cell, zeros outside of the image. May write up to a vector more.
template <class T, class A>
PYDL_INLINE void pack_line(const Cells& cells, int64_t begin, int64_t end, int64_t line, A* to,
                           int64_t pitch) {
  cells.each_line<const T>(
      begin, end, line, [&](int64_t row, const T* at, int64_t low, int64_t high) PYDL_INLINE_LAMBDA {
        for (int64_t j = 0; j < cells.p.stride_width; j += lanes<A>) {
          const bool whole = low <= j && high >= j + lanes<A>;
          store(to + row * pitch + j, whole ? load(at + j) : load_between(at + j, low - j, high - j));
        }
      });
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::implicit
