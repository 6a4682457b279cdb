// column_sums of kernels/matmul.h: rows are cut into chunks by their length alone, whose sums are added in order.
#include "kernels/cpu/base/scratch.h"
#include "kernels/cpu/base/tasks.h"
#include "kernels/matmul.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kChunk = 256;           // rows
constexpr int64_t kChunkNumbers = 16384;  // where rows are shorter than four vectors

// Short rows without gaps are summed so many side by side: that many fill whole groups of four vectors.
template <class A>
int64_t rows_beside(const ColumnSumsParams& p) {
  constexpr int64_t kGroup = 4 * lanes<A>;
  const bool dense = p.input.column == 1 && p.input.row == p.columns;
  return dense && p.columns < kGroup ? kGroup / min_of(p.columns & -p.columns, kGroup) : 1;
}

template <class A>
int64_t chunk_of(const ColumnSumsParams& p) {
  const int64_t beside = rows_beside<A>(p);
  return beside == 1 ? kChunk : beside * ceil_div(kChunkNumbers, beside * p.columns);
}

template <class A>
int64_t chunks_of(const ColumnSumsParams& p) {
  return ceil_div(p.rows, chunk_of<A>(p));
}

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

// The same for short rows without gaps: `beside` of them as one, whose sums are added up in the end.
template <class T, class A>
void sum_short_rows(const T* from, int64_t rows, int64_t columns, int64_t beside, A* to) {
  constexpr int64_t kGroup = 4 * lanes<A>;
  alignas(64) A sums[kGroup * kGroup];
  const int64_t wide = rows / beside, width = beside * columns;
  sum_rows(from, width, wide, width, sums);
  for (int64_t j = 0; j < columns; ++j) {
    A sum = 0;
    for (int64_t at = j; at < width; at += columns) sum += sums[at];
    to[j] = sum;
  }
  sum_rows(from + wide * width, columns, rows % beside, columns, sums);
  for (int64_t j = 0; j < columns; ++j) to[j] += sums[j];
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
  const int64_t chunks = chunks_of<A>(p), most = chunk_of<A>(p), beside = rows_beside<A>(p),
                pitch = pitch_of<A>(p);
  A* partial = static_cast<A*>(p.scratch);
  auto chunk = [&](int64_t c, int64_t) {
    const int64_t first = c * most, rows = min_of(most, p.rows - first);
    const T* from = static_cast<const T*>(p.input.data) + first * p.input.row;
    if (beside > 1)
      sum_short_rows(from, rows, p.columns, beside, partial + c * pitch);
    else if (p.input.column == 1)
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
    bytes = Pieces::bytes<A>(chunks_of<A>(p) * pitch_of<A>(p));
  });
  return bytes;
}

void column_sums(const ColumnSumsParams& p, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) { run<decltype(type)>(p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
