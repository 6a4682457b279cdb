// The gradient of batch_norm_columns.cpp: sums over segments of rows, then a second walk that applies them.
#include "kernels/cpu/norm/batch_norm_columns.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// ---- gradient

template <class T>
PYDL_INLINE vec<acc_t<T>> gradient_at(BatchNormGradient gradient, const T* g, const T* y, vec<acc_t<T>> x,
                                      Coefficients<acc_t<T>> co, int64_t j, int64_t count) {
  const vec<acc_t<T>> grad = pin(load_some(g, count));
  if (gradient == BatchNormGradient::relu_input)
    return activation_gradient(grad, normalise(x, co, j, count), gradient);
  if (reads_output(gradient)) return activation_gradient(grad, load_some(y, count), gradient);
  return grad;
}

// Out of line: once for hundreds of rows.
template <class A>
__attribute__((noinline)) void add_lanes(const A* lane, int64_t n, bool add, double* sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] = (add ? sum[i] : 0) + static_cast<double>(lane[i]);
}

// Partial sums of gz and gz * (x - shift) for columns [begin, end) of a segment. Where the gradient reads the output, gz is
// written to grad_residual on the way, if there is one.
template <BatchNormGradient kGradient, class T>
void segment_gradient(const BatchNormParams& p, const Columns& k, Coefficients<acc_t<T>> co, int64_t segment,
                      int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const BatchNormGradient gradient = gradient_of<kGradient>(p);
  const Scratch scratch(p, k);
  double* sum = scratch.first + segment * k.width;
  double* shifted = scratch.second + segment * k.width;
  const int64_t rows = k.rows_of(segment), first_row = segment * k.segment_rows;
  constexpr bool kMayKeep =
      kGradient == BatchNormGradient::relu_output || (kGradient == kAnyGradient && !kPlain);
  const bool keep = kMayKeep && p.grad_residual.data;
  const bool past_cache = keep && p.stream && vectors_aligned<T>(p.grad_residual, k);
  for (int64_t r = 0; r < rows; r += kSubRows) {
    const int64_t count = min_of(kSubRows, rows - r);
    over_columns<A>(begin, end, [&](auto tag, int64_t j, int64_t tail) PYDL_INLINE_LAMBDA {
      constexpr int kVectors = decltype(tag)::group;
      vec<A> s[kVectors]{}, sx[kVectors]{};
      const int64_t ahead_x = ahead_of<T>(p.input, k), ahead_g = ahead_of<T>(p.grad_output, k);
      const int64_t ahead_y = ahead_of<T>(p.output, k);
      for (int64_t row = first_row + r; row < first_row + r + count; ++row) {
        const T* x = row_of<const T>(p.input, k, row) + j;
        const T* g = row_of<const T>(p.grad_output, k, row) + j;
        const T* y = p.output.data ? row_of<const T>(p.output, k, row) + j : nullptr;
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const int64_t at = v * lanes<A>;
          if (at * sizeof(T) % 64 == 0) {
            prefetch_far_ahead(x + at, ahead_x);
            prefetch_far_ahead(g + at, ahead_g);
            if (reads_output(gradient)) prefetch_far_ahead(y + at, ahead_y);
          }
          const vec<A> xs = load_some(x + at, tail);
          const vec<A> gz = gradient_at<T>(gradient, g + at, y + at, xs, co, j + at, tail);
          if (keep) {
            T* to = row_of<T>(p.grad_residual, k, row) + j + at;
            if (tail)
              store_n(to, gz, tail);
            else
              past_cache ? stream(to, gz) : store(to, gz);
          }
          s[v] += gz;
          sx[v] += gz * (xs - load_some(co.shift + j + at, tail));
        }
      }
      alignas(64) A lane[2][kVectors * lanes<A>];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        store(lane[0] + v * lanes<A>, s[v]);
        store(lane[1] + v * lanes<A>, sx[v]);
      }
      const int64_t n = tail ? tail : kVectors * lanes<A>;
      add_lanes(lane[0], n, r > 0, sum + j);
      add_lanes(lane[1], n, r > 0, shifted + j);
    });
  }
}

// Element j of the rest.
template <class A>
struct Element {
  A x, gz;
};
template <BatchNormGradient kGradient, class T>
Element<acc_t<T>> rest_gradient(const BatchNormParams& p, const Columns& k, Coefficients<acc_t<T>> co,
                                int64_t j) {
  const BatchNormGradient gradient = gradient_of<kGradient>(p);
  const auto x = load_n(row_of<const T>(p.input, k, k.rows) + j, 1);
  const T* y = p.output.data ? row_of<const T>(p.output, k, k.rows) + j : nullptr;
  const T* g = row_of<const T>(p.grad_output, k, k.rows) + j;
  return {x[0], gradient_at<T>(gradient, g, y, x, co, j % p.channels, 1)[0]};
}

