// Depthwise convolution: each channel is convolved alone, so there is no matrix product, and memory decides.
//
// Two forms of each pass. By plane (conv2d_depthwise.cpp): a channel's image is copied once into a small
// padded plane, its columns sorted by their remainder modulo the stride, so that every tap of every stride is
// an unaligned load and a vector holds neighbouring pixels. By pixel (conv2d_depthwise_pixels.cpp): with
// channels_last tensors a vector holds neighbouring channels and nothing is copied.
#pragma once

#include "kernels/cpu/conv2d_algorithms.h"
#include "kernels/cpu/conv2d_finish.h"
#include "kernels/cpu/conv2d_im2col.h"

namespace pydl::cpu::PYDL_ISA {

bool depthwise_by_pixel(const Conv2dParams& p);
int64_t depthwise_pixels_scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads);
void depthwise_pixels_gather(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel);
void depthwise_pixels_weight(const Conv2dParams& p, const Parallel& parallel);

// The tap of kernel position t that links output `out` to input `in`: in = out * stride - pad + t * dilation.
// forward: the input position of tap t, or -1 outside; backward: the output position that reads `in` by tap
// t, or -1.
static PYDL_INLINE int64_t tap_input(int64_t out, int64_t t, int64_t stride, int64_t pad, int64_t dilation,
                                     int64_t size) {
  const int64_t in = out * stride - pad + t * dilation;
  return in >= 0 && in < size ? in : -1;
}
static PYDL_INLINE int64_t tap_output(int64_t in, int64_t t, int64_t stride, int64_t pad, int64_t dilation,
                                      int64_t size) {
  const int64_t scaled = in + pad - t * dilation;
  return scaled >= 0 && scaled % stride == 0 && scaled / stride < size ? scaled / stride : -1;
}

}  // namespace pydl::cpu::PYDL_ISA
