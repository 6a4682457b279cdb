// Batch normalisation, backward: the two sums of each channel, then the gradients of the input and the
// residual.
//
//   gz = grad_output * activation'(z)
//   sum_grad = sum(gz)    sum_grad_xhat = sum(gz * xhat)
//   grad_input = gz * scale + (x - shift) * slope + constant          (slope and constant 0 with given
//   statistics)
//
// Each kernel reads grad_output and input once (and the output, where the derivative is read from it). The
// mask of a ReLU is worked out again from the input, as the forward did, to the bit. Sums are floats within a
// thread and float64 beyond; a channel is split over as many blocks as fill the GPU, whose parts a second
// kernel adds up in order.
#include "kernels/cuda/norm/batch_norm.h"

#include "kernels/cuda/library.h"

namespace pydl::cuda {
namespace {

// The block's channels, as every thread needs them; ends with a barrier.
template <class A, bool kColumns, int kWidth, bool kApply>
PYDL_DEVICE void share_coefficients(const Params& p, const Walk& w, const Place& at, Coefficients<A>* shared,
                                    Coefficients<A> (&k)[kColumns ? kWidth : 1]) {
  const int channels = kColumns ? w.lanes * kWidth : 1;
  const int64_t first =
      kColumns ? at.channel - static_cast<int64_t>(threadIdx.x % w.lanes) * kWidth : at.channel;
  for (int c = static_cast<int>(threadIdx.x); c < channels; c += kThreads)
    if (first + c < p.channels) shared[c] = coefficients_of<A, kApply>(p, first + c);
  __syncthreads();
  if (!at.inside) return;
#pragma unroll
  for (int j = 0; j < (kColumns ? kWidth : 1); ++j) k[j] = shared[at.channel - first + j];
}

// x and gz of read i.
template <class T, bool kColumns, int kWidth>
PYDL_DEVICE void read(const Params& p, const Walk& w, const Place& at, int32_t i,
                      const Coefficients<acc_t<T>> (&k)[kColumns ? kWidth : 1], acc_t<T> (&x)[kWidth],
                      acc_t<T> (&g)[kWidth]) {
  using A = acc_t<T>;
  load_values<T, kWidth>(p.grad_output.data, offset_of<kColumns>(w, at, i, p.grad_output), g);
  load_values<T, kWidth>(p.input.data, offset_of<kColumns>(w, at, i, p.input), x);
  if (p.gradient == BatchNormGradient::relu_input) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      g[j] = gradient_of_z(p.gradient, g[j], affine(k[kColumns ? j : 0], x[j]));
  } else if (p.gradient != BatchNormGradient::linear) {
    A output[kWidth];
    load_values<T, kWidth>(p.output.data, offset_of<kColumns>(w, at, i, p.output), output);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) g[j] = gradient_of_z(p.gradient, g[j], output[j]);
  }
}

PYDL_DEVICE void leave(const Params& p, int64_t splits, int64_t split, int64_t channel, double sum,
                       double shifted) {
  if (splits == 1) return finish_sums(p, channel, sum, shifted);
  double* part = static_cast<double*>(p.scratch) + 2 * (channel * splits + split);
  part[0] = sum;
  part[1] = shifted;
}

template <class T, bool kColumns, int kWidth>
__global__ void __launch_bounds__(kThreads)
    batch_norm_backward_reduce_kernel(PYDL_CONSTANT Params p, PYDL_CONSTANT Walk w) {
  using A = acc_t<T>;
  constexpr int kChannels = kColumns ? kWidth : 1;
  PYDL_SHARED(Coefficients<A>, coefficients, kColumns ? kWarp * kWidth : 1);
  PYDL_SHARED(double, shared, kColumns ? 2 * kThreads : 2 * kThreads / kWarp);
  const Place at = place_of<kColumns>(p, w);
  Coefficients<A> k[kChannels];
  share_coefficients<A, kColumns, kWidth, false>(p, w, at, coefficients, k);
  A sum[kChannels] = {}, shifted[kChannels] = {};
  if (at.inside) {
#pragma unroll 2
    for (int32_t i = at.begin; i < at.end; i += at.step) {
      A x[kWidth], g[kWidth];
      read<T, kColumns, kWidth>(p, w, at, i, k, x, g);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const int c = kColumns ? j : 0;
        sum[c] += g[j];
        shifted[c] += g[j] * (x[j] - k[c].shift);
      }
    }
  }
  if constexpr (!kColumns) {
    const double total = block_sum<kThreads>(static_cast<double>(sum[0]), shared);
    const double total_shifted =
        block_sum<kThreads>(static_cast<double>(shifted[0]), shared + kThreads / kWarp);
    if (threadIdx.x == 0) leave(p, w.splits, at.split, at.channel, total, total_shifted);
  } else {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      __syncthreads();
      shared[threadIdx.x] = static_cast<double>(sum[j]);
      shared[kThreads + threadIdx.x] = static_cast<double>(shifted[j]);
      __syncthreads();
      if (static_cast<int>(threadIdx.x) >= w.lanes || !at.inside) continue;
      double total = 0, total_shifted = 0;
      for (int t = static_cast<int>(threadIdx.x); t < kThreads; t += w.lanes) {
        total += shared[t];
        total_shifted += shared[kThreads + t];
      }
      leave(p, w.splits, at.split, at.channel + j, total, total_shifted);
    }
  }
}

