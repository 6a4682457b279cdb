// PYDL_VERBOSE=1: a line on stderr for each call of an op, for those who ask where the time goes.
//
//   pydl,conv2d_forward,winograd.tiles,float32,channels_last,8x64x56x56 64x64x3x3,812.4
//   op, algorithm (or -), dtype, memory format, shapes, microseconds
#pragma once

#include <chrono>

#include "csrc/torch.h"

namespace pydl {

class Verbose {
 public:
  // input: the tensor that gives dtype, format and the first shape; other: one more shape, or null.
  Verbose(const char* op, const Tensor& input, const Tensor* other = nullptr)
      : input_(enabled ? &input : nullptr), other_(other), op_(op) {
    if (input_) begin_ = std::chrono::steady_clock::now();
  }
  Verbose(const Verbose&) = delete;
  Verbose& operator=(const Verbose&) = delete;
  ~Verbose() {
    if (input_) print();
  }

  const char* algorithm = "-";

 private:
  static const bool enabled;
  void print() const;

  const Tensor* input_;  // null: nothing is said
  const Tensor* other_;
  const char* op_;
  std::chrono::steady_clock::time_point begin_;
};

}  // namespace pydl
