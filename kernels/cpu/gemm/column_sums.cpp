// column_sums of kernels/matmul.h: rows are cut into chunks of a fixed number, whose sums are added in order.
#include "kernels/cpu/base/scratch.h"
#include "kernels/cpu/base/tasks.h"
#include "kernels/matmul.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kChunk = 256;  // rows

int64_t chunks_of(const ColumnSumsParams& p) { return ceil_div(p.rows, kChunk); }

template <class A>
int64_t pitch_of(const ColumnSumsParams& p) {
  return ceil_div(p.columns, lanes<A>) * lanes<A>;
}

// to[j] = sum of `rows` rows of from, four vectors of columns at a time.
template <class T, class A>
void sum_rows(const T* from, int64_t row, int64_t rows, int64_t columns, A* to) {
  constexpr int64_t L = lanes<A>;
  int64_t j = 0;
  for (; j + 4 * L <= columns; j += 4 * L) {
    vec<A> sum[4] = {};
    const T* at = from + j;
    for (int64_t i = 0; i < rows; ++i, at += row)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sum[v] += load(at + v * L);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) store(to + j + v * L, sum[v]);
  }
  for (; j < columns; j += L) {
    const int64_t n = min_of(L, columns - j);
    vec<A> sum{};
    for (int64_t i = 0; i < rows; ++i) sum += load_n(from + i * row + j, n);
    store(to + j, sum);
  }
}

// The same where columns do not lie side by side.
template <class T, class A>
void sum_strided(const T* from, const Matrix& m, int64_t rows, int64_t columns, A* to) {
  for (int64_t j = 0; j < columns; ++j) {
    const T* at = from + j * m.column;
    A sum = 0;
    if (m.row == 1) {
      vec<A> lane{};
      for (int64_t i = 0; i < rows; i += lanes<A>) lane += load_n(at + i, min_of(lanes<A>, rows - i));
      sum = reduce_add(lane);
    } else {
      for (int64_t i = 0; i < rows; ++i) sum += load_n(at + i * m.row, 1)[0];
    }
    to[j] = sum;
  }
}

template <class T>
void run(const ColumnSumsParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  const int64_t chunks = chunks_of(p), pitch = pitch_of<A>(p);
  A* partial = static_cast<A*>(p.scratch);
  auto chunk = [&](int64_t c, int64_t) {
    const int64_t first = c * kChunk, rows = min_of(kChunk, p.rows - first);
    const T* from = static_cast<const T*>(p.input.data) + first * p.input.row;
    if (p.input.column == 1)
      sum_rows(from, p.input.row, rows, p.columns, partial + c * pitch);
    else
      sum_strided(from, p.input, rows, p.columns, partial + c * pitch);
  };
  if (chunks <= 2)  // less than waking a thread takes
    for (int64_t c = 0; c < chunks; ++c) chunk(c, 0);
  else
    run_tasks(parallel, chunks, chunk);
  T* sums = static_cast<T*>(p.sums);
  for (int64_t j = 0; j < p.columns; j += lanes<A>) {
    vec<A> sum{};
    for (int64_t c = 0; c < chunks; ++c) sum += load(partial + c * pitch + j);
    store_n(sums + j, sum, min_of(lanes<A>, p.columns - j));
  }
}

}  // namespace

int64_t column_sums_scratch(const ColumnSumsParams& p) {
  int64_t bytes = 0;
  dispatch_dtype(p.dtype, [&](auto type) {
    using A = acc_t<decltype(type)>;
    bytes = Pieces::bytes<A>(chunks_of(p) * pitch_of<A>(p));
  });
  return bytes;
}

void column_sums(const ColumnSumsParams& p, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) { run<decltype(type)>(p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
