// Losses of two tensors number by number, and their gradients (d2l "Linear Regression", "Softmax Regression").
//
//   d = x - t          loss                                        slope, by x
//   difference         |d| <= limit ? square d^2                   |d| <= limit ? 2 square d
//                                   : linear |d| - offset                       : linear sign(d)
//   binary cross       w ((1 - t) x + (1 + (p - 1) t) log(1 + exp(-x)))
//   entropy                                                        w ((1 - t) s(x) - p t s(-x)),  s(x) = 1 / (1 + exp(-x))
//
// The squared error is the difference of (limit, square) = (inf, 1), the absolute one that of (limit, linear) = (-1, 1);
// Huber's (Annals of Mathematical Statistics 1964) and the smooth absolute error (Girshick, ICCV 2015) lie between.
// sign(nan) is nan, and 0 for the absolute error, as torch's. p: the weight of positive targets, w that of a number; 1 without.
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

enum class Loss : int32_t { difference, binary_cross_entropy };

struct LossParams {
  DType dtype;  // not f16, which arrives as f32
  Loss loss;
  double limit, square, linear, offset;
  int64_t count, block;        // numbers; block: at least 4096
  const void *input, *target;  // [count] each, as all that follow
  const void *weight,
      *pos_weight;  // null, or [weight_stride ? count : block]: the weights of one block are those of all
  int64_t weight_stride, pos_weight_stride;  // block, or 0
  bool per_number;                           // the forward writes a loss for each number: no sum
  double factor;                             // of the sum, or of the one grad_output
  const void* grad_output;                   // backward: [grad_per_number ? count : 1]
  bool grad_per_number;
  void* output;  // forward: [per_number ? count : 1]; backward: the gradient of the input
  double* sums;  // scratch of the forward: one for each block
};

namespace cpu {
PYDL_CPU_ENTRY(void loss_forward(const LossParams& params, const Parallel& parallel))
PYDL_CPU_ENTRY(void loss_backward(const LossParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
