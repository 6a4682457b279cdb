// Softmax cross entropy (d2l "Softmax Regression"; label smoothing: Szegedy et al., CVPR 2016; z-loss:
// Chowdhery et al., PaLM, 2022).
//
//   lse    = log sum_c exp(x_c)                                                        of each row (position)
//   loss   = sum_c q_c (lse - x_c) + z_loss lse^2
//   q_c    = (1 - s) w_t [c = t] + (s / C) w_c                                         class index t
//   q_c    = w_c ((1 - s) t_c + s / C)                                                 probabilities t_c
//   output = loss, or sum of losses, or sum / denominator
//   denominator = sum of w_t over the rows not ignored (class indices), number of rows (probabilities)
//
//   grad_input_c  = g ((sum_j q_j + 2 z_loss lse) exp(x_c - lse) - q_c)
//   grad_target_c = g (1 - s) w_c (lse - x_c)
//
// s is label_smoothing, w the class weights (1 without), g the row's gradient (over the denominator for
// mean). An ignored row has loss 0 and gradient 0 whatever its logits hold. No softmax is stored: lse is, as
// the two numbers it is the sum of, max = max_c x_c and log_sum = log sum_c exp(x_c - max). Added up they
// would lose places: at logits of 1e4 the last place of a float is 1e-3, which would be the relative error of
// every gradient.
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

enum class Reduction : int32_t { none, mean, sum };  // torch's numbers

struct SoftmaxCrossEntropyParams {
  static constexpr int max_dims = 8;  // after csrc has merged what can be merged

  DType dtype;         // of input and grad_input
  DType output_dtype;  // of output and grad_output: dtype, or f32 for half inputs under autocast
  DType target_dtype;  // of probabilities and grad_target: dtype, or f32 for half inputs
  bool probabilities;
  Reduction reduction;
  int64_t ignore_index;
  double label_smoothing, z_loss;

  const void* input;
  const void* target;       // int64 classes, or probabilities
  const void* weight;       // acc_t<input>[classes], contiguous, or null
  void* output;             // forward: [rows] contiguous for reduction none, else one element
  void* norm;               // acc_t<input>[2][rows]: max and log_sum of each row
  double* denominator;      // one element, written by forward and read by backward; mean only
  const void* grad_output;  // as output, with strides, which may be 0; in forward null counts as 1
  void* grad_input;         // backward; in forward null, or where to leave the gradient: input itself, too
  void* grad_target;        // only in backward_target

  int64_t classes, input_class_stride, target_class_stride, grad_class_stride;

  // Rows, outermost dimension first, sorted so that input_stride falls. row_stride is that of the logical
  // row-major index, which output and lse are stored by. grad_stride is of grad_input or grad_target.
  int64_t rows;
  int dims;
  int64_t size[max_dims], row_stride[max_dims], input_stride[max_dims], target_stride[max_dims],
      grad_stride[max_dims], grad_output_stride[max_dims];

  void* scratch;  // softmax_cross_entropy_scratch() bytes, 64-byte aligned; its content does not matter
};

struct SoftmaxCrossEntropyStatus {
  bool ok;
  int64_t bad_target;  // the first class index that is neither a class nor ignore_index
};

namespace cpu {
PYDL_CPU_ENTRY(int64_t softmax_cross_entropy_scratch(const SoftmaxCrossEntropyParams& params,
                                                     int64_t threads))
PYDL_CPU_ENTRY(SoftmaxCrossEntropyStatus softmax_cross_entropy_forward(
    const SoftmaxCrossEntropyParams& params, const Parallel& parallel))
PYDL_CPU_ENTRY(void softmax_cross_entropy_backward(const SoftmaxCrossEntropyParams& params,
                                                   const Parallel& parallel))
PYDL_CPU_ENTRY(void softmax_cross_entropy_backward_target(const SoftmaxCrossEntropyParams& params,
                                                          const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
