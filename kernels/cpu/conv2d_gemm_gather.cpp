// Implicit GEMM for the forward pass and the input gradient.
//
// Both are the same problem: every pixel of a result gathers a window of another tensor, and a small matrix
// of weights turns the window into the pixel's channels. The input gradient with stride s splits into s * s
// such problems, one per phase of the pixel grid: within a phase every pixel is reached by the same taps, one
// step apart.
//
//   result[pixel][m] = act(bias[m] + sum_k weight[m][k] * window[pixel][k])
//
// Weights are packed once per call. A task packs the windows of a block of pixels, kDepth numbers at a time,
// and runs the microkernel over all channels; partial tiles live in the task's own scratch, so nothing but
// results is written. The vector axis is the one along which the result is contiguous: pixels (NCHW) or
// channels (channels_last).
#include "kernels/cpu/conv2d_finish.h"
#include "kernels/cpu/conv2d_gather.h"
#include "kernels/cpu/conv2d_gemm_slab.h"
#include "kernels/cpu/conv2d_gemm_spread.h"
#include "kernels/cpu/conv2d_im2col.h"
#include "kernels/cpu/simd_transpose.h"
#include "kernels/cpu/tasks.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kMaxBlocks = 32;            // tiles of columns, or blocks of rows, that one task packs:
constexpr int64_t kPackedElements = 1 << 15;  // as many as make 128 KB of windows, half of a small L2

// Sizes that both the caller of scratch and the run must agree on.
template <class A>
struct Plan {
  bool by_channel;  // the vector axis is channels
  int64_t depth, depth_blocks;
  int64_t weight_tiles;  // blocks of rows (or tiles of columns) that the channels fill
  int64_t weight_rows;   // channels per block of rows
  int64_t blocks, task_pixels, tasks_per_group;

  Plan(bool by_channel, int64_t depth, int64_t channels, int64_t pixels)
      : by_channel(by_channel), depth(depth), depth_blocks(max_of(ceil_div(depth, kDepth), 1)) {
    weight_tiles = by_channel ? ceil_div(channels, kColumns<A>) : ceil_div(channels, kRows);
    weight_rows = ceil_div(channels, weight_tiles);
    // a long row of results per channel spares the store side (pages, DRAM rows), so shallow sums take more
    // pixels
    blocks = max_of(4, min_of(kMaxBlocks, kPackedElements / (max_of(min_of(depth, kDepth), 1) * unit())));
    blocks =
        max_of(1, min_of(blocks, pixels / (16 * unit())));  // and small problems leave tasks for every thread
    task_pixels = blocks * unit();
    tasks_per_group = ceil_div(pixels, task_pixels);
  }
  // A 1x1 kernel of stride 1 over planes without gaps.
  template <class T>
  bool by_pixel_lines(const Gather<T>& g) const {
    const Axis &y = g.windows.y, &x = g.windows.x;
    return !by_channel && g.windows.stride[3] == 1 && y.taps == 1 && x.taps == 1 && y.step == 1 &&
           x.step == 1 && y.first == 0 && x.first == 0 && y.out_size <= y.in_size && x.out_size <= x.in_size;
  }
  int64_t unit() const { return by_channel ? kRows : kColumns<A>; }  // pixels per block
  int64_t weight_unit() const { return by_channel ? kColumns<A> : kRows; }
  int64_t weight_panel() const { return min_of(depth, kDepth) * weight_unit(); }
  int64_t weight_elements(int64_t groups) const {
    return groups * depth_blocks * weight_tiles * weight_panel();
  }
  // Elements between panels: not a power of two, so that they do not share cache sets.
  int64_t window_panel() const { return by_channel ? kRows * kPitch : kDepth * kColumns<A> + lanes<A>; }
  int64_t tiles() const { return depth_blocks == 1 ? 1 : weight_tiles * blocks; }
  int64_t bytes(int64_t groups, int64_t threads) const {
    return Pieces::bytes<A>(weight_elements(groups)) + threads * slot_bytes();
  }
  int64_t slot_bytes() const {
    return Pieces::bytes<A>(blocks * window_panel()) + Pieces::bytes<A>(tiles() * kTile<A>) +
           Pieces::bytes<Run>(task_pixels);
  }
};

template <class T>
Plan<acc_t<T>> plan_of(const Gather<T>& g) {
  return {g.channels_contiguous(), g.windows.depth(), g.channels, g.pixels()};
}

