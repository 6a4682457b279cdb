// Errors in one grammar: "<op>: expected <what> to be <rule>, got <value>".
//
// Which Python exception arrives follows what torch raises for the same mistake. From 2.15 on torch makes of every
// std:: exception but std::out_of_range a RuntimeError, where it made a ValueError of std::invalid_argument before;
// pybind11's exceptions name the Python type themselves, and arrive as it under every torch. Their header comes with
// torch's own and needs no library.
#pragma once

// torch 2.11's copy refuses to be included where only the stable ABI is asked for, though these exceptions are inline.
#pragma push_macro("TORCH_TARGET_VERSION")
#undef TORCH_TARGET_VERSION
#include <pybind11/detail/common.h>
#pragma pop_macro("TORCH_TARGET_VERSION")

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/csrc/stable/tensor.h>

namespace pydl {

template <class... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

inline std::string shape_of(const std::vector<int64_t>& sizes) {
  std::string text = "(";
  for (size_t d = 0; d < sizes.size(); ++d) text += (d ? ", " : "") + std::to_string(sizes[d]);
  return text + ")";
}
inline std::string shape_of(const torch::stable::Tensor& t) {
  return shape_of(std::vector<int64_t>(t.sizes().begin(), t.sizes().end()));
}

// A dtype as Python spells it, without "torch.".
inline const char* dtype_name(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::ComplexHalf:
      return "complex32";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:  // 8-bit floats, quantised and unsigned ones: torch's name in C++ tells them apart as well
      return torch::headeronly::toString(type);
  }
}

#define PYDL_CHECK_AS(Exception, condition, ...)  \
  do {                                            \
    if (!(condition)) [[unlikely]]                \
      throw Exception(::pydl::join(__VA_ARGS__)); \
  } while (false)
#define PYDL_CHECK(condition, ...) PYDL_CHECK_AS(std::runtime_error, condition, __VA_ARGS__)
#define PYDL_CHECK_VALUE(condition, ...) PYDL_CHECK_AS(pybind11::value_error, condition, __VA_ARGS__)
#define PYDL_CHECK_INDEX(condition, ...) PYDL_CHECK_AS(pybind11::index_error, condition, __VA_ARGS__)

}  // namespace pydl
