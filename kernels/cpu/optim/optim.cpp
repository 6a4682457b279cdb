// Steps of optimizers on the CPU. See kernels/optim.h for the formulas, updates.h for each as a function of vectors.
//
// Each number of a parameter, its gradient and its state is read once and written once, and nothing is kept between: a
// step moves (2 states + 3) numbers for each parameter. All tensors of a step are cut into chunks and shared among the
// threads together, so that many small ones cost no more than one large. One loop for all optimizers; a table holds an
// instance of it for each of them.
#include "kernels/optim.h"

#include "kernels/cpu/optim/chunks.h"
#include "kernels/cpu/optim/updates.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

template <class A>
using Range = void (*)(const OptimTensor& t, int64_t first, int64_t n);

template <class U, class A>
void range(const OptimTensor& t, int64_t first, int64_t n) {
  const Coefficients<A> c(t);
  A* const param = static_cast<A*>(t.param) + first;
  const A* const grad = static_cast<const A*>(t.grad) + first;
  A* state[U::states + 1];
#pragma GCC unroll 3
  for (int i = 0; i < U::states; ++i) state[i] = static_cast<A*>(t.state[i]) + first;

  const auto update = [&](const auto& read, const auto& write) PYDL_INLINE_LAMBDA {
    vec<A> p = read(param), g = read(grad), s[U::states + 1];
#pragma GCC unroll 3
    for (int i = 0; i < U::states; ++i) s[i] = read(state[i]);
    if (c.maximize) g = -g;
    if (c.weight_decay != 0) g += c.weight_decay * p;
    U::template update<A>(p, g, s, c);
    write(param, p);
#pragma GCC unroll 3
    for (int i = 0; i < U::states; ++i) write(state[i], s[i]);
  };
  int64_t at = 0;
  for (; at + lanes<A> <= n; at += lanes<A>)
    update([&](const A* from) PYDL_INLINE_LAMBDA { return load(from + at); },
           [&](A* to, vec<A> v) PYDL_INLINE_LAMBDA { store(to + at, v); });
  if (at < n)
    update([&](const A* from) PYDL_INLINE_LAMBDA { return load_n(from + at, n - at); },
           [&](A* to, vec<A> v) PYDL_INLINE_LAMBDA { store_n(to + at, v, n - at); });
}

// In the order of Optimizer.
template <class A>
constexpr Range<A> kRanges[] = {
    range<Sgd<false>, A>,
    range<Sgd<true>, A>,
    range<Adam<false>, A>,
    range<Adam<true>, A>,
    range<RmsProp<false, false>, A>,
    range<RmsProp<true, false>, A>,
    range<RmsProp<false, true>, A>,
    range<RmsProp<true, true>, A>,
    range<Adadelta, A>,
};

}  // namespace

void optim_step(const OptimParams& p, const Parallel& parallel) {
  const int optimizer = static_cast<int>(p.optimizer);
  const auto function = p.dtype == DType::f64 ? kRanges<double>[optimizer] : kRanges<float>[optimizer];
  each_piece<true>(
      p.tensors, p.first_chunk, parallel, [&](int64_t t) { return p.tensor[t].count; },
      [&](int64_t t, int64_t first, int64_t n, int64_t) { function(p.tensor[t], first, n); });
}

}  // namespace pydl::cpu::PYDL_ISA
