// One call over rows whose classes lie side by side: its constants, and the functions of a row's blocks with
// the options of the call filled in.
#pragma once

#include "kernels/cpu/softmax_cross_entropy_blocks.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// A row's exponentials beyond this would not stay in a second-level cache of 1 MB: they are made twice, block
// by block.
constexpr int64_t kKeptBytes = 768 << 10;
template <class A>
constexpr int64_t kept_block_size(int64_t n) {  // in elements
  return ceil_div(n, lanes<A>) * lanes<A> + tops_of<A>(n);
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
  return {row, row + ceil_div(n, lanes<A>) * lanes<A>};
}

template <class T, class S>
struct RowsCall {
  using A = acc_t<T>;
  const SoftmaxCrossEntropyParams& p;
  const CallConstants<A> k;
  const double shared;
  const int64_t blocks;
  const bool past_cache;

  explicit RowsCall(const SoftmaxCrossEntropyParams& params)
      : p(params),
        k(params),
        shared(p.grad_input ? shared_gradient(p) : 0),
        blocks(max_of(ceil_div(p.classes, kClassBlock), 1)),
        past_cache(p.rows * p.classes * static_cast<int64_t>(sizeof(T)) >= kStreamBytes) {}

  const T* input(const RowCursor& at) const { return static_cast<const T*>(p.input) + at.input; }
  const S* probabilities(const RowCursor& at) const {
    return p.probabilities ? static_cast<const S*>(p.target) + at.target : nullptr;
  }
  T* grad(const RowCursor& at) const { return static_cast<T*>(p.grad_input) + at.grad; }
  int64_t target(const RowCursor& at) const {
    return p.probabilities ? -1 : static_cast<const int64_t*>(p.target)[at.target];
  }
  bool ignored(const RowCursor& at) const { return !p.probabilities && target(at) == p.ignore_index; }
  A target_weight(int64_t t) const { return k.weight ? k.weight[t] : A(1); }
  int64_t block_size(int64_t block) const { return min_of(kClassBlock, p.classes - block * kClassBlock); }

  template <bool kKeep = false>
  RowSum<A> sum(const RowCursor& at, int64_t block, KeptBlock<A> kept = {}) const {
    return sum_block<kKeep>(input(at) + block * kClassBlock, block_size(block), kept);
  }
  QSum<A> q_sum(const RowCursor& at, const RowNorm<A>& norm, int64_t block) const {
    const T* x = input(at);
    const S* q = probabilities(at);
    const int64_t c0 = block * kClassBlock, n = block_size(block);
    if (p.probabilities)
      return k.weight ? q_block<true, true>(k, x, q, norm, c0, n)
                      : q_block<true, false>(k, x, q, norm, c0, n);
    return k.weight ? q_block<false, true>(k, x, q, norm, c0, n)
                    : q_block<false, false>(k, x, q, norm, c0, n);
  }
  // from what sum<true> kept of the block
  void gradient(const RowCursor& at, const RowNorm<A>& norm, const GradientTerms<A>& terms, int64_t block,
                KeptBlock<A> kept) const {
    write(at, block, reinterpret_cast<T*>(kept.e), [&](auto options, T* to) {
      gradient_of_kept(walk(options, at, norm, terms, block, to), kept, block_size(block));
    });
  }
  // from the logits: the same bits
  void gradient(const RowCursor& at, const RowNorm<A>& norm, const GradientTerms<A>& terms,
                int64_t block) const {
    alignas(64) T room[kClassBlock];
    write(at, block, room, [&](auto options, T* to) {
      gradient_of_logits(walk(options, at, norm, terms, block, to), input(at) + block * kClassBlock,
                         block_size(block));
    });
  }
  // a block of a gradient that writes_directly(), and of the sum of the row after it
  RowSum<A> gradient_and_sum(const RowCursor& at, const RowNorm<A>& norm, const GradientTerms<A>& terms,
                             const RowCursor& next, int64_t block, KeptBlock<A> kept) const {
    T* const to = grad(at) + block * kClassBlock;
    auto run = [&](auto options) {
      return pydl::cpu::PYDL_ISA::gradient_and_sum(walk(options, at, norm, terms, block, to), kept,
                                                   input(next) + block * kClassBlock, block_size(block));
    };
    return past_cache ? run(Options<false, false, true>{}) : run(Options<false, false, false>{});
  }
  // Whether the gradient's rows may be written in place: past the caches only whole lines go.
  bool writes_directly(const RowCursor& at) const {
    return !past_cache || reinterpret_cast<uintptr_t>(grad(at)) % kVectorBytes == 0;
  }

  template <bool kProbabilities, bool kWeighted, bool kStream>
  struct Options {
    template <class Target>
    using Walk = GradientWalk<kProbabilities, kWeighted, kStream, T, Target>;
  };
  template <class O>
  typename O::template Walk<S> walk(O, const RowCursor& at, const RowNorm<A>& norm,
                                    const GradientTerms<A>& terms, int64_t block, T* to) const {
    return {k, to, probabilities(at), norm, terms, target(at), block * kClassBlock};
  }
  // body(options, to) writes a block's gradient to `to`: its place, or room, from where it is copied there.
  template <class F>
  void write(const RowCursor& at, int64_t block, T* room, const F& body) const {
    T* const place = grad(at) + block * kClassBlock;
    const bool direct = writes_directly(at), streams = past_cache && direct,
               weighted = k.weight && k.needs_dot;
    T* const to = direct ? place : room;
    if (p.probabilities) {
      if (weighted)
        streams ? body(Options<true, true, true>{}, to) : body(Options<true, true, false>{}, to);
      else
        streams ? body(Options<true, false, true>{}, to) : body(Options<true, false, false>{}, to);
    } else {
      if (weighted)
        streams ? body(Options<false, true, true>{}, to) : body(Options<false, true, false>{}, to);
      else
        streams ? body(Options<false, false, true>{}, to) : body(Options<false, false, false>{}, to);
    }
    if (!direct) stream_copy(place, room, block_size(block) * static_cast<int64_t>(sizeof(T)));
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
  void ignore(const RowCursor& at) const {
    put_norm<A>(p, at.row, {0, 0});
    put_loss<A>(p, at.row, A(0));
  }
  GradientTerms<A> terms(const RowCursor& at, const RowNorm<A>& norm, A q_total) const {
    const A g = row_gradient<A>(p, shared, at.grad_output);
    return p.probabilities ? probability_terms<A>(k, q_total, norm.lse(), g)
                           : class_terms<A>(k, target_weight(target(at)), norm.lse(), g);
  }
};

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
