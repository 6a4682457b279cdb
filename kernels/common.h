// What every op's contract (kernels/<op>.h) is written in: dtypes, activations, threads from outside.
//
// Included by translation units of every instruction set, so it defines no function that could be emitted as
// a shared weak symbol: helpers are static or templates over a caller's own type.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace pydl {

// Storage types of half precision. Arithmetic happens in float after loading.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

enum class DType : int32_t { f32, f64, bf16, f16 };

enum class Activation : int32_t { none, relu, sigmoid };

// The type an op accumulates in.
template <class T>
struct accumulate {
  using type = float;
};
template <>
struct accumulate<double> {
  using type = double;
};
template <class T>
using acc_t = typename accumulate<T>::type;

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Calls `body(T{})` with the storage type that `dtype` names.
template <class F>
static inline void dispatch_dtype(DType dtype, F&& body) {
  switch (dtype) {
    case DType::f32:
      return body(float{});
    case DType::f64:
      return body(double{});
    case DType::bf16:
      return body(bf16{});
    case DType::f16:
      return body(f16{});
  }
}

// Threads from outside: csrc hands in torch's pool, so kernels share it and never start one of their own.
//
// parallel(n, grain, body) calls body(begin, end) over disjoint ranges that cover [0, n); ranges smaller than
// `grain` are not split further. How a range is cut depends on the number of threads, so a result must not:
// reductions cut their work into blocks of a fixed size and combine the blocks in order.
struct Parallel {
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  void (*run)(int64_t n, int64_t grain, Body body, void* context);
  int64_t threads;

  template <class F>
  void operator()(int64_t n, int64_t grain, const F& body) const {
    run(
        n, grain,
        [](int64_t begin, int64_t end, void* context) { (*static_cast<const F*>(context))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

}  // namespace pydl
