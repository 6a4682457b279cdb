// Batch normalisation of columns (channels_last, and inputs of two dimensions): rows of channels contiguous
// elements.
//
// Sums run down the columns, a vector of channels at a time, so no lane ever meets another. Where the
// channels are no multiple of the vector, several rows are taken as one long row whose length is (3 channels
// and 16 lanes: 16 rows as one of 48), each lane of it with its own sums and coefficients, folded by channel
// at the end.
//
// Rows are cut into segments of a fixed size, each with its own partial sums, so the result does not depend
// on the number of threads. Statistics survive mean >> deviation: every kSubRows rows the float sums, taken
// about the running mean, are merged into float64 (Chan, Golub, LeVeque 1979).
#include "kernels/cpu/batch_norm.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kSubRows = 256;     // rows that are summed in the accumulation type
constexpr int64_t kShiftRows = 16;    // rows whose mean is the first shift: square root of kSubRows
constexpr int64_t kSegment = 65536;   // least elements of a segment
constexpr int64_t kMaxSegments = 64;  // partial sums stay small beside the input
constexpr int64_t kStripe = 512;      // columns of a task
constexpr int64_t kMaxFolded = 512;   // more channels than this are not folded: the tail is a small part
constexpr int64_t kGrain = 16384;     // elements of a task of the application
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
        second(first + k.segments * k.width),
        coefficients(reinterpret_cast<char*>(second + k.segments * k.width)) {}
};

template <class A>
struct Coefficients {
  A *shift, *scale, *offset, *slope, *constant;  // (width)

  Coefficients(const Scratch& scratch, const Columns& k)
      : shift(reinterpret_cast<A*>(scratch.coefficients)),
        scale(shift + k.width),
        offset(scale + k.width),
        slope(offset + k.width),
        constant(slope + k.width) {}

  void fill(const BatchNormParams& p, const Columns& k) {
    for (int64_t c = 0; c < p.channels; ++c) {
      const Affine<A> affine = affine_at<A>(p, c);
      shift[c] = affine.shift, scale[c] = affine.scale, offset[c] = affine.offset;
    }
    repeat(shift, p.channels, k.width);
    repeat(scale, p.channels, k.width);
    repeat(offset, p.channels, k.width);
  }
  void fill_gradient(const BatchNormParams& p, const Columns& k) {
    for (int64_t c = 0; c < p.channels; ++c) {
      const AffineGradient<A> g = p.training ? affine_gradient_at<A>(p, c) : AffineGradient<A>{};
      slope[c] = g.slope, constant[c] = g.constant;
    }
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

// ---- statistics

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
      auto x_at = [&](int64_t row, int v) PYDL_INLINE_LAMBDA {
        return load_some(row_of<const T>(p.input, k, first_row + r + row) + begin + j + v * lanes<A>, tail);
      };
      if (r == 0) {
        for (int v = 0; v < kVectors; ++v) about[v] = vec<A>{};
        for (int64_t row = 0; row < sample; ++row)
          for (int v = 0; v < kVectors; ++v) about[v] += x_at(row, v);
        for (int v = 0; v < kVectors; ++v) {
          about[v] *= static_cast<A>(1) / static_cast<A>(sample);
          about[v] = about[v] - about[v] == 0 ? about[v] : vec<A>{};  // inf and nan go through the sums
        }
      } else {
        for (int v = 0; v < kVectors; ++v)
          about[v] = load_n(shift + j + v * lanes<A>, tail ? tail : lanes<A>);
      }
      for (int64_t row = 0; row < count; ++row)
        for (int v = 0; v < kVectors; ++v) {
          const vec<A> d = x_at(row, v) - about[v];
          s[v] += d;
          s2[v] += d * d;
        }
      for (int v = 0; v < kVectors; ++v) {
        const int64_t n = tail ? tail : lanes<A>;
        store_n(shift + j + v * lanes<A>, about[v], n);
        store_n(sum + j + v * lanes<A>, s[v], n);
        store_n(squares + j + v * lanes<A>, s2[v], n);
      }
    });
    // merge: (r values, total, m2) and (count values, ...)
    const double before = static_cast<double>(r), now = static_cast<double>(count), after = before + now;
    const double per_before = r ? 1 / before : 0, weight = before * now / after;
    for (int64_t j = 0; j < columns; ++j) {
      const double d = sum[j], d2 = squares[j], part = static_cast<double>(shift[j]) * now + d;
      const double part_m2 = d2 - d * d / now;
      const double had = r ? total[j] : 0, had_m2 = r ? m2[j] : 0;
      const double delta = part / now - had * per_before;
      total[j] = had + part;
      m2[j] = had_m2 + (part_m2 < 0 ? 0 : part_m2) + delta * delta * weight;
      const A next = static_cast<A>(total[j] / after);
      shift[j] = next - next == 0 ? next : 0;
    }
  }
}

