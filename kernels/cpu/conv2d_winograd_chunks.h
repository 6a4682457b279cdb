// Winograd weight gradient of few channels, whose products D of all pairs of channels fit L2.
//
// The tiles are cut into chunks, a number that depends on the convolution alone. A task takes a chunk block
// by block: it transforms a block's inputs and gradients into L2, and adds their products to the chunk's D,
// which stays there. In the end the chunks' D are added in order, with the rounding errors of these long sums
// carried along.
#pragma once

#include "kernels/cpu/conv2d_winograd_gemm.h"
#include "kernels/cpu/conv2d_winograd_images.h"
#include "kernels/cpu/conv2d_winograd_taps.h"
#include "kernels/cpu/conv2d_winograd_tasks.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

Image input_of(const Conv2dParams& p) {
  const int64_t* s = p.input_stride;
  return {p.input, s[0], s[1], s[2], s[3], p.in_channels, p.in_height, p.in_width};
}

Image gradient_of(const Conv2dParams& p) {
  const int64_t* s = p.output_stride;
  return {p.output, s[0], s[1], s[2], s[3], p.out_channels, p.out_height, p.out_width};
}

template <int kTaps>
struct ChunkPlan {
  Tiles<kTaps> tiles;
  int64_t panels, chunks, chunk_tiles, block;
  int64_t d_stride, d_floats;                  // between frequencies of D; D of a panel
  int64_t v_frequency, v_tile;                 // strides
  int64_t z_frequency, z_tile, v_floats, own;  // own: floats of each worker

  explicit ChunkPlan(const Conv2dParams& p) : tiles(p.batch, p.out_height, p.out_width) {
    panels = ceil_div(p.out_channels, kPanel);
    d_stride = p.in_channels * kPanel + 48;
    d_floats = piece(kFrequencies * d_stride);
    v_frequency = ceil_div(p.in_channels, 16) * 16;
    z_frequency = ceil_div(p.out_channels, 16) * 16;
    v_tile = (kFrequencies + 1) * v_frequency;  // rows of one frequency spread over the cache sets
    z_tile = (kFrequencies + 1) * z_frequency;
    block = max_of(1, min_of(6, kBlockFloats / (16 * (v_tile + z_tile)))) * 16;
    // more chunks: shorter sums, work for more threads, more to combine; whole blocks in each
    const int64_t most = max_of(1, min_of(sums() <= kMaxSumFloats / 2 ? 32 : 16, tiles.count() / 32));
    chunk_tiles = max_of(1, ceil_div(ceil_div(tiles.count(), most), block) * block);
    chunks = max_of(1, ceil_div(tiles.count(), chunk_tiles));
    v_floats = piece(block * v_tile);
    own = v_floats + piece(block * z_tile);
  }

  int64_t sums() const { return panels * d_floats; }  // floats of D of a chunk
  bool pays() const { return sums() <= kMaxSumFloats; }
  int64_t scratch_floats(int64_t threads) const { return chunks * sums() + threads * own; }

  static constexpr int64_t kMaxSumFloats = 320 << 10 >> 2;  // 320 KB
  static constexpr int64_t kBlockFloats = 320 << 10 >> 2;   // 320 KB
};

template <int kTaps, class T>
void run_chunks(const Conv2dParams& p, const ChunkPlan<kTaps>& plan, const Parallel& parallel) {
  const Tiles<kTaps>& tiles = plan.tiles;
  const Image input = input_of(p), gradient = gradient_of(p);
  float *d = static_cast<float*>(p.scratch), *own = d + plan.chunks * plan.sums();
  run_tasks(parallel, parallel.threads, plan.chunks, [&](int64_t chunk, int64_t worker) {
    const int64_t chunk_begin = chunk * plan.chunk_tiles;
    const int64_t chunk_end = min_of(chunk_begin + plan.chunk_tiles, tiles.count());
    float *v = own + worker * plan.own, *z = v + plan.v_floats, *sum = d + chunk * plan.sums();
    const Ahead ahead{plan.v_frequency, plan.z_frequency};
    if (chunk_begin == chunk_end) memset(sum, 0, static_cast<size_t>(plan.sums()) * sizeof(float));
    for (int64_t begin = chunk_begin; begin < chunk_end; begin += plan.block) {
      const int64_t end = min_of(begin + plan.block, chunk_end);
      transform_tiles<kTaps, T, false>(input, tiles, begin, end, p.pad_top, p.pad_left, v, plan.v_tile,
                                       plan.v_frequency);
      transform_tiles<kTaps, T, true>(gradient, tiles, begin, end, 0, 0, z, plan.z_tile, plan.z_frequency);
      for (int64_t panel = 0; panel < plan.panels; ++panel)
        for (int f = 0; f < kFrequencies; ++f) {
          int64_t first, last;
          tiles.range(f / kPoints, f % kPoints, begin, end, first, last);
          float* to = sum + panel * plan.d_floats + f * plan.d_stride;
          if (begin == chunk_begin && first >= last)
            memset(to, 0, static_cast<size_t>(p.in_channels * kPanel) * sizeof(float));
          gemm<Rows::adjacent>(p.in_channels, p.out_channels - panel * kPanel, last - first,
                               v + first * plan.v_tile + f * plan.v_frequency, plan.v_tile,
                               z + first * plan.z_tile + f * plan.z_frequency + panel * kPanel, plan.z_tile,
                               to, kPanel, begin > chunk_begin, &ahead);
        }
    }
  });
  constexpr int64_t kSome = 16;
  const int64_t groups = ceil_div(p.in_channels, kSome);
  run_tasks(parallel, parallel.threads, plan.panels * groups, [&](int64_t task, int64_t) {
    const int64_t panel = task / groups, c = task % groups * kSome, rows = min_of(kSome, p.in_channels - c);
    float* sum = d + panel * plan.d_floats + c * kPanel;
    for (int f = 0; f < kFrequencies; ++f)
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
    gather_weights<kTaps, T>(p, plan.d_stride, c, rows, panel * kPanel, sum);
  });
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
