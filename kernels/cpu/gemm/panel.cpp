// One block function per number of rows, so that a remainder wastes no arithmetic.
#include "kernels/cpu/gemm/panel.h"

#include "kernels/cpu/base/simd_bf16.h"

namespace pydl::cpu::PYDL_ISA::gemm {
namespace {

// As the output would hold it: pairs are rounded by the CPU's instruction.
template <class E>
PYDL_INLINE vec<float> as_bf16(vec<float> x) {
  return widen_bf16(__is_same(E, bf16_pair) ? narrow_bf16_fast(x) : narrow_bf16(x));
}

// `row` is that of the panel product's results at which the block begins.
template <class E, int rows, int vectors, class Left>
void block(const PanelProduct<E>& p, const E* left, int64_t row) {
  using A = acc_of<E>;
  vec<A> sum[rows][vectors];
  A* const result = p.result + row * p.result_pitch;
  const bool rounds = __is_same(E, bf16_pair) && p.rounded;
  bf16* const rounded = p.rounded + (rounds ? row * p.rounded_pitch : 0);
  if (rounds && !p.streams) {
#pragma GCC unroll 14
    for (int m = 0; m < rows; ++m) prefetch_to_write(rounded + m * p.rounded_pitch);
  }
  if ((!rounds && !p.streams) || p.add) {
#pragma GCC unroll 14
    for (int m = 0; m < rows; ++m) prefetch_to_write(result + m * p.result_pitch);
  }
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    const vec<A> start = p.bias ? load(p.bias + v * lanes<A>) : vec<A>{};
#pragma GCC unroll 14
    for (int m = 0; m < rows; ++m) sum[m][v] = start;
  }
  Left rows_of_left(left, p.left_pitch);
  const E* right = p.right;
  NoPrefetch nothing;
  const int64_t steps = p.ahead ? kFetchSteps : p.depth;
  for (int64_t k = 0; k < p.depth; k += steps) {
    if (p.ahead) p.ahead->fetch();
    accumulate(min_of(steps, p.depth - k), rows_of_left, right, p.right_pitch, nothing, sum);
  }
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
  const auto put = [&](auto* to, int64_t pitch, auto one) PYDL_INLINE_LAMBDA {
#pragma GCC unroll 14
    for (int m = 0; m < rows; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) one(to + m * pitch + v * lanes<A>, sum[m][v]);
  };
  const auto past = [](auto* to, vec<A> x) PYDL_INLINE_LAMBDA { stream(to, x); };
  const auto stays = [](auto* to, vec<A> x) PYDL_INLINE_LAMBDA { store(to, x); };
  if constexpr (__is_same(E, bf16_pair))
    if (rounds) {
      bf16_fast* const to = reinterpret_cast<bf16_fast*>(rounded);
      return p.streams ? put(to, p.rounded_pitch, past) : put(to, p.rounded_pitch, stays);
    }
  if constexpr (__is_same(A, float))
    if (p.as_bf16) {
#pragma GCC unroll 14
      for (int m = 0; m < rows; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) sum[m][v] = as_bf16<E>(sum[m][v]);
    }
  p.streams ? put(result, p.result_pitch, past) : put(result, p.result_pitch, stays);
}

template <class E>
using Block = void (*)(const PanelProduct<E>&, const E*, int64_t);

// of[rows - 1]
template <class E, int vectors, template <class, int> class Left>
struct Blocks {
  Block<E> of[kMr];

  constexpr Blocks() : of{} { fill<1>(); }
  template <int rows>
  constexpr void fill() {
    of[rows - 1] = &block<E, rows, vectors, Left<E, rows>>;
    if constexpr (rows < kMr) fill<rows + 1>();
  }
};

template <class E, int vectors>
const Block<E>* blocks(bool columns) {
  static constexpr Blocks<E, vectors, Pitched> pitched;
  static constexpr Blocks<E, vectors, Adjacent> adjacent;
  return columns ? adjacent.of : pitched.of;
}

// One vector where that is all that is wanted; of float64, which is for checks more than for speed, always two.
template <class E>
const Block<E>* blocks_for(int64_t columns, bool left_columns) {
  if constexpr (!__is_same(E, double))
    if (columns <= lanes<float>) return blocks<E, 1>(left_columns);
  return blocks<E, 2>(left_columns);
}

}  // namespace

template <class E>
void multiply_panel(const PanelProduct<E>& p) {
  const Block<E>* of = blocks_for<E>(p.columns, p.left_columns || p.strips);
  const E* left = p.left;
  int64_t row = 0;
  for (int64_t blocks = ceil_div(p.rows, kMr); blocks > 0; --blocks) {
    const int64_t n = ceil_div(p.rows - row, blocks);
    of[n - 1](p, left, row);
    left += p.strips ? strip_numbers<E>(p.depth) : p.left_columns ? n : n * p.left_pitch;
    row += n;
  }
}
template void multiply_panel<float>(const PanelProduct<float>&);
template void multiply_panel<double>(const PanelProduct<double>&);
#if defined(PYDL_BF16_DOT)
template void multiply_panel<bf16_pair>(const PanelProduct<bf16_pair>&);
#endif

}  // namespace pydl::cpu::PYDL_ISA::gemm
