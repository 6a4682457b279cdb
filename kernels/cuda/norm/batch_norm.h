// What the kernels of batch_norm share: the two walks over a tensor, and the coefficients of a channel.
//
//   rows     (NCHW):          a block takes a part of one channel; the channel's batch * spatial values are
//   counted
//                             through, and an index is split into (n, s) by a multiplication
//   columns  (channels_last): a block takes some rows of some neighbouring channels, a thread always the same
//   channels
//
// Values are read kWidth at a time: a pack of 16 bytes where every tensor's strides and addresses allow it,
// else one.
#pragma once

#include "kernels/batch_norm.h"
#include "kernels/cuda/device.h"

namespace pydl::cuda {
namespace {  // a copy in every translation unit

using Params = BatchNormParams;

constexpr int kThreads = 256;

// ---- the walk, worked out on the host

struct Walk {
  bool columns, packed;
  int width;            // elements that are read at once
  int64_t splits;       // parts of a channel's values, each a block's
  int64_t blocks;       // of the whole launch
  int64_t split_items;  // rows: reads of a split; columns: rows of a split
  // rows
  int64_t items, per_entry;  // reads in a channel, and of one batch entry
  Divisor entry;
  // columns
  int64_t rows;
  int tiles, lanes;  // blocks across the channels, and threads of a block across them
};

inline int log2_ceil(int64_t n) {
  int bits = 0;
  while ((int64_t{1} << bits) < n) ++bits;
  return bits;
}

// Whether every tensor of the call can be read 16 bytes at a time.
inline bool all_packed(const Params& p) {
  const int64_t width = p.dtype == DType::f64 ? 2 : p.dtype == DType::f32 ? 4 : 8;
  const BatchNormView views[] = {p.input, p.residual, p.output, p.grad_output, p.grad_input, p.grad_residual};
  bool packed = (p.channels_last ? p.channels : p.spatial) % width == 0;
  for (const BatchNormView& view : views) {
    if (view.data == nullptr) continue;
    packed &= reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.row_stride % width == 0;
    packed &= p.channels_last || view.channel_stride % width == 0;
  }
  return packed;
}

// reads: how many reads each thread of a split has at the least, where there are so many.
inline Walk walk_of(const Params& p, int64_t reads, int64_t most_splits) {
  constexpr int64_t kBlocks = 2048;  // enough to fill a large GPU
  Walk w{};
  w.columns = p.channels_last;
  w.packed = all_packed(p);
  w.width = w.packed ? (p.dtype == DType::f64 ? 2 : p.dtype == DType::f32 ? 4 : 8) : 1;
  int64_t across;
  if (w.columns) {
    const int64_t reads_across = ceil_div(p.channels, w.width);
    w.lanes = 1 << log2_ceil(min_of(reads_across, kWarp));
    w.tiles = static_cast<int>(ceil_div(reads_across, w.lanes));
    w.rows = p.batch * p.spatial;
    w.items = w.rows;
    across = w.tiles;
    reads *= kThreads / w.lanes;
  } else {
    w.per_entry = p.spatial / w.width;
    w.entry = Divisor(w.per_entry);
    w.items = p.batch * w.per_entry;
    across = p.channels;
    reads *= kThreads;
  }
  // no more than 2^30 reads in a split, so that 32 bits count them
  const int64_t least = ceil_div(w.items, int64_t{1} << 30);
  w.splits = max_of(min_of(min_of(ceil_div(kBlocks, across), most_splits), ceil_div(w.items, reads)), least);
  w.split_items = ceil_div(w.items, w.splits);
  w.splits = ceil_div(w.items, w.split_items);
  w.blocks = across * w.splits;
  return w;
}

// Where a thread starts, and how it goes on: for (i = at.begin; i < at.end; i += at.step). Reads are counted within the
// split, by 32 bits: each register of a thread counts, and with 64 ptxas kept one in memory.
struct Place {
  int64_t channel;  // the first of the thread's channels
  int64_t split;
  bool inside;  // columns: the thread has channels
  int32_t begin, end, step;
  int64_t origin;  // columns: the split's first row; rows: its first read within batch entry `entry`
  int64_t entry;
};

template <bool kColumns>
PYDL_DEVICE Place place_of(const Params& p, const Walk& w) {
  Place at{};
  if constexpr (kColumns) {
    const unsigned tile = blockIdx.x % static_cast<unsigned>(w.tiles);
    at.split = blockIdx.x / static_cast<unsigned>(w.tiles);
    at.channel = (static_cast<int64_t>(tile) * w.lanes + threadIdx.x % w.lanes) * w.width;
    at.inside = at.channel < p.channels;
    at.step = kThreads / w.lanes;
    at.origin = at.split * w.split_items;
    at.begin = static_cast<int32_t>(threadIdx.x) / w.lanes;
    at.end = static_cast<int32_t>(min_of(w.split_items, w.items - at.origin));
  } else {
    const unsigned splits = static_cast<unsigned>(w.splits);
    at.channel = blockIdx.x / splits;
    at.split = blockIdx.x % splits;
    at.inside = true;
    at.step = kThreads;
    const int64_t first = at.split * w.split_items;
    if (first > 0) {
      at.entry = first / w.per_entry;
      at.origin = first - at.entry * w.per_entry;
    }
    at.begin = static_cast<int32_t>(threadIdx.x);
    at.end = static_cast<int32_t>(min_of(w.split_items, w.items - first));
  }
  return at;
}

// The offset of read i in a tensor.
template <bool kColumns>
PYDL_DEVICE int64_t offset_of(const Walk& w, const Place& at, int32_t i, const BatchNormView& view) {
  if constexpr (kColumns) {
    return (at.origin + i) * view.row_stride + at.channel;
  } else {
    if (w.entry.divisor == 0) {  // entries so large that a split meets the end of one at most
      const int64_t from = i + at.origin;
      const bool next = from >= w.per_entry;
      return (at.entry + next) * view.row_stride + at.channel * view.channel_stride +
             (next ? from - w.per_entry : from) * w.width;
    }
    const uint32_t from_entry = static_cast<uint32_t>(i + at.origin);
    const uint32_t n = w.entry.quotient(from_entry);
    return (at.entry + n) * view.row_stride + at.channel * view.channel_stride +
           static_cast<int64_t>(from_entry - n * w.entry.divisor) * w.width;
  }
}

// ---- reads and writes of kWidth values

template <class T, int kWidth>
PYDL_DEVICE void load_values(const void* data, int64_t offset, acc_t<T> (&x)[kWidth]) {
  const T* from = static_cast<const T*>(data) + offset;
  if constexpr (kWidth == 1) {
    x[0] = widen(*from);
  } else {
    const Pack<T> pack = load_pack_cached(from);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) x[j] = widen(pack.value[j]);
  }
}
template <class T, int kWidth>
PYDL_DEVICE void store_values(void* data, int64_t offset, const acc_t<T> (&x)[kWidth]) {
  T* to = static_cast<T*>(data) + offset;
  if constexpr (kWidth == 1) {
    *to = narrow<T>(x[0]);
  } else {
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) pack.value[j] = narrow<T>(x[j]);
    store_pack_cached(to, pack);
  }
}

