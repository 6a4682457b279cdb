// The matrix product of one Winograd frequency: rows of transformed tiles (or channels) times a panel of
// channels.
//
//   c[r][j] (+)= sum_k a(r, k) * b[k][j]        j < kPanel, two vectors
//
// Rows are cut into equal register blocks of gemm/microkernel.h, and no row is computed in vain.
#pragma once

#include "kernels/cpu/gemm/microkernel.h"

namespace pydl::cpu::PYDL_ISA::winograd {
namespace {

constexpr int kPanel = 2 * lanes<float>;  // channels per panel
constexpr int kMaxRows = kVectorBytes == 16 ? 4 : gemm::kMr;

// How the rows lie in memory: row r of step k is a[r * stride + k] (tiles times channels) or a[k * stride +
// r] (channels times tiles).
enum class Rows { strided, adjacent };

template <Rows kLayout>
struct Left {
  template <int kRows>
  using type = gemm::Pitched<float, kRows>;
};
template <>
struct Left<Rows::adjacent> {
  template <int kRows>
  using type = gemm::Adjacent<float, kRows>;
};

// How many products are summed before the sum joins the total. The rounding error of a long running sum
// outweighs that of the transforms: 128 products in one go cost 7.5e-6 of the output's rms, in parts of 16
// less than half of that, at no measurable time.
constexpr int64_t kPart = 16;

// Where the next product's numbers lie, as distances from this one's: rows are fetched while these are
// multiplied, since they come from L3 in pieces too short, or streams too many, for the hardware to follow.
// Strided rows have panels that come in order: b is of adjacent rows only.
struct Ahead {
  int64_t a, b;
};

// The next step's numbers of both operands, of adjacent rows.
struct NextStep {
  const Ahead& ahead;

  template <class Left>
  PYDL_INLINE void turn(int, const Left& left, const float* right) const {
    prefetch(left.data() + ahead.a);
    prefetch(right + ahead.b);
    prefetch(right + ahead.b + lanes<float>);
  }
};

// A cache line of the next rows for each step, of strided rows.
struct NextRows {
  const float* at;
  int64_t stride;

  template <class Left>
  PYDL_INLINE void turn(int steps, const Left&, const float*) {
#pragma GCC unroll 8
    for (int k = 0; k < steps; ++k, at += stride) prefetch(at);
  }
};

template <int kRows, int kVectors, Rows kLayout>
void gemm_block(int64_t depth, const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
                int64_t c_stride, bool add, const Ahead& ahead) {
  constexpr int L = lanes<float>;
  constexpr bool kAdjacent = kLayout == Rows::adjacent;
  if constexpr (!kAdjacent) b_stride = kPanel;
  // Strided rows want eight steps a turn on AVX-512; adjacent ones, and AVX2 and less, one: weight gradients of few
  // channels took 1.2 to 1.4 times as long with four (conv2d/winograd/NOTES.md).
  constexpr int kTurn = kVectorBytes == 64 && !kAdjacent ? 8 : 1;
  typename Left<kLayout>::template type<kRows> left(a, a_stride);
  for (int64_t start = 0; start < depth; start += kPart, add = true) {
    vec<float> sum[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = vec<float>{};
    const int64_t steps = min_of(kPart, depth - start);
    if constexpr (kAdjacent) {
      NextStep next{ahead};
      gemm::accumulate<kTurn>(steps, left, b, b_stride, next, sum);
    } else {
      NextRows next{a + ahead.a + start, a_stride};
      gemm::accumulate<kTurn>(steps, left, b, b_stride, next, sum);
    }
    if (add) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[r][v] = load(c + r * c_stride + v * L) + sum[r][v];
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) store(c + r * c_stride + v * L, sum[r][v]);
  }
}

using GemmBlock = void (*)(int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool,
                           const Ahead&);

template <int kRows, int kVectors, Rows kLayout>
constexpr GemmBlock gemm_block_of(int64_t rows) {
  if constexpr (kRows == 1)
    return gemm_block<1, kVectors, kLayout>;
  else
    return rows == kRows ? gemm_block<kRows, kVectors, kLayout>
                         : gemm_block_of<kRows - 1, kVectors, kLayout>(rows);
}

// channels: how many columns are wanted; a panel of at most one vector costs half.
template <Rows kLayout>
void gemm(int64_t rows, int64_t channels, int64_t depth, const float* a, int64_t a_stride, const float* b,
          int64_t b_stride, float* c, int64_t c_stride, bool add, const Ahead& ahead) {
  if (rows <= 0) return;
  const int64_t parts = ceil_div(rows, kMaxRows), less = rows / parts, more = rows % parts;
  const int64_t a_row = kLayout == Rows::adjacent ? 1 : a_stride;
  int64_t done = 0;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t n = less + (part < more);
    const GemmBlock block = channels > lanes<float> ? gemm_block_of<kMaxRows, 2, kLayout>(n)
                                                    : gemm_block_of<kMaxRows, 1, kLayout>(n);
    // strided: the rows that follow, or the first ones of the next product
    const Ahead rows_ahead{part + 1 < parts ? n * a_stride : ahead.a - done * a_stride, 0};
    block(depth, a, a_stride, b, b_stride, c, c_stride, add, kLayout == Rows::strided ? rows_ahead : ahead);
    a += n * a_row;
    c += n * c_stride;
    done += n;
  }
}

// to[r * stride + j] += from[r * kPanel + j]: sums of sums, so that no sum is long.
static inline void add_panel(int64_t rows, const float* from, float* to, int64_t stride) {
  constexpr int L = lanes<float>;
  for (int64_t r = 0; r < rows; ++r)
    for (int v = 0; v < kPanel; v += L)
      store(to + r * stride + v, load(to + r * stride + v) + load(from + r * kPanel + v));
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::winograd