// Totals, then squares about the mean: no division in the chain of additions.
template <class T>
void combine_moments(const BatchNormParams& p, const Columns& k) {
  const Scratch scratch(p, k);
  const double n = static_cast<double>(p.batch * p.spatial);
  auto rest_at = [&](int64_t row, int64_t c) {
    return static_cast<double>(
        load_n(row_of<const T>(p.input, k, k.rows) + row * p.input.row_stride + c, 1)[0]);
  };
  double *mean = p.mean, *m2 = p.var;
  for (int64_t c = 0; c < p.channels; ++c) mean[c] = m2[c] = 0;
  for (int64_t i = 0; i < k.segments * k.fold; ++i)
    for (int64_t c = 0; c < p.channels; ++c) mean[c] += scratch.first[i * p.channels + c];
  for (int64_t row = 0; row < k.rest; ++row)
    for (int64_t c = 0; c < p.channels; ++c) mean[c] += rest_at(row, c);
  for (int64_t c = 0; c < p.channels; ++c) mean[c] /= n;
  for (int64_t i = 0; i < k.segments * k.fold; ++i) {
    const double count = static_cast<double>(k.rows_of(i / k.fold)), per_count = 1 / count;
    for (int64_t c = 0; c < p.channels; ++c) {
      const double d = scratch.first[i * p.channels + c] * per_count - mean[c];
      m2[c] += scratch.second[i * p.channels + c] + count * d * d;
    }
  }
  for (int64_t row = 0; row < k.rest; ++row)
    for (int64_t c = 0; c < p.channels; ++c)
      m2[c] += (rest_at(row, c) - mean[c]) * (rest_at(row, c) - mean[c]);
  for (int64_t c = 0; c < p.channels; ++c) finish_moments(p, c, mean[c], m2[c]);
}

// ---- application

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

template <Activation kActivation, class T>
void apply_row(const BatchNormParams& p, const Columns& k, Coefficients<acc_t<T>> co, int64_t row,
               int64_t width) {
  const T* x = row_of<const T>(p.input, k, row);
  T* y = row_of<T>(p.output, k, row);
  if (p.residual.data) {
    const T* r = row_of<const T>(p.residual, k, row);
    store_row(y, width, p.stream, [&](int64_t j, int64_t count) PYDL_INLINE_LAMBDA {
      return activate<kActivation>(normalise(load_some(x + j, count), co, j, count) +
                                   load_some(r + j, count));
    });
  } else {
    store_row(y, width, p.stream, [&](int64_t j, int64_t count) PYDL_INLINE_LAMBDA {
      return activate<kActivation>(normalise(load_some(x + j, count), co, j, count));
    });
  }
}

// ---- gradient

template <BatchNormGradient kGradient, class T>
PYDL_INLINE vec<acc_t<T>> gradient_at(const T* g, const T* y, vec<acc_t<T>> x, Coefficients<acc_t<T>> co,
                                      int64_t j, int64_t count) {
  const vec<acc_t<T>> grad = pin(load_some(g, count));
  if constexpr (kGradient == BatchNormGradient::relu_input)
    return activation_gradient<kGradient>(grad, normalise(x, co, j, count));
  if constexpr (reads_output(kGradient)) return activation_gradient<kGradient>(grad, load_some(y, count));
  return grad;
}

