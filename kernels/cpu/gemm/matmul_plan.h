// How matmul.cpp cuts a product and reads its operands: decided by shapes and strides, of which the number of threads moves
// the cut alone, and so no bit of a result.
#pragma once

#include "kernels/cpu/base/scratch.h"
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/gemm/dots.h"
#include "kernels/cpu/gemm/panel.h"
#include "kernels/machine.h"
#include "kernels/matmul.h"

namespace pydl::cpu::PYDL_ISA::gemm {
namespace {

constexpr int64_t kMostPanels = 32;    // of a task
constexpr int64_t kFewRows = 4 * kMr;  // which reuse a panel too seldom for a copy of it to pay
// A small output of a great depth, as the weight gradient of many rows, is cut along the depth, so that each operand is
// read once: elements of a slice at least, slices at most, and the largest output of which each can have its own.
constexpr int64_t kSlice = 2048, kMostSlices = 16, kSlicedNumbers = 1 << 17;
// Cycles for each element that is read, copied, or copied across, as measured on Zen 3; they decide nothing but the cut.
constexpr double kReadCycles = 0.1, kPackCycles = 0.3, kTransposeCycles = 0.5;
constexpr double kWorthAThread = 1 << 17;  // multiply-adds that outweigh waking a thread

using Left = MatmulPlan::Left;

// Of a task: kDepth of each take most of the second cache, where every panel finds them.
int64_t most_rows() { return max_of(machine().level2 * 5 / 8 / (4 * kDepth), kMr); }

// The cut that should take least, in cycles for each element of the depth: of the largest task times how many of them a
// worker has, multiplication, and bringing in its rows of left and its columns of right.
template <class E>
void cut(const MatmulParams& p, int64_t threads, MatmulPlan& plan) {
  using A = acc_of<E>;
  const int64_t batch = p.outer * p.inner * plan.slices;
  const int64_t beside = plan.slices > 1 ? 2 : 1;  // those of the next part, which are fetched meanwhile
  const int64_t most = max_of(most_rows() / beside, kMr);
  const int64_t least_rows = ceil_div(p.rows, most), least_columns = ceil_div(plan.panels, kMostPanels);
  // a few more than there have to be, so that every worker can have as many
  const int64_t most_tasks =
      threads == 1 ? 1 : max_of(4 * threads, batch * least_rows * least_columns + threads);
  const bool copied = plan.left == Left::strips || plan.left == Left::packed_rows;
  const double left = copied ? kPackCycles : kReadCycles;
  const double right = p.right.column == 1 ? kPackCycles : kTransposeCycles;
  const double per_cycle = 2.0 * lanes<A>;
  double least = -1;
  for (int64_t c = least_columns; c <= plan.panels; ++c) {
    for (int64_t r = least_rows; r <= ceil_div(p.rows, kMr); ++r) {
      const double height = static_cast<double>(ceil_div(p.rows, r)),
                   width = static_cast<double>(ceil_div(plan.panels, c) * kNr<A>);
      const double turns = static_cast<double>(ceil_div(batch * r * c, threads));
      const double cycles = turns * (height * width / per_cycle + height * left + width * right);
      if (least < 0 || cycles < least) {
        least = cycles;
        plan.row_parts = r;
        plan.column_parts = c;
      }
      if (batch * r * c >= most_tasks) break;
    }
    if (batch * least_rows * c >= most_tasks) break;
  }
}

// Sums that cannot be kept in the output, of another type or the last panel's: each panel's own, if the next part of the
// depth adds to them and it is not the output that holds them.
template <class O>
bool keeps_sums(const MatmulPlan& plan) {
  return !__is_same(O, acc_t<O>) && plan.depth_parts > 1;
}
template <class O>
int64_t sums_pitch(const MatmulPlan& plan) {
  return (keeps_sums<O>(plan) ? plan.group : 1) * kNr<acc_t<O>>;
}

// The depth in equal slices, whatever the number of threads.
int64_t slices_of(const MatmulParams& p, int64_t elements) {
  const bool sliced = p.outer * p.inner == 1 && p.rows * p.columns <= kSlicedNumbers;
  return sliced ? max_of(min_of(elements / kSlice, kMostSlices), 1) : 1;
}
template <class A>
int64_t slice_pitch(const MatmulParams& p) {
  return ceil_div(p.columns, lanes<A>) * lanes<A>;
}

// What one worker has to itself. O: the output's type.
template <class E, class O>
struct Workspace {
  using A = acc_of<E>;
  E *panel, *left;
  A *sums, *bias;
  int64_t bytes;

