// Implicit GEMM for the forward pass and the input gradient.
//
// Both are the same problem: every pixel of a result reads a window of another tensor, and a small matrix
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
#include "kernels/cpu/conv2d/implicit/panels.h"
#include "kernels/cpu/base/activation.h"
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/conv2d/implicit/slabs.h"

namespace pydl::cpu::PYDL_ISA::implicit {
namespace {

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
void finish_tile(const WindowProduct<T>& g, bool by_channel, const A* tile, int64_t group, int64_t m0,
                 int64_t channels, const Run* runs, int64_t n_runs) {
  T* base = g.result + group * g.result_group + m0 * g.result_stride[1];
  const T* bias = g.bias ? g.bias + group * g.channels + m0 : nullptr;
  for (int64_t i = 0; i < n_runs; ++i) {
    const Run& run = runs[i];
    T* to = base + run.image * g.result_stride[0] + run.row * g.result_stride[2] +
            run.column * g.result_stride[3];
    if (by_channel) {
      for (int64_t j = 0; j < run.count; ++j)
        finish(tile + (run.at + j) * kNr<A>, to + j * g.result_stride[3], 1, channels, bias, 1, g.activation);
    } else {
      for (int64_t m = 0; m < channels; ++m)
        finish(tile + m * kNr<A> + run.at, to + m * g.result_stride[1], g.result_stride[3], run.count,
               bias ? bias + m : nullptr, 0, g.activation);
    }
  }
}

// Asks for the lines that finish_tile will write, before the product that takes its time: stores that miss
// would hold up the next one.
template <class T>
void fetch_tile(const WindowProduct<T>& g, bool by_channel, int64_t group, int64_t m0, int64_t channels,
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
        copy_strided(panels + b * panel + (k - begin) * kNr<A> + run.at, from, 1, run.count);
      }
}

// Pixels [begin, begin + count) of one group.
template <class T, class A>
void run_task(const WindowProduct<T>& g, const Plan<A>& plan, const A* packed, int64_t group, int64_t begin,
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
  const int64_t per_tile = plan.by_channel ? kNr<A> : plan.weight_rows;
  for (int64_t d = 0; d < plan.depth_blocks; ++d) {
    const int64_t k0 = d * kDepth, k1 = min_of(k0 + kDepth, plan.depth);
    if (plan.by_pixel_lines(g))
      pack_lines(windows, runs, first_run, blocks, k0, k1, panels, plan.window_panel());
    for (int64_t b = 0; b < blocks && !plan.by_pixel_lines(g); ++b) {
      const Run* block_runs = runs + first_run[b];
      const int64_t n = first_run[b + 1] - first_run[b];
      A* panel = panels + b * plan.window_panel();
      plan.by_channel ? pack_windows_by_pixel(windows, block_runs, n, k0, k1, panel, kPitch)
                      : pack_windows_by_depth(windows, block_runs, n, k0, k1, panel, kNr<A>);
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
        PanelProduct<A> product{};
        product.depth = k1 - k0;
        product.add = d > 0;
        product.right_pitch = product.result_pitch = kNr<A>;
        product.result = tile;
        if (plan.by_channel) {
          product.rows = pixels;
          product.columns = channels;
          product.left = panel;
          product.left_pitch = kPitch;
          product.right = weights;
        } else {
          product.rows = channels;
          product.columns = pixels;
          product.left = weights;
          product.left_pitch = kMr;
          product.strips = true;
          product.right = panel;
        }
        multiply_panel(product);
        if (d == plan.depth_blocks - 1)
          finish_tile(g, plan.by_channel, tile, group, t * per_tile, channels, runs + first_run[b],
                      first_run[b + 1] - first_run[b]);
      }
    }
  }
}

template <class T>
void run_product(const WindowProduct<T>& g, void* scratch, const Parallel& parallel) {
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

// Calls body(problem) for the forward pass, or for each phase of the input gradient.
template <class F>
void each_problem(const Conv2dParams& p, Conv2dPass pass, const F& body) {
  dispatch_every(p.dtype, [&](auto type) {
    using T = decltype(type);
    if (pass == Conv2dPass::forward) return body(forward_problem<T>(p));
    for (int64_t y = 0; y < min_of(p.stride_height, p.in_height); ++y)
      for (int64_t x = 0; x < min_of(p.stride_width, p.in_width); ++x) body(phase_problem<T>(p, y, x));
  });
}

}  // namespace

namespace panels {

bool serves(const Conv2dParams&, Conv2dPass) { return true; }

int64_t scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  int64_t bytes = 0;
  each_problem(p, pass, [&](const auto& g) { bytes = max_of(bytes, plan_of(g).bytes(p.groups, threads)); });
  return bytes;
}

void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  each_problem(p, pass, [&](const auto& g) { run_product(g, p.scratch, parallel); });
}

}  // namespace panels

}  // namespace pydl::cpu::PYDL_ISA::implicit
