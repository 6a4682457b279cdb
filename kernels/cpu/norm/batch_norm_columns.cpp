// Batch normalisation of columns (channels_last, and inputs of two dimensions): rows of channels contiguous
// elements. Small planes of NCHW go by the same walks: an image is one row, whose columns are channels * spatial
// elements, folded by channel at the end.
//
// Sums run down the columns, a vector of channels at a time, so no lane ever meets another. Where the
// channels are no multiple of the vector, several rows are taken as one long row whose length is (3 channels
// and 16 lanes: 16 rows as one of 48), each lane of it with its own sums and coefficients, folded by channel
// at the end.
//
// Rows are cut into segments of a fixed size, each with its own partial sums, so the result does not depend
// on the number of threads. Statistics survive mean >> deviation: every kSubRows rows the float sums, taken
// about the running mean, are merged into float64 (Chan, Golub, LeVeque 1979).
#include "kernels/cpu/norm/batch_norm_columns.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kShiftRows = 16;  // rows whose mean is the first shift: square root of kSubRows

// ---- statistics

// Of each column: (before values, total, m2) and (now values: their sums about shift) become one; shift the mean of all.
template <class A>
__attribute__((noinline)) void merge_moments(int64_t before, int64_t now, int64_t columns,
                                             A* __restrict shift, const A* __restrict sum,
                                             const A* __restrict squares, double* __restrict total,
                                             double* __restrict m2) {
  const double count = static_cast<double>(now), all = static_cast<double>(before + now), per_all = 1 / all;
  const double per_before = before ? 1 / static_cast<double>(before) : 0, per_count = 1 / count;
  const double weight = static_cast<double>(before) * count * per_all;
  for (int64_t j = 0; before == 0 && j < columns; ++j) total[j] = m2[j] = 0;
  for (int64_t j = 0; j < columns; ++j) {  // no branch and no division: vectors
    const double d = sum[j], d2 = squares[j], part = static_cast<double>(shift[j]) * count + d;
    const double part_m2 = d2 - d * d * per_count, delta = part * per_count - total[j] * per_before;
    total[j] += part;
    m2[j] += (part_m2 < 0 ? 0 : part_m2) + delta * delta * weight;
    const A next = static_cast<A>(total[j] * per_all);
    shift[j] = next - next == 0 ? next : 0;
  }
}

// Partial total and m2 of columns [begin, end) of a segment.
template <class T>
void segment_moments(const BatchNormParams& p, const Columns& k, int64_t segment, int64_t begin,
                     int64_t end) {
  using A = acc_t<T>;
  alignas(64) A shift[kStripe], sum[kStripe], squares[kStripe];
  const Scratch scratch(p, k);
  double* total = scratch.first + segment * k.width + begin;
  double* m2 = scratch.second + segment * k.width + begin;
  const int64_t rows = k.rows_of(segment), first_row = segment * k.segment_rows, columns = end - begin;
  for (int64_t r = 0; r < rows; r += kSubRows) {
    const int64_t count = min_of(kSubRows, rows - r), sample = min_of(kShiftRows, count);
    over_columns<A>(0, columns, [&](auto tag, int64_t j, int64_t tail) PYDL_INLINE_LAMBDA {
      constexpr int kVectors = decltype(tag)::group;
      vec<A> about[kVectors], s[kVectors]{}, s2[kVectors]{};
      const int64_t ahead = ahead_of<T>(p.input, k);
      auto x_at = [&](int64_t row, int v) PYDL_INLINE_LAMBDA {
        const T* x = row_of<const T>(p.input, k, first_row + r + row) + begin + j + v * lanes<A>;
        if (v * lanes<A> * sizeof(T) % 64 == 0) prefetch_far_ahead(x, ahead);
        return load_some(x, tail);
      };
      if (r == 0) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) about[v] = vec<A>{};
        for (int64_t row = 0; row < sample; ++row)
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) about[v] += x_at(row, v);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          about[v] *= static_cast<A>(1) / static_cast<A>(sample);
          about[v] = about[v] - about[v] == 0 ? about[v] : vec<A>{};  // inf and nan go through the sums
        }
      } else {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          about[v] = load_n(shift + j + v * lanes<A>, tail ? tail : lanes<A>);
      }
      for (int64_t row = 0; row < count; ++row)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const vec<A> d = x_at(row, v) - about[v];
          s[v] += d;
          s2[v] += d * d;
        }
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t n = tail ? tail : lanes<A>;
        store_n(shift + j + v * lanes<A>, about[v], n);
        store_n(sum + j + v * lanes<A>, s[v], n);
        store_n(squares + j + v * lanes<A>, s2[v], n);
      }
    });
    merge_moments(r, count, columns, shift, sum, squares, total, m2);
  }
}

