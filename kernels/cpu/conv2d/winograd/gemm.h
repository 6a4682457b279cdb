// The matrix product of one Winograd frequency: rows of transformed tiles (or channels) times a panel of
// channels.
//
//   c[r][j] (+)= sum_k a(r, k) * b[k][j]        j < kPanel, two vectors
//
// A register block of kRows x 2 vectors: each step of k loads two vectors of b and broadcasts one float per
// row, so that loads stay below the two per cycle that a core has, and 2 * kRows independent sums hide the
// latency of the fused multiply-add. Every row count up to the block has its own instance, so n rows are cut
// into equal parts and no row is computed in vain.
#pragma once

#include "kernels/cpu/base/simd.h"

namespace pydl::cpu::PYDL_ISA::winograd {
namespace {

constexpr int kPanel = 2 * lanes<float>;  // channels per panel
#if defined(PYDL_AVX512)
constexpr int kMaxRows = 14;  // 28 sums, 2 vectors of b and 1 broadcast in 32 registers
#elif defined(PYDL_AVX2)
constexpr int kMaxRows = 6;  // 12 + 2 + 1 in 16
#else
constexpr int kMaxRows = 4;
#endif

// How the rows lie in memory: row r of step k is a[r * stride + k] (tiles times channels) or a[k * stride +
// r] (channels times tiles).
enum class Rows { strided, adjacent };

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

template <int kRows, int kVectors, Rows kLayout>
void gemm_block(int64_t depth, const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
                int64_t c_stride, bool add, const Ahead& ahead) {
  constexpr int L = lanes<float>;
  if constexpr (kLayout == Rows::strided) b_stride = kPanel;
  const float *row0 = a, *row5 = a + 5 * a_stride, *row10 = a + 10 * a_stride;
  const int64_t advance = kLayout == Rows::adjacent ? a_stride : 1;
  for (int64_t start = 0; start < depth; start += kPart, add = true) {
    [[maybe_unused]] const float* next = a + ahead.a + start;  // a cache line of the next rows for each step
    vec<float> sum[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = vec<float>{};
    auto step = [&](const float* row0, const float* row5, const float* row10,
                    const float* panel) __attribute__((always_inline)) {
      vec<float> right[kVectors];
      if constexpr (kLayout == Rows::adjacent) {
        prefetch(row0 + ahead.a);
        prefetch(panel + ahead.b);
        prefetch(panel + ahead.b + L);
      } else {
        prefetch(next);
        next += a_stride;
      }
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) right[v] = load(panel + v * L);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        float left;
        if constexpr (kLayout == Rows::adjacent)
          left = row0[r];
        else {  // a base register for every five rows keeps the addresses in base + {0, 1, 2, 3, 4} * stride
          const float* base = r < 5 ? row0 : r < 10 ? row5 : row10;
          left = base[(r % 5) * a_stride];  // not in one expression: gcc 12 miscompiles that under UBSan
        }
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[r][v] += left * right[v];
      }
    };
    int64_t k = min_of(kPart, depth - start);
    // Adjacent rows, and AVX2 and less, want one step a turn: weight gradients of few channels took 1.2
    // to 1.4 times as long with four (conv2d/winograd/NOTES.md).
    if constexpr (kVectorBytes == 64 && kLayout == Rows::strided)
      for (; k >= 8; k -= 8, row0 += 8, row5 += 8, row10 += 8, b += 8 * b_stride) {
#pragma GCC unroll 8
        for (int u = 0; u < 8; ++u) step(row0 + u, row5 + u, row10 + u, b + u * b_stride);
      }
    for (; k > 0; --k) {
      step(row0, row5, row10, b);
      row0 += advance;
      row5 += advance;
      row10 += advance;
      b += b_stride;
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
