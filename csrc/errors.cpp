#include "csrc/errors.h"

#include <cstdio>

namespace pydl {

void Part::append_to(std::string& message) const {
  switch (kind_) {
    case Kind::text:
      message += text_;
      return;
    case Kind::integer:
      message += std::to_string(integer_);
      return;
    case Kind::real:
      char number[32];
      std::snprintf(number, sizeof(number), "%g", real_);
      message += number;
  }
}

std::string joined(std::initializer_list<Part> parts) {
  std::string message;
  for (const Part& part : parts) part.append_to(message);
  return message;
}

template <class Exception>
void fail(std::initializer_list<Part> parts) {
  throw Exception(joined(parts));
}
template void fail<std::runtime_error>(std::initializer_list<Part>);
template void fail<pybind11::value_error>(std::initializer_list<Part>);
template void fail<pybind11::index_error>(std::initializer_list<Part>);

std::string shape_of(const std::vector<int64_t>& sizes) {
  std::string text = "(";
  for (size_t d = 0; d < sizes.size(); ++d) text += (d ? ", " : "") + std::to_string(sizes[d]);
  return text + ")";
}
std::string shape_of(const torch::stable::Tensor& t) {
  return shape_of(std::vector<int64_t>(t.sizes().begin(), t.sizes().end()));
}

const char* dtype_name(torch::headeronly::ScalarType type) {
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

}  // namespace pydl
