// Softmax cross entropy of the outputs of a linear layer, the last layer of a language model and its loss in one
// (d2l "Recurrent Neural Network Implementation from Scratch"; options: kernels/softmax_cross_entropy.h).
//
//   logits      = input · linear_weightᵀ + linear_bias                  rows × classes
//   output      = cross entropy of logits and target                    class indices alone
//   correct     = number of rows, not ignored, whose first largest logit is the target's
//
//   grad_logits = that of softmax_cross_entropy.h
//   grad_input  = grad_logits · linear_weight
//   grad_weight = grad_logitsᵀ · input
//   grad_bias   = sum of the rows of grad_logits
//
// Logits are made and used a block of rows at a time, and become grad_logits where they lie. The gradients may be made
// in the forward, three products in all; or by a backward, which makes the logits once more.
#pragma once

#include "kernels/matmul.h"
#include "kernels/softmax_cross_entropy.h"

namespace pydl {

struct LinearCrossEntropyParams {
  // f32 or f64, of all that follows but where it says otherwise; half types arrive as f32. Or bf16, if
  // linear_cross_entropy_takes_bf16: that of input, linear_weight and linear_bias, f32 being that of the rest.
  DType dtype;
  DType output_dtype;  // of output and grad_output
  Reduction reduction;
  int64_t ignore_index;
  double label_smoothing, z_loss;

  int64_t rows, features, classes;
  Matrix input, linear_weight;  // (rows, features) and (classes, features)
  const void* linear_bias;      // [classes], contiguous, or null
  const int64_t* target;        // [rows]
  int64_t target_stride;
  const void* weight;  // of the classes: [classes], contiguous, or null

  void* output;         // forward: [rows] contiguous for reduction none, else one element
  void* norm;           // [2 rows]: max and log_sum of each row, block by block
  double* denominator;  // one element, written by forward and read by backward
  int64_t* correct;     // one element, or null

  const void* grad_output;  // backward: as output, with a stride, which may be 0
  int64_t grad_output_stride;
  // (rows, features), (classes, features), [classes], contiguous; null for what is not wanted, and in a forward that
  // makes none. In forward for a grad_output of 1 (mean and sum).
  void *grad_input, *grad_weight, *grad_bias;

  void* scratch;  // linear_cross_entropy_scratch() bytes, 64-byte aligned
};

namespace cpu {
// Whether this CPU multiplies bf16 faster than f32.
PYDL_CPU_ENTRY(bool linear_cross_entropy_takes_bf16())
PYDL_CPU_ENTRY(int64_t linear_cross_entropy_scratch(const LinearCrossEntropyParams& params, int64_t threads))
PYDL_CPU_ENTRY(SoftmaxCrossEntropyStatus linear_cross_entropy_forward(const LinearCrossEntropyParams& params,
                                                                      const Parallel& parallel))
PYDL_CPU_ENTRY(void linear_cross_entropy_backward(const LinearCrossEntropyParams& params,
                                                  const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