// Partial sums of gz and gz * (x - shift) for columns [begin, end) of a segment.
template <BatchNormGradient kGradient, class T>
void segment_gradient(const BatchNormParams& p, const Columns& k, Coefficients<acc_t<T>> co, int64_t segment,
                      int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const Scratch scratch(p, k);
  double* sum = scratch.first + segment * k.width;
  double* shifted = scratch.second + segment * k.width;
  const int64_t rows = k.rows_of(segment), first_row = segment * k.segment_rows;
  for (int64_t r = 0; r < rows; r += kSubRows) {
    const int64_t count = min_of(kSubRows, rows - r);
    over_columns<A>(begin, end, [&](auto tag, int64_t j, int64_t tail) PYDL_INLINE_LAMBDA {
      constexpr int kVectors = decltype(tag)::group;
      vec<A> s[kVectors]{}, sx[kVectors]{};
      for (int64_t row = first_row + r; row < first_row + r + count; ++row) {
        const T* x = row_of<const T>(p.input, k, row) + j;
        const T* g = row_of<const T>(p.grad_output, k, row) + j;
        const T* y = p.output.data ? row_of<const T>(p.output, k, row) + j : nullptr;
        for (int v = 0; v < kVectors; ++v) {
          const int64_t at = v * lanes<A>;
          const vec<A> xs = load_some(x + at, tail);
          const vec<A> gz = gradient_at<kGradient>(g + at, y + at, xs, co, j + at, tail);
          s[v] += gz;
          sx[v] += gz * (xs - load_some(co.shift + j + at, tail));
        }
      }
      for (int v = 0; v < kVectors; ++v)
        for (int64_t i = 0, at = j + v * lanes<A>; i < (tail ? tail : lanes<A>); ++i) {
          sum[at + i] = (r ? sum[at + i] : 0) + static_cast<double>(s[v][i]);
          shifted[at + i] = (r ? shifted[at + i] : 0) + static_cast<double>(sx[v][i]);
        }
    });
  }
}

template <BatchNormGradient kGradient, class T>
void combine_gradient(const BatchNormParams& p, const Columns& k, Coefficients<acc_t<T>> co) {
  using A = acc_t<T>;
  const Scratch scratch(p, k);
  double *sum = p.sum_grad, *shifted = p.sum_grad_xhat;
  for (int64_t c = 0; c < p.channels; ++c) sum[c] = shifted[c] = 0;
  for (int64_t i = 0; i < k.segments * k.fold; ++i)
    for (int64_t c = 0; c < p.channels; ++c) {
      sum[c] += scratch.first[i * p.channels + c];
      shifted[c] += scratch.second[i * p.channels + c];
    }
  for (int64_t j = 0; j < k.rest * p.channels; ++j) {
    const int64_t c = j % p.channels;
    const vec<A> x = load_n(row_of<const T>(p.input, k, k.rows) + j, 1);
    const T* y = p.output.data ? row_of<const T>(p.output, k, k.rows) + j : nullptr;
    const A gz = gradient_at<kGradient>(row_of<const T>(p.grad_output, k, k.rows) + j, y, x, co, c, 1)[0];
    sum[c] += static_cast<double>(gz);
    shifted[c] += static_cast<double>(gz * (x[0] - co.shift[c]));
  }
  for (int64_t c = 0; c < p.channels; ++c) finish_gradient_sums<A>(p, c, sum[c], shifted[c]);
}

