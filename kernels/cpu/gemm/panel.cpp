// One block function per number of rows, so that a remainder wastes no arithmetic.
#include "kernels/cpu/gemm/panel.h"

namespace pydl::cpu::PYDL_ISA::gemm {
namespace {

template <class A, int rows, int vectors, class Left>
void block(const PanelProduct<A>& p, const A* left, A* result) {
  vec<A> sum[rows][vectors];
#pragma GCC unroll 14
  for (int m = 0; m < rows; ++m) prefetch_to_write(result + m * p.result_pitch);
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    const vec<A> start = p.bias ? load(p.bias + v * lanes<A>) : vec<A>{};
#pragma GCC unroll 14
    for (int m = 0; m < rows; ++m) sum[m][v] = start;
  }
  Left rows_of_left(left, p.left_pitch);
  const A* right = p.right;
  NoPrefetch nothing;
  accumulate(p.depth, rows_of_left, right, p.right_pitch, nothing, sum);
  if (p.alpha != A(1)) {
#pragma GCC unroll 14
    for (int m = 0; m < rows; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[m][v] *= p.alpha;
  }
  if (p.add) {
#pragma GCC unroll 14
    for (int m = 0; m < rows; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[m][v] += load(result + m * p.result_pitch + v * lanes<A>);
  }
  if (p.relu) {
#pragma GCC unroll 14
    for (int m = 0; m < rows; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v)
        sum[m][v] = sum[m][v] < vec<A>{} ? vec<A>{} : sum[m][v];  // nan stays nan
  }
#pragma GCC unroll 14
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(result + m * p.result_pitch + v * lanes<A>, sum[m][v]);
}

template <class A>
using Block = void (*)(const PanelProduct<A>&, const A*, A*);

// of[rows - 1]
template <class A, int vectors, template <class, int> class Left>
struct Blocks {
  Block<A> of[kMr];

  constexpr Blocks() : of{} { fill<1>(); }
  template <int rows>
  constexpr void fill() {
    of[rows - 1] = &block<A, rows, vectors, Left<A, rows>>;
    if constexpr (rows < kMr) fill<rows + 1>();
  }
};

template <class A, int vectors>
const Block<A>* blocks(bool columns) {
  static constexpr Blocks<A, vectors, Pitched> pitched;
  static constexpr Blocks<A, vectors, Adjacent> adjacent;
  return columns ? adjacent.of : pitched.of;
}

// One vector where that is all that is wanted; of float64, which is for checks more than for speed, always two.
template <class A>
const Block<A>* blocks_for(int64_t columns, bool left_columns) {
  if constexpr (__is_same(A, float))
    if (columns <= lanes<A>) return blocks<A, 1>(left_columns);
  return blocks<A, 2>(left_columns);
}

}  // namespace

template <class A>
void multiply_panel(const PanelProduct<A>& p) {
  const Block<A>* of = blocks_for<A>(p.columns, p.left_columns || p.strips);
  const A* left = p.left;
  A* result = p.result;
  for (int64_t rows = p.rows, blocks = ceil_div(rows, kMr); blocks > 0; --blocks) {
    const int64_t n = ceil_div(rows, blocks);
    if (p.ahead) p.ahead->fetch();
    of[n - 1](p, left, result);
    left += p.strips ? strip_numbers<A>(p.depth) : p.left_columns ? n : n * p.left_pitch;
    result += n * p.result_pitch;
    rows -= n;
  }
}
template void multiply_panel<float>(const PanelProduct<float>&);
template void multiply_panel<double>(const PanelProduct<double>&);

}  // namespace pydl::cpu::PYDL_ISA::gemm
