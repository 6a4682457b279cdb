// Batch normalisation of rows, its activation and the mean over 2x2 pixels in one walk (batch_norm_rows.h says what rows
// are): the normalised planes, and the gradient by them, exist in registers alone.
//
// A window's gradient is spread over its pixels as they are read. The activation is computed again from the input in both
// passes of the gradient, which costs less than a tensor of its own that one writes and the other reads. Two or four vectors
// go in step, since a sigmoid is a long chain (base/math.h).
#include "kernels/cpu/base/simd_edges.h"
#include "kernels/cpu/norm/batch_norm_rows.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

static_assert(kMaxPooledPlane <= kBlock && kMaxPooledPlane <= kGrain);  // planes are whole in each walk

// Up to a vector of what is left of a row; lanes beyond read as zero.
template <class T>
PYDL_INLINE vec<acc_t<T>> load_left(const T* x, int64_t left) {
  return left >= lanes<acc_t<T>> ? load(x) : load_n(x, left);
}
template <class T>
PYDL_INLINE void store_left(T* y, vec<acc_t<T>> v, int64_t left) {
  left >= lanes<acc_t<T>> ? store(y, v) : store_n(y, v, left);
}

// Pixels of a row of windows: vector 0 of its upper row, 1 of its lower one, 2 and 3 those to the right of them, if any.
template <class A, int kVectors>
struct Pixels {
  static constexpr int vectors = kVectors;
  int64_t begin, width, columns;  // the first pixel; pixels of a row, and from the first on
  int64_t window, windows;        // the first window, and how many from it on in its row
  bool has_lower;                 // not in a last row that is in no window

  PYDL_INLINE int64_t at(int v) const { return begin + v % 2 * width + v / 2 * lanes<A>; }
  PYDL_INLINE int64_t left(int v) const {
    return v % 2 && !has_lower ? 0 : max_of(columns - v / 2 * lanes<A>, 0);
  }
};

// body(pixels) over a plane, by columns of windows, whose lanes are worked out once for all rows.
template <class A, class F>
PYDL_INLINE void over_windows(int64_t length, int64_t width, const F& body) {
  for (int64_t at = 0; at < width; at += 2 * lanes<A>) {
    const int64_t columns = width - at, windows = (width - at) / 2;
    int64_t window = at / 2;
    for (int64_t row = 0; row < length; row += 2 * width, window += width / 2) {
      const bool has_lower = row + 2 * width <= length;
      if (kPlain || columns > lanes<A>)
        body(Pixels<A, 4>{row + at, width, columns, window, windows, has_lower});
      else
        body(Pixels<A, 2>{row + at, width, columns, window, windows, has_lower});
    }
  }
}

// z becomes exp(-|z|), of which the sigmoid and its derivative are made
template <class A, int kVectors>
PYDL_INLINE void exp_of_minus_absolute(vec<A> (&z)[kVectors]) {
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) z[v] = -absolute<A>(z[v]);
  exp_nonpositive_group<false, A>(z);
}

