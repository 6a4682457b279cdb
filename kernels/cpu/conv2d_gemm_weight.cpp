// Implicit GEMM for the weight gradient, and the bias gradient.
//
//   grad_weight[o][k] = sum over pixels of grad_output[pixel][o] * window[pixel][k]
//
// The sum over pixels is the depth of the product. Rows are numbers of the window, columns are output
// channels. Where rows and columns alone make too few tasks, the pixels are cut into `splits` parts, whose
// sums are kept apart and added in order at the end: both the cut and the order depend on the shape alone,
// never on the number of threads.
#include "kernels/cpu/conv2d_gemm.h"
#include "kernels/cpu/conv2d_im2col.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kMaxRowBlocks =
    16;  // blocks of rows that share a packed panel of the gradient: 224 KB of windows
constexpr int64_t kWantedTasks = 32;          // tasks to aim at, so that 16 threads are kept busy
constexpr int64_t kMaxSplitBytes = 32 << 20;  // of partial sums

template <class A>
struct WeightPlan {
  int64_t rows, columns, pixels, groups;  // of one group: numbers of a window, output channels
  bool by_pixel;  // windows lie in memory with channels together: rows are interleaved rather than pitched
  int64_t task_blocks, task_rows, row_tasks, column_tiles, pixel_blocks, splits;

  explicit WeightPlan(const Conv2dParams& p) : groups(p.groups) {
    rows = p.kernel_height * p.kernel_width * (p.in_channels / p.groups);
    columns = p.out_channels / p.groups;
    pixels = p.batch * p.out_height * p.out_width;
    by_pixel = p.input_stride[1] == 1 && p.in_channels / p.groups >= 4;
    const int64_t row_blocks = ceil_div(rows, kRows);
    task_blocks = ceil_div(row_blocks, ceil_div(row_blocks, kMaxRowBlocks));
    task_rows = task_blocks * kRows;
    row_tasks = ceil_div(rows, task_rows);
    column_tiles = ceil_div(columns, kColumns<A>);
    pixel_blocks = ceil_div(pixels, kDepth);
    splits = max_of(1, min_of(kWantedTasks / (row_tasks * groups), pixel_blocks));
    splits =
        max_of(1, min_of(splits, kMaxSplitBytes / max_of(1, partial() * static_cast<int64_t>(sizeof(A)))));
  }
  int64_t tasks() const { return groups * row_tasks * splits; }
  int64_t task_partial() const { return task_blocks * column_tiles * kTile<A>; }
  int64_t partial() const { return groups * row_tasks * task_partial(); }  // elements of one split's sums
  int64_t slot_bytes() const {
    return Pieces::bytes<A>(task_rows * kPitch) + Pieces::bytes<A>(kDepth * kColumns<A>) +
           Pieces::bytes<Run>(kDepth);
  }
  int64_t bytes(int64_t threads) const {
    return Pieces::bytes<A>(splits * partial()) + threads * slot_bytes();
  }
};

// panel[pixel][channel], kColumns apart: the gradient at the pixels of `runs`.
template <class T, class A>
void pack_gradient(const T* data, const int64_t* stride, const Run* runs, int64_t n_runs, int64_t channels,
                   A* panel) {
  for (int64_t i = 0; i < n_runs; ++i) {
    const Run& run = runs[i];
    const T* from = data + run.image * stride[0] + run.row * stride[2] + run.column * stride[3];
    A* to = panel + run.at * kColumns<A>;
    if (stride[1] == 1 || run.count < 4) {
      for (int64_t j = 0; j < run.count; ++j)
        copy_strided(to + j * kColumns<A>, from + j * stride[3], stride[1], channels);
    } else if (stride[3] == 1) {
      for (int64_t c = 0; c < channels; c += lanes<A>)
        for (int64_t j = 0; j < run.count; j += lanes<A>) {
          const int64_t n = min_of(lanes<A>, run.count - j), some = min_of(lanes<A>, channels - c);
          vec<A> square[lanes<A>];
          for (int64_t r = 0; r < lanes<A>; ++r)
            square[r] = r < some ? load_between(from + (c + r) * stride[1] + j, 0, n) : vec<A>{};
          transpose(square);
          for (int64_t r = 0; r < n; ++r) store(to + (j + r) * kColumns<A> + c, square[r]);
        }
    } else {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t j = 0; j < run.count; ++j)
          to[j * kColumns<A> + c] = load_n(from + c * stride[1] + j * stride[3], 1)[0];
    }
  }
}

