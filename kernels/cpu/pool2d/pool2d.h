// Which taps of a window lie in the image, and which windows cover a pixel.
#pragma once

#include "kernels/cpu/base/simd_edges.h"
#include "kernels/cpu/rows/along.h"
#include "kernels/pool2d.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kPoolGrain = 8192;       // elements per task
constexpr int64_t kPlaneGrain = 8 * 8192;  // where they are only added up, or all the same

// The types of training: the windows that networks use most have code of their own.
template <class T>
constexpr bool kTrains = !kPlain && (__is_same(T, float) || __is_same(T, bf16));

struct Range {
  int64_t begin, end;
};

PYDL_INLINE int64_t ceil_of(int64_t a, int64_t b) { return a > 0 ? ceil_div(a, b) : -(-a / b); }

// Along one dimension.
struct Axis {
  int64_t in, out, kernel, stride, pad, dilation;

  // Window o's first pixel, which may lie in the padding.
  PYDL_INLINE int64_t start(int64_t o) const { return o * stride - pad; }

  // The taps of window o that lie in the image. Without any, begin is the first that is not before the image.
  PYDL_INLINE Range taps(int64_t o) const {
    const int64_t first = start(o);
    if (dilation == 1) return {max_of(0, -first), min_of(kernel, in - first)};
    return {first < 0 ? ceil_div(-first, dilation) : 0,
            first < in ? min_of(kernel, ceil_div(in - first, dilation)) : 0};
  }

  // The windows that may cover pixel i; with dilation some of them may step over it: see tap().
  PYDL_INLINE Range windows(int64_t i) const {
    const int64_t at = i + pad;
    return {max_of(0, ceil_of(at - (kernel - 1) * dilation, stride)), min_of(out, at / stride + 1)};
  }

  // From the windows of an earlier pixel to those of pixel i, without a division.
  PYDL_INLINE void follow(Range& r, int64_t i) const {
    while (r.begin < out && start(r.begin) + (kernel - 1) * dilation < i) ++r.begin;
    while (r.end < out && start(r.end) <= i) ++r.end;
  }

  // The tap by which window o covers pixel i, or -1.
  PYDL_INLINE int64_t tap(int64_t o, int64_t i) const {
    const int64_t distance = i - start(o);
    if (dilation == 1) return distance;
    return distance % dilation == 0 ? distance / dilation : -1;
  }
};

PYDL_INLINE Axis vertical(const Pool2dParams& p) {
  return {p.in_height, p.out_height, p.kernel_height, p.stride_height, p.pad_top, p.dilation_height};
}
PYDL_INLINE Axis horizontal(const Pool2dParams& p) {
  return {p.in_width, p.out_width, p.kernel_width, p.stride_width, p.pad_left, p.dilation_width};
}

// One element as an A, and back.
template <class T>
PYDL_INLINE acc_t<T> load_one(const T* p) {
  if constexpr (sizeof(T) == 2)
    return load_n(p, 1)[0];
  else
    return *p;
}
template <class T>
PYDL_INLINE void store_one(T* p, acc_t<T> a) {
  if constexpr (sizeof(T) == 2)
    store_n(p, broadcast(a), 1);
  else
    *p = a;
}

// Whether each plane has one window, which is the plane.
PYDL_INLINE bool is_plane(const Pool2dParams& p) {
  return p.out_height == 1 && p.out_width == 1 && p.kernel_height == p.in_height &&
         p.kernel_width == p.in_width && p.pad_top == 0 && p.pad_left == 0;
}
// Whether no pixel is in two windows.
PYDL_INLINE bool are_apart(const Pool2dParams& p) {
  return p.kernel_height <= p.stride_height && p.kernel_width <= p.stride_width && p.dilation_height == 1 &&
         p.dilation_width == 1;
}
// Plane number `plane` of the side that is read.
template <class T>
PYDL_INLINE const T* plane_read(const Pool2dParams& p, int64_t plane) {
  return static_cast<const T*>(p.from) + plane / p.channels * p.from_stride[0] +
         plane % p.channels * p.from_stride[1];
}

// Calls body(n, c, y, x, offset) for the written elements [begin, end) of rows, in the order of memory: a row
// is one of (n, c, y) in NCHW, of (n, y) in channels_last.
template <class F>
PYDL_INLINE void each_written(const Pool2dParams& p, int64_t height, int64_t width, int64_t begin,
                              int64_t end, const F& body) {
  const int64_t planes = p.channels_last ? 1 : p.channels, inner = p.channels_last ? p.channels : 1;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t y = row % height, plane = row / height;
    int64_t offset = row * width * inner;
    for (int64_t x = 0; x < width; ++x)
      for (int64_t c = 0; c < inner; ++c, ++offset) body(plane / planes, plane % planes + c, y, x, offset);
  }
}
// Calls body(plane, from, to) for the rows [begin, end), counted over all planes of `height` rows, plane by
// plane.
template <class F>
PYDL_INLINE void each_plane(int64_t height, int64_t begin, int64_t end, const F& body) {
  for (int64_t row = begin; row < end;) {
    const int64_t plane = row / height, from = row - plane * height, to = min_of(height, from + end - row);
    body(plane, from, to);
    row += to - from;
  }
}
PYDL_INLINE int64_t rows_written(const Pool2dParams& p, int64_t height) {
  return p.batch * (p.channels_last ? 1 : p.channels) * height;
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
