// Tasks for threads that do not advance alike: another process may hold one up, and a core may be a slow one.
#pragma once

#include "kernels/cpu/base/simd.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// Each worker takes the tasks of its own share in order, so that what neighbours have in common stays in its
// caches; who has none left takes the last of another's. No result may depend on who computed it.
class Tasks {
 public:
  static constexpr int64_t kMostWorkers = 256;

  Tasks(int64_t workers, int64_t count) : workers_(workers) {
    for (int64_t w = 0; w < workers; ++w)
      shares_[w].range = pack(count * w / workers, count * (w + 1) / workers);
  }

  // The next task for this worker, or -1 where all are taken.
  int64_t take(int64_t worker) {
    if (const int64_t own = take_from(worker, true); own >= 0) return own;
    for (int64_t i = 1; i < workers_; ++i)
      if (const int64_t other = take_from((worker + i) % workers_, false); other >= 0) return other;
    return -1;
  }

 private:
  struct alignas(64) Share {  // a cache line each
    uint64_t range;           // first task << 32 | end
  };
  static uint64_t pack(int64_t first, int64_t end) {
    return static_cast<uint64_t>(first) << 32 | static_cast<uint64_t>(end);
  }
  int64_t take_from(int64_t worker, bool front) {
    uint64_t range = __atomic_load_n(&shares_[worker].range, __ATOMIC_RELAXED);
    for (;;) {
      const int64_t first = static_cast<int64_t>(range >> 32), end = static_cast<int64_t>(range & 0xffffffff);
      if (first >= end) return -1;
      const uint64_t left = front ? pack(first + 1, end) : pack(first, end - 1);
      if (__atomic_compare_exchange_n(&shares_[worker].range, &range, left, false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED))
        return front ? first : end - 1;
    }
  }

  int64_t workers_;
  Share shares_[kMostWorkers];
};

// How many workers serve so many tasks.
inline int64_t workers_for(const Parallel& parallel, int64_t tasks) {
  return max_of(1, min_of(min_of(parallel.threads, Tasks::kMostWorkers), tasks));
}

// Calls body(task, worker) for each task in [0, count); worker < parallel.threads names the scratch to use.
template <class F>
void run_tasks(const Parallel& parallel, int64_t count, const F& body) {
  const int64_t workers = workers_for(parallel, count);
  Tasks shares(workers, count);
  parallel(workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker)
      for (int64_t task; (task = shares.take(worker)) >= 0;) body(task, worker);
  });
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
