// Softmax along rows on the CPU; along other dimensions: softmax_columns.cpp. See kernels/softmax.h for the formulas.
//
// Four rows in step, so that their exponentials and their sums are four chains; a row of a length of its own by itself.
#include "kernels/softmax.h"

#include "kernels/cpu/base/math.h"
#include "kernels/cpu/base/simd_reduce.h"
#include "kernels/cpu/rows/along.h"
#include "kernels/cpu/softmax/softmax_columns.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

template <int kRows, class T>
void forward(const T* x, T* y, int64_t width, int64_t n, bool logarithm) {
  using A = acc_t<T>;
  constexpr A kLowest = -__builtin_inf();
  vec<A> highest[kRows], sum[kRows] = {};
  for (int r = 0; r < kRows; ++r) highest[r] = broadcast(kLowest);
  along<A>(0, n, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)  // a nan is passed over, and spoils the sum
      highest[r] = max(inside_part<A>(load_part(x + r * width + j, part), part, kLowest), highest[r]);
  });
  A top[kRows], total[kRows];
  for (int r = 0; r < kRows; ++r) top[r] = maximum_of(highest[r]);
  const auto exponentials = [&](int64_t j, auto part, vec<A>(&e)[kRows]) PYDL_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
      e[r] = inside_part<A>(load_part(x + r * width + j, part) - top[r], part, kLowest);
    exp_nonpositive_group<sizeof(T) == 2, A>(e);
  };
  constexpr bool kKept =
      sizeof(T) == sizeof(A);  // in the output; half types are made once more, and rounded once
  along<A>(0, n, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA {
    vec<A> e[kRows];
    exponentials(j, part, e);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      sum[r] += e[r];
      if (kKept && !logarithm) store_part(y + r * width + j, e[r], part);
    }
  });
  reduce_add_each(sum, total);
  for (int r = 0; r < kRows; ++r) total[r] = logarithm ? log_one(total[r]) : 1 / total[r];
  along<A>(0, n, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA {
    vec<A> v[kRows];
    if (logarithm) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) v[r] = (load_part(x + r * width + j, part) - top[r]) - total[r];
    } else {
      if constexpr (kKept) {
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) v[r] = load_part(y + r * width + j, part);
      } else {
        exponentials(j, part, v);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) v[r] *= total[r];
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) store_part(y + r * width + j, v[r], part);
  });
}

template <int kRows, class T>
void backward(const T* y, const T* g, T* to, int64_t width, int64_t n, bool logarithm) {
  using A = acc_t<T>;
  vec<A> sum[kRows] = {};
  A total[kRows];
  along<A>(0, n, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const vec<A> upstream = load_part(g + r * width + j, part);
      sum[r] += logarithm ? upstream : upstream * load_part(y + r * width + j, part);
    }
  });
  reduce_add_each(sum, total);
  along<A>(0, n, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA {
    vec<A> v[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) v[r] = load_part(y + r * width + j, part);
    if (logarithm) {
      exp_nonpositive_group<sizeof(T) == 2, A>(v);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) v[r] = load_part(g + r * width + j, part) - v[r] * total[r];
    } else {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) v[r] *= load_part(g + r * width + j, part) - total[r];
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) store_part(to + r * width + j, v[r], part);
  });
}

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

template <class T>
void fill_zero(T* y, int64_t from, int64_t to) {
  along<acc_t<T>>(from, to, [&](int64_t j, auto part) { store_part(y + j, vec<acc_t<T>>{}, part); });
}

// rows(row, n, count) for `count` rows in step of length n. What is beyond it is 0.
template <int kCount, class T, class Some>
void each_row(const SoftmaxParams& p, const Parallel& parallel, T* to, const Some& rows) {
  parallel(ceil_div(p.rows, kCount), ceil_div(kSoftmaxTask, kCount * p.width),
           [&](int64_t begin, int64_t end) {
             const int64_t last = min_of(end * kCount, p.rows);
             for (int64_t row = begin * kCount; row < last;) {
               if constexpr (kCount > 1) {
                 if (p.lengths == nullptr && row + kCount <= last) {
                   rows(row, p.width, Count<kCount>{});
                   row += kCount;
                   continue;
                 }
               }
               const int64_t length = p.lengths ? p.lengths[row / p.rows_of_length] : p.width;
               const int64_t n = max_of(min_of(length, p.width), 0);
               if (n > 0) rows(row, n, Count<1>{});
               fill_zero(to + row * p.width, n, p.width);
               ++row;
             }
           });
}

}  // namespace

void softmax_forward(const SoftmaxParams& p, const Parallel& parallel) {
  if (p.inner > 1) return softmax_columns_forward(p, parallel);
  dispatch_rows(p.dtype, [&](auto type) {
    using T = decltype(type);
    const T* x = static_cast<const T*>(p.input);
    T* y = static_cast<T*>(p.output);
    const int64_t w = p.width;
    each_row<kSoftmaxGroup<T>>(p, parallel, y, [&](int64_t row, int64_t n, auto count) {
      forward<count.value>(x + row * w, y + row * w, w, n, p.logarithm);
    });
  });
}

void softmax_backward(const SoftmaxParams& p, const Parallel& parallel) {
  if (p.inner > 1) return softmax_columns_backward(p, parallel);
  dispatch_rows(p.dtype, [&](auto type) {
    using T = decltype(type);
    const T *y = static_cast<const T*>(p.input), *g = static_cast<const T*>(p.grad_output);
    T* to = static_cast<T*>(p.output);
    const int64_t w = p.width;
    each_row<kSoftmaxGroup<T>>(p, parallel, to, [&](int64_t row, int64_t n, auto count) {
      backward<count.value>(y + row * w, g + row * w, to + row * w, w, n, p.logarithm);
    });
  });
}

}  // namespace pydl::cpu::PYDL_ISA
