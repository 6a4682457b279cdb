// The negative log likelihood of classes (d2l "Softmax Regression"), and its gradient.
//
//   loss = -w[t] x[t]    at each position of class t; 0 where t is ignore_index
//   mean = sum of losses / sum of w[t] over the positions that are not ignored
//
// input: (batch, classes, inner); target: (batch, inner). The gradient is 0 but at x[t].
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

struct NllLossParams {
  DType dtype;  // not f16, which arrives as f32
  int64_t batch, classes, inner, ignore_index;
  const void* input;
  const int64_t* target;
  const void* weight;  // [classes], or null
  bool per_position;   // no sum: output and grad_output have one number for each position
  bool mean;           // divides by total_weight, which the forward writes and the backward reads
  const void* grad_output;
  void* output;  // of the backward, the gradient of the input
  double* total_weight;
  double* sums;  // scratch of the forward: nll_loss_sums() numbers
};

struct NllLossStatus {
  bool ok;
  int64_t bad_target;  // a class that is neither in [0, classes) nor ignore_index
};

constexpr int64_t kNllLossBlock = 4096;  // positions that are summed up on their own

static inline int64_t nll_loss_sums(const NllLossParams& p) {
  return 2 * ceil_div(p.batch * p.inner, kNllLossBlock);
}

namespace cpu {
PYDL_CPU_ENTRY(NllLossStatus nll_loss_forward(const NllLossParams& params, const Parallel& parallel))
PYDL_CPU_ENTRY(void nll_loss_backward(const NllLossParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