template <class T>
void apply_pooled_runs(const BatchNormParams& p, int64_t c, int64_t first, int64_t last, int64_t,
                       int64_t length, const Affine<acc_t<T>>& of_channel) {
  using A = acc_t<T>;
  const Affine<A> affine = of_channel;
  const bool sigmoid = p.activation == Activation::sigmoid;
  for (int64_t n = last; n-- > first;) {
    const T* x = run_of<const T>(p.input, n, c);
    T* y = run_of<T>(p.output, n, c);
    over_windows<A>(length, p.pooled_width, [&](auto pixels) PYDL_INLINE_LAMBDA {
      constexpr int kVectors = decltype(pixels)::vectors;
      if (!pixels.has_lower) return;
      vec<A> z[kVectors], e[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        e[v] = z[v] = normalise(load_left(x + pixels.at(v), pixels.left(v)), affine);
      if (sigmoid) exp_of_minus_absolute<A>(e);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        z[v] = sigmoid ? sigmoid_of<A>(z[v], e[v]) : activated(z[v], Activation::relu);
      const vec<A> a = z[0] + z[1], b = kVectors == 4 ? z[kVectors - 2] + z[kVectors - 1] : vec<A>{};
      const vec<A> mean = (even_lanes(a, b) + odd_lanes(a, b)) * static_cast<A>(0.25);
      if (pixels.windows > 0) store_left(y + pixels.window, mean, pixels.windows);
    });
  }
}

// body(pixels, x, gz) over a plane: 0 beyond a row.
template <class T, class F>
PYDL_INLINE void over_gradient(const BatchNormParams& p, int64_t n, int64_t c, int64_t length,
                               const Affine<acc_t<T>>& affine, const F& body) {
  using A = acc_t<T>;
  const bool sigmoid = p.activation == Activation::sigmoid;
  const T* input = run_of<const T>(p.input, n, c);
  const T* grad = run_of<const T>(p.grad_output, n, c);
  over_windows<A>(length, p.pooled_width, [&](auto pixels) PYDL_INLINE_LAMBDA {
    constexpr int kVectors = decltype(pixels)::vectors;
    vec<A> share{}, x[kVectors], gz[kVectors], e[kVectors];
    if (pixels.has_lower && pixels.windows > 0)
      share = load_left(grad + pixels.window, pixels.windows) * static_cast<A>(0.25);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      gz[v] = v < 2 ? interleave_lanes_low(share, share) : interleave_lanes_high(share, share);
      x[v] = load_left(input + pixels.at(v), pixels.left(v));
      e[v] = normalise(x[v], affine);
    }
    if (sigmoid) {
      exp_of_minus_absolute<A>(e);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {  // y (1 - y) = e / (1 + e)^2
        const vec<A> d = 1 / (1 + e[v]);
        gz[v] *= e[v] * d * d;
      }
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        gz[v] = activation_gradient(gz[v], e[v], BatchNormGradient::relu_input);
    }
    body(pixels, x, gz);
  });
}

template <class T>
GradientSums pooled_block_gradient(const BatchNormParams& p, int64_t c, const Block& block,
                                   const Affine<acc_t<T>>& of_channel) {
  using A = acc_t<T>;
  const Affine<A> affine = of_channel;
  vec<A> sum[4]{}, shifted[4]{};
  for (int64_t n = block.row; n < block.row + block.rows; ++n) {
    prefetch_short_run(run_of<const T>(p.input, n, c), block.length, ahead_in_block<T>(p, p.input, n));
    over_gradient<T>(p, n, c, block.length, affine,
                     [&](auto pixels, const auto& x, const auto& gz) PYDL_INLINE_LAMBDA {
#pragma GCC unroll 4
                       for (int v = 0; v < pixels.vectors; ++v) {
                         sum[v] += gz[v];
                         shifted[v] += gz[v] * (x[v] - affine.shift);
                       }
                     });
  }
  return {static_cast<double>(reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]))),
          static_cast<double>(reduce_add((shifted[0] + shifted[1]) + (shifted[2] + shifted[3])))};
}

template <class T>
void pooled_gradient_runs(const BatchNormParams& p, int64_t c, int64_t first, int64_t last, int64_t,
                          int64_t length, const Affine<acc_t<T>>& of_channel,
                          const AffineGradient<acc_t<T>>& gradient_of_channel) {
  using A = acc_t<T>;
  const Affine<A> affine = of_channel;
  const AffineGradient<A> gradient = gradient_of_channel;
  for (int64_t n = last; n-- > first;) {
    T* out = run_of<T>(p.grad_input, n, c);
    over_gradient<T>(p, n, c, length, affine,
                     [&](auto pixels, const auto& x, const auto& gz) PYDL_INLINE_LAMBDA {
#pragma GCC unroll 4
                       for (int v = 0; v < pixels.vectors; ++v) {
                         const vec<A> rest = (x[v] - affine.shift) * gradient.slope + gradient.constant;
                         store_left(out + pixels.at(v), gz[v] * affine.scale + rest, pixels.left(v));
                       }
                     });
  }
}

// body(type) of those that the op offers.
template <class F>
void dispatch_pooled(DType dtype, const F& body) {
  if (dtype == DType::f32) return body(float{});
  dispatch_storage_of(bf16{}, body);
}

}  // namespace

ApplyRuns<float> pooled_apply(DType dtype) {
  ApplyRuns<float> apply{};
  dispatch_pooled(dtype, [&](auto type) { apply = &apply_pooled_runs<decltype(type)>; });
  return apply;
}

GradientWalks<float> pooled_gradient(DType dtype) {
  GradientWalks<float> walks{};
  dispatch_pooled(dtype, [&](auto type) {
    using T = decltype(type);
    walks = {&pooled_block_gradient<T>, &pooled_gradient_runs<T>};
  });
  return walks;
}

}  // namespace pydl::cpu::PYDL_ISA