template <BatchNormGradient kGradient, class T>
void gradient_row(const BatchNormParams& p, const Columns& k, Coefficients<acc_t<T>> co, int64_t row,
                  int64_t width) {
  using A = acc_t<T>;
  const T* x = row_of<const T>(p.input, k, row);
  const T* g = row_of<const T>(p.grad_output, k, row);
  const T* y = p.output.data ? row_of<const T>(p.output, k, row) : nullptr;
  if (p.grad_residual.data)
    store_row(row_of<T>(p.grad_residual, k, row), width, p.stream,
              [&](int64_t j, int64_t count) PYDL_INLINE_LAMBDA {
                return gradient_at<kGradient>(g + j, y + j, load_some(x + j, count), co, j, count);
              });
  if (p.grad_input.data == nullptr) return;
  T* out = row_of<T>(p.grad_input, k, row);
  if (p.training) {
    store_row(out, width, p.stream, [&](int64_t j, int64_t count) PYDL_INLINE_LAMBDA {
      const vec<A> xs = load_some(x + j, count);
      const vec<A> gz = gradient_at<kGradient>(g + j, y + j, xs, co, j, count);
      return gz * load_some(co.scale + j, count) +
             ((xs - load_some(co.shift + j, count)) * load_some(co.slope + j, count) +
              load_some(co.constant + j, count));
    });
  } else {
    store_row(out, width, p.stream, [&](int64_t j, int64_t count) PYDL_INLINE_LAMBDA {
      return gradient_at<kGradient>(g + j, y + j, load_some(x + j, count), co, j, count) *
             load_some(co.scale + j, count);
    });
  }
}

// ---- passes

template <class F>
void over_segments(const Columns& k, const Parallel& parallel, const F& body) {
  parallel(k.segments * k.stripes, 1, [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      const int64_t begin = j % k.stripes * kStripe;
      body(j / k.stripes, begin, min_of(begin + kStripe, k.width));
    }
  });
}

template <class T>
void forward(const BatchNormParams& p, bool stats, bool apply, const Parallel& parallel) {
  using A = acc_t<T>;
  const Columns k(p, lanes<A>);
  if (stats) {
    over_segments(k, parallel, [&](int64_t segment, int64_t begin, int64_t end) {
      segment_moments<T>(p, k, segment, begin, end);
    });
    combine_moments<T>(p, k);
  }
  if (!apply) return;
  Coefficients<A> co(Scratch(p, k), k);
  co.fill(p, k);
  dispatch_activation(p.activation, [&](auto tag) {
    over_rows(p, k, parallel, [&](int64_t row, int64_t width) {
      apply_row<decltype(tag)::activation, T>(p, k, co, row, width);
    });
  });
}

template <class T>
void backward(const BatchNormParams& p, bool reduce, bool apply, const Parallel& parallel) {
  using A = acc_t<T>;
  const Columns k(p, lanes<A>);
  Coefficients<A> co(Scratch(p, k), k);
  co.fill(p, k);
  dispatch_gradient(p.gradient, [&](auto tag) {
    constexpr BatchNormGradient kGradient = decltype(tag)::gradient;
    if (reduce) {
      over_segments(k, parallel, [&](int64_t segment, int64_t begin, int64_t end) {
        segment_gradient<kGradient, T>(p, k, co, segment, begin, end);
      });
      combine_gradient<kGradient, T>(p, k, co);
    }
    if (!apply) return;
    co.fill_gradient(p, k);
    over_rows(p, k, parallel,
              [&](int64_t row, int64_t width) { gradient_row<kGradient, T>(p, k, co, row, width); });
  });
}

}  // namespace

int64_t batch_norm_columns_scratch(const BatchNormParams& p) {
  int64_t bytes = 0;
  dispatch_dtype(p.dtype, [&](auto type) {
    using A = acc_t<decltype(type)>;
    const Columns k(p, lanes<A>);
    bytes = 2 * k.segments * k.width * static_cast<int64_t>(sizeof(double)) +
            5 * k.width * static_cast<int64_t>(sizeof(A));
  });
  return bytes;
}

void batch_norm_columns_forward(const BatchNormParams& p, bool stats, bool apply, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) { forward<decltype(type)>(p, stats, apply, parallel); });
}

void batch_norm_columns_backward(const BatchNormParams& p, bool reduce, bool apply,
                                 const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) { backward<decltype(type)>(p, reduce, apply, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