// ---- a channel

PYDL_DEVICE double param_at(const Params& p, const void* data, int64_t c, double absent) {
  return data ? read_as<double>(p.param_dtype, data, c) : absent;
}
PYDL_DEVICE void set_param(const Params& p, void* data, int64_t c, double value) {
  if (data) write_as<double>(p.param_dtype, data, c, value);
}
PYDL_DEVICE double invstd_at(const Params& p, int64_t c) { return 1.0 / sqrt(p.var[c] + p.eps); }

// z = (x - shift) * scale + offset. shift is the mean rounded to the type of the sums; what rounding took
// from it is in offset: x - shift is exact near the mean, so a mean far above the deviation costs no digits.
// grad_input = gz * scale + (x - shift) * slope + constant.
template <class A>
struct Coefficients {
  A shift, scale, offset, slope, constant;
};

template <class A, bool kBackward>
PYDL_DEVICE Coefficients<A> coefficients_of(const Params& p, int64_t c) {
  Coefficients<A> k{};
  const double mean = p.mean[c], invstd = invstd_at(p, c), scale = param_at(p, p.weight, c, 1.0) * invstd;
  k.shift = static_cast<A>(mean);
  const double lost = mean - static_cast<double>(k.shift);
  k.scale = static_cast<A>(scale);
  k.offset = static_cast<A>(param_at(p, p.bias, c, 0.0) - lost * scale);
  if (kBackward && p.training) {
    const double slope = -scale * invstd * p.sum_grad_xhat[c] / p.count;
    k.slope = static_cast<A>(slope);
    k.constant = static_cast<A>(-scale * p.sum_grad[c] / p.count - lost * slope);
  }
  return k;
}

