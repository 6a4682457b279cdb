// The activations that kernels apply as they store a result (src/pydl/ops/_activations.py).
#pragma once

#include "csrc/autograd/arguments.h"
#include "csrc/autograd/node.h"

#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/threshold_backward.h>

#include <array>
#include <cstring>

namespace pydl::autograd {

enum Activation : int64_t { none, relu, sigmoid };  // batch norm's numbers too
constexpr std::array<const char*, 3> activation_names = {"none", "relu", "sigmoid"};

// None or a name; what there is not is refused in Python.
inline Activation activation(const Arguments& arguments, int i) {
  if (arguments.is_none(i)) return none;
  const char* name = arguments.text(i);
  for (Activation a : {relu, sigmoid}) {
    if (std::strcmp(name, activation_names[a]) == 0) return a;
  }
  throw NotPlain();
}

// The gradient of what the activation was given, from that of its output.
inline Tensor through_activation(const Tensor& grad, const Tensor& output, int64_t activation) {
  if (activation == relu) return at::threshold_backward(grad, output, 0);
  if (activation == sigmoid) return at::sigmoid_backward(grad, output);
  return grad;
}

}  // namespace pydl::autograd
