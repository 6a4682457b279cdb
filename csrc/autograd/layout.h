// Memory formats, by the rules of src/pydl/ops/_memory_format.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

namespace pydl::autograd {

// Whether the strides are those of a new contiguous tensor, dimensions of size 1 included.
inline bool is_row_major(const at::Tensor& t) {
  int64_t stride = 1;
  for (int64_t d = t.dim() - 1; d >= 0; --d) {
    if (t.stride(d) != stride) return false;
    stride *= std::max<int64_t>(t.size(d), 1);
  }
  return true;
}

inline bool is_channels_last(const at::Tensor& t) {
  return t.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}

}  // namespace pydl::autograd
