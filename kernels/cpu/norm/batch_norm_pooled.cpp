// Batch normalisation of rows, its activation and the mean over 2x2 pixels in one walk (batch_norm_rows.h says what rows
// are): the normalised planes and their gradient exist in the first-level cache alone.
//
// Forward: a plane is normalised as it lies, whole vectors whatever its width, and its windows are added up from there.
// Gradient: each window's gradient is spread over its pixels, and the plane is walked as it lies once more; the activation
// is computed again from the input in both passes, which costs less than a tensor of its own that one writes and one reads.
#include "kernels/cpu/base/simd_edges.h"
#include "kernels/cpu/norm/batch_norm_rows.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kBeyond = 2 * kVectorBytes;  // bytes that whole vectors reach beyond the last plane

// A block's planes.
template <class A>
struct Pixels {
  alignas(64) A at[kBlock + kBeyond / static_cast<int64_t>(sizeof(A))];
};

// Means of the 2x2 windows of a plane.
template <class T>
PYDL_INLINE void mean_of_windows(const acc_t<T>* plane, int64_t height, int64_t width, T* y) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const int64_t out = width / 2;
  for (int64_t row = 0; row + 2 <= height; row += 2, y += out)
    for (int64_t j = 0; j < out; j += all) {
      const A* upper = plane + row * width + 2 * j;
      const A* lower = upper + width;
      const vec<A> a = load(upper) + load(lower), b = load(upper + all) + load(lower + all);
      const vec<A> mean = (even_lanes(a, b) + odd_lanes(a, b)) * static_cast<A>(0.25);
      const int64_t n = out - j;
      n >= all ? store(y + j, mean) : store_n(y + j, mean, n);
    }
}

// Of each pixel of a plane the gradient by its window's mean; 0 of a last row or column that is in no window. What is
// written beyond a row is written again by the next, or lies beyond the plane.
template <class T>
PYDL_INLINE void spread_over_windows(const T* g, int64_t height, int64_t width, acc_t<T>* plane) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const int64_t out = width / 2;
  for (int64_t row = 0; row < height; ++row) {
    A* const to = plane + row * width;
    if (row / 2 * 2 + 2 > height) {
      for (int64_t j = 0; j < width; j += all) store(to + j, vec<A>{});
      break;
    }
    for (int64_t j = 0; j < out; j += all) {
      const T* from = g + row / 2 * out + j;
      const vec<A> share = load_some(from, j + all <= out ? 0 : out - j) * static_cast<A>(0.25);
      store(to + 2 * j, interleave_lanes_low(share, share));
      store(to + 2 * j + all, interleave_lanes_high(share, share));
    }
    if (width % 2) to[width - 1] = 0;
  }
}

template <class T>
void apply_pooled_runs(const BatchNormParams& p, int64_t c, int64_t first, int64_t last, int64_t,
                       int64_t length, const Affine<acc_t<T>>& affine) {
  using A = acc_t<T>;
  Pixels<A> plane;
  for (int64_t n = last; n-- > first;) {
    const T* x = run_of<const T>(p.input, n, c);
    for (int64_t i = 0; i < length; i += lanes<A>) {
      const vec<A> xs = load_some(x + i, i + lanes<A> <= length ? 0 : length - i);
      store(plane.at + i, activated(normalise(xs, affine), p.activation));
    }
    mean_of_windows(plane.at, length / p.pooled_width, p.pooled_width, run_of<T>(p.output, n, c));
  }
}

template <class A>
struct InputAndGradient {
  vec<A> x, gz;
};

// At pixel i of a plane, of which count are left if they are no whole vector.
template <class T>
PYDL_INLINE InputAndGradient<acc_t<T>> at_pixel(const BatchNormParams& p, const T* x, const acc_t<T>* g,
                                                int64_t i, int64_t count, const Affine<acc_t<T>>& affine) {
  const auto xs = load_some(x + i, count);
  const auto grad = load_some(g + i, count);
  const auto z = normalise(xs, affine);
  if (p.activation == Activation::sigmoid)
    return {xs, activation_gradient(grad, activated(z, Activation::sigmoid),
                                    BatchNormGradient::sigmoid_output)};
  return {xs, activation_gradient(grad, z, BatchNormGradient::relu_input)};
}

template <class T>
GradientSums pooled_block_gradient(const BatchNormParams& p, int64_t c, const Block& block,
                                   const Affine<acc_t<T>>& affine) {
  using A = acc_t<T>;
  const int64_t length = block.length, width = p.pooled_width;
  Pixels<A> planes;
  for (int64_t n = 0; n < block.rows; ++n)
    spread_over_windows(run_of<const T>(p.grad_output, block.row + n, c), length / width, width,
                        planes.at + n * length);
  vec<A> sum{}, shifted{};
  for (int64_t n = 0; n < block.rows; ++n) {
    const T* x = run_of<const T>(p.input, block.row + n, c);
    prefetch_short_run(x, length, ahead_in_block<T>(p, p.input, block.row + n));
    for (int64_t i = 0; i < length; i += lanes<A>) {
      const int64_t count = i + lanes<A> <= length ? 0 : length - i;
      const auto [xs, gz] = at_pixel(p, x, planes.at + n * length, i, count, affine);
      const vec<A> product = gz * (xs - affine.shift);
      sum += count ? keep_first<A>(gz, count) : gz;
      shifted += count ? keep_first<A>(product, count) : product;
    }
  }
  return {static_cast<double>(reduce_add(sum)), static_cast<double>(reduce_add(shifted))};
}

template <class T>
void pooled_gradient_runs(const BatchNormParams& p, int64_t c, int64_t first, int64_t last, int64_t,
                          int64_t length, const Affine<acc_t<T>>& affine,
                          const AffineGradient<acc_t<T>>& affine_gradient) {
  using A = acc_t<T>;
  const int64_t width = p.pooled_width;
  Pixels<A> plane;
  for (int64_t n = last; n-- > first;) {
    const T* x = run_of<const T>(p.input, n, c);
    spread_over_windows(run_of<const T>(p.grad_output, n, c), length / width, width, plane.at);
    store_run(run_of<T>(p.grad_input, n, c), length, p.stream,
              [&](int64_t i, int64_t count) PYDL_INLINE_LAMBDA {
                const auto [xs, gz] = at_pixel(p, x, plane.at, i, count, affine);
                return gz * affine.scale +
                       ((xs - affine.shift) * affine_gradient.slope + affine_gradient.constant);
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
    walks = {&pooled_block_gradient<decltype(type)>, &pooled_gradient_runs<decltype(type)>};
  });
  return walks;
}

}  // namespace pydl::cpu::PYDL_ISA
