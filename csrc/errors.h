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

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/csrc/stable/tensor.h>

namespace pydl {

// A piece of a message. It points to text that lives at least as long as the call it is an argument of.
class Part {
 public:
  Part(const char* text) : kind_(Kind::text), text_(text) {}
  Part(const std::string& text) : Part(text.c_str()) {}
  Part(int64_t number) : kind_(Kind::integer), integer_(number) {}
  Part(int number) : Part(static_cast<int64_t>(number)) {}
  Part(size_t number) : Part(static_cast<int64_t>(number)) {}
  Part(double number) : kind_(Kind::real), real_(number) {}
  void append_to(std::string& message) const;

 private:
  enum class Kind { text, integer, real } kind_;
  union {
    const char* text_;
    int64_t integer_;
    double real_;
  };
};

// One function for all messages: a template of the parts' types is a thousand bytes for each of two hundred.
std::string joined(std::initializer_list<Part> parts);
template <class... Parts>
std::string join(const Parts&... parts) {
  return joined({parts...});
}
template <class Exception>
[[noreturn]] void fail(std::initializer_list<Part> parts);  // for the three of the macros below

std::string shape_of(const std::vector<int64_t>& sizes);
std::string shape_of(const torch::stable::Tensor& t);

// A dtype as Python spells it, without "torch.".
const char* dtype_name(torch::headeronly::ScalarType type);

#define PYDL_CHECK_AS(Exception, condition, ...) \
  do {                                           \
    if (!(condition)) [[unlikely]]               \
      ::pydl::fail<Exception>({__VA_ARGS__});    \
  } while (false)
#define PYDL_CHECK(condition, ...) PYDL_CHECK_AS(std::runtime_error, condition, __VA_ARGS__)
#define PYDL_CHECK_VALUE(condition, ...) PYDL_CHECK_AS(pybind11::value_error, condition, __VA_ARGS__)
#define PYDL_CHECK_INDEX(condition, ...) PYDL_CHECK_AS(pybind11::index_error, condition, __VA_ARGS__)

}  // namespace pydl
