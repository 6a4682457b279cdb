// What forward and backward of batch_norm's columns share (batch_norm_columns.cpp says what columns are): the
// shape as the kernel sees it, the scratch, the coefficients, the walks.
#pragma once

#include "kernels/cpu/norm/batch_norm.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kSubRows = 256;     // rows that are summed in the accumulation type
constexpr int64_t kSegment = 65536;   // least elements of a segment
constexpr int64_t kMaxSegments = 64;  // partial sums stay small beside the input
constexpr int64_t kStripe = 512;      // columns of a task
constexpr int64_t kMaxFolded = 512;   // more channels than this are not folded: the tail is a small part
constexpr int64_t kGrain = 65536;     // elements of a task of the application: a few µs from the cache
constexpr int kGroup =
    kVectorBytes == 64 ? 4 : 2;  // vectors that are summed side by side: what the registers hold

// The shape as the kernel sees it: `rows` rows of `width` elements, row j of which is `fold` rows of the
// tensor, and `rest` rows of the tensor that make no whole one.
struct Columns {
  int64_t fold, width, rows, rest, segment_rows, segments, stripes;

  Columns(const BatchNormParams& p, int64_t lane_count) {
    const int64_t total = p.batch * p.spatial;
    fold = 1;
    if (p.channels % lane_count != 0 && p.channels <= kMaxFolded && dense(p)) {
      fold = lane_count;  // divided by the greatest power of two that channels and lanes share
      for (int64_t c = p.channels; c % 2 == 0; c /= 2) fold /= 2;
      if (total < fold) fold = 1;
    }
    width = p.channels * fold;
    rows = total / fold;
    rest = total % fold;
    const int64_t least = max_of(ceil_div(kSegment, width), ceil_div(rows, kMaxSegments));
    segment_rows = ceil_div(least, kSubRows) * kSubRows;
    segments = ceil_div(rows, segment_rows);
    stripes = ceil_div(width, kStripe);
  }

  // one segment whose rows are no longer than a stripe
  Columns(int64_t rows_, int64_t width_)
      : fold(1), width(width_), rows(rows_), rest(0), segment_rows(rows_), segments(1), stripes(1) {}

  static bool dense(const BatchNormParams& p) {
    auto is_dense = [&](const BatchNormView& view) { return !view.data || view.row_stride == p.channels; };
    return is_dense(p.input) && is_dense(p.residual) && is_dense(p.output) && is_dense(p.grad_output) &&
           is_dense(p.grad_input) && is_dense(p.grad_residual);
  }
  int64_t rows_of(int64_t segment) const { return min_of(segment_rows, rows - segment * segment_rows); }
};

// Two numbers per lane and segment, in float64: (total, m2) of the statistics, (sum, shifted) of the
// gradient; then the coefficients of the application, five per lane.
struct Scratch {
  double *first, *second;
  char* coefficients;
  Scratch(const BatchNormParams& p, const Columns& k)
      : first(static_cast<double*>(p.scratch)),
        second(first + max_of(k.segments, 1) * k.width),
        coefficients(reinterpret_cast<char*>(second + max_of(k.segments, 1) * k.width)) {}
};

template <class A>
struct Coefficients {
  A *shift, *scale, *offset, *slope, *constant;  // (width)

  Coefficients(void* room, int64_t each)
      : shift(static_cast<A*>(room)),
        scale(shift + each),
        offset(scale + each),
        slope(offset + each),
        constant(slope + each) {}
  Coefficients(const Scratch& scratch, const Columns& k) : Coefficients(scratch.coefficients, k.width) {}

  // both use the room of the partial sums
  __attribute__((noinline)) void fill(const BatchNormParams& p, const Columns& k, const Scratch& scratch) {
    affine_of_channels(p, scratch.first, scratch.second, shift, scale, offset);
    repeat(shift, p.channels, k.width);
    repeat(scale, p.channels, k.width);
    repeat(offset, p.channels, k.width);
  }
  __attribute__((noinline)) void fill_gradient(const BatchNormParams& p, const Columns& k,
                                               const Scratch& scratch) {
    if (!p.training) return;
    affine_gradient_of_channels(p, scratch.first, slope, constant);
    repeat(slope, p.channels, k.width);
    repeat(constant, p.channels, k.width);
  }

