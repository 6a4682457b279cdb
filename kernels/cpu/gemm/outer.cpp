// gemm_outer of windows.h: one microkernel per number of rows.
#include "kernels/cpu/gemm/windows.h"

namespace pydl::cpu::PYDL_ISA::gemm {
namespace {

template <class E, int vectors, int rows>
void outer_kernel(const OuterBlock<E>& p) {
  using A = acc_of<E>;
  constexpr int64_t all = lanes<A>;
  vec<A> sum[rows][vectors];
#pragma GCC unroll 14
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sum[m][v] = vec<A>{};
  // the lines of the sums are prefetched now, not when they are wanted at once
  for (int64_t i = 0; i < rows * 2 * all; i += 64 / static_cast<int64_t>(sizeof(A)))
    prefetch_to_write(p.sums + i);
  const E* right = p.right;
  Fetch ahead = p.ahead;
  for (int64_t t = 0; t < p.segments; ++t) {
    Adjacent<E, rows> left(p.left + p.offsets[t], p.step);
    accumulate(p.depth, left, right, p.right_pitch, ahead, sum);
  }
#pragma GCC unroll 14
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      A* to =
          p.sums + m * 2 * all + v * all;  // sums of pieces: errors grow with the root of a piece's length
      store(to, p.accumulate ? load(to) + sum[m][v] : sum[m][v]);
    }
}

template <class E>
using Kernel = void (*)(const OuterBlock<E>&);

template <class E, int vectors, int rows = kMr>
Kernel<E> pick(int64_t wanted) {
  if constexpr (rows == 1) {
    return &outer_kernel<E, vectors, 1>;
  } else {
    return wanted == rows ? &outer_kernel<E, vectors, rows> : pick<E, vectors, rows - 1>(wanted);
  }
}

template <class E>
void outer_product(int64_t rows, int64_t channels, const OuterBlock<E>& block) {
  (channels <= lanes<acc_of<E>> ? pick<E, 1>(rows) : pick<E, 2>(rows))(block);
}

}  // namespace

void gemm_outer(int64_t rows, int64_t channels, const OuterBlock<float>& block) {
  outer_product(rows, channels, block);
}
void gemm_outer(int64_t rows, int64_t channels, const OuterBlock<double>& block) {
  outer_product(rows, channels, block);
}
#if defined(PYDL_BF16_DOT)
void gemm_outer(int64_t rows, int64_t channels, const OuterBlock<bf16_pair>& block) {
  outer_product(rows, channels, block);
}
#endif

}  // namespace pydl::cpu::PYDL_ISA::gemm
