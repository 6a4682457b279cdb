// The tile of the direct weight gradients (batch_weight.cpp, which has it, and rows_weight.cpp): sums of some channels of
// the gradient and some taps of a row, in registers over rows of vectors.
#pragma once

#include "kernels/cpu/conv2d/direct/direct.h"

namespace pydl::cpu::PYDL_ISA::direct {

#if defined(PYDL_AVX512)
constexpr int kWeightOuts = 4, kWeightTaps = 6;  // 24 accumulators of 32 registers
#else
constexpr int kWeightOuts = 2, kWeightTaps = 5;  // 10 of 16
#endif

// sums[o][t][lane] += over rows and columns of vectors; `sums_out` elements between channels.
template <class E>
using WeightTile = void (*)(int64_t rows, int64_t columns, const E* grad, int64_t grad_out, int64_t grad_row,
                            const E* in, int64_t in_row, int64_t in_pixel, int64_t in_tap, float* sums,
                            int64_t sums_out);

// For at most kWeightOuts channels and kWeightTaps taps.
WeightTile<float> weight_tile_of(int64_t outs, int64_t taps);

// to[i] = the sum of the lanes of sums[i][lane].
void add_lanes(const float* sums, int64_t count, float* to);

}  // namespace pydl::cpu::PYDL_ISA::direct
