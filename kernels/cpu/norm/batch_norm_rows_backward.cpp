// The gradient of batch_norm_rows.cpp: a channel's sums, then a second walk over it that applies them.
#include "kernels/cpu/norm/batch_norm_rows.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// ---- gradient

template <class T>
PYDL_INLINE vec<acc_t<T>> gradient_at(BatchNormGradient gradient, const T* g, const T* y, vec<acc_t<T>> x,
                                      const Affine<acc_t<T>>& affine, int64_t count) {
  const vec<acc_t<T>> grad = pin(load_some(g, count));
  if (gradient == BatchNormGradient::relu_input)
    return activation_gradient(grad, normalise(x, affine), gradient);
  if (reads_output(gradient)) return activation_gradient(grad, load_some(y, count), gradient);
  return grad;
}

template <class T>
PYDL_INLINE const T* output_run(const BatchNormParams& p, int64_t n, int64_t c, int64_t begin) {
  return p.output.data ? run_of<const T>(p.output, n, c) + begin : nullptr;
}

template <BatchNormGradient kGradient, class T>
GradientSums block_gradient(const BatchNormParams& p, int64_t c, const Block& block,
                            const Affine<acc_t<T>>& affine) {
  using A = acc_t<T>;
  const BatchNormGradient gradient = gradient_of<kGradient>(p);
  constexpr int kUnroll = 4;
  vec<A> sum[kUnroll]{}, shifted[kUnroll]{};
  for (int64_t n = block.row; n < block.row + block.rows; ++n) {
    const T* x = run_of<const T>(p.input, n, c) + block.begin;
    const T* g = run_of<const T>(p.grad_output, n, c) + block.begin;
    const T* y = output_run<T>(p, n, c, block.begin);
    const int64_t ahead_x = ahead_in_block<T>(p, p.input, n);
    const int64_t ahead_g = ahead_in_block<T>(p, p.grad_output, n);
    const int64_t ahead_y = reads_output(gradient) ? ahead_in_block<T>(p, p.output, n) : 0;
    if (block.length < kUnroll * lanes<A>) {
      prefetch_short_run(x, block.length, ahead_x);
      prefetch_short_run(g, block.length, ahead_g);
      if (reads_output(gradient)) prefetch_short_run(y, block.length, ahead_y);
    }
    int64_t i = 0;
    auto add = [&](int u, int64_t i, int64_t count) PYDL_INLINE_LAMBDA {
      const vec<A> xs = load_some(x + i, count);
      const vec<A> gz = gradient_at<T>(gradient, g + i, y + i, xs, affine, count);
      const vec<A> product = gz * (xs - affine.shift);
      sum[u] += count ? keep_first<A>(gz, count) : gz;
      shifted[u] += count ? keep_first<A>(product, count) : product;
    };
    for (; i + kUnroll * lanes<A> <= block.length; i += kUnroll * lanes<A>)
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t at = i + u * lanes<A>;
        if (u * lanes<A> * sizeof(T) % 64 == 0) {
          prefetch_far_ahead(x + at, ahead_x);
          prefetch_far_ahead(g + at, ahead_g);
          if (reads_output(gradient)) prefetch_far_ahead(y + at, ahead_y);
        }
        add(u, at, 0);
      }
    for (; i + lanes<A> <= block.length; i += lanes<A>) add(0, i, 0);
    if (i < block.length) add(kUnroll - 1, i, block.length - i);
  }
  return {static_cast<double>(reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]))),
          static_cast<double>(reduce_add((shifted[0] + shifted[1]) + (shifted[2] + shifted[3])))};
}

