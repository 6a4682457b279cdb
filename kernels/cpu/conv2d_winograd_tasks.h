// Tasks of uneven size over torch's threads, and scratch cut into aligned pieces.
#pragma once

#include "kernels/cpu/simd.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// Calls body(task, worker) for each task in [0, count). Whoever is free takes the next task, so that a thread
// which another process interrupts does not hold up the rest; no result may depend on who computed it. worker
// < workers names the scratch to use.
template <class F>
void run_tasks(const Parallel& parallel, int64_t workers, int64_t count, const F& body) {
  int64_t next = 0;
  parallel(min_of(workers, count), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t task; (task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < count;) body(task, worker);
  });
}

// floats, rounded up to whole pages' worth of cache lines plus a few, so that pieces do not start in the same
// cache set
constexpr int64_t piece(int64_t floats) { return ceil_div(floats, 16) * 16 + 80; }

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
