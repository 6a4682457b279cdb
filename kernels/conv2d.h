// 2-D convolution (cross-correlation, as in torch; d2l "Convolutions for Images"), forward and both
// gradients.
//
//   output[n,o,y,x] = act(bias[o] + sum_{i,r,s} weight[o,i,r,s] * input[n, g(o)*I + i, Y(y,r), X(x,s)])
//   Y(y,r) = y*stride - pad + r*dilation, X alike; what lies outside the image counts as 0
//
//   grad_input [n,i,h,w] = sum over the outputs that read it of grad_output * weight
//   grad_weight[o,i,r,s] = sum_{n,y,x} grad_output[n,o,y,x] * input[...]
//   grad_bias  [o]       = sum_{n,y,x} grad_output[n,o,y,x]
//
// I = in_channels / groups. Padding is never materialised for a whole tensor. One struct serves every pass:
// each reads the tensors it needs and writes the others.
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

enum class Conv2dPass : int32_t { forward, backward_input, backward_weight };

// How a convolution is computed. `automatic` lets the table in kernels/cpu/conv2d/select.cpp choose.
enum class Conv2dAlgorithm : int32_t { automatic, gemm, winograd, depthwise, batch, rows };

struct Conv2dParams {
  DType dtype;            // on the CPU not f16, which arrives as f32 but in the bias gradient
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
  void* grad_bias;   // out_channels elements, contiguous; bias gradient only

  // strides in elements, in the order N, C, H, W (weight: O, I, H, W)
  int64_t input_stride[4], weight_stride[4], output_stride[4];

  // At least the bytes that conv2d_scratch_bytes asks for, 64-byte aligned; contents do not matter.
  void* scratch;

  // Automatic, or one to force; one that cannot serve these params is replaced by gemm.
  Conv2dAlgorithm algorithm;
  bool allow_winograd;  // false: only algorithms that multiply each pair once
};

namespace cpu {
// The algorithm that serves `pass`, the scratch it needs, and the passes themselves.
PYDL_CPU_ENTRY(Conv2dAlgorithm conv2d_algorithm(const Conv2dParams& params, Conv2dPass pass))
PYDL_CPU_ENTRY(int64_t conv2d_scratch_bytes(const Conv2dParams& params, Conv2dPass pass, int64_t threads))
PYDL_CPU_ENTRY(void conv2d_forward(const Conv2dParams& params, const Parallel& parallel))
PYDL_CPU_ENTRY(void conv2d_backward_input(const Conv2dParams& params, const Parallel& parallel))
PYDL_CPU_ENTRY(void conv2d_backward_weight(const Conv2dParams& params, const Parallel& parallel))
PYDL_CPU_ENTRY(void conv2d_backward_bias(const Conv2dParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
