// PYDL_VERBOSE=1: a line on stderr for each call of an op, for those who ask where the time goes.
//
//   pydl,conv2d_forward,winograd.tiles,float32,channels_last,8x64x56x56 64x64x3x3,812.4
//   op, algorithm (or -), dtype, memory format, shapes, microseconds
#pragma once

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "csrc/torch.h"

namespace pydl {

class Verbose {
 public:
  // input: the tensor that gives dtype, format and the first shape; other: one more shape, or null.
  Verbose(const char* op, const Tensor& input, const Tensor* other = nullptr)
      : input_(enabled() ? &input : nullptr), other_(other), op_(op) {
    if (input_) begin_ = std::chrono::steady_clock::now();
  }
  Verbose(const Verbose&) = delete;
  Verbose& operator=(const Verbose&) = delete;
  ~Verbose() {
    if (input_) print();
  }

  const char* algorithm = "-";

 private:
  static bool enabled() {
    static const bool on = [] {
      const char* value = std::getenv("PYDL_VERBOSE");
      return value != nullptr && value[0] == '1';
    }();
    return on;
  }

  static std::string shape(const Tensor& t) {
    std::string text;
    for (int64_t d = 0; d < t.dim(); ++d) text += (d ? "x" : "") + std::to_string(t.size(d));
    return text.empty() ? "scalar" : text;
  }
  static const char* format(const Tensor& t) {
    if (t.is_contiguous()) return "contiguous";
    const bool last = (t.dim() == 4 || t.dim() == 5) && has_strides(t, channels_last_strides(sizes_of(t)));
    return last ? "channels_last" : "strided";
  }

  void print() const {
    const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - begin_;
    std::string shapes = shape(*input_);
    if (other_) shapes += " " + shape(*other_);
    std::fprintf(stderr, "pydl,%s,%s,%s,%s,%s,%.1f\n", op_, algorithm, dtype_name(input_->scalar_type()),
                 format(*input_), shapes.c_str(), time.count());
  }

  const Tensor* input_;  // null: nothing is said
  const Tensor* other_;
  const char* op_;
  std::chrono::steady_clock::time_point begin_;
};

}  // namespace pydl
