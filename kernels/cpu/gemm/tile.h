// The register-blocked matrix-product microkernel of implicit GEMM over panels, and of 1x1 weight gradients, and
// the layout of its panels.
//
//   tile[m][j] (+)= sum_k a(m, k) * b[k][j]          m < rows <= kRows,  j < kColumns
//
// b is a panel of kColumns (two vectors) side by side for each k. a is one number per (m, k), broadcast:
// either as k-major (a[k * pitch + m]) or as rows of a fixed pitch (a[m * kPitch + k]), whichever its packing
// writes in runs. Accumulators fill the register file: kRows * 2 vectors, two vectors of b and one broadcast.
// The fixed pitch turns every address into one pointer plus a constant; it is no power of two, so that the
// rows fall into different cache sets.
#pragma once

#include "kernels/cpu/base/simd.h"

namespace pydl::cpu::PYDL_ISA::gemm {

#if defined(PYDL_AVX512)
static constexpr int kRows = 14;  // 28 accumulators of 32 registers
#else
static constexpr int kRows = 6;  // 12 of 16
#endif
template <class A>
static constexpr int kColumns = 2 * lanes<A>;
template <class A>
static constexpr int kTile = kRows * kColumns<A>;  // elements of a tile

static constexpr int64_t kDepth = 256;  // k per panel: a block of a (14 KB) stays in L1
static constexpr int64_t kPitch = 272;  // elements between rows of a

// How a holds its numbers.
enum class Rows { pitched, interleaved };  // a[m * kPitch + k], a[k * pitch + m]

// rows <= kRows and columns <= kColumns say how much of the tile is wanted; the rest of it may hold anything.
// accumulate: add to the tile rather than overwrite it. Defined for A = float and double in tile.cpp.
template <class A>
void gemm_tile(Rows layout, int64_t rows, int64_t columns, int64_t depth, const A* a, int64_t pitch,
               const A* b, A* tile, bool accumulate);

}  // namespace pydl::cpu::PYDL_ISA::gemm
