// The register-blocked core of every matrix product:
//
//   sum[m][v] += sum_k left(m, k) * right[k][v]        m < rows, v < vectors
//
// Lanes are columns of `right`, of which each step of k loads `vectors` vectors; of `left` each step broadcasts one
// element a row. kMr * 2 sums, two vectors and one broadcast fill the register file, and so many independent sums hide
// the latency of the multiply-add.
//
// What differs from caller to caller is a policy: how `left` is read (Pitched, Groups, Adjacent) and what is
// prefetched on the way (NoPrefetch, or the caller's own). What the sums begin with and where they go, callers write
// around accumulate(): linear layers and implicit GEMM over panels in panel.cpp, implicit GEMM over slabs in windows.cpp,
// weight gradients in outer.cpp, Winograd's frequencies in conv2d/winograd/gemm.h, gates in recurrent/tile.h.
//
// An element E is float, double, or a pair of bf16 that lie side by side and are multiplied with another pair and summed
// in float32 by one instruction.
#pragma once

#include "kernels/cpu/base/simd.h"

namespace pydl::cpu::PYDL_ISA::gemm {

#if defined(PYDL_AVX512)
static constexpr int kMr = 14;  // rows of a register block: 28 sums of 32 registers
#else
static constexpr int kMr = 6;  // 12 of 16
#endif
template <class A>
static constexpr int kNr = 2 * lanes<A>;  // and columns

template <class E>
struct element_traits {
  using acc = E;
  using vector = vec<E>;
};
template <>
struct element_traits<bf16_pair> {
  using acc = float;
  using vector = u32v;
};
template <class E>
using acc_of = typename element_traits<E>::acc;
template <class E>
using vec_of = typename element_traits<E>::vector;
// Numbers along the depth that an element holds.
template <class E>
static constexpr int64_t per_element = __is_same(E, bf16_pair) ? 2 : 1;

// The address of row j < 7 of rows a pitch apart, which the addressing modes of x86 give without arithmetic from four
// registers: the first row's address and one, three and five pitches. The compiler would keep a pointer per row.
struct Pitches {
  int64_t one, three, five;  // bytes

  explicit PYDL_INLINE Pitches(int64_t bytes) : one(bytes), three(3 * bytes), five(5 * bytes) {
    PYDL_OPAQUE(one);
    PYDL_OPAQUE(three);
    PYDL_OPAQUE(five);
  }
  template <int j>
  PYDL_INLINE const char* row(const char* base) const {
    if constexpr (j == 0) return base;
    if constexpr (j == 1) return base + one;
    if constexpr (j == 2) return base + 2 * one;
    if constexpr (j == 3) return base + three;
    if constexpr (j == 4) return base + 4 * one;
    if constexpr (j == 5) return base + five;
    if constexpr (j == 6) return base + 2 * three;
    __builtin_unreachable();
  }
};

// Groups of rows a pitch apart; the groups lie anywhere: left(g * per_group + j, k) = base[g][j * pitch + k].
template <class E, int rows, int per_group>
class Groups {
  static_assert(per_group <= 7);
  static constexpr int kGroups = (rows + per_group - 1) / per_group;

 public:
  explicit PYDL_INLINE Groups(int64_t pitch) : pitches_(pitch * static_cast<int64_t>(sizeof(E))) {}
  template <int g>
  PYDL_INLINE void place(const E* base) {
    base_[g] = reinterpret_cast<const char*>(base);
  }

  template <int m>
  PYDL_INLINE vec_of<E> broadcast() const {
    return splat_element<E>(pitches_.row<m % per_group>(base_[m / per_group]));
  }
  template <int g = 0>
  PYDL_INLINE void next() {
    if constexpr (g < kGroups) {
      base_[g] += sizeof(E);
      PYDL_OPAQUE(base_[g]);  // or a turn of several steps keeps a pointer per row after all
      next<g + 1>();
    }
  }

