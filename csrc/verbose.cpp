#include "csrc/verbose.h"

#include <cstdio>
#include <cstdlib>

namespace pydl {

const bool Verbose::enabled = [] {
  const char* value = std::getenv("PYDL_VERBOSE");
  return value != nullptr && value[0] == '1';
}();

namespace {

std::string shape(const Tensor& t) {
  std::string text;
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? "x" : "") + std::to_string(t.size(d));
  return text.empty() ? "scalar" : text;
}

const char* format(const Tensor& t) {
  if (t.is_contiguous()) return "contiguous";
  const bool last = (t.dim() == 4 || t.dim() == 5) && has_strides(t, channels_last_strides(sizes_of(t)));
  return last ? "channels_last" : "strided";
}

}  // namespace

void Verbose::print() const {
  const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - begin_;
  std::string shapes = shape(*input_);
  if (other_) shapes += " " + shape(*other_);
  std::fprintf(stderr, "pydl,%s,%s,%s,%s,%s,%.1f\n", op_, algorithm, dtype_name(input_->scalar_type()),
               format(*input_), shapes.c_str(), time.count());
}

}  // namespace pydl
