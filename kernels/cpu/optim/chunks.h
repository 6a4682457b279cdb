// The chunks of all tensors together, shared among the threads.
#pragma once

#include "kernels/cpu/base/simd.h"
#include "kernels/optim.h"

namespace pydl::cpu::PYDL_ISA {

constexpr int64_t kTaskChunks = 4;  // for fewer a thread is not woken

// Calls body(tensor, first, n, chunk) for numbers [first, first + n) of a tensor, which has count(tensor); they begin
// with that chunk, and are one chunk or, with kSeveral, as many as the thread takes of this tensor.
template <bool kSeveral>
void each_piece(int64_t tensors, const int64_t* first_chunk, const Parallel& parallel, const auto& count,
                const auto& body) {
  parallel(first_chunk[tensors], kTaskChunks, [&](int64_t begin, int64_t end) {
    int64_t low = 0, high = tensors;  // first_chunk[low] <= begin < first_chunk[high]
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first_chunk[middle] <= begin ? low : high) = middle;
    }
    for (int64_t t = low; begin < end; ++t) {
      const int64_t last = min_of(end, first_chunk[t + 1]);
      while (begin < last) {
        const int64_t next = kSeveral ? last : begin + 1;
        const int64_t first = (begin - first_chunk[t]) * kOptimChunk;
        body(t, first, min_of((next - begin) * kOptimChunk, count(t) - first), begin);
        begin = next;
      }
    }
  });
}

}  // namespace pydl::cpu::PYDL_ISA
