// A function of one number's gradient for other ops.
#pragma once

#include "csrc/torch.h"
#include "kernels/elementwise.h"

namespace pydl {

// grad_output times the derivative of `function`, from what it saved.
Tensor elementwise_backward(Elementwise function, const Tensor& grad_output, const Tensor& saved);

}  // namespace pydl
