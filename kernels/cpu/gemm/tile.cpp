// The microkernels of tile.h, one per number of rows, so that a remainder wastes no arithmetic.
#include "kernels/cpu/gemm/tile.h"

namespace pydl::cpu::PYDL_ISA::gemm {
namespace {

template <class A, int rows, int vectors, Rows layout>
void microkernel(int64_t depth, const A* a, int64_t pitch, const A* b, A* tile, bool accumulate) {
  constexpr int64_t row = layout == Rows::pitched ? kPitch : 1;
  const int64_t step = layout == Rows::pitched ? 1 : pitch;
  vec<A> sum[rows][vectors];
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sum[m][v] = vec<A>{};
  for (int64_t k = 0; k < depth; ++k, a += step, b += kColumns<A>) {
    vec<A> right[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) right[v] = load(b + v * lanes<A>);
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) {
      const vec<A> left = splat(a[m * row]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[m][v] += left * right[v];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      A* to = tile + m * kColumns<A> + v * lanes<A>;
      store(to, accumulate ? load(to) + sum[m][v] : sum[m][v]);
    }
}

template <class A>
using Microkernel = void (*)(int64_t, const A*, int64_t, const A*, A*, bool);

template <class A, Rows layout, int rows>
Microkernel<A> pick(int64_t wanted, int64_t columns) {
  if constexpr (rows == 0) {
    return nullptr;
  } else {
    if (wanted == rows)
      return columns <= lanes<A> ? &microkernel<A, rows, 1, layout> : &microkernel<A, rows, 2, layout>;
    return pick<A, layout, rows - 1>(wanted, columns);
  }
}

}  // namespace

template <class A>
void gemm_tile(Rows layout, int64_t rows, int64_t columns, int64_t depth, const A* a, int64_t pitch,
               const A* b, A* tile, bool accumulate) {
  const Microkernel<A> kernel = layout == Rows::pitched ? pick<A, Rows::pitched, kRows>(rows, columns)
                                                        : pick<A, Rows::interleaved, kRows>(rows, columns);
  kernel(depth, a, pitch, b, tile, accumulate);
}
template void gemm_tile<float>(Rows, int64_t, int64_t, int64_t, const float*, int64_t, const float*, float*,
                               bool);
template void gemm_tile<double>(Rows, int64_t, int64_t, int64_t, const double*, int64_t, const double*,
                                double*, bool);

}  // namespace pydl::cpu::PYDL_ISA::gemm
