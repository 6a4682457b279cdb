// Products of one row with a matrix that is read once, as it lies: for so few rows, copies of it into panels cost more
// than the products.
#pragma once

#include "kernels/cpu/base/simd_reduce.h"
#include "kernels/cpu/rows/along.h"

namespace pydl::cpu::PYDL_ISA::gemm {
namespace {

template <int kCount>
struct Steps {
  static constexpr int value = kCount;
};

// to[j] = alpha * sum_c row[c] * right[j][c]                                                        j < count
template <class T, class A>
void row_times_transposed(const A* row, const T* right, int64_t pitch, int64_t count, int64_t numbers,
                          A alpha, A* to) {
  constexpr int kSteps = 4;  // rows of right at once: their sums are chains side by side
  const auto sums = [&](int64_t j, auto steps) PYDL_INLINE_LAMBDA {
    constexpr int n = decltype(steps)::value;
    vec<A> sum[n] = {};
    along<A>(0, numbers, [&](int64_t c, auto part) PYDL_INLINE_LAMBDA {
      const vec<A> left = load_part(row + c, part);
#pragma GCC unroll 4
      for (int s = 0; s < n; ++s)
        sum[s] = multiply_add(left, load_part(right + (j + s) * pitch + c, part), sum[s]);
    });
    A total[n];
    reduce_add_each(sum, total);
    for (int s = 0; s < n; ++s) to[j + s] = alpha * total[s];
  };
  int64_t j = 0;
  for (; j + kSteps <= count; j += kSteps) sums(j, Steps<kSteps>{});
  for (; j < count; ++j) sums(j, Steps<1>{});
}

// to[c] = sum_j row[j] * right[j][c]                                                              c < numbers
template <class T, class A>
void row_times(const A* row, const T* right, int64_t pitch, int64_t count, int64_t numbers, A* to) {
  const auto sums = [&](int64_t c, auto steps, auto part) PYDL_INLINE_LAMBDA {
    constexpr int n = decltype(steps)::value;
    vec<A> sum[n] = {};
    for (int64_t j = 0; j < count; ++j) {
      const vec<A> left = splat(row[j]);
#pragma GCC unroll 8
      for (int s = 0; s < n; ++s)
        sum[s] = multiply_add(left, load_part(right + j * pitch + c + s * lanes<A>, part), sum[s]);
    }
#pragma GCC unroll 8
    for (int s = 0; s < n; ++s) store(to + c + s * lanes<A>, sum[s]);
  };
  int64_t c = 0;
  for (; c + 8 * lanes<A> <= numbers; c += 8 * lanes<A>) sums(c, Steps<8>{}, WholeVector{});
  for (; c + lanes<A> <= numbers; c += lanes<A>) sums(c, Steps<1>{}, WholeVector{});
  if (c < numbers) sums(c, Steps<1>{}, numbers - c);
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::gemm
