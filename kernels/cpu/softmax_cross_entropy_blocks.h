// Softmax cross entropy over one block of classes that lie side by side: its part of the row's sum, of the
// sums over q, and of the gradient. Whole vectors, in groups whose exp is taken in step; what is left over is
// one masked vector.
#pragma once

#include "kernels/cpu/softmax_cross_entropy_common.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// Vectors whose exp is taken in step (see exp_nonpositive_group); 6 were no faster than 4.
constexpr int kGroup = kVectorBytes == 64 ? 4 : 2;
template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

template <class A>
struct RowSum {
  A max = -MathConstants<A>::largest, sum = 0;  // sum of exp(x - max)

  void add(const RowSum& other) {
    const A m = max > other.max ? max : other.max;
    sum = sum * exp_one(max - m) + other.sum * exp_one(other.max - m);
    max = m;
  }
  // As torch: a row of -inf alone, or with an inf or nan, has no softmax.
  RowNorm<A> norm() const {
    const bool none = sum == 0 || max == static_cast<A>(__builtin_inf());
    return {max, none ? static_cast<A>(kNan) : log_one(sum)};
  }
};

template <class A>
struct QSum {
  A loss = 0, total = 0;  // sum_c q_c (lse - x_c), sum_c q_c
  void add(const QSum& other) {
    loss += other.loss;
    total += other.total;
  }
};

template <class A>
struct Partial {
  RowSum<A> row;
  QSum<A> q;
};

// x: [n], n <= kClassBlock
template <class T>
RowSum<acc_t<T>> sum_block(const T* x, int64_t n) {
  using A = acc_t<T>;
  constexpr int L = lanes<A>;
  vec<A> top = broadcast(-MathConstants<A>::largest), sum{};
  int64_t c = 0;
  auto chunk = [&](auto groups) {
    constexpr int kVectors = decltype(groups)::value * kGroup;
    // max keeps its second operand where one is nan; that the sum is nan does not depend on it
    vec<A> most[2] = {top, top};
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) most[j % 2] = max(load(x + c + j * L), most[j % 2]);
    const vec<A> m = max(most[0], most[1]);
    sum *= softmax_exp<T>(top - m);
    top = m;
    for (int g = 0; g < kVectors; g += kGroup) {
      vec<A> v[kGroup];
#pragma GCC unroll 8
      for (int j = 0; j < kGroup; ++j) v[j] = load(x + c + (g + j) * L) - m;
      softmax_exp<T>(v);
#pragma GCC unroll 8
      for (int j = 2; j < kGroup; ++j) v[j % 2] += v[j];
      sum += v[0] + v[1];
    }
    c += kVectors * L;
  };
  while (c + 2 * kGroup * L <= n) chunk(Count<2>{});
  while (c + kGroup * L <= n) chunk(Count<1>{});
  for (; c < n; c += L) {
    const vec<A> v = load_or(x + c, min_of(n - c, L), -static_cast<A>(__builtin_inf()));
    const vec<A> m = max(v, top);
    vec<A> e[2] = {top - m, v - m};
    softmax_exp<T>(e);
    sum = sum * e[0] + e[1];
    top = m;
  }
  RowSum<A> result;
  result.max = reduce_max(top);
  result.sum = reduce_add(sum * softmax_exp<T>(top - result.max));
  return result;
}

// q_c of classes [c0, c0 + n), without the part of a class index, which only its own class has.
// q: probabilities of the row or null
template <bool kProbabilities, bool kWeighted, class T, class S>
QSum<acc_t<T>> q_block(const CallConstants<acc_t<T>>& k, const T* x, const S* q,
                       const RowNorm<acc_t<T>>& norm, int64_t c0, int64_t n) {
  using A = acc_t<T>;
  vec<A> loss{}, total{};
  for (int64_t c = 0; c < n; c += lanes<A>) {
    const int64_t count = min_of(n - c, lanes<A>);
    vec<A> share = broadcast(k.smooth);
    if constexpr (kProbabilities) share += load_n(q + c0 + c, count) * k.hit;
    if constexpr (kWeighted) share *= load_n(k.weight + c0 + c, count);
    const vec<A> d = (norm.max - load_or(x + c0 + c, count, norm.max)) + norm.log_sum;
    const mask<A> in = first_lanes<A>(count);
    loss += in ? share * d : vec<A>{};
    total += in ? share : vec<A>{};
  }
  return {reduce_add(loss), reduce_add(total)};
}

// Classes [c0, c0 + n) of a row's gradient, written to y + c0. target < 0: no class is special.
// ahead: from x to what is read from memory next, in elements, or 0
template <bool kProbabilities, bool kWeighted, bool kStream, class T, class S>
void gradient_block(const CallConstants<acc_t<T>>& k, const T* x, const S* q, T* y,
                    const RowNorm<acc_t<T>>& norm, const GradientTerms<acc_t<T>>& terms, int64_t target,
                    int64_t c0, int64_t n, int64_t ahead) {
  using A = acc_t<T>;
  constexpr int L = lanes<A>;
  x += c0;
  y += c0;
  if (kProbabilities) q += c0;
  const A* w = kWeighted ? k.weight + c0 : nullptr;
  const int64_t hot = target - c0;
  // copies: what is stored to y cannot change them
  const A m = norm.max, log_sum = norm.log_sum, softmax = terms.softmax, one_hot = terms.one_hot;
  const A hit = k.hit, smooth = k.smooth, g = terms.grad_output;
  auto share = [&](int64_t c, auto get) {  // g q_c
    vec<A> v = broadcast(smooth);
    if constexpr (kProbabilities) v += get(q + c) * hit;
    if constexpr (kWeighted) v *= get(w + c);
    return v * g;
  };
  // a vector that is short, or holds the target
  auto partial = [&](int64_t c, int64_t count) {
    auto get = [&](const auto* p) { return load_n(p, count); };
    vec<A> v = softmax * softmax_exp<T>((get(x + c) - m) - log_sum) - share(c, get);
    if (hot >= c && hot < c + count) v[hot - c] -= one_hot;
    store_n(y + c, v, count);
  };
  auto body = [&](int64_t c, int64_t end) {
    auto get = [](const auto* p) { return load(p); };
    auto put = [&](int64_t c, vec<A> e) {
      const vec<A> v = softmax * e - share(c, get);
      kStream ? stream(y + c, v) : store(y + c, v);
    };
    for (; c + kGroup * L <= end; c += kGroup * L) {
      vec<A> v[kGroup];
#pragma GCC unroll 8
      for (int j = 0; j < kGroup; ++j) {
        if (kStream && j * L * sizeof(T) % 64 == 0) prefetch_l2(x + c + j * L + ahead);
        v[j] = (load(x + c + j * L) - m) - log_sum;
      }
      softmax_exp<T>(v);
#pragma GCC unroll 8
      for (int j = 0; j < kGroup; ++j) put(c + j * L, v[j]);
    }
    for (; c < end; c += L) put(c, softmax_exp<T>((load(x + c) - m) - log_sum));
  };
  int64_t c = 0;
  if (kStream) {  // up to the first aligned vector
    const int64_t bytes = L * static_cast<int64_t>(sizeof(T));
    c = min_of(static_cast<int64_t>(-reinterpret_cast<uintptr_t>(y) % bytes) / sizeof(T), n);
    if (c > 0) partial(0, c);
  }
  const int64_t whole = c + (n - c) / L * L;
  const int64_t special = hot >= c && hot < whole ? c + (hot - c) / L * L : whole;
  body(c, special);
  if (special < whole) {
    partial(special, L);
    body(special + L, whole);
  }
  if (whole < n) partial(whole, n - whole);
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
