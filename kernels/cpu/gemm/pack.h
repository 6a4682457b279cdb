// Operands of a product, copied to where a panel reads them: widened or in pairs, dense, and away from strides that are
// powers of two.
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

// Elements of one step of the depth, as the bits that they are: the first n of `from`, and where they are pairs, each
// beside the number `stride` on, or beside zero where none is left.
template <class E, class T>
PYDL_INLINE vec<acc_of<E>> load_step(const T* from, [[maybe_unused]] int64_t stride,
                                     [[maybe_unused]] bool both, int64_t n) {
  if constexpr (__is_same(E, bf16_pair)) {
    u16h low, high{};
    if (n == lanes<float>) {
      memcpy(&low, from, sizeof low);
      if (both) memcpy(&high, from + stride, sizeof high);
    } else {
      low = load_bits_n(from, n);
      if (both) high = load_bits_n(from + stride, n);
    }
    return bit_cast<vec<float>>(side_by_side(low, high));
  } else {
    return n == lanes<E> ? load(from) : load_n(from, n);
  }
}
template <class E>
PYDL_INLINE void store_step(E* to, vec<acc_of<E>> elements) {
  memcpy(to, &elements, sizeof elements);
}

// The element whose first number is `from`, of numbers `stride` apart.
template <class E, class T>
E one_element(const T* from, [[maybe_unused]] int64_t stride, [[maybe_unused]] bool both) {
  if constexpr (__is_same(E, bf16_pair))
    return {from[0], both ? from[stride] : bf16{}};
  else
    return load_n(from, 1)[0];
}

#if defined(PYDL_BF16_DOT)
// Pairs that lie in memory: to[k * pitch + i] = pair k of the row i, for i < rows <= lanes; lanes beyond rows become zero,
// as does the number beside the last of an odd count.
inline void transpose_pairs_in(const bf16* from, int64_t stride, int64_t rows, int64_t numbers, bf16_pair* to,
                               int64_t pitch) {
  constexpr int L = lanes<float>;
  for (int64_t first = 0; first < numbers; first += 2 * L, to += L * pitch) {
    const int64_t n = min_of(2 * L, numbers - first);
    vec<float> square[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i)
      square[i] = i < rows ? bit_cast<vec<float>>(load_pairs_n(from + i * stride + first, n)) : vec<float>{};
    transpose(square);
#pragma GCC unroll 16
    for (int k = 0; k < L; ++k)
      if (2 * k < n) store_step(to + k * pitch, square[k]);
  }
}
#endif

// A panel of `right`: to[k * kNr + j] = right(first + k, column + j) for j < columns; the rest of a vector that is begun
// becomes zero. Of pairs the numbers first + 2k and first + 2k + 1; `depth` counts numbers.
template <class T, class E>
void pack_panel(const Matrix& right, int64_t first, int64_t depth, int64_t column, int64_t columns, E* to) {
  using A = acc_of<E>;
  constexpr int64_t per = per_element<E>, all = lanes<A>;
  const T* from = element<T>(right, first, column);
  const int64_t elements = ceil_div(depth, per);
  if (right.column == 1) {
    for (int64_t k = 0; k < elements; ++k, from += per * right.row, to += kNr<A>) {
      const bool both = per * k + 1 < depth;
      if (columns == kNr<A>)
        for (int64_t j = 0; j < kNr<A>; j += all)
          store_step(to + j, load_step<E>(from + j, right.row, both, all));
      else
        for (int64_t j = 0; j < columns; j += all)
          store_step(to + j, load_step<E>(from + j, right.row, both, min_of(columns - j, all)));
    }
    return;
  }
  if constexpr (__is_same(A, float))
    if (right.row == 1) {
      for (int64_t j = 0; j < columns; j += all) {
        const int64_t n = min_of(columns - j, all);
        if constexpr (__is_same(E, A))
          transpose_in(from + j * right.column, right.column, n, depth, to + j, kNr<A>);
        else
          transpose_pairs_in(from + j * right.column, right.column, n, depth, to + j, kNr<A>);
      }
      return;
    }
  for (int64_t k = 0; k < elements; ++k)
    for (int64_t j = 0; j < ceil_div(columns, all) * all; ++j)
      to[k * kNr<A> + j] = j < columns ? one_element<E>(from + per * k * right.row + j * right.column,
                                                        right.row, per * k + 1 < depth)
                                       : E{};
}

