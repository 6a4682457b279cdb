// The short ends of conv2d's gradients: the sum of the weight gradient's parts, and the gradient of the bias.
//
// Little is read and less is written, so what counts is that many threads wait for memory at the same time and
// each of them seldom: a sum is cut across threads, each asks for several values before it adds the first, and
// what they have is joined in a fixed order. Nothing is added atomically.
#include "kernels/cuda/conv2d/conv2d.h"

#include "kernels/cuda/library.h"

namespace pydl::cuda {
namespace {

constexpr int kThreads = 256;

// The smallest power of two that is at least n, at most `most`.
int power_of_2(int64_t n, int most) {
  int power = 1;
  while (power < n && power < most) power *= 2;
  return power;
}

// Adds up, over the rows of a block of [rows][kThreads / rows] threads, kCount numbers of each thread; row 0
// has the sums. Both counts of threads are powers of two.
template <int kCount, class A>
PYDL_DEVICE void sum_rows(A (&x)[kCount], A* shared, int rows) {
  const int t = static_cast<int>(threadIdx.x), columns = kThreads / rows;
  for (int half = rows / 2; half > 0; half /= 2) {
    if (t >= half * columns && t < 2 * half * columns)
#pragma unroll
      for (int j = 0; j < kCount; ++j) shared[j * kThreads + t] = x[j];
    __syncthreads();
    if (t < half * columns)
#pragma unroll
      for (int j = 0; j < kCount; ++j) x[j] += shared[j * kThreads + t + half * columns];
    __syncthreads();
  }
}

// ---- the weight gradient from its parts

constexpr int kPartLoads = 8;

// A block has kThreads / rows results, and a thread every rows-th part of one.
template <class T>
__global__ void __launch_bounds__(kThreads)
    conv2d_weight_sum_kernel(PYDL_CONSTANT Geometry g, int64_t splits, int64_t count, int rows) {
  using A = acc_t<T>;
  PYDL_SHARED(A, shared, kThreads);
  const int columns = kThreads / rows, t = static_cast<int>(threadIdx.x);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * columns + t % columns;
  const A* parts = static_cast<const A*>(g.p.scratch);
  A sum[1] = {};
  if (at < count)
    for (int64_t first = t / columns; first < splits; first += kPartLoads * rows) {
      A part[kPartLoads];
#pragma unroll
      for (int j = 0; j < kPartLoads; ++j) {
        const int64_t s = first + j * rows;
        part[j] = s < splits ? parts[s * count + at] : A(0);
      }
#pragma unroll
      for (int j = 0; j < kPartLoads; ++j) sum[0] += part[j];
    }
  sum_rows(sum, shared, rows);
  if (t >= columns || at >= count) return;
  const int64_t taps = g.in_per_group * g.area, o = at / taps;
  static_cast<T*>(g.p.weight)[weight_offset(g, static_cast<int>(o), tap_of(g, g.in_group, at - o * taps))] =
      narrow<T>(sum[0]);
}

// ---- the gradient of the bias: the sum over a channel's pixels, in pieces

constexpr int kLoads = 4;               // values or packs that a thread has on the way
constexpr int kMostPieces = 4 * kWarp;  // of a channel: what a warp reads at once

struct Pieces {
  int64_t items, each, count;  // items of a channel (values or packs) in all and in a piece; pieces
  Split plane;                 // items of an image (planes), columns of a block (channels_last)
};

// Leaves the sum of a piece: the result, where there is one piece.
template <class T>
PYDL_DEVICE void put_bias(const Params& p, int64_t piece, int64_t pieces, int64_t channel, double sum) {
  if (pieces == 1)
    static_cast<T*>(p.grad_bias)[channel] = narrow<T>(static_cast<acc_t<T>>(sum));
  else
    static_cast<double*>(p.scratch)[channel * pieces + piece] = sum;
}

template <class T, int kWidth>
PYDL_DEVICE void load_wide(const T* from, acc_t<T> (&to)[kWidth]) {
  if constexpr (kWidth == 1) {
    to[0] = widen(*from);
  } else {
    const Pack<T> pack = load_pack(from);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) to[j] = widen(pack.value[j]);
  }
}

// A block sums a piece of one channel. kWidth > 1: planes of whole packs, contiguous.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    conv2d_bias_planes_kernel(PYDL_CONSTANT Geometry g, PYDL_CONSTANT Pieces pieces) {
  using A = acc_t<T>;
  PYDL_SHARED(double, shared, kThreads / kWarp);
  const int64_t channel = blockIdx.x / pieces.count, piece = blockIdx.x - channel * pieces.count;
  const int64_t end = min_of((piece + 1) * pieces.each, pieces.items);
  const T* from = static_cast<const T*>(g.p.output) + channel * g.p.output_stride[1];
  double sum = 0;
  for (int64_t first = piece * pieces.each + threadIdx.x; first < end; first += kLoads * kThreads) {
    A x[kLoads][kWidth] = {};
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t item = first + i * kThreads;
      if (item >= end) continue;
      if constexpr (kWidth == 1) {
        load_wide<T, 1>(from + output_offset(g, item), x[i]);
      } else {
        int64_t n;
        int pack;
        pieces.plane(item, n, pack);
        load_wide<T, kWidth>(from + n * g.p.output_stride[0] + static_cast<int64_t>(pack) * kWidth, x[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      A pack = 0;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) pack += x[i][j];
      sum += static_cast<double>(pack);
    }
  }
  sum = block_sum<kThreads>(sum, shared);
  if (threadIdx.x == 0) put_bias<T>(g.p, piece, pieces.count, channel, sum);
}

// channels_last: a block of [rows][columns] threads sums a piece of `columns` packs of channels, a row every
// rows-th pixel of it. Two blocks on a multiprocessor at least: ptxas, left alone, spills some bytes.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads, 2)
    conv2d_bias_columns_kernel(PYDL_CONSTANT Geometry g, PYDL_CONSTANT Pieces pieces, int columns) {
  using A = acc_t<T>;
  PYDL_SHARED(double, shared, kThreads* kWidth);
  const int64_t block = blockIdx.x / pieces.count, piece = blockIdx.x - block * pieces.count;
  const int64_t end = min_of((piece + 1) * pieces.each, pieces.items);
  const int t = static_cast<int>(threadIdx.x), rows = kThreads / columns;
  const int64_t channel = (block * columns + t % columns) * kWidth;
  const T* from = static_cast<const T*>(g.p.output) + channel;
  double sum[kWidth] = {};
  if (channel < g.p.out_channels)
    for (int64_t first = piece * pieces.each + t / columns; first < end; first += kLoads * rows) {
      A x[kLoads][kWidth] = {};
#pragma unroll
      for (int i = 0; i < kLoads; ++i)
        if (first + i * rows < end) load_wide<T, kWidth>(from + output_offset(g, first + i * rows), x[i]);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        A several = 0;
#pragma unroll
        for (int i = 0; i < kLoads; ++i) several += x[i][j];
        sum[j] += static_cast<double>(several);
      }
    }
  sum_rows(sum, shared, rows);
  if (t >= columns || channel >= g.p.out_channels) return;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) put_bias<T>(g.p, piece, pieces.count, channel + j, sum[j]);
}

