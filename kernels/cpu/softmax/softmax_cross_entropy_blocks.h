// Softmax cross entropy over one block of classes that lie side by side: its part of the row's sum, of the
// sums over q, and of the gradient. Whole vectors, in groups whose exp is taken in step; what is left over is
// one masked vector.
#pragma once

#include "kernels/cpu/softmax/softmax_cross_entropy_q.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// Whether exponentials are kept at all.
constexpr bool kKeeps = !kPlain;

template <class A>
struct RowSum {
  A max = -MathConstants<A>::largest, sum = 0;  // sum of exp(x - max)

  PYDL_OUT_OF_LINE void add(const RowSum& other) {
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
struct Partial {
  RowSum<A> row;
  QSum<A> q;
};

// Classes of a whole chunk.
template <class A>
constexpr int64_t kChunkClasses = 2 * kGroup * lanes<A>;

// What the sum of a block leaves behind for its gradient: e_c = exp(x_c - top), top being the greatest logit
// that c's lane has met so far, one vector of tops for each chunk of classes. Once the row's norm is known,
// exp(x_c - lse) = e_c * exp(top - lse): one exp for a chunk instead of a second one for each class.
template <class A>
struct KeptBlock {
  A* e = nullptr;     // [n], rounded up to whole groups of vectors
  A* tops = nullptr;  // [tops_of<A>(n)]
};
template <class A>  // for n classes: whole chunks, one of half their size, one for the rest
constexpr int64_t tops_of(int64_t n) {
  return (n / kChunkClasses<A> + 2) * lanes<A>;
}

// A chunk of kVectors vectors, of which a short one's last may be cut or missing.
template <int kVectors, bool kShort>
struct Chunk {
  static constexpr int vectors = kVectors;
  static constexpr bool is_short = kShort;
};
// body(Chunk{}, c, count) over [0, n): classes [c, c + count). Two sizes of short chunks, not one for each
// number of vectors: bodies are what this file takes long to compile for.
template <class A, class F>
PYDL_INLINE void over_chunks(int64_t n, const F& body) {
  constexpr int64_t L = lanes<A>, kWhole = kChunkClasses<A>;
  int64_t c = 0;
  for (; c + kWhole <= n; c += kWhole) body(Chunk<2 * kGroup, false>{}, c, kWhole);
  for (; n - c > L; c += kGroup * L) body(Chunk<kGroup, true>{}, c, min_of(n - c, kGroup * L));
  if (c < n) body(Chunk<1, true>{}, c, n - c);
}
// Lanes that vector j of a chunk of count classes has.
template <class A>
PYDL_INLINE int64_t lanes_of(int64_t count, int j) {
  return max_of(min_of(count - j * lanes<A>, lanes<A>), 0);
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
    constexpr int kVectors = C::vectors, kStep = kVectors < kGroup ? kVectors : kGroup;
    vec<A> logit[kStep];
    auto at = [&](int j) PYDL_INLINE_LAMBDA {
      if constexpr (C::is_short)
        return logit[j];
      else
        return load(x + c + j * L);
    };
    if constexpr (C::is_short) {
#pragma GCC unroll 8
      for (int j = 0; j < kStep; ++j)
        logit[j] = load_or(x + c + j * L, lanes_of<A>(count, j), -static_cast<A>(__builtin_inf()));
    }
    // max keeps its second operand where one is nan; that the sum is nan does not depend on it
    vec<A> most[2] = {top, top};
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      if (!C::is_short && j * L * sizeof(T) % 64 == 0) prefetch_ahead(x + c + j * L);
      most[j % 2] = max(at(j), most[j % 2]);
    }
    top = max(most[0], most[1]);
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

// The sum of a block, and where there is room for it what its gradient will want.
template <class T>
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
    if (kKeeps && kept.e) {
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

// A block of a row's gradient from its exponentials: v_c = e_c exp(top - lse) softmax - g q_c.
template <class T>
struct GradientWalk {
  using A = acc_t<T>;
  static constexpr int L = lanes<A>;
  T* to;          // of the block
  bool streams;   // past the caches
  bool converts;  // bf16: by the instruction for it; one walk for CPUs with and without
  const A* q;     // of the block, or null where it is the same for all
  A g;            // the row's
  A same;         // g q_c where it is the same for all
  int64_t hot;    // the target within the block, or out of it
  // copies: what is stored cannot change them
  A max, log_sum, softmax, one_hot;

  // The same of a block that many blocks further on, where q is the same for all.
  PYDL_INLINE GradientWalk moved(int64_t blocks) const {
    const int64_t classes = blocks * kClassBlock;
    return {to ? to + classes : nullptr,
            streams,
            converts,
            q,
            g,
            same,
            hot - classes,
            max,
            log_sum,
            softmax,
            one_hot};
  }

  // e, which becomes the gradient, and top: of a chunk
  template <class C>
  PYDL_INLINE void next(C, int64_t c, [[maybe_unused]] int64_t count, vec<A> (&e)[C::vectors], vec<A> top) {
    constexpr int kVectors = C::vectors;
    const vec<A> factor = pin(softmax * softmax_exp<T>(pin((top - max) - log_sum)));
    if (q) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) e[j] = e[j] * factor - pin(load(q + c + j * L) * g);
    } else {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) e[j] = e[j] * factor - broadcast(same);
    }
    if (hot >= c && hot < c + kVectors * L) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) e[j] -= lane_is<A>(hot - c - j * L, one_hot);
    }
