// The squares of all gradients together, and their product by one number. See kernels/optim.h.
//
// The sum of a chunk is taken in the dtype of the gradients, in lanes of four vectors, and is a number of its own: the
// caller adds those in order, so that no result depends on the threads.
#include "kernels/cpu/optim/chunks.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

template <class A>
double square_sum(const A* x, int64_t n) {
  constexpr int kCount = 4;
  vec<A> sums[kCount] = {};
  int64_t at = 0;
  for (; at + kCount * lanes<A> <= n; at += kCount * lanes<A>) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      const vec<A> v = load(x + at + i * lanes<A>);
      sums[i] += v * v;
    }
  }
  for (; at < n; at += lanes<A>) {
    const vec<A> v = load_n(x + at, min_of(n - at, lanes<A>));
    sums[0] += v * v;
  }
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class A>
void scale(A* x, int64_t n, A factor) {
  int64_t at = 0;
  for (; at + lanes<A> <= n; at += lanes<A>) store(x + at, load(x + at) * factor);
  if (at < n) store_n(x + at, load_n(x + at, n - at) * factor, n - at);
}

template <class A>
void square_sums(const GradsParams& p, const Parallel& parallel) {
  each_piece<false>(
      p.tensors, p.first_chunk, parallel, [&](int64_t t) { return p.count[t]; },
      [&](int64_t t, int64_t first, int64_t n, int64_t chunk) {
        p.sums[chunk] = square_sum(static_cast<const A*>(p.grad[t]) + first, n);
      });
}

template <class A>
void scale_all(const GradsParams& p, const Parallel& parallel) {
  each_piece<true>(
      p.tensors, p.first_chunk, parallel, [&](int64_t t) { return p.count[t]; },
      [&](int64_t t, int64_t first, int64_t n, int64_t) {
        scale(static_cast<A*>(p.grad[t]) + first, n, static_cast<A>(p.factor));
      });
}

}  // namespace

void grads_square_sums(const GradsParams& p, const Parallel& parallel) {
  p.dtype == DType::f64 ? square_sums<double>(p, parallel) : square_sums<float>(p, parallel);
}

void grads_scale(const GradsParams& p, const Parallel& parallel) {
  p.dtype == DType::f64 ? scale_all<double>(p, parallel) : scale_all<float>(p, parallel);
}

}  // namespace pydl::cpu::PYDL_ISA
