// The operands of attention's products, where panels read them (gemm/panel.h), and the products.
//
// Elements are numbers of the type that sums have, or pairs of bf16, neighbours along a product's depth. So pairs lie along
// a row of the left side, and across two rows of the right one, where a row of numbers is both.
#pragma once

#include "kernels/attention.h"
#include "kernels/cpu/base/simd_bf16.h"
#include "kernels/cpu/gemm/pack.h"
#include "kernels/cpu/gemm/panel.h"
#include "kernels/cpu/rows/along.h"

namespace pydl::cpu::PYDL_ISA::attention {
namespace {

using namespace gemm;

// Elements that hold so many numbers.
template <class E>
int64_t elements(int64_t numbers) {
  return ceil_div(numbers, per_element<E>);
}
template <class E>
int64_t padded(int64_t count) {
  return ceil_div(count, kNr<acc_of<E>>) * kNr<acc_of<E>>;
}
// Elements between the rows of scores: no power of two, and room for whole panels.
template <class E>
int64_t score_pitch(int64_t keys) {
  return padded<E>(keys) + 64 / static_cast<int64_t>(sizeof(E));
}

template <class T>
T* at(const Heads& t, int64_t batch, int64_t head, int64_t row) {
  return static_cast<T*>(t.data) + batch * t.batch + head * t.head + row * t.row;
}

// Elements of one type, those of a row side by side.
template <class E>
struct Rows {
  const E* data;
  int64_t pitch;
};

// Whether a panel may read rows of so many numbers where they lie: it reads whole vectors (gemm/panel.h).
template <class A>
bool in_whole_vectors(int64_t numbers) {
  return numbers % (sizeof(A) == 4 ? lanes<A> : kNr<A>) == 0;
}

// `count` rows where they lie, or copied to `to`. as_right: for the right side of products, of which a panel is read
// again for each register block, so that rows far apart, whose lines share few sets of the cache, are copied too.
// Pairs lie along a row, as the left side takes them.
template <class T, class E>
Rows<E> rows_of(const Heads& t, int64_t batch, int64_t head, int64_t row, int64_t count, int64_t numbers,
                bool as_right, E* to) {
  constexpr int64_t per = per_element<E>;
  T* from = at<T>(t, batch, head, row);
  if constexpr (sizeof(E) == per * sizeof(T)) {
    const bool dense =
        per == 1 ? t.column == 1 || numbers == 1 : t.column == 1 && numbers % per == 0 && t.row % per == 0;
    const bool near = t.row * static_cast<int64_t>(sizeof(T)) <= 512 || count <= 16;
    if (dense && (!as_right || (in_whole_vectors<acc_of<E>>(numbers) && near)))
      return {reinterpret_cast<const E*>(from), t.row / per};
  }
  const Matrix rows{from, t.row, t.column};
  const int64_t pitch = padded<E>(elements<E>(numbers));
  pack_rows<T>(rows, 0, count, 0, numbers, to, pitch);
  return {to, pitch};
}

// Rows as the right side of products takes them, whose depth they are: of pairs number c of the rows 2k and 2k + 1 at
// [k][c], with zero beside the last of an odd count.
template <class T, class E>
Rows<E> right_rows(const Heads& t, int64_t batch, int64_t head, int64_t row, int64_t count, int64_t numbers,
                   E* to) {
  if constexpr (per_element<E> == 1) {
    return rows_of<T>(t, batch, head, row, count, numbers, true, to);
  } else {
    const int64_t pitch = padded<E>(numbers);
    const Rows<E> rows{to, pitch};
#if defined(PYDL_BF16_DOT)
    constexpr int64_t all = lanes<acc_of<E>>;
    const T* from = at<T>(t, batch, head, row);
    for (int64_t i = 0; i < count; i += 2, from += 2 * t.row, to += pitch) {
      const bool both = i + 1 < count;
      if (t.column == 1) {
        for (int64_t c = 0; c < numbers; c += 2 * all) {
          const int64_t n = min_of(2 * all, numbers - c);
          const u32v low = load_pairs_n(from + c, n),
                     high = both ? load_pairs_n(from + t.row + c, n) : u32v{};
          store_step(to + c, bit_cast<vec<float>>(first_side_by_side(low, high)));
          store_step(to + c + all, bit_cast<vec<float>>(last_side_by_side(low, high)));
        }
      } else {
        for (int64_t c = 0; c < pitch; ++c)
          to[c] = c < numbers ? one_element<E>(from + c * t.column, t.row, both) : E{};
      }
    }
#endif
    return rows;
  }
}

// Rows as both sides take them; the right one if `as_right`.
template <class E>
struct BothSides {
  Rows<E> left, right;
};
template <class T, class E>
BothSides<E> both_sides_of(const Heads& t, int64_t batch, int64_t head, int64_t row, int64_t count,
                           int64_t numbers, bool as_right, E* to, E* right_to) {
  const bool same = per_element<E> == 1;
  const Rows<E> left = rows_of<T>(t, batch, head, row, count, numbers, as_right && same, to);
  if (same || !as_right) return {left, left};
  return {left, right_rows<T>(t, batch, head, row, count, numbers, right_to)};
}

// Panels of keys side by side, of the rows [row, row + count): element c of key j at [j / kNr][c][j % kNr].
template <class T, class E>
void pack_transposed(const Heads& t, int64_t batch, int64_t head, int64_t row, int64_t count, int64_t numbers,
                     E* to) {
  constexpr int64_t wide = kNr<acc_of<E>>;
  const Matrix transposed{at<T>(t, batch, head, row), t.column, t.row};
  for (int64_t j = 0; j < count; j += wide)
    pack_panel<T>(transposed, 0, numbers, j, min_of(wide, count - j), to + j * elements<E>(numbers));
}

// to[i][j] = alpha * sum_c left[i][c] * panels[c][j] for keys [first, last) of the panels; first begins one.
template <class E>
void multiply_transposed(int64_t rows, int64_t numbers, const Rows<E>& left, const E* panels, int64_t first,
                         int64_t last, acc_of<E> alpha, acc_of<E>* to, int64_t pitch, Ahead& ahead) {
  constexpr int64_t wide = kNr<acc_of<E>>;
  PanelProduct<E> product{};
  product.ahead = &ahead;
  product.rows = rows;
  product.depth = elements<E>(numbers);
  product.left = left.data;
  product.left_pitch = left.pitch;
  product.right_pitch = wide;
  product.alpha = alpha;
  product.result_pitch = pitch;
  for (int64_t j = first; j < last; j += wide) {
    product.columns = min_of(wide, last - j);
    product.right = panels + j * product.depth;
    product.result = to + j - first;
    multiply_panel(product);
  }
}

// to[i][c] (+)= alpha * sum_j left(i, j) * right[j][c], c < numbers; left in rows, or in columns. depth counts elements.
template <class E>
void multiply_rows_of(int64_t rows, int64_t depth, const Rows<E>& left, bool left_columns,
                      const Rows<E>& right, int64_t numbers, acc_of<E> alpha, bool add, acc_of<E>* to,
                      Ahead& ahead) {
  constexpr int64_t wide = kNr<acc_of<E>>;
  PanelProduct<E> product{};
  product.ahead = &ahead;
  product.rows = rows;
  product.left_pitch = left.pitch;
  product.left_columns = left_columns;
  product.right_pitch = right.pitch;
  product.alpha = alpha;
  product.result_pitch = padded<E>(numbers);
  for (int64_t first = 0; first < depth; first += kDepth) {
    product.depth = min_of(kDepth, depth - first);
    product.left = left.data + first * (left_columns ? left.pitch : 1);
    product.add = add || first > 0;
    for (int64_t c = 0; c < numbers; c += wide) {
      product.columns = min_of(wide, numbers - c);
      product.right = right.data + first * right.pitch + c;
      product.result = to + c;
      multiply_panel(product);
    }
  }
}

// How results are written: those of pairs by the instruction that rounds.
template <bool kFirst, class A, class B>
struct Pick {
  using type = A;
};
template <class A, class B>
struct Pick<false, A, B> {
  using type = B;
};
template <bool kFirst, class A, class B>
using pick_t = typename Pick<kFirst, A, B>::type;
template <class T, class E>
using stored_t = pick_t<per_element<E> == 1, T, bf16_fast>;

// Finished rows on their way out: factors[i] * from[i][c], rounded; factors may be null.
template <class T, class A>
void write_rows(const A* from, const A* factors, int64_t rows, int64_t numbers, T* to, int64_t pitch) {
  for (int64_t i = 0; i < rows; ++i, from += padded<A>(numbers), to += pitch) {
    const A factor = factors ? factors[i] : A(1);
    along<A>(0, numbers, [&](int64_t c, auto part) PYDL_INLINE_LAMBDA {
      store_part(to + c, load(from + c) * factor, part);
    });
  }
}

// The same where rows lie side by side, and columns `pitch` apart.
template <class T, class A>
void write_columns(const A* from, int64_t rows, int64_t numbers, T* to, int64_t pitch) {
  if constexpr (sizeof(A) == 4) {
    for (int64_t c = 0; c < numbers; c += lanes<A>)
      transpose_out(from + c, padded<A>(numbers), rows, min_of(lanes<A>, numbers - c), to + c * pitch, pitch);
  } else {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t c = 0; c < numbers; ++c) to[c * pitch + i] = from[i * padded<A>(numbers) + c];
  }
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::attention
