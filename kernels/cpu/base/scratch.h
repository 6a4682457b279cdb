// Scratch that csrc allocates, cut into aligned pieces.
#pragma once

#include "kernels/common.h"

namespace pydl::cpu::PYDL_ISA {

// Bytes between the regions of two workers in one scratch. The prefetchers of a core follow what it sweeps through past
// the end, and a line that they take out of the neighbour's cache has to be fetched back before the neighbour writes it
// again: on two cores between which a line goes there and back in 380 ns, 5x5 32→32@16 takes 1.44 ms with no gap, 1.33
// with 128 KB and 1.06 with 512 KB. The gap takes addresses, not memory: nobody touches its pages.
constexpr int64_t kApart = 512 << 10;

// Scratch is handed out in pieces of whole cache lines.
struct Pieces {
  char* next;
  template <class A>
  A* take(int64_t count) {
    A* piece = reinterpret_cast<A*>(next);
    next += bytes<A>(count);
    return piece;
  }
  template <class A>
  static int64_t bytes(int64_t count) {
    return ceil_div(count * static_cast<int64_t>(sizeof(A)), 64) * 64;
  }
};

}  // namespace pydl::cpu::PYDL_ISA
