// Batch normalisation: mean and variance of each channel, in one read of the input.
//
// Stable however far the mean is above the deviation: a thread takes a batch of values into registers, their
// mean in float, and the deviations from it, which are small and exact. What a batch adds to the sums is
// worked out in float64 around the mean of the thread's first batch, with no division. So one value far from
// all others, even the first, spoils nothing. A channel is split over as many blocks as fill the GPU; a
// second kernel joins the parts in order.
#include "kernels/cuda/norm/batch_norm.h"

#include "kernels/cuda/library.h"

namespace pydl::cuda {
namespace {

// Sums over n values around `center`.
struct Moments {
  double center, n, sum, squares;
};

// Takes `count` of kCount values in.
template <class A, int kCount>
PYDL_DEVICE void absorb(Moments& m, const A (&x)[kCount], int count) {
  A total = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) total += i < count ? x[i] : A(0);
  A mean = count == kCount ? total * (A(1) / A(kCount)) : total / static_cast<A>(count);
  // around an infinite mean every sum would be nan, where the mean is inf and the variance alone nan
  if (mean - mean != A(0)) mean = A(0);
  A sum = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const A deviation = i < count ? x[i] - mean : A(0);
    sum += deviation;
    squares += deviation * deviation;
  }
  if (m.n == 0) m.center = static_cast<double>(mean);
  const double e = static_cast<double>(mean) - m.center, s = static_cast<double>(sum);
  const double shifted = s + count * e;
  m.squares += static_cast<double>(squares) + e * (s + shifted);
  m.sum += shifted;
  m.n += count;
}

// The same sums around another center.
PYDL_DEVICE void recenter(Moments& m, double center) {
  if (m.n == 0) return;
  const double e = m.center - center, shifted = m.sum + m.n * e;
  m.squares += e * (m.sum + shifted);
  m.sum = shifted;
  m.center = center;
}

// What a block leaves of a channel: number, mean, sum of squared deviations; or the result, where it is all.
PYDL_DEVICE void leave(const Params& p, int64_t splits, int64_t split, int64_t channel, const Moments& m) {
  const double mean = m.center + m.sum / m.n, squares = m.squares - m.sum * m.sum / m.n;
  if (splits == 1) return finish_moments(p, channel, mean, squares);
  double* part = static_cast<double*>(p.scratch) + 3 * (channel * splits + split);
  part[0] = m.n;
  part[1] = mean;
  part[2] = squares;
}

template <class T, bool kColumns, int kWidth>
__global__ void __launch_bounds__(kThreads)
    batch_norm_stats_kernel(PYDL_CONSTANT Params p, PYDL_CONSTANT Walk w) {
  using A = acc_t<T>;
  const Place at = place_of<kColumns>(p, w);
  if constexpr (!kColumns) {
    PYDL_SHARED(double, shared, 3 * kThreads / kWarp + 1);
    constexpr int kReads = 16 / kWidth;  // a batch of 16 values
    Moments m{};
    int32_t i = at.begin;
    for (; i + (kReads - 1) * kThreads < at.end; i += kReads * kThreads) {
      A x[kReads][kWidth];
#pragma unroll
      for (int r = 0; r < kReads; ++r)
        load_values<T, kWidth>(p.input.data, offset_of<kColumns>(w, at, i + r * kThreads, p.input), x[r]);
      absorb(m, reinterpret_cast<const A(&)[kReads * kWidth]>(x), kReads * kWidth);
    }
    for (; i < at.end; i += kThreads) {
      A x[kWidth];
      load_values<T, kWidth>(p.input.data, offset_of<kColumns>(w, at, i, p.input), x);
      absorb(m, x, kWidth);
    }
    // around the first thread's center: it has a value wherever the block has one
    if (threadIdx.x == 0) shared[3 * kThreads / kWarp] = m.center;
    __syncthreads();
    recenter(m, shared[3 * kThreads / kWarp]);
    Moments all{};
    all.center = shared[3 * kThreads / kWarp];
    all.n = block_sum<kThreads>(m.n, shared);
    all.sum = block_sum<kThreads>(m.sum, shared + kThreads / kWarp);
    all.squares = block_sum<kThreads>(m.squares, shared + 2 * kThreads / kWarp);
    if (threadIdx.x == 0) leave(p, w.splits, at.split, at.channel, all);
  } else {
    PYDL_SHARED(double, shared, 3 * kThreads);
    constexpr int kReads = sizeof(T) == 2 ? 4 : 8;
    Moments m[kWidth] = {};
    if (at.inside) {
      int32_t i = at.begin;
      for (; i + (kReads - 1) * at.step < at.end; i += kReads * at.step) {
        A x[kReads][kWidth];
#pragma unroll
        for (int r = 0; r < kReads; ++r)
          load_values<T, kWidth>(p.input.data, offset_of<kColumns>(w, at, i + r * at.step, p.input), x[r]);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          A column[kReads];
#pragma unroll
          for (int r = 0; r < kReads; ++r) column[r] = x[r][j];
          absorb(m[j], column, kReads);
        }
      }
      for (; i < at.end; i += at.step) {
        A x[kWidth];
        load_values<T, kWidth>(p.input.data, offset_of<kColumns>(w, at, i, p.input), x);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const A one[1] = {x[j]};
          absorb(m[j], one, 1);
        }
      }
    }
    const int first = static_cast<int>(threadIdx.x) % w.lanes;  // the first thread of the same channels
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      __syncthreads();
      if (static_cast<int>(threadIdx.x) == first) shared[first] = m[j].center;
      __syncthreads();
      const double center = shared[first];
      recenter(m[j], center);
      __syncthreads();
      shared[threadIdx.x] = m[j].n;
      shared[kThreads + threadIdx.x] = m[j].sum;
      shared[2 * kThreads + threadIdx.x] = m[j].squares;
      __syncthreads();
      if (static_cast<int>(threadIdx.x) != first || !at.inside) continue;
      Moments all = m[j];
      all.center = center;
      for (int t = first + w.lanes; t < kThreads; t += w.lanes) {
        all.n += shared[t];
        all.sum += shared[kThreads + t];
        all.squares += shared[2 * kThreads + t];
      }
      leave(p, w.splits, at.split, at.channel + j, all);
    }
  }
}

