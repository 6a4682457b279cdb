// Equal problems that are less work: taps that only ever meet padding are left out, and 1x1 kernels see
// images as long rows.
//
// Deep in a network images are smaller than what a kernel reaches: a 3x3 kernel with padding 1 over one pixel
// multiplies with its centre alone, one with stride 2 over 2x2 pixels with four of its nine taps.
#pragma once

#include <cstring>

#include "kernels/conv2d.h"
#include "kernels/cpu/base/simd.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// One axis of a kernel without the outer taps that are outside the image for every output.
struct UsefulTaps {
  int64_t first, count, pad;
};
inline UsefulTaps useful_taps(int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, int64_t in_size,
                              int64_t out_size) {
  int64_t first = kernel, last = -1;
  for (int64_t tap = 0; tap < kernel; ++tap) {
    const int64_t at = tap * dilation - pad;  // for the first output
    const int64_t output = at < 0 ? ceil_div(-at, stride) : 0;
    if (output >= out_size || at + output * stride >= in_size) continue;
    first = min_of(first, tap);
    last = tap;
  }
  // no padding can be negative, which a stride larger than the image would make it
  if (last < 0 || pad < first * dilation) return {0, kernel, pad};
  return {first, last - first + 1, pad - first * dilation};
}

inline int64_t element_bytes(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

inline Conv2dParams without_idle_taps(Conv2dParams p) {
  const UsefulTaps y =
      useful_taps(p.kernel_height, p.stride_height, p.pad_top, p.dilation_height, p.in_height, p.out_height);
  const UsefulTaps x =
      useful_taps(p.kernel_width, p.stride_width, p.pad_left, p.dilation_width, p.in_width, p.out_width);
  p.kernel_height = y.count;
  p.kernel_width = x.count;
  p.pad_top = y.pad;
  p.pad_left = x.pad;
  if (const int64_t skipped = y.first * p.weight_stride[2] + x.first * p.weight_stride[3])
    p.weight = static_cast<char*>(p.weight) + skipped * element_bytes(p.dtype);
  return p;
}

// A 1x1 kernel of stride 1 sees no neighbours: rows, and with channels_last images too, are one long row of
// pixels.
inline Conv2dParams merged(Conv2dParams p) {
  const bool one = p.kernel_height == 1 && p.kernel_width == 1 && p.stride_height == 1 &&
                   p.stride_width == 1 && p.pad_top == 0 && p.pad_left == 0 && p.out_height == p.in_height &&
                   p.out_width == p.in_width;
  if (!one) return p;
  if (p.in_height == 1 && p.in_width == 1) {  // whatever the strides of one pixel are
    p.input_stride[3] = p.input_stride[0];
    p.output_stride[3] = p.output_stride[0];
  }
  auto follows = [](const int64_t* stride, int d, int64_t count) { return stride[d] == count * stride[3]; };
  if (p.in_height > 1 && follows(p.input_stride, 2, p.in_width) && follows(p.output_stride, 2, p.in_width)) {
    p.in_width = p.out_width = p.in_height * p.in_width;
    p.in_height = p.out_height = 1;
  }
  if (p.in_height == 1 && p.batch > 1 && follows(p.input_stride, 0, p.in_width) &&
      follows(p.output_stride, 0, p.in_width)) {
    p.in_width = p.out_width = p.batch * p.in_width;
    p.batch = 1;
  }
  return p;
}

// A kernel as large as an image that lies in one stretch: its pixels are channels of a single one.
inline Conv2dParams flattened(Conv2dParams p) {
  const int64_t taps = p.kernel_height * p.kernel_width;
  const bool whole = p.out_height == 1 && p.out_width == 1 && p.in_height == p.kernel_height &&
                     p.in_width == p.kernel_width && p.pad_top == 0 && p.pad_left == 0 && p.groups == 1 &&
                     p.dilation_height == 1 && p.dilation_width == 1 && taps > 1;
  auto dense = [&](const int64_t* stride) {
    return stride[3] == 1 && stride[2] == p.kernel_width && stride[1] == taps;
  };
  if (!whole || !dense(p.input_stride) || !dense(p.weight_stride)) return p;
  p.in_channels *= taps;
  p.in_height = p.in_width = p.kernel_height = p.kernel_width = p.stride_height = p.stride_width = 1;
  p.input_stride[1] = p.weight_stride[1] = 1;
  return p;
}

inline Conv2dParams reduced(const Conv2dParams& p) { return merged(flattened(without_idle_taps(p))); }

// The weight gradient, which is dense, where `fewer` lacks taps: zeros, before the others are written.
inline void zero_idle_taps(const Conv2dParams& all, const Conv2dParams& fewer, const Parallel& parallel) {
  const int64_t taps = all.kernel_height * all.kernel_width, piece = 1 << 16;
  if (fewer.in_channels * fewer.kernel_height * fewer.kernel_width == all.in_channels * taps) return;
  const int64_t bytes = all.out_channels * (all.in_channels / all.groups) * taps * element_bytes(all.dtype);
  parallel(ceil_div(bytes, piece), 1, [&](int64_t first, int64_t last) {
    const int64_t end = min_of(last * piece, bytes);
    memset(static_cast<char*>(all.weight) + first * piece, 0, static_cast<size_t>(end - first * piece));
  });
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
