// Scratch that csrc allocates, cut into aligned pieces.
#pragma once

#include "kernels/common.h"

namespace pydl::cpu::PYDL_ISA {

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