// Whether the weights of a channel lie without gaps, channels before taps (torch's own order) or taps before
// channels (channels_last).
template <class T>
bool dense_weights(const Gather<T>& g, bool taps_first) {
  const int64_t x_taps = g.windows.x.taps, taps = g.windows.y.taps * x_taps, channels = g.windows.channels;
  const int64_t tap = taps_first ? channels : 1;
  return (channels == 1 || g.weight_channel == (taps_first ? 1 : taps)) &&
         (x_taps == 1 || g.weight_x == tap) && (g.windows.y.taps == 1 || g.weight_y == x_taps * tap);
}

// All panels of one tile of `count` channels, from weights without gaps: squares are transposed in registers.
// Copied one by one, 512 × 256 × 3 × 3 weights cost a third of a convolution with few pixels.
template <class T, class A>
void pack_dense_tile(const Gather<T>& g, const Plan<A>& plan, const T* from, bool taps_first, int64_t count,
                     A* panel, int64_t panel_stride) {
  constexpr int64_t all = lanes<A>;
  const int64_t taps = g.windows.y.taps * g.windows.x.taps, channels = g.windows.channels,
                unit = plan.weight_unit();
  for (int64_t m = 0; m < unit; m += all) {
    const int64_t rows = min_of(all, count - m), width = min_of(all, unit - m);
    int64_t tap = 0, channel = 0;  // of number q
    for (int64_t q = 0; q < plan.depth; q += all) {
      const int64_t n = min_of(all, plan.depth - q);
      vec<A> square[all];
      for (int64_t i = 0; i < all; ++i)
        square[i] = i < rows ? load_n(from + (m + i) * g.weight_m + q, n) : vec<A>{};
      transpose(square);
      for (int64_t j = 0; j < n; ++j) {
        const int64_t k = taps_first ? q + j : tap * channels + channel;
        store_n(panel + k / kDepth * panel_stride + k % kDepth * unit + m, square[j], width);
        if (++tap == taps) {
          tap = 0;
          ++channel;
        }
      }
    }
  }
}

// panel[k][channel], weight_unit() apart; channels beyond the last read as zero.
template <class T, class A>
void pack_weights(const Gather<T>& g, const Plan<A>& plan, A* packed, const Parallel& parallel) {
  const int64_t panels = g.groups * plan.depth_blocks * plan.weight_tiles, unit = plan.weight_unit();
  const int64_t per_tile = plan.by_channel ? unit : plan.weight_rows;
  for (int order = 0; order < 2; ++order) {
    const bool taps_first = order == 1;
    if (!dense_weights(g, taps_first) || plan.depth < lanes<A>) continue;
    const int64_t panel_stride = plan.weight_tiles * plan.weight_panel();
    return parallel(
        g.groups * plan.weight_tiles, ceil_div(4096, plan.depth * unit), [&](int64_t first, int64_t last) {
          for (int64_t i = first; i < last; ++i) {
            const int64_t group = i / plan.weight_tiles, tile = i % plan.weight_tiles, m0 = tile * per_tile;
            pack_dense_tile(g, plan, g.weight + group * g.weight_group + m0 * g.weight_m, taps_first,
                            min_of(per_tile, g.channels - m0),
                            packed + group * plan.depth_blocks * panel_stride + tile * plan.weight_panel(),
                            panel_stride);
          }
        });
  }
  parallel(panels, ceil_div(4096, max_of(plan.weight_panel(), 1)), [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      // all blocks of a tile in succession: they reread the same cache lines when the weights are (O, I, H,
      // W)
      const int64_t block = p % plan.depth_blocks, tile = p / plan.depth_blocks % plan.weight_tiles;
      const int64_t group = p / plan.weight_tiles / plan.depth_blocks;
      const int64_t m0 = tile * per_tile, count = min_of(per_tile, g.channels - m0);
      const T* from = g.weight + group * g.weight_group + m0 * g.weight_m;
      A* to = packed + ((group * plan.depth_blocks + block) * plan.weight_tiles + tile) * plan.weight_panel();
      each_tap(g.windows, block * kDepth, min_of((block + 1) * kDepth, plan.depth),
               [&](int64_t ty, int64_t tx, int64_t channel, int64_t channels, int64_t at) {
                 const T* tap = from + ty * g.weight_y + tx * g.weight_x + channel * g.weight_channel;
                 for (int64_t c = 0; c < channels; ++c) {
                   A* row = to + (at + c) * unit;
                   copy_strided(row, tap + c * g.weight_channel, g.weight_m, count);
                   fill_zero(row + count, unit - count);
                 }
               });
    }
  });
}