// An element of the rest.
template <class T>
double rest_at(const BatchNormParams& p, const Columns& k, int64_t row, int64_t c) {
  return load_n(row_of<const T>(p.input, k, k.rows) + row * p.input.row_stride + c, 1)[0];
}

// Totals, then squares about the mean: no division in the chain of additions.
void combine_moments(const BatchNormParams& p, const Columns& k, decltype(&rest_at<float>) rest_at) {
  const Scratch scratch(p, k);
  const double n = static_cast<double>(p.batch * p.spatial);
  double *mean = p.mean, *m2 = p.var;
  for (int64_t c = 0; c < p.channels; ++c) mean[c] = m2[c] = 0;
  for (int64_t i = 0; i < k.segments * k.fold; ++i)
    for (int64_t c = 0; c < p.channels; ++c) mean[c] += scratch.first[i * p.channels + c];
  for (int64_t row = 0; row < k.rest; ++row)
    for (int64_t c = 0; c < p.channels; ++c) mean[c] += rest_at(p, k, row, c);
  for (int64_t c = 0; c < p.channels; ++c) mean[c] /= n;
  for (int64_t i = 0; i < k.segments * k.fold; ++i) {
    const double count = static_cast<double>(k.rows_of(i / k.fold)), per_count = 1 / count;
    for (int64_t c = 0; c < p.channels; ++c) {
      const double d = scratch.first[i * p.channels + c] * per_count - mean[c];
      m2[c] += scratch.second[i * p.channels + c] + count * d * d;
    }
  }
  for (int64_t row = 0; row < k.rest; ++row)
    for (int64_t c = 0; c < p.channels; ++c) {
      const double d = rest_at(p, k, row, c) - mean[c];
      m2[c] += d * d;
    }
  finish_moments_of_channels(p, scratch.first, scratch.second);
}

// ---- application

template <Activation kActivation, class T>
void apply_row(const BatchNormParams& p, const Columns& k, Coefficients<acc_t<T>> co, int64_t row,
               int64_t width) {
  const Activation activation = activation_of<kActivation>(p);
  const T* x = row_of<const T>(p.input, k, row);
  T* y = row_of<T>(p.output, k, row);
  const int64_t ahead = ahead_of<T>(p.input, k);  // rows come downwards
  if (p.residual.data) {
    const T* r = row_of<const T>(p.residual, k, row);
    const int64_t ahead_r = ahead_of<T>(p.residual, k);
    store_row(y, width, p.stream, [&](int64_t j, int64_t count) PYDL_INLINE_LAMBDA {
      prefetch_far_ahead(x + j, -ahead);
      prefetch_far_ahead(r + j, -ahead_r);
      return activated(normalise(load_some(x + j, count), co, j, count) + load_some(r + j, count),
                       activation);
    });
  } else {
    store_row(y, width, p.stream, [&](int64_t j, int64_t count) PYDL_INLINE_LAMBDA {
      prefetch_far_ahead(x + j, -ahead);
      return activated(normalise(load_some(x + j, count), co, j, count), activation);
    });
  }
}