template <class T, class A>
void run_weight_task(const Conv2dParams& p, const WeightPlan<A>& plan, int64_t task, A* partial,
                     Pieces scratch) {
  const int64_t split = task % plan.splits, row_task = task / plan.splits % plan.row_tasks;
  const int64_t group = task / plan.splits / plan.row_tasks, channels = p.in_channels / p.groups;
  const Windows<T> windows = {
      static_cast<const T*>(p.input) + group * channels * p.input_stride[1],
      {p.input_stride[0], p.input_stride[1], p.input_stride[2], p.input_stride[3]},
      channels,
      {p.kernel_height, p.stride_height, -p.pad_top, p.dilation_height, p.in_height, p.out_height},
      {p.kernel_width, p.stride_width, -p.pad_left, p.dilation_width, p.in_width, p.out_width}};
  const T* gradient = static_cast<const T*>(p.output) + group * plan.columns * p.output_stride[1];
  A* left = scratch.take<A>(plan.task_rows * kPitch);
  A* right = scratch.take<A>(kDepth * kColumns<A>);
  Run* runs = scratch.take<Run>(kDepth);
  const int64_t row0 = row_task * plan.task_rows, rows = min_of(plan.task_rows, plan.rows - row0);
  const int64_t block0 = plan.pixel_blocks * split / plan.splits,
                block1 = plan.pixel_blocks * (split + 1) / plan.splits;
  for (int64_t block = block0; block < block1; ++block) {
    const int64_t begin = block * kDepth, count = min_of(kDepth, plan.pixels - begin);
    const int64_t n_runs = cut_runs(begin, count, p.out_height, p.out_width, runs);
    plan.by_pixel ? pack_windows_by_pixel(windows, runs, n_runs, row0, row0 + rows, left, plan.task_rows)
                  : pack_windows_by_depth(windows, runs, n_runs, row0, row0 + rows, left, kPitch);
    for (int64_t t = 0; t < plan.column_tiles; ++t) {
      const int64_t column0 = t * kColumns<A>, columns = min_of(kColumns<A>, plan.columns - column0);
      pack_gradient(gradient + column0 * p.output_stride[1], p.output_stride, runs, n_runs, columns, right);
      for (int64_t b = 0; b * kRows < rows; ++b)
        gemm_tile<A>(plan.by_pixel ? Rows::interleaved : Rows::pitched, min_of(kRows, rows - b * kRows),
                     columns, count, left + b * kRows * (plan.by_pixel ? 1 : kPitch), plan.task_rows, right,
                     partial + (b * plan.column_tiles + t) * kTile<A>, block > block0);
    }
  }
}

// Adds the splits in order and puts the sums where the weights are: squares of channels by output channels,
// transposed, all taps of a square in succession, so that (O, I, H, W) weights are written a few cache lines
// at a time.
template <class T, class A>
void combine(const Conv2dParams& p, const WeightPlan<A>& plan, const A* partials, const Parallel& parallel) {
  constexpr int64_t all = lanes<A>;
  const int64_t channels = p.in_channels / p.groups, taps = p.kernel_height * p.kernel_width;
  const int64_t channel_blocks = ceil_div(channels, all), out_blocks = ceil_div(plan.columns, all);
  const int64_t* stride = p.weight_stride;
  parallel(plan.groups * out_blocks * channel_blocks, ceil_div(64, taps * plan.splits),
           [&](int64_t first, int64_t last) {
             for (int64_t item = first; item < last; ++item) {
               const int64_t c0 = item % channel_blocks * all, o0 = item / channel_blocks % out_blocks * all;
               const int64_t group = item / channel_blocks / out_blocks;
               const int64_t some_channels = min_of(all, channels - c0),
                             outs = min_of(all, plan.columns - o0);
               for (int64_t tap = 0; tap < taps; ++tap) {
                 vec<A> square[all];
                 for (int64_t i = 0; i < all; ++i) {
                   square[i] = vec<A>{};
                   if (i >= some_channels) continue;
                   const int64_t row = tap * channels + c0 + i,
                                 task = group * plan.row_tasks + row / plan.task_rows;
                   const int64_t block = row % plan.task_rows / kRows, m = row % plan.task_rows % kRows;
                   const A* from = partials + task * plan.splits * plan.task_partial() +
                                   (block * plan.column_tiles + o0 / kColumns<A>)*kTile<A> + m * kColumns<A> +
                                   o0 % kColumns<A>;
                   for (int64_t s = 0; s < plan.splits; ++s)
                     square[i] += load(from + s * plan.task_partial());
                 }
                 transpose(square);
                 T* to = static_cast<T*>(p.weight) + (group * plan.columns + o0) * stride[0] +
                         c0 * stride[1] + tap / p.kernel_width * stride[2] + tap % p.kernel_width * stride[3];
                 for (int64_t j = 0; j < outs; ++j, to += stride[0]) {
                   if (stride[1] == 1) {
                     store_n(to, square[j], some_channels);
                   } else {
                     T some[all];
                     store(some, square[j]);
                     for (int64_t i = 0; i < some_channels; ++i) to[i * stride[1]] = some[i];
                   }
                 }
               }
             }
           });
}

