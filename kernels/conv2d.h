// 2-D convolution (cross-correlation, as in torch; d2l "Convolutions for Images"), forward and both
// gradients.
//
//   output[n,o,y,x] = act( bias[o] + sum_{i,r,s} weight[o,i,r,s] * input[n, g(o)*I + i, y*stride - pad +
//   r*dilation, ...] )
//
//   grad_input [n,i,h,w] = sum over the outputs that read it of grad_output * weight
//   grad_weight[o,i,r,s] = sum_{n,y,x} grad_output[n,o,y,x] * input[...]
//
// I = in_channels / groups. Padding is never materialised. One struct serves the three passes: each reads the
// two tensors it needs and writes the third.
#pragma once

#include "kernels/common.h"
#include "kernels/cpu/isa.h"

namespace pydl {

struct Conv2dParams {
  DType dtype;
  Activation activation;  // forward only

  int64_t batch, groups;
  int64_t in_channels, in_height, in_width;
  int64_t out_channels, out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t pad_top, pad_left;  // bottom and right follow from the output's size ("same" may differ by one)
  int64_t dilation_height, dilation_width;

  // forward: input, weight, bias -> output. input gradient: output (the gradient), weight -> input.
  // weight gradient: input, output (the gradient) -> weight.
  void *input, *weight, *output;
  const void* bias;  // may be null

  // strides in elements, in the order N, C, H, W (weight: O, I, H, W)
  int64_t input_stride[4], weight_stride[4], output_stride[4];

  void* scratch;  // of at least the bytes that the pass's *_scratch function asks for, 64-byte aligned
};

}  // namespace pydl
