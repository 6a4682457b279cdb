// Average pooling (LeCun et al., 1989; d2l "Pooling").
//
//   output[n, c, oy, ox] = row_scale[oy] * column_scale[ox] * (sum over the window's pixels)
//   grad_input           = row_scale[oy] * column_scale[ox] * grad_output[n, c, oy, ox], added at each pixel
//
// The number of pixels that a window's sum is divided by is a product of one of its row and one of its column
// (padding counts or does not, and windows may hang over the padded image with ceil_mode).
#pragma once

#include "kernels/isa.h"
#include "kernels/pool2d.h"

namespace pydl {

struct AvgPool2dParams : Pool2dParams {  // dilation is 1
  // float, or double for float64: out_height and out_width of them, or null where all are `scale`, which is
  // then for both together.
  const void *row_scale, *column_scale;
  double scale;
};

namespace cpu {
PYDL_CPU_ENTRY(void avg_pool2d(const AvgPool2dParams& params, const Parallel& parallel))
// from: grad_output; to: grad_input
PYDL_CPU_ENTRY(void avg_pool2d_backward(const AvgPool2dParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
