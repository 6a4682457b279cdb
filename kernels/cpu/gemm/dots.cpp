// Lanes run along the depth: a block of 6 rows and 4 columns is 24 sums and needs 10 loads a step. All rows pass by a
// chunk of 16 columns while both are in the first cache, and fetch the next chunk meanwhile; what is summed up to there
// waits in the first cache too. At the end each vector of sums becomes one number.
#include "kernels/cpu/gemm/dots.h"

#include "kernels/cpu/base/simd_reduce.h"

namespace pydl::cpu::PYDL_ISA::gemm {
namespace {

// Measured on AVX-512 alone, which matmul_plan.h asks for.
constexpr int kTall = kVectorBytes == 64 ? 6 : 2, kWide = 4;
// Steps of a chunk: 1 KB of each row and column, so that all rows and what is summed of kDotColumns columns fit in L1.
constexpr int64_t kChunkSteps = 16;

// The first n numbers of a step, or all of them.
template <class E, class T>
PYDL_INLINE vec_of<E> load_step_n(const T* p, int64_t n) {
  if constexpr (per_element<E> == 1)
    return load_n(p, n);
  else
    return load_pairs_n(p, n);
}

// One block: `rows` of left and kWide columns, each from where the chunk begins.
template <class T>
struct Block {
  const T* left;
  int64_t left_pitch;
  const T* column[kWide];
  int64_t numbers;              // of the depth
  int64_t ahead;                // from a column to what is read next in its place
  int first_ahead, each_ahead;  // which columns' this block fetches: the blocks of a chunk share them
  vec<float> (*sums)[kWide];    // of each row, added to
};

template <class T, class E, int rows>
void add_block(const Block<T>& p) {
  constexpr int64_t step = per_element<E> * lanes<float>;
  vec<float> sum[rows][kWide];
#pragma GCC unroll 6
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kWide; ++j) sum[i][j] = p.sums[i][j];
  const auto add = [&](int64_t k, const auto& load_at) PYDL_INLINE_LAMBDA {
    vec_of<E> b[kWide];
#pragma GCC unroll 4
    for (int j = 0; j < kWide; ++j) b[j] = load_at(p.column[j] + k);
#pragma GCC unroll 6
    for (int i = 0; i < rows; ++i) {
      const vec_of<E> a = load_at(p.left + i * p.left_pitch + k);
#pragma GCC unroll 4
      for (int j = 0; j < kWide; ++j) sum[i][j] = multiply_add(a, b[j], sum[i][j]);
    }
  };
  const int64_t ahead = p.ahead;
  const int first_ahead = p.first_ahead, each_ahead = p.each_ahead;
  int64_t k = 0;
  for (; k + step <= p.numbers; k += step) {
    for (int j = first_ahead; j < kWide; j += each_ahead) prefetch(p.column[j] + ahead + k);
    add(k, [](const T* at) PYDL_INLINE_LAMBDA { return load_elements(reinterpret_cast<const E*>(at)); });
  }
  if (k < p.numbers)
    add(k, [&](const T* at) PYDL_INLINE_LAMBDA { return load_step_n<E>(at, p.numbers - k); });
#pragma GCC unroll 6
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kWide; ++j) p.sums[i][j] = sum[i][j];
}

template <class T, class E, int most = kTall>
void add_rows(int64_t rows, const Block<T>& block) {
  if constexpr (most > 1)
    if (rows < most) return add_rows<T, E, most - 1>(rows, block);
  add_block<T, E, most>(block);
}

}  // namespace

template <class T, class E>
void dots(const T* left, int64_t left_pitch, const T* right, int64_t right_pitch, int64_t rows,
          int64_t columns, int64_t depth, float* sums) {
  constexpr int64_t chunk = kChunkSteps * per_element<E> * lanes<float>;
  const int blocks = static_cast<int>(ceil_div(rows, kTall));
  vec<float> sum[kDotColumns / kWide][kMostDotRows][kWide] = {};
  for (int64_t k = 0; k < depth; k += chunk) {
    Block<T> block{};
    block.left_pitch = left_pitch;
    block.numbers = min_of(depth - k, chunk);
    block.ahead = k + chunk < depth ? chunk : kDotColumns * right_pitch - k;
    block.each_ahead = blocks;
    for (int64_t j = 0; j < columns; j += kWide) {
      for (int i = 0; i < kWide; ++i)  // beyond the last column the last again, whose sums are not used
        block.column[i] = right + min_of(j + i, columns - 1) * right_pitch + k;
      for (int b = 0; b < blocks; ++b) {
        const int64_t row = rows * b / blocks;
        block.left = left + row * left_pitch + k;
        block.first_ahead = b;
        block.sums = sum[j / kWide] + row;
        add_rows<T, E>(rows * (b + 1) / blocks - row, block);
      }
    }
  }
  for (int64_t j = 0; j < columns; j += kWide)
    for (int64_t i = 0; i < rows; ++i) {
      float total[kWide];
      reduce_add_each(sum[j / kWide][i], total);
      for (int one = 0; one < kWide; ++one) sums[i * kDotColumns + j + one] = total[one];
    }
}

template void dots<float, float>(const float*, int64_t, const float*, int64_t, int64_t, int64_t, int64_t,
                                 float*);
#if defined(PYDL_BF16_DOT)
template void dots<bf16, bf16_pair>(const bf16*, int64_t, const bf16*, int64_t, int64_t, int64_t, int64_t,
                                    float*);
#endif

}  // namespace pydl::cpu::PYDL_ISA::gemm