// What depends on the activation and on the type in memory; who does what (backward) exists once for each type of sums.
template <class A>
struct Walks {
  using Co = Coefficients<A>;
  void (*segment)(const BatchNormParams&, const Columns&, Co, int64_t segment, int64_t begin, int64_t end);
  Element<A> (*rest)(const BatchNormParams&, const Columns&, Co, int64_t j);
  void (*row)(const BatchNormParams&, const Columns&, Co, int64_t row, int64_t width);
  void (*linear_row)(const BatchNormParams&, const Columns&, Co, int64_t row, int64_t width);
};

template <class A>
void combine_gradient(const BatchNormParams& p, const Columns& k, Coefficients<A> co, const Walks<A>& walks) {
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
    const Element<A> at = walks.rest(p, k, co, j);
    sum[c] += static_cast<double>(at.gz);
    shifted[c] += static_cast<double>(at.gz * (at.x - co.shift[c]));
  }
  finish_gradient_sums_of_channels<A>(p);
}

// Whether the first pass may leave gz in grad_residual for the second to read instead of grad_output and
// output: one stream fewer. ReLU passes or drops the gradient, so that storing gz rounds nothing.
bool keeps_gradient(const BatchNormParams& p) {
  return p.gradient == BatchNormGradient::relu_output && p.grad_residual.data && p.grad_input.data;
}

// A row of one of the gradient's tensors: what it reads, and vectors of it.
template <BatchNormGradient kGradient, class T>
struct GradientRow {
  using A = acc_t<T>;
  const Coefficients<A> co;
  const BatchNormGradient gradient;
  const T *x, *g, *y;
  const int64_t ahead_x, ahead_g, ahead_y;

  GradientRow(const BatchNormParams& p, const Columns& k, Coefficients<A> coefficients, int64_t row)
      : co(coefficients),
        gradient(gradient_of<kGradient>(p)),
        x(row_of<const T>(p.input, k, row)),
        g(row_of<const T>(p.grad_output, k, row)),
        y(p.output.data ? row_of<const T>(p.output, k, row) : nullptr),
        ahead_x(ahead_of<T>(p.input, k)),
        ahead_g(ahead_of<T>(p.grad_output, k)),
        ahead_y(ahead_of<T>(p.output, k)) {}

  PYDL_INLINE vec<A> through_activation(int64_t j, int64_t count, vec<A> xs) const {
    prefetch_far_ahead(x + j, -ahead_x);  // rows come downwards
    prefetch_far_ahead(g + j, -ahead_g);
    if (reads_output(gradient)) prefetch_far_ahead(y + j, -ahead_y);
    return gradient_at<T>(gradient, g + j, y + j, xs, co, j, count);
  }
  PYDL_INLINE vec<A> of_input(int64_t j, int64_t count) const {
    const vec<A> xs = load_some(x + j, count);
    return through_activation(j, count, xs) * load_some(co.scale + j, count) +
           ((xs - load_some(co.shift + j, count)) * load_some(co.slope + j, count) +
            load_some(co.constant + j, count));
  }
  PYDL_INLINE vec<A> of_input_by_given_statistics(int64_t j, int64_t count) const {
    return through_activation(j, count, load_some(x + j, count)) * load_some(co.scale + j, count);
  }
};

// grad_input in training.
template <BatchNormGradient kGradient, class T>
void gradient_row(const BatchNormParams& p, const Columns& k, Coefficients<acc_t<T>> co, int64_t row,
                  int64_t width) {
  const GradientRow<kGradient, T> from(p, k, co, row);
  store_row(row_of<T>(p.grad_input, k, row), width, p.stream,
            [&](int64_t j, int64_t count) PYDL_INLINE_LAMBDA { return from.of_input(j, count); });
}

// Whatever is wanted, with one walk for all activations.
template <class T>
void any_gradient_row(const BatchNormParams& p, const Columns& k, Coefficients<acc_t<T>> co, int64_t row,
                      int64_t width) {
  const GradientRow<kAnyGradient, T> from(p, k, co, row);
  if (p.grad_residual.data)
    store_row(row_of<T>(p.grad_residual, k, row), width, p.stream,
              [&](int64_t j, int64_t count) PYDL_INLINE_LAMBDA {
                return from.through_activation(j, count, load_some(from.x + j, count));
              });
  if (p.grad_input.data == nullptr) return;
  const bool training = p.training;
  store_row(row_of<T>(p.grad_input, k, row), width, p.stream,
            [&](int64_t j, int64_t count) PYDL_INLINE_LAMBDA {
              return training ? from.of_input(j, count) : from.of_input_by_given_statistics(j, count);
            });
}