// A warp for a channel.
template <class T>
__global__ void __launch_bounds__(kThreads) conv2d_bias_join_kernel(PYDL_CONSTANT Params p, int64_t pieces) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (channel >= p.out_channels) return;
  const double* parts = static_cast<const double*>(p.scratch) + channel * pieces;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  double part[kMostPieces / kWarp], sum = 0;
#pragma unroll
  for (int i = 0; i < kMostPieces / kWarp; ++i) {
    const int s = i * kWarp + lane;
    part[i] = s < pieces ? parts[s] : 0;
  }
#pragma unroll
  for (int i = 0; i < kMostPieces / kWarp; ++i) sum += part[i];
  sum = warp_sum(sum);
  if (lane == 0) static_cast<T*>(p.grad_bias)[channel] = narrow<T>(static_cast<acc_t<T>>(sum));
}

// How the gradient of the bias is read: by channels where those are neighbours, by packs where they are whole.
struct BiasPlan {
  bool by_columns, packs;
  int columns;     // packs of channels in a block
  int64_t blocks;  // without the pieces
  Pieces pieces;
  explicit BiasPlan(const Params& p) : columns(1), pieces{} {
    const int width = p.dtype == DType::f64 ? 2 : p.dtype == DType::f32 ? 4 : 8;
    const int64_t* stride = p.output_stride;
    const int64_t image = p.out_height * p.out_width;
    by_columns = p.out_channels > 1 && stride[1] == 1 && (stride[3] != 1 || image == 1);
    packs = is_aligned_on_host(p.output) && stride[0] % width == 0;
    if (by_columns)
      packs = packs && p.out_channels % width == 0 && stride[2] % width == 0 && stride[3] % width == 0;
    else
      packs =
          packs && image % width == 0 && stride[1] % width == 0 && stride[3] == 1 && stride[2] == p.out_width;
    const int64_t wide = packs ? width : 1;
    int64_t at_once;  // items that a block has on the way
    if (by_columns) {
      columns = power_of_2(p.out_channels / wide, kWarp);
      blocks = ceil_div(p.out_channels / wide, columns);
      pieces.items = p.batch * image;
      at_once = kLoads * (kThreads / columns);
    } else {
      blocks = p.out_channels;
      pieces.items = p.batch * image / wide;
      pieces.plane = Split(max_of(image / wide, 1));
      at_once = kLoads * kThreads;
    }
    const int64_t wanted = min_of(ceil_div(2048, blocks), int64_t{kMostPieces});
    pieces.each = ceil_div(ceil_div(max_of(pieces.items, 1), wanted), at_once) * at_once;
    pieces.count = max_of(ceil_div(pieces.items, pieces.each), 1);
  }