// What depends on the type in memory; who does what (forward) exists once for each type of sums.
template <class A>
struct Walks {
  decltype(&segment_moments<A>) segment;
  decltype(&rest_at<A>) rest;
  decltype(&apply_row<Activation::none, A>) row;
};
template <class T>
Walks<acc_t<T>> walks_of(Activation activation) {
  Walks<acc_t<T>> walks{&segment_moments<T>, &rest_at<T>, nullptr};
  dispatch_activation<T>(activation, [&](auto tag) { walks.row = &apply_row<decltype(tag)::activation, T>; });
  return walks;
}

template <class A>
void forward(const BatchNormParams& p, bool stats, bool apply, const Walks<A>& walks,
             const Parallel& parallel) {
  const Columns k(p, lanes<A>);
  if (stats) {
    over_segments(k, parallel, [&](int64_t segment, int64_t begin, int64_t end) {
      walks.segment(p, k, segment, begin, end);
    });
    combine_moments(p, k, walks.rest);
  }
  if (!apply) return;
  const Scratch scratch(p, k);
  Coefficients<A> co(scratch, k);
  co.fill(p, k, scratch);
  over_rows(p, k, parallel, [&](int64_t row, int64_t width) { walks.row(p, k, co, row, width); });
}

// Sums of a stripe's columns become moments of its channels.
template <class A>
void fold_moments(const BatchNormParams& p, const PlaneStripe<A>& stripe) {
  const double rows = static_cast<double>(p.batch), n = static_cast<double>(p.batch * p.spatial);
  const double* total = stripe.sums;
  const double* m2 = total + stripe.columns.width;
  for (int64_t c = stripe.first; c < stripe.last; ++c, total += p.spatial, m2 += p.spatial) {
    double mean = 0, squares = 0;
    for (int64_t j = 0; j < p.spatial; ++j) mean += total[j];
    mean /= n;
    for (int64_t j = 0; j < p.spatial; ++j) {
      const double d = total[j] * (1 / rows) - mean;
      squares += m2[j] + rows * d * d;
    }
    finish_moments(p, c, mean, squares);
  }
}

template <class A>
void planes_forward(const BatchNormParams& p, bool stats, bool apply, const Walks<A>& walks,
                    const Parallel& parallel) {
  over_planes<A>(p, parallel, [&](PlaneStripe<A>& stripe) {
    const Columns& k = stripe.columns;
    if (stats) {
      walks.segment(stripe.params, k, 0, 0, k.width);
      fold_moments(p, stripe);
    }
    if (!apply) return;
    stripe.fill(p);
    for (int64_t row = k.rows; row-- > 0;) walks.row(stripe.params, k, stripe.coefficients, row, k.width);
  });
}

}  // namespace

int64_t batch_norm_columns_scratch(const BatchNormParams& p) {
  int64_t bytes = 0;
  dispatch_dtype(p.dtype, [&](auto type) {
    using A = acc_t<decltype(type)>;
    const Columns k(p, lanes<A>);
    bytes = 2 * max_of(k.segments, 1) * k.width * static_cast<int64_t>(sizeof(double)) +
            5 * k.width * static_cast<int64_t>(sizeof(A));
  });
  return bytes;
}

void batch_norm_columns_forward(const BatchNormParams& p, bool stats, bool apply, const Parallel& parallel) {
  dispatch_storage(p.dtype, [&](auto type) {
    using T = decltype(type);
    forward<acc_t<T>>(p, stats, apply, walks_of<T>(p.activation), parallel);
  });
}

void batch_norm_planes_forward(const BatchNormParams& p, bool stats, bool apply, const Parallel& parallel) {
  dispatch_storage(p.dtype, [&](auto type) {
    using T = decltype(type);
    planes_forward<acc_t<T>>(p, stats, apply, walks_of<T>(p.activation), parallel);
  });
}

}  // namespace pydl::cpu::PYDL_ISA
