// Sizes and packed weights of implicit GEMM over panels of windows (panels.cpp).
#pragma once

#include "kernels/cpu/base/simd_transpose.h"
#include "kernels/cpu/conv2d/implicit/window_product.h"
#include "kernels/cpu/gemm/panel.h"

namespace pydl::cpu::PYDL_ISA::implicit {
using namespace gemm;

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
    weight_tiles = by_channel ? ceil_div(channels, kNr<A>) : ceil_div(channels, kMr);
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
  bool by_pixel_lines(const WindowProduct<T>& g) const {
    const Axis &y = g.windows.y, &x = g.windows.x;
    return !by_channel && g.windows.stride[3] == 1 && y.taps == 1 && x.taps == 1 && y.step == 1 &&
           x.step == 1 && y.first == 0 && x.first == 0 && y.out_size <= y.in_size && x.out_size <= x.in_size;
  }
  int64_t unit() const { return by_channel ? kMr : kNr<A>; }  // pixels per block
  int64_t weight_unit() const { return by_channel ? kNr<A> : kMr; }
  int64_t weight_panel() const { return min_of(depth, kDepth) * weight_unit(); }
  int64_t weight_elements(int64_t groups) const {
    return groups * depth_blocks * weight_tiles * weight_panel();
  }
  // Elements between panels: not a power of two, so that they do not share cache sets.
  int64_t window_panel() const { return by_channel ? kMr * kPitch : kDepth * kNr<A> + lanes<A>; }
  int64_t tiles() const { return depth_blocks == 1 ? 1 : weight_tiles * blocks; }
  int64_t bytes(int64_t groups, int64_t threads) const {
    return Pieces::bytes<A>(weight_elements(groups)) + threads * slot_bytes();
  }
  int64_t slot_bytes() const {
    return Pieces::bytes<A>(blocks * window_panel()) + Pieces::bytes<A>(tiles() * kTile<A>) +
           Pieces::bytes<Run>(task_pixels) + kApart;
  }
};

template <class T>
Plan<acc_t<T>> plan_of(const WindowProduct<T>& g) {
  return {g.channels_contiguous(), g.windows.depth(), g.channels, g.pixels()};
}

// Whether the weights of a channel lie without gaps, channels before taps (torch's own order) or taps before
// channels (channels_last).
template <class T>
bool dense_weights(const WindowProduct<T>& g, bool taps_first) {
  const int64_t x_taps = g.windows.x.taps, taps = g.windows.y.taps * x_taps, channels = g.windows.channels;
  const int64_t tap = taps_first ? channels : 1;
  return (channels == 1 || g.weight_channel == (taps_first ? 1 : taps)) &&
         (x_taps == 1 || g.weight_x == tap) && (g.windows.y.taps == 1 || g.weight_y == x_taps * tap);
}

// All panels of one tile of `count` channels, from weights without gaps: squares are transposed in registers.
// Copied one by one, 512 × 256 × 3 × 3 weights cost a third of a convolution with few pixels.
template <class T, class A>
void pack_dense_tile(const WindowProduct<T>& g, const Plan<A>& plan, const T* from, bool taps_first,
                     int64_t count, A* panel, int64_t panel_stride) {
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
void pack_weights(const WindowProduct<T>& g, const Plan<A>& plan, A* packed, const Parallel& parallel) {
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

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::implicit