template <class T>
void run_weight(const Conv2dParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  const WeightPlan<A> plan(p);
  if (plan.rows == 0 || plan.columns == 0) return;
  if (plan.pixels == 0) {  // an empty batch: zeros
    for (int64_t o = 0; o < p.out_channels; ++o)
      for (int64_t i = 0; i < p.in_channels / p.groups; ++i)
        for (int64_t y = 0; y < p.kernel_height; ++y)
          for (int64_t x = 0; x < p.kernel_width; ++x)
            static_cast<T*>(p.weight)[o * p.weight_stride[0] + i * p.weight_stride[1] +
                                      y * p.weight_stride[2] + x * p.weight_stride[3]] = T{};
    return;
  }
  Pieces pieces{static_cast<char*>(p.scratch)};
  A* partials = pieces.take<A>(plan.splits * plan.partial());
  const int64_t tasks = plan.tasks(), threads = max_of(1, min_of(parallel.threads, tasks));
  parallel(threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot)
      for (int64_t task = tasks * slot / threads; task < tasks * (slot + 1) / threads; ++task)
        run_weight_task<T>(p, plan, task, partials + task * plan.task_partial(),
                           Pieces{pieces.next + slot * plan.slot_bytes()});
  });
  combine<T>(p, plan, partials, parallel);
}

// grad_bias[o]: each image's sum over its pixels, the images added in order.
template <class T>
void run_bias(const Conv2dParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  constexpr int64_t kChannels = 4 * lanes<A>;
  const int64_t* stride = p.output_stride;
  const bool by_channel = stride[1] == 1 && p.out_channels > 1;
  parallel(by_channel ? ceil_div(p.out_channels, kChannels) : p.out_channels, 1,
           [&](int64_t first, int64_t last) {
             for (int64_t t = first; t < last; ++t) {
               const T* from = static_cast<const T*>(p.output) + t * (by_channel ? kChannels : 1) * stride[1];
               T* to = static_cast<T*>(p.grad_bias) + t * (by_channel ? kChannels : 1);
               if (by_channel) {
                 const int64_t channels = min_of(kChannels, p.out_channels - t * kChannels);
                 vec<A> total[4] = {};
                 for (int64_t n = 0; n < p.batch; ++n) {
                   vec<A> sum[4] = {};
                   for (int64_t y = 0; y < p.out_height; ++y)
                     for (int64_t x = 0; x < p.out_width; ++x) {
                       const T* at = from + n * stride[0] + y * stride[2] + x * stride[3];
                       for (int v = 0; v < 4 && v * lanes<A> < channels; ++v)
                         sum[v] += load_n(at + v * lanes<A>, min_of(lanes<A>, channels - v * lanes<A>));
                     }
                   for (int v = 0; v < 4; ++v) total[v] += sum[v];
                 }
                 for (int v = 0; v < 4 && v * lanes<A> < channels; ++v)
                   store_n(to + v * lanes<A>, total[v], min_of(lanes<A>, channels - v * lanes<A>));
                 continue;
               }
               const bool flat = stride[3] == 1 && stride[2] == p.out_width;
               const int64_t rows = flat ? 1 : p.out_height,
                             columns = flat ? p.out_height * p.out_width : p.out_width;
               A total = 0;
               for (int64_t n = 0; n < p.batch; ++n) {
                 vec<A> sum[2] = {};
                 A rest = 0;
                 for (int64_t y = 0; y < rows; ++y) {
                   const T* at = from + n * stride[0] + y * stride[2];
                   int64_t x = 0;
                   if (stride[3] == 1) {
                     for (; x + 2 * lanes<A> <= columns; x += 2 * lanes<A>) {
                       sum[0] += load(at + x);
                       sum[1] += load(at + x + lanes<A>);
                     }
                     for (; x < columns; x += lanes<A>)
                       sum[0] += load_n(at + x, min_of(lanes<A>, columns - x));
                   } else {
                     for (; x < columns; ++x) rest += load_n(at + x * stride[3], 1)[0];
                   }
                 }
                 total += reduce_add(sum[0] + sum[1]) + rest;
               }
               store_n(to, vec<A>{} + total, 1);
             }
           });
}

}  // namespace

int64_t conv2d_gemm_weight_scratch(const Conv2dParams& p, int64_t threads) {
  int64_t bytes = 0;
  dispatch_dtype(p.dtype, [&](auto type) { bytes = WeightPlan<acc_t<decltype(type)>>(p).bytes(threads); });
  return bytes;
}

void conv2d_gemm_backward_weight(const Conv2dParams& p, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) { run_weight<decltype(type)>(p, parallel); });
}

void conv2d_backward_bias(const Conv2dParams& p, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) { run_bias<decltype(type)>(p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
