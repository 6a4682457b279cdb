// Softmax cross entropy over one block of classes that lie side by side: its part of the row's sum, of the
// sums over q, and of the gradient. Whole vectors, in groups whose exp is taken in step; what is left over is
// one masked vector.
#pragma once

#include "kernels/cpu/softmax_cross_entropy_common.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// Vectors whose exp is taken in step (see exp_nonpositive_group); 6 were no faster than 4.
constexpr int kGroup = kVectorBytes == 64 ? 4 : 2;

template <class A>
struct RowSum {
  A max = -MathConstants<A>::largest, sum = 0;  // sum of exp(x - max)

  void add(const RowSum& other, bool first = false) {
    if (first) {
      *this = other;
      return;
    }
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

// What the sum of a block leaves behind for its gradient: e_c = exp(x_c - top), top being the greatest logit
// that c's lane has met so far, one vector of tops for each chunk of classes. Once the row's norm is known,
// exp(x_c - lse) = e_c * exp(top - lse): one exp for a chunk instead of a second one for each class.
template <class A>
struct KeptBlock {
  A* e = nullptr;     // [n], rounded up to whole vectors
  A* tops = nullptr;  // [tops_of<A>(n)]
};
template <class A>  // for n classes: whole chunks, one of half their size, one for the rest
constexpr int64_t tops_of(int64_t n) {
  constexpr int64_t kChunk = 2 * kGroup * lanes<A>;
  return (n / kChunk + 2) * lanes<A>;
}

// A chunk of kVectors vectors, of which the last may be short.
template <int kVectors, bool kShort>
struct Chunk {
  static constexpr int vectors = kVectors;
  static constexpr bool is_short = kShort;
};
// body(Chunk{}, c, count) over [0, n): classes from c on, count of them exist in the last vector.
template <class A, class F>
PYDL_INLINE void over_chunks(int64_t n, const F& body) {
  constexpr int64_t L = lanes<A>;
  int64_t c = 0;
  for (; c + 2 * kGroup * L <= n; c += 2 * kGroup * L) body(Chunk<2 * kGroup, false>{}, c, L);
  if (c + kGroup * L <= n) {
    body(Chunk<kGroup, false>{}, c, L);
    c += kGroup * L;
  }
  const int64_t rest = ceil_div(n - c, L), count = n - c - (rest - 1) * L;
  if (rest == 1) body(Chunk<1, true>{}, c, count);
  if (rest == 2) body(Chunk<2, true>{}, c, count);
  if constexpr (kGroup > 2) {
    if (rest == 3) body(Chunk<3, true>{}, c, count);
    if (rest == 4) body(Chunk<4, true>{}, c, count);
  }
}

// The maximum of a row's logits so far, lane by lane, and the exponentials of one chunk about it.
template <class T>
struct Exponentials {
  using A = acc_t<T>;
  static constexpr int L = lanes<A>;
  const T* x;  // of the block
  vec<A> top = broadcast(-MathConstants<A>::largest);

  // e: exp(x - top) of a chunk, 0 beyond count; top becomes that of the chunk
  template <class C>
  PYDL_INLINE void next(C, int64_t c, int64_t count, vec<A> (&e)[C::vectors]) {
    constexpr int kVectors = C::vectors;
    auto at = [&](int j) PYDL_INLINE_LAMBDA {
      if constexpr (C::is_short)
        if (j == kVectors - 1) return load_or(x + c + j * L, count, -static_cast<A>(__builtin_inf()));
      return load(x + c + j * L);
    };
    // max keeps its second operand where one is nan; that the sum is nan does not depend on it
    vec<A> most[2] = {top, top};
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      if (!C::is_short && j * L * sizeof(T) % 64 == 0) prefetch_ahead(x + c + j * L);
      most[j % 2] = max(at(j), most[j % 2]);
    }
    top = max(most[0], most[1]);
    constexpr int kStep = kVectors < kGroup ? kVectors : kGroup;
#pragma GCC unroll 2
    for (int g = 0; g < kVectors; g += kStep) {
      vec<A> v[kStep];
#pragma GCC unroll 8
      for (int j = 0; j < kStep; ++j) v[j] = at(g + j) - top;
      softmax_exp<T>(v);
#pragma GCC unroll 8
      for (int j = 0; j < kStep; ++j) e[g + j] = v[j];
    }
  }
};

// The sum of a block; kKeep: and what its gradient will want.
template <bool kKeep, class T>
struct SumWalk {
  using A = acc_t<T>;
  static constexpr int L = lanes<A>;
  Exponentials<T> exponentials;
  KeptBlock<A> kept;
  vec<A> sum{};

