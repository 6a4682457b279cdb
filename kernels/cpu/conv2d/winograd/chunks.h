// Winograd weight gradient of few channels: everything but the images stays in L2.
//
// The tiles are cut into chunks and the pairs of channels into blocks, numbers that depend on the convolution
// alone. A task is a block of a chunk: a few tiles at a time, it transforms their inputs and gradients into
// L2 and adds their products to the block's D, which stays there. Blocks of a chunk transform the same tiles
// again, which costs less than the way through L3. In the end the chunks' D are added in order, with the
// rounding errors of these long sums carried along.
#pragma once

#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/conv2d/winograd/gemm.h"
#include "kernels/cpu/conv2d/winograd/images.h"
#include "kernels/cpu/conv2d/winograd/scratch.h"
#include "kernels/cpu/conv2d/winograd/taps.h"

namespace pydl::cpu::PYDL_ISA::winograd {
namespace {

// Channels [first, first + count) of an image.
inline Image channels_of(const Image& image, DType dtype, int64_t first, int64_t count) {
  Image part = image;
  part.data = static_cast<char*>(image.data) + first * image.channel * (dtype == DType::bf16 ? 2 : 4);
  part.channels = count;
  return part;
}

struct ChunkPlan {
  Tiles tiles;
  int64_t rows, columns;  // channels of a block: of the input and of the output
  int64_t row_blocks, column_blocks, panels;
  int64_t chunks, chunk_tiles, step;           // tiles of a chunk, and those transformed at a time
  int64_t d_stride, d_floats;                  // between frequencies of D; D of a panel of a block
  int64_t room;                                // what D leaves
  int64_t v_frequency, v_tile;                 // strides
  int64_t z_frequency, z_tile, v_floats, own;  // own: floats of each worker

  ChunkPlan(const Conv2dParams& p, const Scheme& scheme) : tiles(scheme, p.batch, p.out_height, p.out_width) {
    panels = ceil_div(p.out_channels, kPanel);
    row_blocks = ceil_div(p.in_channels, 64);
    rows = row_blocks == 1 ? p.in_channels : ceil_div(ceil_div(p.in_channels, row_blocks), 16) * 16;
    row_blocks = ceil_div(p.in_channels, rows);
    columns = min_of(panels, max_of(1, (rows > 32 ? 32 : 64) / kPanel)) * kPanel;
    column_blocks = ceil_div(panels * kPanel, columns);
    d_stride = rows * kPanel + 48;
    d_floats = piece(scheme.weight_frequencies() * d_stride);
    v_frequency = ceil_div(rows, 16) * 16;
    z_frequency = min_of(columns, ceil_div(p.out_channels, 16) * 16);
    v_tile = (scheme.products() + 1) * v_frequency;  // rows of one frequency spread over the cache sets
    z_tile = (scheme.sum_frequencies() + 1) * z_frequency;
    // more chunks: shorter sums, work for more threads, more to combine
    const int64_t most = max_of(1, min_of(ceil_div(kTasks, row_blocks * column_blocks), tiles.count() / 64));
    chunk_tiles = max_of(1, ceil_div(ceil_div(tiles.count(), most), kPart) * kPart);
    chunks = max_of(1, ceil_div(tiles.count(), chunk_tiles));
    room = kBlockFloats - columns / kPanel * d_floats;
    step = min_of(chunk_tiles, max_of(1, min_of(6, room / (kPart * (v_tile + z_tile)))) * kPart);
    v_floats = piece(step * v_tile);
    own = v_floats + piece(step * z_tile) + kApartFloats;
  }

  int64_t sums() const { return row_blocks * panels * d_floats; }  // floats of D of a chunk
  bool fits() const { return row_blocks * column_blocks <= kMostBlocks && room > 0; }
  int64_t scratch_floats(int64_t threads) const { return chunks * sums() + threads * own; }