 private:
  static void repeat(A* array, int64_t channels, int64_t width) {
    for (int64_t j = channels; j < width; ++j) array[j] = array[j - channels];
  }
};

template <class T>
PYDL_INLINE T* row_of(const BatchNormView& view, const Columns& k, int64_t row) {
  return static_cast<T*>(view.data) + row * k.fold * view.row_stride;
}

template <class T>
PYDL_INLINE vec<acc_t<T>> load_some(const T* x, int64_t count) {
  return count ? load_n(x, count) : load(x);
}

// From a row to one about kFarAheadBytes on, in elements.
template <class T>
PYDL_INLINE int64_t ahead_of(const BatchNormView& view, const Columns& k) {
  return ceil_div(kFarAheadBytes, k.width * static_cast<int64_t>(sizeof(T))) * k.fold * view.row_stride;
}

// Whether every row begins at the boundary of a whole vector, as stores past the caches want.
template <class T>
bool vectors_aligned(const BatchNormView& view, const Columns& k) {
  constexpr uint64_t bytes = lanes<acc_t<T>> * sizeof(T);
  return reinterpret_cast<uintptr_t>(view.data) % bytes == 0 &&
         static_cast<uint64_t>(k.fold * view.row_stride) * sizeof(T) % bytes == 0;
}

// ---- small planes of NCHW: an image is one row, whose columns are channels * spatial elements

// Cut into stripes of whole channels, each of which a task takes through sums and application; they begin at a vector's
// boundary where they can. The shape alone decides on them.
struct Planes {
  int64_t channels, count;  // of a stripe; stripes

  Planes(const BatchNormParams& p, int64_t lane_count) {
    int64_t aligned = lane_count;  // channels of the fewest whole vectors
    for (int64_t s = p.spatial; s % 2 == 0 && aligned > 1; s /= 2) aligned /= 2;
    if (aligned * p.spatial > kStripe) aligned = 1;
    const int64_t units = ceil_div(p.channels, aligned), most = max_of(kStripe / (aligned * p.spatial), 1);
    count = ceil_div(units, min_of(most, max_of(units / kLeastStripes, 1)));
    channels = ceil_div(units, count) * aligned;
    count = ceil_div(p.channels, channels);
  }

 private:
  static constexpr int64_t kLeastStripes = 4;
};

// One of them: the batch norm of its columns, with what that needs in the place of scratch.
template <class A>
struct PlaneStripe {
  const int64_t first, last, spatial;  // channels; elements of a channel in a row
  const Columns columns;
  BatchNormParams params;
  const Coefficients<A> coefficients;
  double sums[2 * kStripe];  // as Scratch has them

  PlaneStripe(const BatchNormParams& p, const Planes& planes, int64_t i)
      : first(i * planes.channels),
        last(min_of(first + planes.channels, p.channels)),
        spatial(p.spatial),
        columns(p.batch, (last - first) * p.spatial),
        params(p),
        coefficients(room_, kRoom) {
    params.channels = columns.width;
    params.spatial = 1;
    params.scratch = sums;
    const int64_t size = p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2;
    BatchNormView* const views[] = {&params.input,       &params.residual,   &params.output,
                                    &params.grad_output, &params.grad_input, &params.grad_residual};
    for (BatchNormView* view : views)
      if (view->data) view->data = static_cast<char*>(view->data) + first * spatial * size;
  }
  PlaneStripe(const PlaneStripe&) = delete;
  PlaneStripe& operator=(const PlaneStripe&) = delete;

