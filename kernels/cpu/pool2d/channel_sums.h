// Sums over windows of pixels whose channels lie together, for both directions of average pooling.
//
// A window is a range of rows and one of columns, so its rows are added up first, over all columns and channels of a
// block as they lie in memory, into a buffer that stays in the first cache; the columns follow from there. Few
// instructions for each number read are what keeps many reads on their way: pixel by pixel, a row of 6 channels took
// ten times as long (NOTES.md).
#pragma once

#include "kernels/cpu/pool2d/pool2d.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kBuffer = 2048;      // numbers: 8 KB, or 16 of float64
constexpr int64_t kMostColumns = 128;  // of what is written, in a block
constexpr int64_t kWidest = 64;        // columns in a sum: a vector of channels of each fits

// sums[j] = the n numbers of each row, times the row's weight, added up.
template <class T, class Weights>
PYDL_INLINE void sum_rows(acc_t<T>* sums, const T* from, int64_t down, Range rows, const Weights& weights,
                          int64_t n) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>, kAtOnce = 4;
  int64_t j = 0;
  for (; j + kAtOnce * all <= n; j += kAtOnce * all) {
    vec<A> sum[kAtOnce] = {};
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const vec<A> weight = broadcast(weights(r));
      const T* row = from + r * down + j;
#pragma GCC unroll 4
      for (int64_t i = 0; i < kAtOnce; ++i) sum[i] += load(row + i * all) * weight;
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < kAtOnce; ++i) store(sums + j + i * all, sum[i]);
  }
  for (; j < n; j += all) {
    vec<A> sum{};
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const T* row = from + r * down + j;
      sum += (j + all <= n ? load(row) : load_n(row, n - j)) * broadcast(weights(r));
    }
    store(sums + j, sum);  // the buffer has room for a whole vector
  }
}

// Writes n channels of one pixel: scale * the sum of `count` pixels that are n apart in the buffer. kSpill: whole
// vectors, beyond the pixel's channels; what lies there is written after.
template <bool kSpill, class T>
PYDL_INLINE void sum_columns(T* to, const acc_t<T>* sums, int64_t count, acc_t<T> scale, int64_t n) {
  using A = acc_t<T>;
  const vec<A> factor = broadcast(scale);
  for (int64_t c = 0; c < n; c += lanes<A>) {
    vec<A> sum = load(sums + c);
    for (int64_t i = 1; i < count; ++i) sum += load(sums + i * n + c);
    sum *= factor;
    kSpill || c + lanes<A> <= n ? store(to + c, sum) : store_n(to + c, sum, n - c);
  }
}

// A row of pixels that is written: scale times sums over `rows` of the image at `from`.
template <class T>
struct RowOfSums {
  T* to;
  const T* from;
  Range rows;
  acc_t<T> scale;
};

// The rows [begin, end) as row(i) describes them, `width` pixels each. Pixel j is the sum of the pixels of the row's
// rows and of columns(j), which do not go back from one j to the next, each times row_weights(row); rows are `down` and
// columns `right` elements apart. Where they are given, pixels that are read have a scale by their column as well
// (scales_read), or those that are written (scales_written). A sum is of kWidest columns at most, or of as many as fit.
template <class T, class Rows, class RowWeights, class Columns>
PYDL_INLINE void channel_sums(int64_t begin, int64_t end, int64_t width, int64_t channels, int64_t down,
                              int64_t right, const Rows& row, const RowWeights& row_weights, Columns columns,
                              const acc_t<T>* scales_read, const acc_t<T>* scales_written) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  alignas(64) A sums[kBuffer + all];
  Range windows[kMostColumns];
  for (int64_t first = 0, next = 0; first < width; first = next) {
    // as many pixels as the buffer holds the columns of, but at least one
    Range span{};
    for (; next < width && next - first < kMostColumns; ++next) {
      const Range window = columns(next);
      Range longer = span;
      if (window.begin < window.end)
        longer = span.begin < span.end ? Range{span.begin, max_of(span.end, window.end)} : window;
      if (next > first && (longer.end - longer.begin) * channels > kBuffer) break;
      span = longer;
      windows[next - first] = window;
    }
    const int64_t pixels = max_of(span.end - span.begin, 1);  // windows of padding alone are empty
    // of the channels, where not all of them fit
    const int64_t some = pixels * channels <= kBuffer ? channels : kBuffer / pixels / all * all;
    // the pixels whose last vector ends within the block
    const int64_t spilling =
        some == channels ? next - ceil_div(ceil_div(channels, all) * all, channels) + 1 : first;
    for (int64_t i = begin; i < end; ++i) {
      const RowOfSums<T> at = row(i);
      for (int64_t c = 0; c < channels; c += some) {
        const int64_t n = min_of(some, channels - c);
        if (span.begin < span.end) {
          const T* pixel = at.from + span.begin * right + c;
          const int64_t at_once = n == right ? pixels : 1;
          for (int64_t k = 0; k < pixels; k += at_once)
            sum_rows(sums + k * n, pixel + k * right, down, at.rows, row_weights, at_once * n);
          if (scales_read)
            for (int64_t k = 0; k < pixels * n; ++k) sums[k] *= scales_read[span.begin + k / n];
        }
        T* pixel = at.to + first * channels + c;
        for (int64_t j = first; j < next; ++j, pixel += channels) {
          const Range window = windows[j - first];
          const int64_t count = window.end - window.begin;
          const A scale = scales_written ? at.scale * scales_written[j] : at.scale;
          const A* in_window = sums + (window.begin - span.begin) * n;
          if (count <= 0)
            for (int64_t k = 0; k < n; k += all) store_n(pixel + k, vec<A>{}, min_of(all, n - k));
          else if (j >= spilling)
            sum_columns<false>(pixel, in_window, count, scale, n);
          else
            sum_columns<true>(pixel, in_window, count, scale, n);
        }
      }
    }
  }
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
