// Errors in one grammar: "<op>: expected <what> to be <rule>, got <value>".
//
// torch turns std::invalid_argument into ValueError, std::out_of_range into IndexError and everything else
// into RuntimeError; which one is thrown follows what torch raises for the same mistake.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/tensor.h>

namespace pydl {

template <class... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

inline std::string shape_of(const torch::stable::Tensor& t) {
  std::string text = "(";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + ")";
}

#define PYDL_CHECK_AS(Exception, condition, ...)  \
  do {                                            \
    if (!(condition)) [[unlikely]]                \
      throw Exception(::pydl::join(__VA_ARGS__)); \
  } while (false)
#define PYDL_CHECK(condition, ...) PYDL_CHECK_AS(std::runtime_error, condition, __VA_ARGS__)
#define PYDL_CHECK_VALUE(condition, ...) PYDL_CHECK_AS(std::invalid_argument, condition, __VA_ARGS__)
#define PYDL_CHECK_INDEX(condition, ...) PYDL_CHECK_AS(std::out_of_range, condition, __VA_ARGS__)

}  // namespace pydl
