// A few rows times a matrix whose columns lie in memory one after another, as a weight's rows do: each number of the
// output is the dot product of two stretches of memory, so that the matrix is read once, in order, and nothing is packed.
//
//   sums[i][j] = sum_k left(i, k) * right(k, column + j)                                 i < rows, j < kDotColumns
//
// For matrices past the caches: panels of them are 32 streams of 1 KB each, which no prefetcher follows.
#pragma once

#include "kernels/cpu/gemm/panel.h"
#include "kernels/matmul.h"

namespace pydl::cpu::PYDL_ISA::gemm {

static constexpr int64_t kDotColumns = lanes<float>;  // at once, which are stored as a vector
static constexpr int64_t kMostDotRows = 16;  // measured on Zen 5: of 32, panels take 0.75 of the time

// left and right: of the first row and the first of `columns` <= kDotColumns columns, whose numbers lie side by side;
// pitches in numbers T, of which `depth` are summed. sums: rows times a vector.
template <class T, class E>
void dots(const T* left, int64_t left_pitch, const T* right, int64_t right_pitch, int64_t rows,
          int64_t columns, int64_t depth, float* sums);

}  // namespace pydl::cpu::PYDL_ISA::gemm