 private:
  const char* base_[kGroups];
  Pitches pitches_;
};

// Rows a pitch apart: left(m, k) = data[m * pitch + k].
template <class E, int rows>
class Pitched : public Groups<E, rows, 7> {
 public:
  PYDL_INLINE Pitched(const E* data, int64_t pitch) : Groups<E, rows, 7>(pitch) {
    this->template place<0>(data);
    if constexpr (rows > 7) this->template place<1>(data + 7 * pitch);
  }
};

// Rows side by side: left(m, k) = data[k * pitch + m].
template <class E, int rows>
class Adjacent {
 public:
  PYDL_INLINE Adjacent(const E* data, int64_t pitch) : data_(data), pitch_(pitch) {}
  template <int m>
  PYDL_INLINE vec_of<E> broadcast() const {
    return splat_element<E>(data_ + m);
  }
  PYDL_INLINE void next() { data_ += pitch_; }
  PYDL_INLINE const E* data() const { return data_; }

 private:
  const E* data_;
  int64_t pitch_;
};

// Prefetch policies are asked before each turn of the loop: of so many steps, that begin at left and right.
struct NoPrefetch {
  template <class Left, class E>
  PYDL_INLINE void turn(int, const Left&, const E*) const {}
};

template <class E, int m = 0, int rows, int vectors, class Left>
PYDL_INLINE void multiply_rows(const Left& left, const vec_of<E> (&right)[vectors],
                               vec<acc_of<E>> (&sum)[rows][vectors]) {
  if constexpr (m < rows) {
    const vec_of<E> a = left.template broadcast<m>();
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[m][v] = multiply_add(a, right[v], sum[m][v]);
    multiply_rows<E, m + 1>(left, right, sum);
  }
}

template <class E, int m = 0, int rows, class Left>
PYDL_INLINE void broadcast_rows(const Left& left, vec_of<E> (&a)[rows]) {
  if constexpr (m < rows) {
    a[m] = left.template broadcast<m>();
    broadcast_rows<E, m + 1>(left, a);
  }
}

// One turn of the loop, of kCount steps. Where a block is wider than high, the fewer broadcasts wait in registers.
template <int kCount, class E, int rows, int vectors, class Left, class Prefetch>
PYDL_INLINE void turn(Left& left, const E*& right, int64_t pitch, Prefetch& prefetch,
                      vec<acc_of<E>> (&sum)[rows][vectors]) {
  prefetch.turn(kCount, left, right);
#pragma GCC unroll 8
  for (int k = 0; k < kCount; ++k, right += pitch, left.next()) {
    if constexpr (vectors > 2 && rows < vectors) {
      vec_of<E> a[rows];
      broadcast_rows<E>(left, a);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        const vec_of<E> b = load_elements(right + v * lanes<acc_of<E>>);
#pragma GCC unroll 14
        for (int m = 0; m < rows; ++m) sum[m][v] = multiply_add(a[m], b, sum[m][v]);
      }
    } else {
      vec_of<E> b[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) b[v] = load_elements(right + v * lanes<acc_of<E>>);
      multiply_rows<E>(left, b, sum);
    }
  }
}

// `right` holds a step's vectors side by side, and those of the next step `pitch` elements on; left and right are moved
// past what was multiplied. Most callers want one step a turn: with four AVX2 takes 1.4 times as long, AVX-512 a little
// longer (conv2d/NOTES.md).
template <int kTurn = 1, class E, int rows, int vectors, class Left, class Prefetch>
PYDL_INLINE void accumulate(int64_t depth, Left& left, const E*& right, int64_t pitch, Prefetch& prefetch,
                            vec<acc_of<E>> (&sum)[rows][vectors]) {
  for (; depth >= kTurn; depth -= kTurn) turn<kTurn>(left, right, pitch, prefetch, sum);
  if constexpr (kTurn > 1)
    for (; depth > 0; --depth) turn<1>(left, right, pitch, prefetch, sum);
}

}  // namespace pydl::cpu::PYDL_ISA::gemm
