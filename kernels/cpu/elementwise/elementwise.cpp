// Functions of one number on the CPU. See kernels/elementwise.h for the formulas, functions.h for how each is computed.
//
// Each number is read once and written once, past the caches where the result would not stay in them. One loop for all
// functions; a table holds an instance of it for each of them.
#include "kernels/elementwise.h"

#include "kernels/cpu/elementwise/functions.h"
#include "kernels/cpu/rows/along.h"
#include "kernels/cpu/rows/walk.h"
#include "kernels/machine.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// Vectors in step; float64 and SSE2, which few train in, do without the text.
template <class T>
constexpr int kGroup = kVectorBytes == 16 || sizeof(T) == 8 ? 1 : 4;
constexpr int64_t kTaskElements = 8192;  // for fewer a thread is not woken

// y = f(x) of n numbers, a multiple of kStep, or grad f' where there is a gradient; x: what is saved then.
template <class T>
using Range = void (*)(const T* x, const T* grad, T* y, int64_t n, ElementwiseOptions<acc_t<T>> options,
                       bool past_cache);
template <class T>
constexpr int64_t kStep = kGroup<T> * lanes<acc_t<T>>;

template <class F, bool kBackward, class T>
void range(const T* x, const T* grad, T* y, int64_t n, ElementwiseOptions<acc_t<T>> options,
           bool past_cache) {
  using A = acc_t<T>;
  constexpr int kCount = kGroup<T>;
  constexpr bool kHalf = sizeof(T) == 2;
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t at = 0; at < n; at += kStep<T>) {
    const T *from = x + at, *upstream = kBackward ? grad + at : nullptr;
    T* to = y + at;
    vec<A> v[kCount];
#pragma GCC unroll 4
    for (int64_t k = 0; k < kStep<T>; k += kLine) {
      prefetch_ahead(from + k);
      if constexpr (kBackward) prefetch_ahead(upstream + k);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) v[i] = load(from + i * lanes<A>);
    if constexpr (kBackward) {
      vec<A> g[kCount];
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) g[i] = load(upstream + i * lanes<A>);
      F::template backward<kHalf, A>(v, g, options);
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) v[i] = g[i];
    } else {
      F::template forward<kHalf, A>(v, options);
    }
    if (past_cache) {
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) stream(to + i * lanes<A>, v[i]);
    } else {
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) store(to + i * lanes<A>, v[i]);
    }
  }
}

// The same for any n: what fills no step is padded, for one copy of these instructions serves all functions.
template <class T>
void padded(Range<T> function, const T* x, const T* grad, T* y, int64_t n,
            ElementwiseOptions<acc_t<T>> options, bool past_cache) {
  const int64_t whole = n / kStep<T> * kStep<T>;
  if (whole > 0) function(x, grad, y, whole, options, past_cache);
  if (whole < n) {
    T spare[2][kStep<T>] = {};
    const size_t bytes = static_cast<size_t>(n - whole) * sizeof(T);
    memcpy(spare[0], x + whole, bytes);
    if (grad) memcpy(spare[1], grad + whole, bytes);
    function(spare[0], grad ? spare[1] : nullptr, spare[0], kStep<T>, options, false);
    memcpy(y + whole, spare[0], bytes);
  }
  if (past_cache) stream_fence();
}

// In the order of Elementwise.
template <class T, bool kBackward>
constexpr Range<T> kRanges[] = {
    range<Relu, kBackward, T>, range<LeakyRelu, kBackward, T>, range<Sigmoid, kBackward, T>,
    range<Tanh, kBackward, T>, range<Gelu, kBackward, T>,      range<GeluTanh, kBackward, T>,
    range<Silu, kBackward, T>, range<Softplus, kBackward, T>,
};

template <class T, bool kBackward>
void run(const ElementwiseParams& p, const Parallel& parallel) {
  const T *x = static_cast<const T*>(p.input), *grad = static_cast<const T*>(p.grad_output);
  T* y = static_cast<T*>(p.output);
  const ElementwiseOptions<acc_t<T>> options = {static_cast<acc_t<T>>(p.a), static_cast<acc_t<T>>(p.b)};
  const Range<T> function = kRanges<T, kBackward>[static_cast<int>(p.function)];
  const bool aligned = reinterpret_cast<uintptr_t>(y) % kVectorBytes == 0 &&
                       (p.rows == 1 || p.width * static_cast<int64_t>(sizeof(T)) % kVectorBytes == 0);
  const bool past_cache =
      aligned && p.rows * p.width * static_cast<int64_t>(sizeof(T)) >= least_streamed_bytes();
  if (p.rows > 1) {
    parallel(p.rows, ceil_div(kTaskElements, p.width), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        padded(function, x + row * p.input_stride, kBackward ? grad + row * p.grad_output_stride : nullptr,
               y + row * p.width, p.width, options, past_cache);
    });
    return;
  }
  constexpr int64_t kBlock = 256;  // a task begins at a multiple of every step
  parallel(ceil_div(p.width, kBlock), kTaskElements / kBlock, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kBlock, n = min_of(end * kBlock, p.width) - first;
    padded(function, x + first, kBackward ? grad + first : nullptr, y + first, n, options, past_cache);
  });
}

}  // namespace

void elementwise_forward(const ElementwiseParams& p, const Parallel& parallel) {
  dispatch_rows(p.dtype, [&](auto type) { run<decltype(type), false>(p, parallel); });
}

void elementwise_backward(const ElementwiseParams& p, const Parallel& parallel) {
  dispatch_rows(p.dtype, [&](auto type) { run<decltype(type), true>(p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
