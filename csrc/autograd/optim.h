// Tensors of a model taken together: their chunks, the memory that they share, and the kernels of kernels/optim.h.
#pragma once

#include "csrc/autograd/arguments.h"
#include "csrc/autograd/kernels.h"

#include <algorithm>
#include <vector>

namespace pydl::autograd {

// Memory that a call reads or writes.
struct Extent {
  uintptr_t begin, end;
  bool written;
};

inline Extent extent_of(const Tensor& t, bool written) {
  const auto begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  return {begin, begin + t.nbytes(), written};
}

// Whether what is written overlaps anything else: torch's loops take such tensors one after another.
inline bool overlap(std::vector<Extent>& extents) {
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  uintptr_t written = 0, read = 0;  // where the farthest of those before ends
  for (const Extent& e : extents) {
    if (e.begin == e.end) continue;
    if (e.begin < written || (e.written && e.begin < read)) return true;
    uintptr_t& farthest = e.written ? written : read;
    farthest = std::max(farthest, e.end);
  }
  return false;
}

// Where the chunks of each tensor begin, and their number.
inline std::vector<int64_t> chunks(size_t tensors, const auto& count) {
  std::vector<int64_t> first(tensors + 1);
  for (size_t t = 0; t < tensors; ++t) first[t + 1] = first[t] + ceil_div(count(t), kOptimChunk);
  return first;
}

// Below, the lock of Python is kept: giving it back and taking it again costs as much as the step.
constexpr int64_t kWorthUnlocking = 16;  // chunks

template <class Compute>
void unlocked_if_long(int64_t chunks, const Compute& compute) {
  if (chunks < kWorthUnlocking) return compute();
  pybind11::gil_scoped_release release;
  compute();
}

inline DType dtype_of(const Tensor& t) { return t.scalar_type() == at::kDouble ? DType::f64 : DType::f32; }

}  // namespace pydl::autograd