  template <class C>
  PYDL_INLINE void next(C chunk, int64_t c, int64_t count) {
    const vec<A> before = exponentials.top;
    vec<A> e[C::vectors];
    exponentials.next(chunk, c, count, e);
    // pinned, here and in the gradient, so that the compiler fuses no product into a sum in one place it is
    // inlined and not in another
    sum = pin(sum * softmax_exp<T>(before - exponentials.top));
    if (kKeep) {
#pragma GCC unroll 8
      for (int j = 0; j < C::vectors; ++j) store(kept.e + c + j * L, e[j]);
      store(kept.tops, exponentials.top);
      kept.tops += L;
    }
#pragma GCC unroll 8
    for (int j = 2; j < C::vectors; ++j) e[j % 2] += e[j];
    sum += C::vectors > 1 ? e[0] + e[C::vectors > 1] : e[0];
  }
  RowSum<A> result() const {
    const A max = reduce_max(exponentials.top);
    return {max, reduce_add(sum * softmax_exp<T>(exponentials.top - max))};
  }
};

// x: [n], n <= kClassBlock
template <bool kKeep, class T>
RowSum<acc_t<T>> sum_block(const T* x, int64_t n, KeptBlock<acc_t<T>> kept) {
  SumWalk<kKeep, T> walk{{x}, kept};
  over_chunks<acc_t<T>>(
      n, [&](auto chunk, int64_t c, int64_t count) PYDL_INLINE_LAMBDA { walk.next(chunk, c, count); });
  return walk.result();
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

// A block of a row's gradient from its exponentials: v_c = e_c exp(top - lse) softmax - g q_c.
template <bool kProbabilities, bool kWeighted, bool kStream, class T, class S>
struct GradientWalk {
  using A = acc_t<T>;
  static constexpr int L = lanes<A>;
  T* to;        // of the block
  const S* q;   // of the block, or null
  const A* w;   // of the block, or null
  int64_t hot;  // the target within the block, or out of it
  // copies: what is stored cannot change them
  A max, log_sum, softmax, one_hot, hit, smooth, g;

  GradientWalk(const CallConstants<A>& k, T* to, const S* q, const RowNorm<A>& norm,
               const GradientTerms<A>& terms, int64_t target, int64_t c0)
      : to(to),
        q(kProbabilities ? q + c0 : nullptr),
        w(kWeighted ? k.weight + c0 : nullptr),
        hot(target - c0),
        max(norm.max),
        log_sum(norm.log_sum),
        softmax(terms.softmax),
        one_hot(terms.one_hot),
        hit(k.hit),
        smooth(k.smooth),
        g(terms.grad_output) {}

  // e, which becomes the gradient, and top: of a chunk
  template <class C>
  PYDL_INLINE void next(C, int64_t c, int64_t count, vec<A> (&e)[C::vectors], vec<A> top) {
    constexpr int kVectors = C::vectors, kLast = kVectors - 1;
    const vec<A> factor = pin(softmax * softmax_exp<T>(pin((top - max) - log_sum)));
    [[maybe_unused]] auto get = [&](const auto* p, int j) PYDL_INLINE_LAMBDA {
      if constexpr (C::is_short)
        if (j == kLast) return load_n(p + c + j * L, count);
      return load(p + c + j * L);
    };
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      vec<A> share = broadcast(smooth);
      if constexpr (kProbabilities) share += get(q, j) * hit;
      if constexpr (kWeighted) share *= get(w, j);
      // pinned, so that the compiler fuses the same one of the two products wherever this is inlined
      if constexpr (kProbabilities || kWeighted)
        e[j] = e[j] * factor - pin(share * g);
      else
        e[j] = e[j] * factor - share * g;
    }
    if (hot >= c && hot < c + kVectors * L) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) e[j] -= lane_is<A>(hot - c - j * L, one_hot);
    }
    if constexpr (C::is_short) {
#pragma GCC unroll 8
      for (int j = 0; j < kLast; ++j) store(to + c + j * L, e[j]);
      store_n(to + c + kLast * L, e[kLast], count);
    } else {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; j += 2) {
        if (kStream)
          stream_pair(to + c + j * L, e[j], e[j + 1]);
        else
          store_pair(to + c + j * L, e[j], e[j + 1]);
      }
    }
  }
  template <class C>
  PYDL_INLINE void next_of_kept(C chunk, int64_t c, int64_t count, KeptBlock<A>& kept) {
    vec<A> e[C::vectors];
#pragma GCC unroll 8
    for (int j = 0; j < C::vectors; ++j) e[j] = load(kept.e + c + j * L);
    next(chunk, c, count, e, load(kept.tops));
    kept.tops += L;
  }
};

// n classes of the gradient from what their sum kept.
template <class Walk>
void gradient_of_kept(Walk walk, KeptBlock<typename Walk::A> kept, int64_t n) {
  over_chunks<typename Walk::A>(n, [&](auto chunk, int64_t c, int64_t count)
                                       PYDL_INLINE_LAMBDA { walk.next_of_kept(chunk, c, count, kept); });
}

// The same from the logits: the exponentials are made again, the same bits.
template <class T, class Walk>
void gradient_of_logits(Walk walk, const T* x, int64_t n) {
  Exponentials<T> exponentials{x};
  over_chunks<acc_t<T>>(n, [&](auto chunk, int64_t c, int64_t count) PYDL_INLINE_LAMBDA {
    vec<acc_t<T>> e[decltype(chunk)::vectors];
    exponentials.next(chunk, c, count, e);
    walk.next(chunk, c, count, e, exponentials.top);
  });
}

// Two rows at once: the gradient of one from what its sum kept, and the sum of the next, which keeps its own
// in the same place. Memory is read and written side by side, and neither waits for the other row's
// latencies.
template <class T, class Walk>
RowSum<acc_t<T>> gradient_and_sum(Walk walk, KeptBlock<acc_t<T>> kept, const T* x, int64_t n) {
  SumWalk<true, T> next{{x}, kept};
  over_chunks<acc_t<T>>(n, [&](auto chunk, int64_t c, int64_t count) PYDL_INLINE_LAMBDA {
    walk.next_of_kept(chunk, c, count, kept);
    next.next(chunk, c, count);
  });
  return next.result();
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