// to[i * stride] = act(from[i] + bias), where bias is one number or a vector of them.
template <class T, class A>
PYDL_INLINE void finish(const A* from, T* to, int64_t stride, int64_t count, const T* bias, int64_t bias_step,
                        Activation activation) {
  const vec<A> one_bias = bias && bias_step == 0 ? splat(load_n(bias, 1)[0]) : vec<A>{};
  for (int64_t i = 0; i < count; i += lanes<A>) {
    const int64_t n = min_of(lanes<A>, count - i);
    vec<A> x = load(from + i) + (bias && bias_step ? load_n(bias + i, n) : one_bias);
    x = activate<A>(x, activation);
    if (stride == 1) {
      n == lanes<A> ? store(to + i, x) : store_n(to + i, x, n);
    } else {
      T some[lanes<A>];
      store(some, x);
      for (int64_t j = 0; j < n; ++j) to[(i + j) * stride] = some[j];
    }
  }
}

// A finished tile goes out: `runs` are the pixels of its columns (or rows), m0 its first channel.
template <class T, class A>
void finish_tile(const Gather<T>& g, bool by_channel, const A* tile, int64_t group, int64_t m0,
                 int64_t channels, const Run* runs, int64_t n_runs) {
  T* base = g.result + group * g.result_group + m0 * g.result_stride[1];
  const T* bias = g.bias ? g.bias + group * g.channels + m0 : nullptr;
  for (int64_t i = 0; i < n_runs; ++i) {
    const Run& run = runs[i];
    T* to = base + run.image * g.result_stride[0] + run.row * g.result_stride[2] +
            run.column * g.result_stride[3];
    if (by_channel) {
      for (int64_t j = 0; j < run.count; ++j)
        finish(tile + (run.at + j) * kColumns<A>, to + j * g.result_stride[3], 1, channels, bias, 1,
               g.activation);
    } else {
      for (int64_t m = 0; m < channels; ++m)
        finish(tile + m * kColumns<A> + run.at, to + m * g.result_stride[1], g.result_stride[3], run.count,
               bias ? bias + m : nullptr, 0, g.activation);
    }
  }
}

// Asks for the lines that finish_tile will write, before the product that takes its time: stores that miss
// would hold up the next one.
template <class T>
void fetch_tile(const Gather<T>& g, bool by_channel, int64_t group, int64_t m0, int64_t channels,
                const Run* runs, int64_t n_runs) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
  T* base = g.result + group * g.result_group + m0 * g.result_stride[1];
  for (int64_t i = 0; i < n_runs; ++i) {
    const Run& run = runs[i];
    T* to = base + run.image * g.result_stride[0] + run.row * g.result_stride[2] +
            run.column * g.result_stride[3];
    const int64_t rows = by_channel ? run.count : channels, length = by_channel ? channels : run.count;
    const int64_t step = g.result_stride[by_channel ? 3 : 1];
    for (int64_t j = 0; j < rows; ++j)
      for (int64_t at = 0; at < length; at += line) prefetch_to_write(to + j * step + at);
  }
}

// The panels of all blocks of a task for a 1x1 kernel over planes, one channel after the other: a channel's
// pixels are read in one stretch, where block after block would jump between as many planes as there are
// channels.
template <class T, class A>
void pack_lines(const Windows<T>& w, const Run* runs, const int64_t* first_run, int64_t blocks, int64_t begin,
                int64_t end, A* panels, int64_t panel) {
  for (int64_t k = begin; k < end; ++k)
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t i = first_run[b]; i < first_run[b + 1]; ++i) {
        const Run& run = runs[i];
        const T* from =
            w.data + run.image * w.stride[0] + k * w.stride[1] + run.row * w.stride[2] + run.column;
        prefetch(from + 2 * w.stride[1]);
        prefetch(from + 2 * w.stride[1] + lanes<A>);
        copy_strided(panels + b * panel + (k - begin) * kColumns<A> + run.at, from, 1, run.count);
      }
}