  static Workspace of(const MatmulPlan& plan, char* scratch) {
    Pieces pieces{scratch};
    const int64_t left = plan.left == Left::strips ? ceil_div(plan.rows, kMr) * strip_numbers<E>(plan.depth)
                         : plan.left == Left::packed_rows ? plan.rows * kPitch + lanes<A>
                                                          : 0;
    Workspace space{};
    space.panel = pieces.take<E>(plan.depth * kNr<A>);
    space.left = pieces.take<E>(left);
    space.sums = pieces.take<A>(plan.rows * sums_pitch<O>(plan));
    space.bias = pieces.take<A>(kNr<A>);
    space.bytes = pieces.next - scratch;
    return space;
  }
};

// An operand of more than this is read from memory. Measured on Zen 5: from L3 the hardware prefetches better alone.
bool is_far(int64_t numbers, int64_t size) { return numbers * size > last_level_bytes() / 4; }

// Whether the output goes past the caches: rows of whole lines that are written once, more than the caches hold.
template <class O>
bool streams(const MatmulParams& p, const MatmulPlan& plan) {
  constexpr int64_t size = sizeof(O);
  return plan.depth_parts == 1 && plan.slices == 1 && p.addend.data == nullptr && !__is_same(O, double) &&
         p.output.row * size % kVectorBytes == 0 && p.rows * p.columns * size >= least_streamed_bytes();
}

// How left is read: where it lies, as elements E, unless its rows fall into one set of the first cache, which as many
// panels as kManyPanels make dear. In columns that was measured on AVX-512 (Zen 5: strips take 1.02 to 1.3 times as long,
// but past the caches 0.95) and on AVX2 (Zen 3: they are as fast or faster), see NOTES.md.
template <class T, class E>
Left read_left(const MatmulParams& p, const MatmulPlan& plan) {
  constexpr int64_t kManyPanels = 8, kSetBytes = 4096;
  if (p.left.column != 1 && p.left.row == 1 && p.depth > 1)
    return kVectorBytes == 64 && __is_same(T, E) && (!plan.left_far || plan.slices > 1) ? Left::columns
                                                                                        : Left::strips;
  const bool pairs = __is_same(E, bf16_pair), whole = p.left.row % 2 == 0 && p.depth % 2 == 0;
  const bool fits =
      pairs ? p.left.column == 1 && whole : __is_same(T, E) && (p.left.column == 1 || p.depth == 1);
  const bool collides = p.left.row * static_cast<int64_t>(sizeof(T)) % kSetBytes == 0;
  const bool pays = kVectorBytes == 64 && collides && plan.panels >= kManyPanels && p.rows > 2 * kMr;
  return fits && !pays ? Left::rows : Left::packed_rows;
}

// Whether `right` is best read as it lies, a column after the other: not of this machine's caches, since another order of
// the sums is another rounding.
template <class T, class E>
bool dots_pay(const MatmulParams& p) {
  constexpr int64_t kLarge = 8 << 20;  // bytes, which no second cache holds
  const bool large = p.columns * p.depth * static_cast<int64_t>(sizeof(T)) > kLarge;
  const bool columns = p.right.row == 1 && p.right.column != 1 && (p.left.column == 1 || p.depth == 1);
  const bool kinds = __is_same(acc_of<E>, float) && (__is_same(T, E) || __is_same(E, bf16_pair));
  return kVectorBytes == 64 && kinds && columns && large && p.rows <= kMostDotRows &&
         p.outer * p.inner == 1 && p.addend.data == nullptr;
}

template <class T, class E, class O = T>
MatmulPlan plan_of(const MatmulParams& p, int64_t threads) {
  using A = acc_of<E>;
  MatmulPlan plan{};
  const int64_t elements = ceil_div(p.depth, per_element<E>);
  plan.pairs = __is_same(E, bf16_pair);
  plan.panels = ceil_div(p.columns, kNr<A>);
  plan.left_far = is_far(p.rows * p.depth, sizeof(T));
  plan.right_far = is_far(p.columns * p.depth, sizeof(T));
  plan.dots = dots_pay<T, E>(p);
  plan.slices = plan.dots ? 1 : slices_of(p, elements);
  const int64_t slice = ceil_div(elements, plan.slices);
  plan.depth_parts = max_of(ceil_div(slice, kDepth), 1);
  plan.depth = ceil_div(slice, plan.depth_parts);
  plan.left = read_left<T, E>(p, plan);
  plan.streams = streams<O>(p, plan);
  const int64_t batch = p.outer * p.inner;
  const double work =
      static_cast<double>(batch * p.rows) * static_cast<double>(p.columns) * static_cast<double>(elements);
  threads = work < kWorthAThread * static_cast<double>(threads - 1)
                ? 1 + static_cast<int64_t>(work / kWorthAThread)
                : threads;
  if (plan.dots) {
    plan.workers = workers_for({nullptr, threads}, ceil_div(p.columns, kDotColumns));
    return plan;
  }
  cut<E>(p, threads, plan);
  plan.rows = ceil_div(p.rows, plan.row_parts);
  plan.group = ceil_div(plan.panels, plan.column_parts);
  plan.workers = workers_for({nullptr, threads}, batch * plan.slices * plan.row_parts * plan.column_parts);
  const bool sliced = plan.slices > 1;
  plan.worker_bytes =
      sliced ? Workspace<E, A>::of(plan, nullptr).bytes : Workspace<E, O>::of(plan, nullptr).bytes;
  plan.worker_bytes += kApart;
  plan.scratch = plan.workers * plan.worker_bytes;
  if (sliced) plan.scratch += Pieces::bytes<A>(plan.slices * p.rows * slice_pitch<A>(p));
  return plan;
}

#if defined(PYDL_BF16_DOT)
// Whether pairs of bfloat16 are multiplied by one instruction, at twice the rate of float32. A single product a sum is
// exact, and so is its rounding, where the instruction takes subnormal numbers for zero.
bool pairs_pay(const MatmulParams& p) { return cpu_has_bf16_dot() && p.depth > 1; }
#endif

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::gemm