// Sums of gz and gz (x - shift) become those of the contract.
PYDL_DEVICE void finish_sums(const Params& p, int64_t c, double sum, double sum_shifted) {
  const double shift = p.dtype == DType::f64 ? p.mean[c] : static_cast<double>(static_cast<float>(p.mean[c]));
  const double sum_xhat = (sum_shifted - (p.mean[c] - shift) * sum) * invstd_at(p, c);
  p.sum_grad[c] = sum;
  p.sum_grad_xhat[c] = sum_xhat;
  set_param(p, p.grad_bias, c, sum);
  set_param(p, p.grad_weight, c, sum_xhat);
}

// squares: the sum of squared deviations from the mean
PYDL_DEVICE void finish_moments(const Params& p, int64_t c, double mean, double squares) {
  const double n = static_cast<double>(p.batch * p.spatial), k = p.momentum;
  p.mean[c] = mean;
  p.var[c] = squares / n;
  if (p.running_mean == nullptr) return;
  set_param(p, p.running_mean, c, (1 - k) * param_at(p, p.running_mean, c, 0) + k * mean);
  set_param(p, p.running_var, c, (1 - k) * param_at(p, p.running_var, c, 0) + k * (squares / (n - 1)));
}

template <class A>
PYDL_DEVICE A affine(const Coefficients<A>& k, A x) {  // the forward's and the backward's, to the bit
  if constexpr (sizeof(A) == 8)
    return fma(x - k.shift, k.scale, k.offset);
  else
    return fmaf(x - k.shift, k.scale, k.offset);
}
PYDL_DEVICE float sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }
PYDL_DEVICE double sigmoid(double z) { return 1.0 / (1.0 + exp(-z)); }

// gz from g, the gradient of the output, and v, the output or z; nan passes the gradient, as torch's ReLU
// does.
template <class A>
PYDL_DEVICE A gradient_of_z(BatchNormGradient gradient, A g, A v) {
  if (gradient == BatchNormGradient::sigmoid_output) return g * v * (1 - v);
  return gradient != BatchNormGradient::linear && v <= 0 ? A(0) : g;
}

// Calls body(T{}, Constant<columns>, Constant<width>).
template <class F>
inline void dispatch_walk(const Params& p, const Walk& w, F&& body) {
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    if (w.columns)
      w.packed ? body(type, Constant<1>{}, Constant<kPack<T>>{}) : body(type, Constant<1>{}, Constant<1>{});
    else
      w.packed ? body(type, Constant<0>{}, Constant<kPack<T>>{}) : body(type, Constant<0>{}, Constant<1>{});
  });
}

constexpr int64_t kMostSplits = 256;

}  // namespace
}  // namespace pydl::cuda
