// Softmax along another dimension than the last on the CPU. See kernels/softmax.h for the formulas.
//
// A few vectors of columns are taken from the first row to the last, in registers: nothing is summed across lanes. Where
// there are few rows, a wider run of columns is copied beside first, and back at the end: rows lie `inner` apart, so that
// memory is read in runs that the hardware's prefetches follow, and rows that are a power of two apart do not drive
// each other out of a cache.
#include "kernels/cpu/softmax/softmax_columns.h"

#include "kernels/cpu/base/math.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

template <class T>
constexpr int64_t kBeside = 32768 / sizeof(acc_t<T>);  // numbers that are copied
constexpr int64_t kColumns = 512;                      // at most

// Columns and tensors of one call: `pitch` from row to row.
template <int kVectors, class T, class Part>
void forward(const T* x, T* y, int64_t pitch, int64_t width, bool logarithm, Part part) {
  using A = acc_t<T>;
  vec<A> top[kVectors], sum[kVectors] = {};
  for (int v = 0; v < kVectors; ++v) top[v] = broadcast<A>(-__builtin_inf());
  for (int64_t k = 0; k < width; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)  // a nan is passed over, and spoils the sum
      top[v] = max(load_part(x + k * pitch + v * lanes<A>, part), top[v]);
  const auto below_top = [&](int64_t k, vec<A>(&e)[kVectors]) PYDL_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) e[v] = load_part(x + k * pitch + v * lanes<A>, part) - top[v];
  };
  constexpr bool kKept = sizeof(T) == sizeof(A);  // in the output, as along rows (softmax.cpp)
  for (int64_t k = 0; k < width; ++k) {
    vec<A> e[kVectors];
    below_top(k, e);
    exp_nonpositive_group<sizeof(T) == 2, A>(e);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sum[v] += e[v];
      if (kKept && !logarithm) store_part(y + k * pitch + v * lanes<A>, e[v], part);
    }
  }
  for (int v = 0; v < kVectors; ++v) sum[v] = logarithm ? log(sum[v]) : 1 / sum[v];
  for (int64_t k = 0; k < width; ++k) {
    vec<A> e[kVectors];
    if (kKept && !logarithm) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) e[v] = load_part(y + k * pitch + v * lanes<A>, part);
    } else {
      below_top(k, e);
      if (!logarithm) exp_nonpositive_group<sizeof(T) == 2, A>(e);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      store_part(y + k * pitch + v * lanes<A>, logarithm ? e[v] - sum[v] : e[v] * sum[v], part);
  }
}

template <int kVectors, class T, class Part>
void backward(const T* y, const T* g, T* to, int64_t pitch, int64_t width, bool logarithm, Part part) {
  using A = acc_t<T>;
  vec<A> sum[kVectors] = {};
  for (int64_t k = 0; k < width; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = k * pitch + v * lanes<A>;
      const vec<A> upstream = load_part(g + at, part);
      sum[v] += logarithm ? upstream : upstream * load_part(y + at, part);
    }
  for (int64_t k = 0; k < width; ++k) {
    vec<A> value[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) value[v] = load_part(y + k * pitch + v * lanes<A>, part);
    if (logarithm) exp_nonpositive_group<sizeof(T) == 2, A>(value);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = k * pitch + v * lanes<A>;
      const vec<A> upstream = load_part(g + at, part);
      store_part(to + at, logarithm ? upstream - value[v] * sum[v] : value[v] * (upstream - sum[v]), part);
    }
  }
}

template <int kVectors>
struct Vectors {
  static constexpr int count = kVectors;
};

// at(j, Vectors, part) for the vectors of n columns, in groups where they are whole.
template <class T, class F>
PYDL_INLINE void along_columns(int64_t n, const F& at) {
  constexpr int64_t kLanes = lanes<acc_t<T>>;
  constexpr int kGroup = kSoftmaxGroup<T>;
  int64_t j = 0;
  if constexpr (kGroup > 1)
    for (; j + kGroup * kLanes <= n; j += kGroup * kLanes) at(j, Vectors<kGroup>{}, WholeVector{});
  for (; j < n; j += kLanes) at(j, Vectors<1>{}, min_of(kLanes, n - j));
}

