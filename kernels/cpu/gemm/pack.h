// Operands of a product, copied to where a panel reads them: widened, dense, and away from strides that are powers of
// two.
#pragma once

#include "kernels/cpu/base/simd_transpose.h"
#include "kernels/cpu/gemm/panel.h"
#include "kernels/matmul.h"

namespace pydl::cpu::PYDL_ISA::gemm {
namespace {

template <class T>
const T* element(const Matrix& m, int64_t i, int64_t j) {
  return static_cast<const T*>(m.data) + i * m.row + j * m.column;
}

// to[i * pitch + j] = from[i * stride + j]. May write up to a vector past the end of a row.
template <class T, class A>
void copy_rows(const T* from, int64_t stride, int64_t rows, int64_t columns, A* to, int64_t pitch) {
  for (int64_t i = 0; i < rows; ++i, from += stride, to += pitch) {
    int64_t j = 0;
    for (; j + lanes<A> <= columns; j += lanes<A>) store(to + j, load(from + j));
    if (j < columns) store(to + j, load_n(from + j, columns - j));
  }
}

// to[i * pitch + j] = beta * from(row + i, column + j). May write up to a vector past the end of a row.
template <class T, class A>
void scaled_rows(const Matrix& from, int64_t row, int64_t rows, int64_t column, int64_t columns, A beta,
                 A* to, int64_t pitch) {
  for (int64_t i = 0; i < rows; ++i, to += pitch) {
    const T* at = element<T>(from, row + i, column);
    for (int64_t j = 0; j < columns; j += lanes<A>) {
      const int64_t n = min_of(columns - j, lanes<A>);
      vec<A> values{};
      if (from.column == 1)
        values = load_n(at + j, n);
      else if (from.column == 0)
        values = splat(static_cast<A>(load_n(at, 1)[0]));
      else
        for (int64_t lane = 0; lane < n; ++lane) values[lane] = load_n(at + (j + lane) * from.column, 1)[0];
      store(to + j, values * beta);
    }
  }
}

// A panel of `right`: to[k * kNr + j] = right(first + k, column + j) for j < columns; the rest of a vector that is begun
// becomes zero.
template <class T, class A>
void pack_panel(const Matrix& right, int64_t first, int64_t depth, int64_t column, int64_t columns, A* to) {
  const T* from = element<T>(right, first, column);
  if (right.column == 1) {
    if (columns == kNr<A>) return copy_rows(from, right.row, depth, kNr<A>, to, kNr<A>);
    for (int64_t k = 0; k < depth; ++k, from += right.row, to += kNr<A>)
      for (int64_t j = 0; j < columns; j += lanes<A>)
        store(to + j, load_n(from + j, min_of(columns - j, lanes<A>)));
    return;
  }
  if constexpr (__is_same(A, float))
    if (right.row == 1) {
      for (int64_t j = 0; j < columns; j += lanes<A>)
        transpose_in(from + j * right.column, right.column, min_of(columns - j, lanes<A>), depth, to + j,
                     kNr<A>);
      return;
    }
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t j = 0; j < ceil_div(columns, lanes<A>) * lanes<A>; ++j)
      to[k * kNr<A> + j] = j < columns ? load_n(from + k * right.row + j * right.column, 1)[0] : A(0);
}

// Rows [row, row + rows) of `left` for `depth` numbers from `first` on, one under the other.
template <class T, class A>
void pack_rows(const Matrix& left, int64_t row, int64_t rows, int64_t first, int64_t depth, A* to,
               int64_t pitch) {
  const T* from = element<T>(left, row, first);
  if (left.column == 1) return copy_rows(from, left.row, rows, depth, to, pitch);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < depth; ++k)
      to[i * pitch + k] = load_n(from + i * left.row + k * left.column, 1)[0];
}

// The hardware prefetches along a row and loses it at the next, where the rows of a task are a part of all.
constexpr int64_t kStepsAhead = 8;

// `count` strips of n rows side by side. Step by step through all strips, so that `from` is read in one go; a strip's
// last vector of a step writes what the next step overwrites. `room` numbers of each row of `from` may be read.
template <class T, class A>
void pack_equal_strips(const T* from, int64_t stride, int64_t room, int64_t count, int64_t n, int64_t depth,
                       A* to) {
  const int64_t whole = max_of(min_of(count, (room - ceil_div(n, lanes<A>) * lanes<A> + n) / n), 0);
  for (int64_t k = 0; k < depth; ++k, from += stride) {
    A* at = to + k * kMr;
    int64_t i = 0;
    for (; i < whole; ++i, at += strip_numbers<A>(depth)) {
      prefetch(from + kStepsAhead * stride + i * n);
      for (int64_t j = 0; j < n; j += lanes<A>) store(at + j, load(from + i * n + j));
    }
    for (; i < count; ++i, at += strip_numbers<A>(depth))
      for (int64_t j = 0; j < n; j += lanes<A>)
        store(at + j, load_n(from + i * n + j, min_of(lanes<A>, room - i * n - j)));
  }
}

// The same in strips, of a `left` whose rows lie side by side; `end` rows there are in all.
template <class T, class A>
void pack_strips(const Matrix& left, int64_t row, int64_t rows, int64_t end, int64_t first, int64_t depth,
                 A* to) {
  const T* from = element<T>(left, row, first);
  const int64_t blocks = ceil_div(rows, kMr), n = rows / blocks, larger = rows % blocks;
  pack_equal_strips(from, left.column, end - row, larger, n + 1, depth, to);
  pack_equal_strips(from + larger * (n + 1), left.column, end - row - larger * (n + 1), blocks - larger, n,
                    depth, to + larger * strip_numbers<A>(depth));
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::gemm