// Rows [row, row + rows) of `left` for `depth` numbers from `first` on, one under the other. May write up to a vector past
// the end of a row.
template <class T, class E>
void pack_rows(const Matrix& left, int64_t row, int64_t rows, int64_t first, int64_t depth, E* to,
               int64_t pitch) {
  constexpr int64_t per = per_element<E>;
  const T* from = element<T>(left, row, first);
  if constexpr (per == 1) {
    if (left.column == 1) return copy_rows(from, left.row, rows, depth, to, pitch);
  } else {
#if defined(PYDL_BF16_DOT)
    if (left.column == 1) {
      constexpr int64_t numbers = 2 * lanes<float>;
      for (int64_t i = 0; i < rows; ++i, from += left.row, to += pitch)
        for (int64_t k = 0; k < depth; k += numbers) {
          const u32v pairs = load_pairs_n(from + k, min_of(depth - k, numbers));
          memcpy(to + k / 2, &pairs, sizeof pairs);
        }
      return;
    }
#endif
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < ceil_div(depth, per); ++k)
      to[i * pitch + k] =
          one_element<E>(from + i * left.row + per * k * left.column, left.column, per * k + 1 < depth);
}

// The hardware prefetches along a row and loses it at the next, where the rows of a task are a part of all.
constexpr int64_t kStepsAhead = 8;

// `count` strips of n rows side by side. Step by step through all strips, so that `from` is read in one go; a strip's
// last vector of a step writes what the next step overwrites. `room` numbers of each row of `from` may be read.
template <class T, class E>
void pack_equal_strips(const T* from, int64_t stride, int64_t room, int64_t count, int64_t n, int64_t depth,
                       E* to) {
  constexpr int64_t per = per_element<E>, all = lanes<acc_of<E>>;
  const int64_t whole = max_of(min_of(count, (room - ceil_div(n, all) * all + n) / n), 0);
  const int64_t elements = ceil_div(depth, per), strip = strip_numbers<E>(elements);
  for (int64_t k = 0; k < elements; ++k, from += per * stride) {
    const bool both = per * k + 1 < depth;
    E* at = to + k * kMr;
    int64_t i = 0;
    for (; i < whole; ++i, at += strip) {
      for (int64_t p = 0; p < per; ++p) prefetch(from + (kStepsAhead + p) * stride + i * n);
      for (int64_t j = 0; j < n; j += all)
        store_step(at + j, load_step<E>(from + i * n + j, stride, both, all));
    }
    for (; i < count; ++i, at += strip)
      for (int64_t j = 0; j < n; j += all)
        store_step(at + j, load_step<E>(from + i * n + j, stride, both, min_of(all, room - i * n - j)));
  }
}

// The same in strips, of a `left` whose rows lie side by side; `end` rows there are in all.
template <class T, class E>
void pack_strips(const Matrix& left, int64_t row, int64_t rows, int64_t end, int64_t first, int64_t depth,
                 E* to) {
  const T* from = element<T>(left, row, first);
  const int64_t blocks = ceil_div(rows, kMr), n = rows / blocks, larger = rows % blocks;
  pack_equal_strips(from, left.column, end - row, larger, n + 1, depth, to);
  pack_equal_strips(from + larger * (n + 1), left.column, end - row - larger * (n + 1), blocks - larger, n,
                    depth, to + larger * strip_numbers<E>(ceil_div(depth, per_element<E>)));
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::gemm
