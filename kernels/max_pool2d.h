// Maximum pooling (d2l "Pooling").
//
//   output[n, c, oy, ox] = max over the window's pixels; a nan among them wins
//   place[n, c, oy, ox]  = the tap that it came from: the first maximum, the last nan; the window's first pixel in
//                          the image where all are -inf
//   grad_input           = grad_output of each window, added at its place
//
// The backward needs the places alone: a byte per output up to 256 taps, an int32 beyond. Reading the input
// once more instead would cost 4 * stride^2 bytes per output. The gradient of the backward is a gather at the
// same places.
#pragma once

#include "kernels/isa.h"
#include "kernels/pool2d.h"

namespace pydl {

// Kernels of up to so many taps keep their places as bytes.
static constexpr int64_t kMaxPool2dByteTaps = 256;

struct MaxPool2dParams : Pool2dParams {
  // In the layout of the output, dense: NCHW or channels_last. Written by the forward, or null where nobody
  // asks; read by the others, who find it in any strides.
  void* places;
  bool byte_places;
  int64_t places_stride[4];
};

namespace cpu {
PYDL_CPU_ENTRY(void max_pool2d(const MaxPool2dParams& params, const Parallel& parallel))
// from: grad_output; to: grad_input
PYDL_CPU_ENTRY(void max_pool2d_backward(const MaxPool2dParams& params, const Parallel& parallel))
// from: an image; to: what stands at the places, 0 for windows without a pixel in the image
PYDL_CPU_ENTRY(void max_pool2d_gather(const MaxPool2dParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