template <class T>
Walks<acc_t<T>> walks_of(const BatchNormParams& p) {
  Walks<acc_t<T>> walks{};
  dispatch_gradient<T>(p.gradient, [&](auto tag) {
    constexpr BatchNormGradient kGradient = decltype(tag)::gradient;
    walks = {&segment_gradient<kGradient, T>, &rest_gradient<kGradient, T>, &any_gradient_row<T>,
             &any_gradient_row<T>};
    if constexpr (!kOneWalk<T>) {
      if (p.training) walks.linear_row = &gradient_row<BatchNormGradient::linear, T>;
      if (p.training && !p.grad_residual.data) walks.row = &gradient_row<kGradient, T>;
    }
  });
  return walks;
}

// What the sums are made of: without grad_residual where gz is not kept there.
BatchNormParams before_sums(const BatchNormParams& p, bool keep) {
  BatchNormParams sums = p;
  if (!keep) sums.grad_residual = {};
  return sums;
}

// What is left to do where gz was kept: grad_output is gz.
BatchNormParams after_keeping(const BatchNormParams& p) {
  BatchNormParams rest = p;
  rest.grad_output = p.grad_residual;
  rest.output = rest.grad_residual = {};
  rest.gradient = BatchNormGradient::linear;
  return rest;
}

template <class A>
void backward(const BatchNormParams& p, bool reduce, bool apply, bool keep, const Walks<A>& walks,
              const Parallel& parallel) {
  const Columns k(p, lanes<A>);
  const Scratch scratch(p, k);
  Coefficients<A> co(scratch, k);
  co.fill(p, k, scratch);
  if (reduce) {
    const BatchNormParams of_sums = before_sums(p, keep);
    over_segments(k, parallel, [&](int64_t segment, int64_t begin, int64_t end) {
      walks.segment(of_sums, k, co, segment, begin, end);
    });
    combine_gradient<A>(p, k, co, walks);
  }
  if (!apply) return;
  co.fill_gradient(p, k, scratch);
  const BatchNormParams rest = after_keeping(p);
  over_rows(p, k, parallel, [&](int64_t row, int64_t width) {
    if (keep && row < k.rows)
      walks.linear_row(rest, k, co, row, width);
    else
      walks.row(p, k, co, row, width);
  });
}

template <class A>
void planes_backward(const BatchNormParams& p, bool reduce, bool apply, bool keep, const Walks<A>& walks,
                     const Parallel& parallel) {
  over_planes<A>(p, parallel, [&](PlaneStripe<A>& stripe) {
    const Columns& k = stripe.columns;
    stripe.fill(p);
    if (reduce) {
      walks.segment(before_sums(stripe.params, keep), k, stripe.coefficients, 0, 0, k.width);
      const double *of_column = stripe.sums, *shifted_of_column = of_column + k.width;
      for (int64_t c = stripe.first; c < stripe.last; ++c) {
        double sum = 0, shifted = 0;
        for (int64_t j = 0; j < p.spatial; ++j) {
          sum += *of_column++;
          shifted += *shifted_of_column++;
        }
        finish_gradient_sums<A>(p, c, sum, shifted);
      }
    }
    if (!apply) return;
    stripe.fill_gradient(p);
    const BatchNormParams left = keep ? after_keeping(stripe.params) : stripe.params;
    const auto row_of_gradient = keep ? walks.linear_row : walks.row;
    for (int64_t row = k.rows; row-- > 0;) row_of_gradient(left, k, stripe.coefficients, row, k.width);
  });
}

}  // namespace

void batch_norm_columns_backward(const BatchNormParams& p, bool reduce, bool apply,
                                 const Parallel& parallel) {
  const bool keep = !kPlain && reduce && apply && keeps_gradient(p);
  dispatch_storage(p.dtype, [&](auto type) {
    using T = decltype(type);
    backward<acc_t<T>>(p, reduce, apply, keep, walks_of<T>(p), parallel);
  });
}

void batch_norm_planes_backward(const BatchNormParams& p, bool reduce, bool apply, const Parallel& parallel) {
  const bool keep = !kPlain && reduce && apply && keeps_gradient(p);
  dispatch_storage(p.dtype, [&](auto type) {
    using T = decltype(type);
    planes_backward<acc_t<T>>(p, reduce, apply, keep, walks_of<T>(p), parallel);
  });
}

}  // namespace pydl::cpu::PYDL_ISA
