// What maximum and average pooling share: the geometry of windows over images, and the walk over both
// tensors.
//
// Window (oy, ox) of an image covers the pixels (oy * stride - pad + r * dilation, ox * stride - pad + s *
// dilation) for r < kernel_height, s < kernel_width, as far as they lie in the image. Each (r, s) is a tap,
// numbered r * kernel_width + s.
#pragma once

#include "kernels/common.h"

namespace pydl {

struct Pool2dParams {
  DType dtype;
  int64_t batch, channels, in_height, in_width, out_height, out_width;
  int64_t kernel_height, kernel_width, stride_height, stride_width;
  int64_t pad_top, pad_left, dilation_height, dilation_width;

  // The side that is read: any strides, in elements, of (N, C, H, W). The side that is written is dense, NCHW
  // or channels_last.
  const void* from;
  int64_t from_stride[4];
  void* to;
  bool channels_last;
};

}  // namespace pydl
