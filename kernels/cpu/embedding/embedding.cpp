// The gradient of an embedding on the CPU. See kernels/embedding.h for the formula.
//
// Two steps. Each row gets the list of its places in ids: threads own ranges of rows and scan all ids, from the last to
// the first, so that each list begins with the first place. Then each row is summed up in registers and written once,
// the rows that nobody looked up as zeros; no row is zeroed first. Nothing depends on how rows are shared out.
#include "kernels/embedding.h"

#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/rows/along.h"
#include "kernels/cpu/rows/walk.h"
#include "kernels/machine.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int kGroup = 8;               // vectors of a row that are summed up side by side
constexpr int64_t kRowsOfLists = 4096;  // for fewer, a second scan of the ids does not pay
constexpr int64_t kTaskElements = 16384;

template <class T>
struct Gradients {
  using A = acc_t<T>;
  const T* grad;
  const int64_t* bags;
  const A* factors;
  int64_t width;

  explicit Gradients(const EmbeddingParams& p)
      : grad(static_cast<const T*>(p.grad_output)),
        bags(p.bags),
        factors(static_cast<const A*>(p.factors)),
        width(p.width) {}
  PYDL_INLINE const T* at(int64_t i) const { return grad + (bags ? bags[i] : i) * width; }
  PYDL_INLINE A factor(int64_t i) const { return factors ? factors[i] : A(1); }
};

// head[r]: the first place of row r, next[i]: the next place of the same row after i; -1: none.
void make_lists(const EmbeddingParams& p, int64_t* head, int64_t* next, const Parallel& parallel) {
  parallel(p.rows, kRowsOfLists, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) head[row] = -1;
    for (int64_t i = p.count; i-- > 0;) {
      const int64_t row = p.ids[i];
      if (row < begin || row >= end || row == p.padding_idx) continue;
      next[i] = head[row];
      head[row] = i;
    }
  });
}

// kCount vectors of a row at `to`, the last of them a part where `part` is one; `at`: where they are in a gradient.
template <int kCount, class T, class Part>
PYDL_INLINE void sum_up(const Gradients<T>& given, int64_t at, int64_t first, const int64_t* next,
                        acc_t<T> share, T* to, Part part) {
  using A = acc_t<T>;
  vec<A> sum[kCount] = {};
  for (int64_t i = first; i >= 0; i = next[i]) {
    const T* grad = given.at(i) + at;
    const A factor = given.factor(i);
#pragma GCC unroll 8
    for (int k = 0; k < kCount; ++k) sum[k] += load_part(grad + k * lanes<A>, part) * factor;
  }
#pragma GCC unroll 8
  for (int k = 0; k < kCount; ++k) store_part(to + at + k * lanes<A>, sum[k] * share, part);
}

template <class T>
void row_of(const EmbeddingParams& p, int64_t row, const int64_t* head, const int64_t* next) {
  using A = acc_t<T>;
  const Gradients<T> given(p);
  T* to = static_cast<T*>(p.grad_weight) + row * p.width;
  const int64_t first = head[row];
  if (first < 0) {
    memset(to, 0, static_cast<size_t>(p.width) * sizeof(T));
    return;
  }
  A share = 1;
  if (p.scaled) {
    int64_t times = 0;
    for (int64_t i = first; i >= 0; i = next[i]) ++times;
    share = A(1) / static_cast<A>(times);
  }
  int64_t at = 0;
  for (; at + kGroup * lanes<A> <= p.width; at += kGroup * lanes<A>)
    sum_up<kGroup>(given, at, first, next, share, to, WholeVector{});
  for (; at + lanes<A> <= p.width; at += lanes<A>)
    sum_up<1>(given, at, first, next, share, to, WholeVector{});
  if (at < p.width) sum_up<1>(given, at, first, next, share, to, p.width - at);
}

}  // namespace

void embedding_backward(const EmbeddingParams& p, const Parallel& parallel) {
  int64_t *head = p.scratch, *next = p.scratch + p.rows;
  make_lists(p, head, next, parallel);
  // rows that are looked up often lie together in many vocabularies: small tasks, for who has none left
  const int64_t numbers_of_a_row = p.width * (1 + p.count / p.rows);
  const int64_t block = max_of(kTaskElements / numbers_of_a_row, 1);
  dispatch_rows(p.dtype, [&](auto type) {
    using T = decltype(type);
    run_tasks(parallel, ceil_div(p.rows, block), [&](int64_t task, int64_t) {
      for (int64_t row = task * block; row < min_of((task + 1) * block, p.rows); ++row)
        row_of<T>(p, row, head, next);
    });
  });
}

}  // namespace pydl::cpu::PYDL_ISA
