// Layer norm and RMS norm on the CPU, forward: one read and one write of memory, for rows that stay in a cache.
//
// Two loops over a row. The first sums the deviations from a value that is near the mean, and their squares: from the
// mean of the row's first vector, or, where that turns out to be far from the row's mean, once more from the mean found.
// So float32 keeps its digits where the mean is much larger than the deviation. The second loop normalises.
#include "kernels/cpu/norm/layer_norm.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// Rows in step; float64 and SSE2, which few train in, do without the text.
template <class T>
constexpr int kGroup = kVectorBytes == 16 || sizeof(T) == 8 ? 1 : 4;
constexpr int64_t kGroupBytes = 32 << 10;  // of a row, so that a group of rows stays in the second cache
constexpr int kFar = 4;                    // (mean - near)² / variance: what the variance loses of its digits
constexpr int64_t kChunk =
    2048;  // elements of a row that are summed in one go: errors grow with their number

template <class T>
struct Rows {
  using A = acc_t<T>;
  const T* input;
  T* output;
  const A *weight, *bias;
  double *mean, *scale;  // mean: null for RMS norm
  int64_t width;
  A eps, inverse;  // inverse: 1 / width
  bool past_cache;
};

// sum[r] += term(r, j, part) over the row.
template <int kRows, int kTerms, class A, class F>
PYDL_INLINE void sums(int64_t width, A (&sum)[kTerms][kRows], const F& term) {
  vec<A> total[kTerms][kRows] = {};
  for (int64_t begin = 0; begin < width; begin += kChunk) {
    vec<A> chunk[kTerms][kRows] = {};
    along<A>(begin, min_of(begin + kChunk, width),
             [&](int64_t j, auto part) PYDL_INLINE_LAMBDA { term(j, part, chunk); });
#pragma GCC unroll 8
    for (int t = 0; t < kTerms; ++t)
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) total[t][r] += chunk[t][r];
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTerms; ++t) reduce_add_each(total[t], sum[t]);
}

template <int kRows, class T>
void normalise(const Rows<T>& p, int64_t row) {
  using A = acc_t<T>;
  const int64_t width = p.width;
  const T* x = p.input + row * width;
  T* y = p.output + row * width;
  A near[kRows] = {}, off[kRows] = {}, var[kRows];  // the mean is near + off
  if (p.mean) {
    const int64_t n = min_of(width, lanes<A>);
    vec<A> first[kRows];
    for (int r = 0; r < kRows; ++r) first[r] = load_n(x + r * width, n);
    reduce_add_each(first, near);
    for (int r = 0; r < kRows; ++r) near[r] *= 1 / static_cast<A>(n);
  }
  for (bool again = true, last = p.mean == nullptr; again; last = true) {
    A sum[2][kRows];
    sums<kRows, 2, A>(width, sum, [&](int64_t j, auto part, auto& into) PYDL_INLINE_LAMBDA {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        prefetch_far_ahead(x + r * width + j, kRows * width);  // the next rows
        const vec<A> d = inside_part<A>(load_part(x + r * width + j, part) - near[r], part, A(0));
        into[0][r] += d;
        into[1][r] += d * d;
      }
    });
    again = false;
    for (int r = 0; r < kRows; ++r) {
      if (p.mean) off[r] = sum[0][r] * p.inverse;
      var[r] = sum[1][r] * p.inverse - off[r] * off[r];
      again |= !last && off[r] * off[r] > kFar * var[r];
    }
    if (again)
      for (int r = 0; r < kRows; ++r) near[r] += off[r];
  }
  A scale[kRows], offset[kRows];
  for (int r = 0; r < kRows; ++r) {
    scale[r] = 1 / square_root((var[r] < 0 ? A(0) : var[r]) + p.eps);  // nan stays
    offset[r] = -off[r] * scale[r];
    if (p.mean) p.mean[row + r] = static_cast<double>(near[r]) + off[r];
    p.scale[row + r] = scale[r];
  }
  auto write = [&](const auto& put) PYDL_INLINE_LAMBDA {
    along<A>(0, width, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA {
      const vec<A> w = load_part(p.weight + j, part), b = load_part(p.bias + j, part);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const vec<A> xhat = (load_part(x + r * width + j, part) - near[r]) * scale[r] + offset[r];
        put(y + r * width + j, xhat * w + b, part);
      }
    });
  };
  if (p.past_cache)  // whole vectors alone
    write([](T* q, vec<A> v, auto) PYDL_INLINE_LAMBDA { stream(q, v); });
  else
    write([](T* q, vec<A> v, auto part) PYDL_INLINE_LAMBDA { store_part(q, v, part); });
}

template <class T>
void run(const LayerNormParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  Pieces pieces{static_cast<char*>(p.scratch)};
  A* copies[2] = {pieces.take<A>(pitch_of<A>(p.width)), pieces.take<A>(pitch_of<A>(p.width))};
  const Rows<T> rows{static_cast<const T*>(p.input),
                     static_cast<T*>(p.output),
                     widened_parameter<T>(p.weight, p.parameter, p.width, A(1), copies[0]),
                     widened_parameter<T>(p.bias, p.parameter, p.width, A(0), copies[1]),
                     p.centered ? p.mean : nullptr,
                     p.scale,
                     p.width,
                     static_cast<A>(p.eps),
                     A(1) / static_cast<A>(p.width),
                     goes_past_cache<T>(p.output, p.rows, p.width)};
  const int64_t row_bytes = p.width * static_cast<int64_t>(sizeof(T));
  const int64_t group = row_bytes <= kGroupBytes ? kGroup<T> : 1;
  parallel(ceil_div(p.rows, group), ceil_div(kTaskElements, group * p.width),
           [&](int64_t begin, int64_t end) {
             for (int64_t row = begin * group; row < min_of(end * group, p.rows);) {
               if constexpr (kGroup<T> > 1) {
                 if (group > 1 && row + group <= p.rows) {
                   normalise<kGroup<T>>(rows, row);
                   row += group;
                   continue;
                 }
               }
               normalise<1>(rows, row++);
             }
             if (rows.past_cache) stream_fence();
           });
}

}  // namespace

void layer_norm_forward(const LayerNormParams& p, const Parallel& parallel) {
  dispatch_rows(p.dtype, [&](auto type) { run<decltype(type)>(p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