 private:
  static bool is_aligned_on_host(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }
};

}  // namespace

int conv2d_weight_sum(const Params& p, int64_t splits, bool channels_first, void* stream) {
  Geometry g(p);
  g.channels_first = channels_first;
  const int64_t count = g.p.out_channels * g.in_per_group * g.area;
  const int rows = power_of_2(ceil_div(splits, kPartLoads), kWarp);
  int error = 0;
  dispatch_dtype(g.p.dtype, [&](auto type) {
    error = launch(conv2d_weight_sum_kernel<decltype(type)>, ceil_div(count, kThreads / rows), kThreads,
                   stream, g, splits, count, rows);
  });
  return error;
}

int64_t conv2d_bias_scratch(const Params& p) {
  const int64_t pieces = BiasPlan(p).pieces.count;
  return pieces == 1 ? 0 : p.out_channels * pieces * static_cast<int64_t>(sizeof(double));
}

int conv2d_backward_bias(const Params& p, void* stream) {
  const Geometry g(p);
  const BiasPlan plan(p);
  const int64_t blocks = plan.blocks * plan.pieces.count;
  int error = 0;
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    const auto run = [&](auto width_) {
      constexpr int width = decltype(width_)::value;
      error = plan.by_columns
                  ? launch(conv2d_bias_columns_kernel<T, width>, blocks, kThreads, stream, g, plan.pieces,
                           plan.columns)
                  : launch(conv2d_bias_planes_kernel<T, width>, blocks, kThreads, stream, g, plan.pieces);
    };
    plan.packs ? run(Constant<kPack<T>>{}) : run(Constant<1>{});
    if (error == 0 && plan.pieces.count > 1)
      error = launch(conv2d_bias_join_kernel<T>, ceil_div(p.out_channels, kThreads / kWarp), kThreads, stream,
                     p, plan.pieces.count);
  });
  return error;
}

}  // namespace pydl::cuda
