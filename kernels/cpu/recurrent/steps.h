// How the work on a batch of sequences is cut, and which rows belong to a step: for both passes.
#pragma once

#include "kernels/cpu/base/scratch.h"
#include "kernels/cpu/base/tasks.h"
#include "kernels/recurrent.h"

namespace pydl::cpu::PYDL_ISA::recurrent {
namespace {

constexpr int64_t kMostRows = 64;          // sequences of a task: their states stay in the first caches
constexpr double kWorthAThread = 1 << 17;  // multiply-adds that outweigh waking a thread

// Weights that are used so seldom are read as they lie: packing them reads and writes them all once more. Then a thread
// waits for memory rather than for sums, and the threads share the units of each step.
constexpr int64_t kStepsInPlace = 3, kRowsInPlace = 16;
constexpr double kWorthAThreadInPlace = 1 << 20;

// Else each task takes its own sequences through all steps, so that no thread waits for another inside the loop.
struct Cut {
  bool in_place;
  int64_t threads, tasks, rows;  // rows: of a task at most

  Cut(const RecurrentParams& p, int64_t most_threads) {
    in_place = p.dtype != DType::bf16 && p.steps <= kStepsInPlace && p.batch <= kRowsInPlace;
    const double worth = in_place ? kWorthAThreadInPlace : kWorthAThread;
    const double work = static_cast<double>(p.rows) * static_cast<double>(p.features + p.units) *
                        static_cast<double>(gates_of(p.cell) * p.units);
    threads = work < worth * static_cast<double>(most_threads - 1) ? 1 + static_cast<int64_t>(work / worth)
                                                                   : most_threads;
    tasks = in_place ? 1 : min_of(threads * ceil_div(ceil_div(p.batch, threads), kMostRows), p.batch);
    rows = ceil_div(p.batch, tasks);
  }
  // Sets of what a worker has to itself.
  int64_t sets() const { return in_place ? 1 : threads; }
};

// Of one task at step t: how many of its sequences have the step, and how many of them had the one before, in the
// order of the pass; the others begin with it.
struct Step {
  int64_t t, before;  // the step before: none where known is 0
  int64_t active, known;

  Step(const RecurrentParams& p, int64_t number, int64_t first, int64_t end) {
    t = p.reverse ? p.steps - 1 - number : number;
    before = p.reverse ? t + 1 : t - 1;
    active = max_of(min_of(end, p.sizes[t]) - first, 0);
    known = number == 0 ? 0 : max_of(min_of(min_of(end, p.sizes[before]) - first, active), 0);
  }
};

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::recurrent