#if defined(PYDL_BF16_DOT)
    if constexpr (__is_same(T, bf16))
      if (converts) return put(C{}, reinterpret_cast<bf16_fast*>(to) + c, count, e);
#endif
    put(C{}, to + c, count, e);
  }
  template <class C, class S>
  PYDL_INLINE void put(C, S* place, [[maybe_unused]] int64_t count, const vec<A> (&e)[C::vectors]) {
    constexpr int kVectors = C::vectors;
    if constexpr (C::is_short) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) store_some(place + j * L, e[j], lanes_of<A>(count, j));
    } else if (streams) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; j += 2) stream_pair(place + j * L, e[j], e[j + 1]);
    } else {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; j += 2) store_pair(place + j * L, e[j], e[j + 1]);
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

// A block of n classes of up to two rows at once: of one the gradient, from what its sum kept, of the next the sum, which
// keeps its own in the same place. Memory is read and written side by side, and neither waits for the other row's
// latencies. of_row.to and x may be null. Which of them are is asked at each chunk: one loop instead of three.
// of_row: of the block `block` blocks before; by reference, and taken to registers number by number: a copy of what was
// just stored, by vectors, would wait for all stores before it.
template <class T>
PYDL_OUT_OF_LINE RowSum<acc_t<T>> walk_block(const GradientWalk<T>& of_row, int64_t block,
                                             KeptBlock<acc_t<T>> kept, const T* x, int64_t n) {
  GradientWalk<T> gradient = of_row.moved(block);
  SumWalk<T> next{{x}, kept};
  over_chunks<acc_t<T>>(n, [&](auto chunk, int64_t c, int64_t count) PYDL_INLINE_LAMBDA {
    if (kKeeps && gradient.to) gradient.next_of_kept(chunk, c, count, kept);
    if (x) next.next(chunk, c, count);
  });
  return next.result();
}

// The gradient from the logits: the exponentials are made again, the same bits.
template <class T>
PYDL_OUT_OF_LINE void gradient_of_logits(const GradientWalk<T>& of_row, const T* x, int64_t n) {
  GradientWalk<T> walk = of_row.moved(0);
  Exponentials<T> exponentials{x};
  over_chunks<acc_t<T>>(n, [&](auto chunk, int64_t c, int64_t count) PYDL_INLINE_LAMBDA {
    vec<acc_t<T>> e[decltype(chunk)::vectors];
    exponentials.next(chunk, c, count, e);
    walk.next(chunk, c, count, e, exponentials.top);
  });
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
