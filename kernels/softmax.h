// Softmax and its logarithm along a dimension (d2l "Softmax Regression", "Attention Scoring Functions").
//
// For each row of `width` values x, which lie `inner` apart, and of which the first n count (n: lengths, or width):
//
//   output[j] = exp(x[j] - max) / sum of exp(x - max)            j < n; 0 beyond
//             = x[j] - max - log(sum of exp(x - max))            logarithm
//
//   grad_input = output * (grad_output - sum of grad_output * output)
//              = grad_output - exp(output) * sum of grad_output  logarithm
//
// So a row of length 0 is 0, and its gradient too.
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

struct SoftmaxParams {
  DType dtype;  // not f16, which arrives as f32
  bool logarithm;
  int64_t rows, width;
  int64_t inner;           // numbers in the dimensions behind: 1 along the last one
  const int64_t* lengths;  // one for each `rows_of_length` rows, inner being 1; null: width
  int64_t rows_of_length;
  const void *input, *grad_output;  // all tensors are contiguous; input: of the backward, the output
  void* output;                     // of the backward, the gradient of the input
};

namespace cpu {
PYDL_CPU_ENTRY(void softmax_forward(const SoftmaxParams& params, const Parallel& parallel))
PYDL_CPU_ENTRY(void softmax_backward(const SoftmaxParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
