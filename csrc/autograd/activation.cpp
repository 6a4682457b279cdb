#include "csrc/autograd/activation.h"

#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/threshold_backward.h>

#include <cstring>

namespace pydl::autograd {

Activation activation(const Arguments& arguments, int i) {
  if (arguments.is_none(i)) return none;
  const char* name = arguments.text(i);
  for (Activation a : {relu, sigmoid}) {
    if (std::strcmp(name, activation_names[a]) == 0) return a;
  }
  throw NotPlain();
}

// Numbers from which on the gradient is in recycled memory (csrc/memory.h), where torch's may be mapped anew.
static constexpr int64_t kRecycled = 1 << 18;

Tensor through_activation(const Tensor& grad, const Tensor& output, Activation activation) {
  static const Op through_relu("pydl::relu_backward"), through_sigmoid("pydl::sigmoid_backward");
  if (activation == none) return grad;
  if (grad.numel() >= kRecycled) return (activation == relu ? through_relu : through_sigmoid)(grad, output);
  return activation == relu ? at::threshold_backward(grad, output, 0) : at::sigmoid_backward(grad, output);
}

}  // namespace pydl::autograd