  void fill(const BatchNormParams& p) {
    for (int64_t c = first; c < last; ++c) {
      const Affine<A> affine = affine_at<A>(p, c);
      spread(coefficients.shift, c, affine.shift);
      spread(coefficients.scale, c, affine.scale);
      spread(coefficients.offset, c, affine.offset);
    }
  }
  void fill_gradient(const BatchNormParams& p) {
    for (int64_t c = first; p.training && c < last; ++c) {
      const AffineGradient<A> affine = affine_gradient_at<A>(p, c);
      spread(coefficients.slope, c, affine.slope);
      spread(coefficients.constant, c, affine.constant);
    }
  }

 private:
  static constexpr int64_t kRoom = kStripe + lanes<A>;
  alignas(64) A room_[5 * kRoom];

  // Whole vectors: what is beyond the channel is written again by the next.
  PYDL_INLINE void spread(A* to, int64_t c, A value) const {
    A* const begin = to + (c - first) * spatial;
    for (int64_t j = 0; j < spatial; j += lanes<A>) store(begin + j, broadcast(value));
  }
};

// body(stripe) over all of them
template <class A, class F>
void over_planes(const BatchNormParams& p, const Parallel& parallel, const F& body) {
  const Planes planes(p, lanes<A>);
  parallel(planes.count, ceil_div(kGrain, planes.channels * p.spatial * p.batch),
           [&](int64_t begin, int64_t end) {
             for (int64_t i = begin; i < end; ++i) {
               PlaneStripe<A> stripe(p, planes, i);
               body(stripe);
             }
             stream_fence();
           });
}

// body(group, j, count): columns [j, j + group * lanes) of a stripe, with count = 0, or one vector of which
// the first count lanes exist.
template <class A>
struct One {
  static constexpr int group = 1;
};
template <class A>
struct Many {
  static constexpr int group = kGroup;
};
template <class A, class F>
PYDL_INLINE void over_columns(int64_t begin, int64_t end, const F& body) {
  int64_t j = begin;
  for (; j + kGroup * lanes<A> <= end; j += kGroup * lanes<A>) body(Many<A>{}, j, 0);
  for (; j + lanes<A> <= end; j += lanes<A>) body(One<A>{}, j, 0);
  if (j < end) body(One<A>{}, j, end - j);
}

// ---- walks

template <class F>
void over_segments(const Columns& k, const Parallel& parallel, const F& body) {
  parallel(k.segments * k.stripes, 1, [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      const int64_t begin = j % k.stripes * kStripe;
      body(j / k.stripes, begin, min_of(begin + kStripe, k.width));
    }
    stream_fence();
  });
}

template <class A>
PYDL_INLINE vec<A> normalise(vec<A> x, const Coefficients<A>& k, int64_t j, int64_t count) {
  return (x - load_some(k.shift + j, count)) * load_some(k.scale + j, count) + load_some(k.offset + j, count);
}

template <class T, class F>
PYDL_INLINE void store_row(T* y, int64_t n, bool past_cache, const F& value) {
  using A = acc_t<T>;
  int64_t j = 0;
  if (past_cache && reinterpret_cast<uintptr_t>(y) % (lanes<A> * sizeof(T)) == 0) {
    for (; j + lanes<A> <= n; j += lanes<A>) stream(y + j, value(j, 0));
  } else {
    for (; j + lanes<A> <= n; j += lanes<A>) store(y + j, value(j, 0));
  }
  if (j < n) store_n(y + j, value(j, n - j), n - j);
}

// body(row, width) over whole rows and the rest, each task from its last row, which may still be in the
// cache.
template <class F>
void over_rows(const BatchNormParams& p, const Columns& k, const Parallel& parallel, const F& body) {
  const int64_t all = k.rows + (k.rest > 0);
  parallel(all, ceil_div(kGrain, k.width), [&](int64_t first, int64_t last) {
    for (int64_t row = last; row-- > first;) body(row, row == k.rows ? k.rest * p.channels : k.width);
    stream_fence();
  });
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