  static constexpr int64_t kTasks = 16;
  static constexpr int64_t kMostBlocks = 2;
  static constexpr int64_t kBlockFloats = 768 << 10 >> 2;  // 768 KB of D, V and Z
};

inline void run_chunks(const Conv2dParams& p, const ChunkPlan& plan, const Parallel& parallel) {
  const Tiles& tiles = plan.tiles;
  const Scheme& scheme = tiles.scheme;
  const auto gather = gather_weights_of(p.dtype);
  const Image input = input_of(p), gradient = output_of(p);
  float *own = static_cast<float*>(p.scratch), *d = own + parallel.threads * plan.own;
  const int64_t blocks = plan.row_blocks * plan.column_blocks;
  run_tasks(parallel, plan.chunks * blocks, [&](int64_t task, int64_t worker) {
    const int64_t chunk = task / blocks, row_block = task % blocks / plan.column_blocks;
    const int64_t c = row_block * plan.rows, rows = min_of(plan.rows, p.in_channels - c);
    const int64_t o = task % plan.column_blocks * plan.columns,
                  columns = min_of(plan.columns, p.out_channels - o);
    const Image in = channels_of(input, p.dtype, c, rows), out = channels_of(gradient, p.dtype, o, columns);
    const int64_t chunk_begin = chunk * plan.chunk_tiles;
    const int64_t chunk_end = min_of(chunk_begin + plan.chunk_tiles, tiles.count());
    float *v = own + worker * plan.own, *z = v + plan.v_floats;
    float* sum = d + chunk * plan.sums() + (row_block * plan.panels + o / kPanel) * plan.d_floats;
    const Ahead ahead{plan.v_frequency, plan.z_frequency};
    for (int64_t begin = chunk_begin; begin == chunk_begin || begin < chunk_end; begin += plan.step) {
      const int64_t end = min_of(begin + plan.step, chunk_end);
      transform_tiles(in, p.dtype, false, tiles, begin, end, p.pad_top, p.pad_left, v, plan.v_tile,
                      plan.v_frequency);
      transform_tiles(out, p.dtype, true, tiles, begin, end, 0, 0, z, plan.z_tile, plan.z_frequency);
      for (int i = 0, f = 0; i < scheme.along; ++i)
        for (int j = 0; j < scheme.along; ++j, ++f) {
          const bool goes_on = begin > chunk_begin || !scheme.is_first_of_weights(i, j);
          int64_t first, last;
          tiles.range(i, j, begin, end, first, last);
          for (int64_t at = 0; at < columns; at += kPanel) {
            float* to = sum + at / kPanel * plan.d_floats + scheme.weight_frequency(i, j) * plan.d_stride;
            if (!goes_on && first >= last) memset(to, 0, static_cast<size_t>(rows * kPanel) * sizeof(float));
            gemm<Rows::adjacent>(rows, columns - at, last - first,
                                 v + first * plan.v_tile + f * plan.v_frequency, plan.v_tile,
                                 z + first * plan.z_tile + scheme.sum_frequency(i, j) * plan.z_frequency + at,
                                 plan.z_tile, to, kPanel, goes_on, ahead);
          }
        }
    }
  });
  constexpr int64_t kSome = 16;
  const int64_t groups = ceil_div(plan.rows, kSome);
  run_tasks(parallel, plan.row_blocks * plan.panels * groups, [&](int64_t task, int64_t) {
    const int64_t block = task / groups, row = task % groups * kSome,
                  c = block / plan.panels * plan.rows + row;
    const int64_t rows = min_of(min_of(kSome, plan.rows - row), p.in_channels - c);
    if (rows <= 0) return;
    float* sum = d + block * plan.d_floats + row * kPanel;
    for (int f = 0; f < scheme.weight_frequencies(); ++f)
      for (int64_t i = 0; i < rows * kPanel; i += lanes<float>) {
        float* to = sum + f * plan.d_stride + i;
        vec<float> total = load(to), lost{};  // of each addition, which is as large as all that came before
        for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) {
          const vec<float> next = load(to + chunk * plan.sums()), sum = total + next, most = sum - total;
          lost += (total - (sum - most)) + (next - most);
          total = sum;
        }
        store(to, total + lost);
      }
    gather(p, scheme, plan.d_stride, c, rows, block % plan.panels * kPanel, Used(tiles), sum);
  });
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::winograd