// Pixels [begin, begin + count) of one group.
template <class T, class A>
void run_task(const Gather<T>& g, const Plan<A>& plan, const A* packed, int64_t group, int64_t begin,
              int64_t count, Pieces scratch) {
  Windows<T> windows = g.windows;
  windows.data += group * g.window_group;
  A* panels = scratch.take<A>(plan.blocks * plan.window_panel());
  A* tiles = scratch.take<A>(plan.tiles() * kTile<A>);
  Run* runs = scratch.take<Run>(plan.task_pixels);
  const int64_t unit = plan.unit(), blocks = ceil_div(count, unit);
  int64_t first_run[kMaxBlocks + 1] = {0};
  for (int64_t b = 0; b < blocks; ++b)
    first_run[b + 1] = first_run[b] + cut_runs(begin + b * unit, min_of(unit, count - b * unit),
                                               windows.y.out_size, windows.x.out_size, runs + first_run[b]);
  const int64_t per_tile = plan.by_channel ? kColumns<A> : plan.weight_rows;
  for (int64_t d = 0; d < plan.depth_blocks; ++d) {
    const int64_t k0 = d * kDepth, k1 = min_of(k0 + kDepth, plan.depth);
    if (plan.by_pixel_lines(g))
      pack_lines(windows, runs, first_run, blocks, k0, k1, panels, plan.window_panel());
    for (int64_t b = 0; b < blocks && !plan.by_pixel_lines(g); ++b) {
      const Run* block_runs = runs + first_run[b];
      const int64_t n = first_run[b + 1] - first_run[b];
      A* panel = panels + b * plan.window_panel();
      plan.by_channel ? pack_windows_by_pixel(windows, block_runs, n, k0, k1, panel, kPitch)
                      : pack_windows_by_depth(windows, block_runs, n, k0, k1, panel, kColumns<A>);
    }
    for (int64_t t = 0; t < plan.weight_tiles; ++t) {
      const A* weights =
          packed + ((group * plan.depth_blocks + d) * plan.weight_tiles + t) * plan.weight_panel();
      const int64_t channels = min_of(per_tile, g.channels - t * per_tile);
      for (int64_t b = 0; b < blocks; ++b) {
        A* tile = tiles + (plan.depth_blocks == 1 ? 0 : t * plan.blocks + b) * kTile<A>;
        const A* panel = panels + b * plan.window_panel();
        const int64_t pixels = min_of(unit, count - b * unit);
        if (d == plan.depth_blocks - 1)
          fetch_tile(g, plan.by_channel, group, t * per_tile, channels, runs + first_run[b],
                     first_run[b + 1] - first_run[b]);
        plan.by_channel
            ? gemm_tile<A>(Rows::pitched, pixels, channels, k1 - k0, panel, 0, weights, tile, d > 0)
            : gemm_tile<A>(Rows::interleaved, channels, pixels, k1 - k0, weights, kRows, panel, tile, d > 0);
        if (d == plan.depth_blocks - 1)
          finish_tile(g, plan.by_channel, tile, group, t * per_tile, channels, runs + first_run[b],
                      first_run[b + 1] - first_run[b]);
      }
    }
  }
}

template <class T>
void run_gather(const Gather<T>& g, void* scratch, const Parallel& parallel) {
  using A = acc_t<T>;
  if (g.pixels() == 0 || g.channels == 0) return;
  const Plan<A> plan = plan_of(g);
  Pieces pieces{static_cast<char*>(scratch)};
  A* packed = pieces.take<A>(plan.weight_elements(g.groups));
  pack_weights(g, plan, packed, parallel);
  run_tasks(parallel, g.groups * plan.tasks_per_group, [&](int64_t task, int64_t slot) {
    const int64_t group = task / plan.tasks_per_group, begin = task % plan.tasks_per_group * plan.task_pixels;
    run_task(g, plan, packed, group, begin, min_of(plan.task_pixels, g.pixels() - begin),
             Pieces{pieces.next + slot * plan.slot_bytes()});
  });
}

}  // namespace

int64_t conv2d_gemm_gather_scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  const bool is_forward = pass == Conv2dPass::forward;
  if (!is_forward && spread_pays(p)) return spread_scratch(p, threads);
  if (slab_gather_pays(p, is_forward)) return slab_gather_scratch(p, is_forward, threads);
  int64_t bytes = 0;
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    if (pass == Conv2dPass::forward) {
      bytes = plan_of(forward_problem<T>(p)).bytes(p.groups, threads);
      return;
    }
    for (int64_t y = 0; y < min_of(p.stride_height, p.in_height); ++y)
      for (int64_t x = 0; x < min_of(p.stride_width, p.in_width); ++x)
        bytes = max_of(bytes, plan_of(phase_problem<T>(p, y, x)).bytes(p.groups, threads));
  });
  return bytes;
}

void conv2d_gemm_forward(const Conv2dParams& p, const Parallel& parallel) {
  if (slab_gather_pays(p, true)) return slab_gather(p, true, parallel);
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    run_gather(forward_problem<T>(p), p.scratch, parallel);
  });
}

void conv2d_gemm_backward_input(const Conv2dParams& p, const Parallel& parallel) {
  if (spread_pays(p)) return spread_backward_input(p, parallel);
  if (slab_gather_pays(p, false)) return slab_gather(p, false, parallel);
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t y = 0; y < min_of(p.stride_height, p.in_height); ++y)
      for (int64_t x = 0; x < min_of(p.stride_width, p.in_width); ++x)
        run_gather(phase_problem<T>(p, y, x), p.scratch, parallel);
  });
}

}  // namespace pydl::cpu::PYDL_ISA
