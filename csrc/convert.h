// What several ops do to their arguments: float16 by way of float32 on the CPU, and the activation's name.
#pragma once

#include <string>

#include "csrc/torch.h"
#include "kernels/isa.h"

namespace pydl {

// float16 is what few train in on a CPU: its tensors become float32 and the result is rounded, once as ever, instead of
// kernels of its own in every algorithm.
inline Tensor widened(const Tensor& t) { return converted(t, ScalarType::Float); }
inline Tensor rounded(const Tensor& t, ScalarType type = ScalarType::Half) { return converted(t, type); }

// Whether layers of rows and elements, and attention, take this way: with float16, and on x86 CPUs without AVX2, for which
// there is one plain choice of everything, with bfloat16 too (dispatch_rows() of kernels/cpu/rows/along.h).
inline bool widens(DType dtype) {
  return dtype == DType::f16 || (dtype == DType::bf16 && cpu::isa_is_plain());
}
inline bool widens(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  return type == ScalarType::Half || (type == ScalarType::BFloat16 && cpu::isa_is_plain());
}
inline std::optional<Tensor> widened_where_needed(const std::optional<Tensor>& t) {
  return t && widens(*t) ? std::optional<Tensor>(widened(*t)) : t;
}

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
