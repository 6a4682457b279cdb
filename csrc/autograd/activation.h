// The activations that kernels apply as they store a result (src/pydl/ops/_activations.py).
#pragma once

#include "csrc/autograd/arguments.h"
#include "csrc/autograd/node.h"

#include <array>

namespace pydl::autograd {

enum Activation : int64_t { none, relu, sigmoid };  // batch norm's numbers too
constexpr std::array<const char*, 3> activation_names = {"none", "relu", "sigmoid"};

// None or a name; what there is not is refused in Python.
Activation activation(const Arguments& arguments, int i);

// The gradient of what the activation was given, from that of its output.
Tensor through_activation(const Tensor& grad, const Tensor& output, Activation activation);

}  // namespace pydl::autograd
