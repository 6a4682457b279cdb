// One call over rows whose classes lie side by side: its constants, and the functions of a row's blocks with
// the options of the call filled in.
#pragma once

#include "kernels/cpu/softmax/softmax_cross_entropy_blocks.h"
#include "kernels/machine.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// A row's exponentials beyond this would not stay in the second-level cache, or in a thread's share of the last: they
// are made twice, block by block.
inline int64_t most_kept_bytes() { return max_of(machine().level2 / 4 * 3, last_level_bytes() / 16); }
template <class A>
constexpr int64_t whole_groups(int64_t n) {
  return ceil_div(n, kGroup * lanes<A>) * kGroup * lanes<A>;
}
template <class A>
constexpr int64_t kept_block_size(int64_t n) {  // in elements
  return whole_groups<A>(n) + tops_of<A>(n);
}
template <class A>
constexpr int64_t kept_row_size(int64_t classes) {
  if (classes <= kClassBlock) return kept_block_size<A>(classes);
  return ceil_div(classes, kClassBlock) * kept_block_size<A>(kClassBlock);
}
template <class A>
KeptBlock<A> kept_block(A* row, int64_t classes, int64_t block) {
  const int64_t n = min_of(classes, kClassBlock);
  row += block * kept_block_size<A>(n);
  return {row, row + whole_groups<A>(n)};
}

template <class T>
struct RowsCall {
  using A = acc_t<T>;
  const SoftmaxCrossEntropyParams& p;
  const CallConstants<A> k;
  const double shared;
  const int64_t blocks;
  const bool past_cache, converts;

  PYDL_OUT_OF_LINE explicit RowsCall(const SoftmaxCrossEntropyParams& params)
      : p(params),
        k(params),
        shared(p.grad_input ? shared_gradient(p) : 0),
        blocks(max_of(ceil_div(p.classes, kClassBlock), 1)),
        past_cache(p.rows * p.classes * static_cast<int64_t>(sizeof(T)) >= least_streamed_bytes()),
        converts(cpu_has_bf16_dot()) {}

  const T* input(const RowCursor& at) const { return static_cast<const T*>(p.input) + at.input; }
  T* grad(const RowCursor& at) const { return static_cast<T*>(p.grad_input) + at.grad; }
  int64_t target(const RowCursor& at) const {
    return p.probabilities ? -1 : static_cast<const int64_t*>(p.target)[at.target];
  }
  bool ignored(const RowCursor& at) const { return !p.probabilities && target(at) == p.ignore_index; }
  A target_weight(int64_t t) const { return k.weight ? k.weight[t] : A(1); }
  int64_t block_size(int64_t block) const { return min_of(kClassBlock, p.classes - block * kClassBlock); }

  // of a block; and a block of the gradient of a row before, which writes_directly() and is not varied()
  RowSum<A> sum(const RowCursor& at, int64_t block, KeptBlock<A> kept = {},
                const GradientWalk<T>& before = {}) const {
    return walk_block(before, block, kept, input(at) + block * kClassBlock, block_size(block));
  }
  // Whether q differs from class to class.
  bool varied() const { return p.probabilities || (k.weight && k.needs_dot); }
  // q_c of a block, in room; null where it is k.smooth for all.
  PYDL_OUT_OF_LINE const A* fill(const RowCursor& at, int64_t block, A* room) const {
    if (!varied()) return nullptr;
    auto from = [&](const auto* probabilities) {
      fill_q(k, probabilities ? probabilities + at.target : nullptr, block * kClassBlock, block_size(block),
             room);
    };
    if (!p.probabilities)
      from(static_cast<const A*>(nullptr));
    else if (p.target_dtype == p.dtype)
      from(static_cast<const T*>(p.target));
    else
      from(static_cast<const A*>(p.target));
    return room;
  }
  PYDL_OUT_OF_LINE QSum<A> q_sum(const RowCursor& at, const RowNorm<A>& norm, int64_t block,
                                 const A* q) const {
    return q_block(input(at) + block * kClassBlock, q, k.smooth, norm, block_size(block));
  }
  // from what sum() kept of the block, or from the logits: the same bits
  PYDL_OUT_OF_LINE void gradient(const RowCursor& at, const RowNorm<A>& norm, const GradientTerms<A>& terms,
                                 int64_t block, const A* q, KeptBlock<A> kept = {}) const {
    alignas(64) T room[kClassBlock];
    T* const place = grad(at) + block * kClassBlock;
    const int64_t n = block_size(block);
    const bool direct = writes_directly(at);
    T* const to = direct ? place : kept.e ? reinterpret_cast<T*>(kept.e) : room;
    const GradientWalk<T> made = walk(at, norm, terms, block, to, past_cache && direct, q);
    if (kKeeps && kept.e)
      walk_block<T>(made, 0, kept, nullptr, n);
    else
      gradient_of_logits(made, input(at) + block * kClassBlock, n);
    if (!direct) stream_copy(place, to, n * static_cast<int64_t>(sizeof(T)));
  }
  // Whether the gradient's rows may be written in place: past the caches only whole lines go.
  bool writes_directly(const RowCursor& at) const {
    return !past_cache || reinterpret_cast<uintptr_t>(grad(at)) % kVectorBytes == 0;
  }

  GradientWalk<T> walk(const RowCursor& at, const RowNorm<A>& norm, const GradientTerms<A>& terms,
                       int64_t block, T* to, bool streams, const A* q) const {
    return {to,
            streams,
            converts,
            q,
            terms.grad_output,
            terms.grad_output * k.smooth,
            target(at) - block * kClassBlock,
            norm.max,
            norm.log_sum,
            terms.softmax,
            terms.one_hot};
  }
  void zero_gradient(const RowCursor& at, int64_t block) const {
    memset(grad(at) + block * kClassBlock, 0, static_cast<size_t>(block_size(block)) * sizeof(T));
  }

  // loss of a row whose sums are known
  void finish(const RowCursor& at, const RowNorm<A>& norm, const QSum<A>& q) const {
    A loss = z_term(k, norm.lse());
    if (p.probabilities) {
      loss += q.loss;
    } else {
      const int64_t t = target(at);
      const A x = load_n(input(at) + t, 1)[0];
      loss += k.hit * target_weight(t) * (norm.log_sum + (norm.max - x));
      if (k.needs_dot) loss += q.loss;
    }
    put_norm<A>(p, at.row, norm);
    put_loss<A>(p, at.row, loss);
  }
  PYDL_OUT_OF_LINE void ignore(const RowCursor& at) const {
    put_norm<A>(p, at.row, {0, 0});
    put_loss<A>(p, at.row, A(0));
  }
  GradientTerms<A> terms(const RowCursor& at, const RowNorm<A>& norm, A q_total) const {
    const A g = row_gradient<A>(p, shared, at.grad_output);
    return p.probabilities ? probability_terms<A>(k, q_total, norm.lse(), g)
                           : class_terms<A>(k, target_weight(target(at)), norm.lse(), g);
  }
};

// The q of one block after another. A row of one block asks for it twice, for its sums and for its gradient.
template <class T>
class BlockQ {
  using A = acc_t<T>;

 public:
  explicit BlockQ(const RowsCall<T>& call) : call_(call) {}
  const A* of(const RowCursor& at, int64_t block) {
    if (at.row != row_ || block != block_) filled_ = call_.fill(at, block, room_);
    row_ = at.row;
    block_ = block;
    return filled_;
  }

 private:
  const RowsCall<T>& call_;
  const A* filled_ = nullptr;
  int64_t row_ = -1, block_ = -1;
  alignas(64) A room_[kClassBlock];
};

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
