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

struct Conv2dParams {
  DType dtype;  // on the CPU not f16, which arrives as f32 but in the bias gradient
  // of the forward, of the input gradient as the transposed convolution, and of the weight gradient: `activated`
  Activation activation;

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
  // May be null. The input gradient adds one to each of in_channels where it serves as the transposed convolution.
  const void* bias;
  // out_channels elements, contiguous. Of the bias gradient, and, or null, of a weight gradient whose plan gives both.
  void* grad_bias;
  // Of a weight gradient whose plan gives both: what the activation gave in the forward, with the strides of `output`,
  // which is the gradient of that then; or null.
  const void* activated;

  // strides in elements, in the order N, C, H, W (weight: O, I, H, W)
  int64_t input_stride[4], weight_stride[4], output_stride[4];

  void* scratch;     // 64-byte aligned; what lies there does not matter
  int32_t* spoiled;  // on the CPU: set to 1 by an algorithm that is not local and has met an inf or nan
};

// How one pass is computed on the CPU: chosen once for all calls whose params differ in nothing but their pointers.
struct Conv2dPlan {
  const char* algorithm;  // one of conv2d_algorithms(); null: the one asked for cannot serve these params
  int64_t scratch;        // bytes that params.scratch must have
  Conv2dParams reduced;   // an equal problem that is less work, without its pointers
  int64_t first_tap;      // bytes from the weight of the whole problem to that of the reduced one
  bool local;             // an inf or nan spoils the results that its windows reach, and no others
  bool gives_bias;  // of a weight gradient: with grad_bias that is computed too, and `activated` gone through
  void (*run)(const Conv2dParams& reduced, Conv2dPass pass, const Parallel& parallel);
};

namespace cpu {
// The names of the algorithms of `pass`, best first, "winograd.tiles" or "implicit.slabs"; null past the last.
PYDL_CPU_ENTRY(const char* conv2d_algorithms(Conv2dPass pass, int64_t index))
// wanted: null, a name, or its part before the dot. exact: none but local ones, which multiply each pair once.
PYDL_CPU_ENTRY(Conv2dPlan conv2d_plan(const Conv2dParams& params, Conv2dPass pass, int64_t threads,
                                      const char* wanted, bool exact))
// False where an inf or nan may have spoiled more than it should: the pass is to be made again by an exact plan.
PYDL_CPU_ENTRY(bool conv2d_run(const Conv2dPlan& plan, const Conv2dParams& params, Conv2dPass pass,
                               const Parallel& parallel))
PYDL_CPU_ENTRY(void conv2d_backward_bias(const Conv2dParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
