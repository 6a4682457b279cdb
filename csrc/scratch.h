#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "kernels/common.h"

namespace pydl {

// Working memory that the kernels ask for, kept by each calling thread for its next convolution up to kKept
// bytes.
class Scratch {
 public:
  static void* of_at_least(int64_t bytes) {
    thread_local Scratch scratch;
    return scratch.at_least(bytes);
  }
  // For copies that outlive several calls of kernels: `which` of two.
  static void* of_copies(int64_t bytes, size_t which) {
    thread_local Scratch copies[2];
    return copies[which].at_least(bytes);
  }
  ~Scratch() { std::free(data_); }

 private:
  static constexpr int64_t kKept = 256 << 20;

  void* at_least(int64_t bytes) {
    if (size_ < bytes || (size_ > kKept && bytes <= kKept)) resize(bytes);
    return data_;
  }

  void resize(int64_t bytes) {
    std::free(data_);
    size_ = 0;
    bytes = ceil_div(bytes, 4096) * 4096;
    data_ = std::aligned_alloc(4096, static_cast<size_t>(bytes));
    if (data_ == nullptr) throw std::bad_alloc();
    size_ = bytes;
  }

  void* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace pydl
