// What a row's loss and gradient take of each class besides its exponential: q_c of a block of classes that
// lie side by side (kernels/softmax_cross_entropy.h has the formulas), and the sums over it.
#pragma once

#include "kernels/cpu/softmax/softmax_cross_entropy_common.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

template <class A>
struct QSum {
  A loss = 0, total = 0;  // sum_c q_c (lse - x_c), sum_c q_c
  void add(const QSum& other) {
    loss += other.loss;
    total += other.total;
  }
};

// q: q_c of classes [c0, c0 + n), in whole groups of vectors, without the part of a class index, which
// only its own class has. A walk of its own, so that the walks over logits need not exist for every type of
// probabilities, with weights and without; never inlined, so that its bits are the same for whoever asks.
// probabilities: of the row, or null
template <class A, class S>
PYDL_OUT_OF_LINE void fill_q(const CallConstants<A>& k, const S* probabilities, int64_t c0, int64_t n, A* q) {
  constexpr int64_t L = lanes<A>;
  const A* const weight = k.weight ? k.weight + c0 : nullptr;
  const vec<A> hit = broadcast(k.hit), smooth = broadcast(k.smooth);
  if (probabilities) probabilities += c0;
  auto put = [&](int64_t c, const auto& get) PYDL_INLINE_LAMBDA {
    vec<A> v = smooth;
    if (probabilities) {
      prefetch_ahead(probabilities + c);
      v += get(probabilities + c) * hit;
    }
    if (weight) v *= get(weight + c);
    store(q + c, v);
  };
  int64_t c = 0;
  for (; c + L <= n; c += L) put(c, [](const auto* p) PYDL_INLINE_LAMBDA { return load(p); });
  if (c < n) {
    put(c, [&](const auto* p) PYDL_INLINE_LAMBDA { return load_n(p, n - c); });
    c += L;
  }
  for (; c % (kGroup * L) != 0; c += L) store(q + c, vec<A>{});
}

// The sums over n classes. q: of these classes, or null where it is `same` for all
template <class T>
QSum<acc_t<T>> q_block(const T* x, const acc_t<T>* q, acc_t<T> same, const RowNorm<acc_t<T>>& norm,
                       int64_t n) {
  using A = acc_t<T>;
  constexpr int64_t L = lanes<A>;
  vec<A> loss[2] = {}, total[2] = {};
  const vec<A> max = broadcast(norm.max), log_sum = broadcast(norm.log_sum);
  auto add = [&](int i, vec<A> share, vec<A> logit) PYDL_INLINE_LAMBDA {
    loss[i] += share * ((max - logit) + log_sum);
    total[i] += share;
  };
  int64_t c = 0;
  for (; c + 2 * L <= n; c += 2 * L)
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) add(i, q ? load(q + c + i * L) : broadcast(same), load(x + c + i * L));
  for (; c < n; c += L) {
    const int64_t count = min_of(n - c, L);
    const vec<A> share = q ? load(q + c) : broadcast(same);
    add(0, first_lanes<A>(count) ? share : vec<A>{}, load_or(x + c, count, norm.max));
  }
  return {reduce_add(loss[0] + loss[1]), reduce_add(total[0] + total[1])};
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
