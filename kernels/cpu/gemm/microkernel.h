// The register-blocked core of the matrix products:
//
//   sum[m][v] += sum_k left(m, k) * right[k][v]        m < rows, v < vectors
//
// Lanes are columns of `right`, of which each step of k loads `vectors` vectors; of `left` each step broadcasts one
// number a row. kRows * 2 sums, two vectors and one broadcast fill the register file, and so many independent sums hide
// the latency of the multiply-add.
//
// What differs from caller to caller is a policy: how `left` is read (Pitched, Strip), what the sums begin with and
// where they go, which the caller writes around accumulate().
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

// Rows a pitch apart: left(m, k) = data[m * pitch + k]. A base register for every seven rows and registers of one, three
// and five pitches are all that the addressing modes of x86 need; the compiler would keep a pointer per row.
template <class E, int rows>
class Pitched {
  static constexpr int kPerBase = 7, kBases = (rows + kPerBase - 1) / kPerBase;

 public:
  Pitched(const E* data, int64_t pitch) : one_(pitch * static_cast<int64_t>(sizeof(E))) {
    three_ = 3 * one_;
    five_ = 5 * one_;
    PYDL_OPAQUE(one_);
    PYDL_OPAQUE(three_);
    PYDL_OPAQUE(five_);
#pragma GCC unroll 2
    for (int g = 0; g < kBases; ++g) base_[g] = reinterpret_cast<const char*>(data) + g * kPerBase * one_;
  }

  template <int m>
  PYDL_INLINE auto broadcast() const {
    return splat_element<E>(address<m % kPerBase>(base_[m / kPerBase]));
  }
  PYDL_INLINE void next() {
#pragma GCC unroll 2
    for (int g = 0; g < kBases; ++g) {
      base_[g] += sizeof(E);
      PYDL_OPAQUE(base_[g]);
    }
  }

 private:
  template <int m>
  PYDL_INLINE const char* address(const char* base) const {
    if constexpr (m == 0) return base;
    if constexpr (m == 1) return base + one_;
    if constexpr (m == 2) return base + 2 * one_;
    if constexpr (m == 3) return base + three_;
    if constexpr (m == 4) return base + 4 * one_;
    if constexpr (m == 5) return base + five_;
    if constexpr (m == 6) return base + 2 * three_;
    __builtin_unreachable();
  }

  const char* base_[kBases];
  int64_t one_, three_, five_;  // bytes
};

// A strip: left(m, k) = data[k * rows + m].
template <class E, int rows>
class Strip {
 public:
  Strip(const E* data, int64_t) : data_(data) {}

  template <int m>
  PYDL_INLINE auto broadcast() const {
    return splat_element<E>(data_ + m);
  }
  PYDL_INLINE void next() { data_ += rows; }

 private:
  const E* data_;
};

template <class E, int rows, int vectors, int m = 0, class Left, class V, class A>
PYDL_INLINE void multiply_rows(const Left& left, const V (&right)[vectors], A (&sum)[rows][vectors]) {
  if constexpr (m < rows) {
    const V a = left.template broadcast<m>();
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sum[m][v] = multiply_add(a, right[v], sum[m][v]);
    multiply_rows<E, rows, vectors, m + 1>(left, right, sum);
  }
}

// `right` holds its numbers `pitch` apart from step to step. One step a turn: more took longer on AVX2 and no less on
// AVX-512 (conv2d/NOTES.md).
template <class E, int rows, int vectors, class Left, class A>
PYDL_INLINE void accumulate(int64_t depth, Left left, const E* right, int64_t pitch,
                            A (&sum)[rows][vectors]) {
  for (; depth > 0; --depth, right += pitch, left.next()) {
    decltype(load_elements(right)) b[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v)
      b[v] = load_elements(right + v * static_cast<int>(sizeof(A) / sizeof(E)));
    multiply_rows<E, rows, vectors>(left, b, sum);
  }
}

}  // namespace pydl::cpu::PYDL_ISA::gemm