// n columns of `width` rows, widened, to where rows are `to_pitch` apart; and back.
template <class From, class To>
void copy_columns(const From* from, int64_t from_pitch, To* to, int64_t to_pitch, int64_t width, int64_t n) {
  for (int64_t k = 0; k < width; ++k)
    along<acc_t<From>>(0, n, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA {
      store_part(to + k * to_pitch + j, load_part(from + k * from_pitch + j, part), part);
    });
}

template <class T>
void forward_columns(const T* x, T* y, const SoftmaxParams& p, int64_t n, bool beside) {
  using A = acc_t<T>;
  if (!beside)
    return along_columns<T>(n, [&](int64_t j, auto group, auto part) PYDL_INLINE_LAMBDA {
      forward<group.count>(x + j, y + j, p.inner, p.width, p.logarithm, part);
    });
  alignas(64) A copy[kBeside<T>];
  copy_columns(x, p.inner, copy, n, p.width, n);
  along_columns<A>(n, [&](int64_t j, auto group, auto part) PYDL_INLINE_LAMBDA {
    forward<group.count, A>(copy + j, copy + j, n, p.width, p.logarithm, part);
  });
  copy_columns(copy, n, y, p.inner, p.width, n);
}

template <class T>
void backward_columns(const T* y, const T* g, T* to, const SoftmaxParams& p, int64_t n, bool beside) {
  using A = acc_t<T>;
  if (!beside)
    return along_columns<T>(n, [&](int64_t j, auto group, auto part) PYDL_INLINE_LAMBDA {
      backward<group.count>(y + j, g + j, to + j, p.inner, p.width, p.logarithm, part);
    });
  alignas(64) A copy[kBeside<T>];
  A* const upstream = copy + p.width * n;
  copy_columns(y, p.inner, copy, n, p.width, n);
  copy_columns(g, p.inner, upstream, n, p.width, n);
  along_columns<A>(n, [&](int64_t j, auto group, auto part) PYDL_INLINE_LAMBDA {
    backward<group.count, A>(copy + j, upstream + j, copy + j, n, p.width, p.logarithm, part);
  });
  copy_columns(copy, n, to, p.inner, p.width, n);
}

// columns(at, n, beside) for runs of n columns from `at` on, of which `copies` may be made.
template <class T, class F>
void each_run(const SoftmaxParams& p, const Parallel& parallel, int64_t copies, const F& columns) {
  constexpr int64_t kLeast = kSoftmaxGroup<T> * lanes<acc_t<T>>;
  const int64_t fitting = min_of(kBeside<T> / (copies * p.width), kColumns) / kLeast * kLeast;
  const bool beside = fitting > kLeast && p.inner > kLeast;
  const int64_t run = beside ? fitting : kLeast, runs = ceil_div(p.inner, run);
  parallel(p.rows / p.inner * runs, ceil_div(kSoftmaxTask, p.width * min_of(run, p.inner)),
           [&](int64_t begin, int64_t end) {
             for (int64_t i = begin; i < end; ++i) {
               const int64_t column = i % runs * run;
               columns(i / runs * p.width * p.inner + column, min_of(run, p.inner - column), beside);
             }
           });
}

}  // namespace

void softmax_columns_forward(const SoftmaxParams& p, const Parallel& parallel) {
  dispatch_rows(p.dtype, [&](auto type) {
    using T = decltype(type);
    const T* x = static_cast<const T*>(p.input);
    T* y = static_cast<T*>(p.output);
    each_run<T>(p, parallel, 1,
                [&](int64_t at, int64_t n, bool beside) { forward_columns(x + at, y + at, p, n, beside); });
  });
}

void softmax_columns_backward(const SoftmaxParams& p, const Parallel& parallel) {
  dispatch_rows(p.dtype, [&](auto type) {
    using T = decltype(type);
    const T *y = static_cast<const T*>(p.input), *g = static_cast<const T*>(p.grad_output);
    T* to = static_cast<T*>(p.output);
    each_run<T>(p, parallel, 2, [&](int64_t at, int64_t n, bool beside) {
      backward_columns(y + at, g + at, to + at, p, n, beside);
    });
  });
}

}  // namespace pydl::cpu::PYDL_ISA