template <BatchNormGradient kGradient, class T>
PYDL_INLINE void gradient_run(const BatchNormParams& p, int64_t n, int64_t c, int64_t begin, int64_t length,
                              const Affine<acc_t<T>>& affine,
                              const AffineGradient<acc_t<T>>& affine_gradient) {
  using A = acc_t<T>;
  const BatchNormGradient gradient = gradient_of<kGradient>(p);
  const T* x = run_of<const T>(p.input, n, c) + begin;
  const T* g = run_of<const T>(p.grad_output, n, c) + begin;
  const T* y = output_run<T>(p, n, c, begin);
  if (p.grad_residual.data) {
    store_run(run_of<T>(p.grad_residual, n, c) + begin, length, p.stream,
              [&](int64_t i, int64_t count) PYDL_INLINE_LAMBDA {
                return gradient_at<T>(gradient, g + i, y + i, load_some(x + i, count), affine, count);
              });
  }
  if (p.grad_input.data == nullptr) return;
  T* out = run_of<T>(p.grad_input, n, c) + begin;
  const bool training = p.training;  // a product by a slope of 0 is none of an infinite x
  store_run(out, length, p.stream, [&](int64_t i, int64_t count) PYDL_INLINE_LAMBDA {
    const vec<A> xs = load_some(x + i, count);
    const vec<A> gz = gradient_at<T>(gradient, g + i, y + i, xs, affine, count);
    if (!training) return gz * affine.scale;
    return gz * affine.scale + ((xs - affine.shift) * affine_gradient.slope + affine_gradient.constant);
  });
}

template <BatchNormGradient kGradient, class T>
void gradient_runs(const BatchNormParams& p, int64_t c, int64_t first, int64_t last, int64_t begin,
                   int64_t length, const Affine<acc_t<T>>& affine,
                   const AffineGradient<acc_t<T>>& affine_gradient) {
  for (int64_t n = last; n-- > first;)
    gradient_run<kGradient, T>(p, n, c, begin, length, affine, affine_gradient);
}

template <class T>
GradientWalks<acc_t<T>> walks_of(const BatchNormParams& p) {
  if constexpr (__is_same(acc_t<T>, float))
    if (p.pooled_width) return pooled_gradient(p.dtype);
  GradientWalks<acc_t<T>> walks{};
  dispatch_gradient<T>(p.gradient, [&](auto tag) {
    constexpr BatchNormGradient kGradient = decltype(tag)::gradient;
    walks = {&block_gradient<kGradient, T>, &gradient_runs<kGradient, T>};
  });
  return walks;
}

template <class A>
void backward(const BatchNormParams& p, bool reduce, bool apply, const GradientWalks<A>& walks,
              const Parallel& parallel) {
  const Blocks blocks(p);
  auto slope = [&](int64_t c) { return p.training ? affine_gradient_at<A>(p, c) : AffineGradient<A>{}; };
  if (reduce && channel_per_task(p, parallel)) {
    parallel(p.channels, channel_grain(p), [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        const Affine<A> affine = affine_at<A>(p, c);
        GradientSums sums{};
        for (int64_t j = 0; j < blocks.count; ++j) {
          const GradientSums part = walks.block(p, c, blocks.at(p, j), affine);
          sums.sum += part.sum;
          sums.shifted += part.shifted;
        }
        finish_gradient_sums<A>(p, c, sums.sum, sums.shifted);
        if (!apply) continue;
        walks.runs(p, c, 0, p.batch, 0, p.spatial, affine, slope(c));
      }
      stream_fence();
    });
    return;
  }
  ChannelCoefficients<A>* const channel = coefficients_of<A>(p, blocks);
  for (int64_t c = 0; c < p.channels; ++c) channel[c].affine = affine_at<A>(p, c);
  if (reduce) {
    const GradientSums* partial = over_blocks<GradientSums>(
        p, blocks, parallel,
        [&](int64_t c, const Block& block) { return walks.block(p, c, block, channel[c].affine); });
    for (int64_t c = 0; c < p.channels; ++c) {
      GradientSums sums{};
      for (int64_t j = c * blocks.count; j < (c + 1) * blocks.count; ++j) {
        sums.sum += partial[j].sum;
        sums.shifted += partial[j].shifted;
      }
      finish_gradient_sums<A>(p, c, sums.sum, sums.shifted);
    }
  }
  if (!apply) return;
  for (int64_t c = 0; c < p.channels; ++c) channel[c].gradient = slope(c);
  over_runs(p, parallel, [&](int64_t n, int64_t c, int64_t begin, int64_t length) {
    walks.runs(p, c, n, n + 1, begin, length, channel[c].affine, channel[c].gradient);
  });
}

}  // namespace

void batch_norm_rows_backward(const BatchNormParams& p, bool reduce, bool apply, const Parallel& parallel) {
  dispatch_storage(p.dtype, [&](auto type) {
    using T = decltype(type);
    backward<acc_t<T>>(p, reduce, apply, walks_of<T>(p), parallel);
  });
}

}  // namespace pydl::cpu::PYDL_ISA
