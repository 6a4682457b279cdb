// What several ops do to their arguments: float16 by way of float32 on the CPU, and the activation's name.
#pragma once

#include <string>

#include "csrc/torch.h"

namespace pydl {

// A copy of t in another dtype, laid out as t.
inline Tensor converted(const Tensor& t, ScalarType type) {
  Tensor copy = empty_strided(t, type, t.sizes(), strides_like(t));
  torch::stable::copy_(copy, t);
  return copy;
}

// float16 is what few train in on a CPU: its tensors become float32 and the result is rounded, once as ever, instead of
// kernels of its own in every algorithm.
inline Tensor widened(const Tensor& t) { return converted(t, ScalarType::Float); }
inline Tensor rounded(const Tensor& t) { return converted(t, ScalarType::Half); }

inline Activation activation_of(const char* op, const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "sigmoid") return Activation::sigmoid;
  throw pybind11::value_error(
      join(op, ": expected activation to be None, 'relu' or 'sigmoid', got '", name, "'"));
}

// Tensors of one call are of one dtype.
inline void check_same_dtype(const char* op, const char* what, const Tensor& a, const char* as,
                             const Tensor& b) {
  PYDL_CHECK(a.scalar_type() == b.scalar_type(), op, ": expected ", what, " to be of the dtype of ", as,
             ", got ", dtype_name(a.scalar_type()), " and ", dtype_name(b.scalar_type()));
}

}  // namespace pydl