// A warp adds up the parts of a channel.
__global__ void __launch_bounds__(kThreads)
    batch_norm_backward_join_kernel(PYDL_CONSTANT Params p, int64_t splits) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (channel >= p.channels) return;
  const double* part = static_cast<const double*>(p.scratch) + 2 * channel * splits;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  double sum = 0, shifted = 0;
  for (int64_t s = lane; s < splits; s += kWarp) {
    sum += part[2 * s];
    shifted += part[2 * s + 1];
  }
  sum = warp_sum(sum);
  shifted = warp_sum(shifted);
  if (lane == 0) finish_sums(p, channel, sum, shifted);
}

template <class T, bool kColumns, int kWidth>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T>)
    batch_norm_backward_apply_kernel(PYDL_CONSTANT Params p, PYDL_CONSTANT Walk w) {
  using A = acc_t<T>;
  PYDL_SHARED(Coefficients<A>, coefficients, kColumns ? kWarp * kWidth : 1);
  const Place at = place_of<kColumns>(p, w);
  Coefficients<A> k[kColumns ? kWidth : 1];
  share_coefficients<A, kColumns, kWidth, true>(p, w, at, coefficients, k);
  if (!at.inside) return;
#pragma unroll 2
  for (int32_t i = at.begin; i < at.end; i += at.step) {
    A x[kWidth], g[kWidth];
    read<T, kColumns, kWidth>(p, w, at, i, k, x, g);
    if (p.grad_residual.data)
      store_values<T, kWidth>(p.grad_residual.data, offset_of<kColumns>(w, at, i, p.grad_residual), g);
    if (p.grad_input.data) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const Coefficients<A>& c = k[kColumns ? j : 0];
        x[j] = g[j] * c.scale + ((x[j] - c.shift) * c.slope + c.constant);
      }
      store_values<T, kWidth>(p.grad_input.data, offset_of<kColumns>(w, at, i, p.grad_input), x);
    }
  }
}

}  // namespace

int batch_norm_backward_reduce(const Params& p, void* stream) {
  const Walk w = walk_of(p, 8, kMostSplits);
  int error = 0;
  dispatch_walk(p, w, [&](auto type, auto columns, auto width) {
    error = launch(batch_norm_backward_reduce_kernel<decltype(type), decltype(columns)::value == 1,
                                                     decltype(width)::value>,
                   w.blocks, kThreads, stream, p, w);
  });
  if (error == 0 && w.splits > 1)
    error = launch(batch_norm_backward_join_kernel, ceil_div(p.channels, kThreads / kWarp), kThreads, stream,
                   p, w.splits);
  return error;
}

int batch_norm_backward_apply(const Params& p, void* stream) {
  const Walk w = walk_of(p, 8, 1 << 20);
  int error = 0;
  dispatch_walk(p, w, [&](auto type, auto columns, auto width) {
    error = launch(batch_norm_backward_apply_kernel<decltype(type), decltype(columns)::value == 1,
                                                    decltype(width)::value>,
                   w.blocks, kThreads, stream, p, w);
  });
  return error;
}

int batch_norm_backward(const Params& p, void* stream) {
  const bool apply = p.grad_input.data || p.grad_residual.data;
  const bool reduce = p.grad_weight || p.grad_bias || (p.training && p.grad_input.data);
  const int error = reduce ? batch_norm_backward_reduce(p, stream) : 0;
  return error == 0 && apply ? batch_norm_backward_apply(p, stream) : error;
}

}  // namespace pydl::cuda