// A warp joins the parts of a channel.
__global__ void __launch_bounds__(kThreads) batch_norm_join_kernel(PYDL_CONSTANT Params p, int64_t splits) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (channel >= p.channels) return;
  const double* part = static_cast<const double*>(p.scratch) + 3 * channel * splits;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  double sum = 0, squares = 0;
  for (int64_t s = lane; s < splits; s += kWarp) sum += part[3 * s] * part[3 * s + 1];
  const double mean = warp_sum(sum) / static_cast<double>(p.batch * p.spatial);
  for (int64_t s = lane; s < splits; s += kWarp) {
    const double apart = part[3 * s + 1] - mean;
    squares += part[3 * s + 2] + part[3 * s] * apart * apart;
  }
  squares = warp_sum(squares);
  if (lane == 0) finish_moments(p, channel, mean, squares);
}

__global__ void __launch_bounds__(kThreads) batch_norm_given_kernel(PYDL_CONSTANT Params p) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= p.channels) return;
  p.mean[c] = param_at(p, p.running_mean, c, 0);
  p.var[c] = param_at(p, p.running_var, c, 0);
}

__global__ void __launch_bounds__(kThreads) batch_norm_update_kernel(PYDL_CONSTANT BatchNormUpdate u) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= u.channels) return;
  for (int i = 0; i < 2; ++i) {
    const double old = read_as<double>(u.dtype[i], u.running[i], c * u.stride[i]);
    write_as<double>(u.dtype[i], u.running[i], c * u.stride[i],
                     (1 - u.momentum) * old + u.momentum * u.factor[i] * u.batch[i][c]);
  }
}

Walk stats_walk(const Params& p) { return walk_of(p, 8, kMostSplits); }

}  // namespace

int64_t batch_norm_scratch(const Params& p) {
  // three numbers here, two in the backward, whose walk has no more splits
  return max_of(p.channels * kMostSplits, p.channels * stats_walk(p).splits) * 3 *
         static_cast<int64_t>(sizeof(double));
}

int batch_norm_stats(const Params& p, void* stream) {
  const Walk w = stats_walk(p);
  int error = 0;
  dispatch_walk(p, w, [&](auto type, auto columns, auto width) {
    error =
        launch(batch_norm_stats_kernel<decltype(type), decltype(columns)::value == 1, decltype(width)::value>,
               w.blocks, kThreads, stream, p, w);
  });
  if (error == 0 && w.splits > 1)
    error =
        launch(batch_norm_join_kernel, ceil_div(p.channels, kThreads / kWarp), kThreads, stream, p, w.splits);
  return error;
}

int batch_norm_forward(const Params& p, void* stream) {
  const int error =
      p.training ? batch_norm_stats(p, stream)
                 : launch(batch_norm_given_kernel, ceil_div(p.channels, kThreads), kThreads, stream, p);
  return error == 0 ? batch_norm_apply(p, stream) : error;
}

int batch_norm_update(const BatchNormUpdate& u, void* stream) {
  if (u.channels == 0) return 0;
  return launch(batch_norm_update_kernel, ceil_div(u.channels, kThreads), kThreads, stream, u);
}

}  // namespace pydl::cuda
