// Winograd weight gradient on the CPU, of 3 x 3 and 5 x 5, and of 3 x 3 and 4 x 4 with stride 2. See
// points.h for the transforms.
//
//   V = B^T d B     of every tile and input channel     (36 frequencies)
//   Z = G g G^T     of every tile of the output gradient and output channel
//   D = V^T Z       one matrix product per frequency, summed over tiles
//   dW = A^T D A    of every pair of channels
//
// 36 multiplications per tile instead of 144 (100 for 5 x 5; 81 instead of 144 for stride 2). Few channels
// have their own order (chunks.h). Otherwise tiles are taken in passes whose V and Z stay in
// L3. Within a pass a task is a block of input channels with a panel of output channels: it multiplies 96
// tiles at a time, so that one frequency's piece of V, Z and D lies in L1. D is kept between passes only
// where there are several; with one pass, which is when there are many channels and few tiles, each task
// turns its piece of D into weights at once.
//
// Every element of D is summed by one task per pass, in the order of the tiles, so the result does not depend
// on the number of threads. Never stored: padding, reordered images.
#include "kernels/conv2d.h"

#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/conv2d/algorithms.h"
#include "kernels/cpu/conv2d/winograd/chunks.h"
#include "kernels/cpu/conv2d/winograd/gemm.h"
#include "kernels/cpu/conv2d/winograd/images.h"
#include "kernels/cpu/conv2d/winograd/scratch.h"
#include "kernels/cpu/conv2d/winograd/taps.h"

namespace pydl::cpu::PYDL_ISA::winograd {
namespace {

constexpr int L = lanes<float>;

// A frequency-major array: channels of tile t at t * tile, frequency f at f * frequency.
struct Transformed {
  int64_t tile, frequency, floats;

  Transformed(int64_t channels, int64_t tiles, int64_t frequencies) {
    tile =
        (ceil_div(channels, 16) | 1) * 16;  // an odd number of cache lines: tiles spread over all cache sets
    frequency = tile * tiles + 48;  // no power of two, which would put all frequencies into a few cache sets
    floats = piece(frequency * frequencies);
  }
};

struct WeightPlan {
  Tiles tiles;
  int64_t pass_tiles, passes;
  int64_t rows;  // input channels per task
  int64_t blocks, panels;
  int64_t d_stride;  // between frequencies of D
  int64_t d_floats;  // of one task
  Transformed v, z;

  static int64_t tiles_per_pass(const Conv2dParams& p, const Scheme& scheme, int64_t tiles) {
    const int64_t per_tile =
        scheme.products() * (ceil_div(p.in_channels, L) + ceil_div(p.out_channels, L)) * L;
    const int64_t most = max_of(kDepth, kPassFloats / per_tile / kDepth * kDepth);
    return max_of(1, ceil_div(tiles, max_of(1, ceil_div(tiles, most))));
  }

  WeightPlan(const Conv2dParams& p, const Scheme& scheme)
      : tiles(scheme, p.batch, p.out_height, p.out_width),
        pass_tiles(tiles_per_pass(p, scheme, tiles.count())),
        passes(max_of(1, ceil_div(tiles.count(), pass_tiles))),
        v(p.in_channels, pass_tiles, scheme.products()),
        z(p.out_channels, pass_tiles, scheme.sum_frequencies()) {
    panels = ceil_div(p.out_channels, kPanel);
    blocks = ceil_div(p.in_channels, kRowBlocks * kMaxRows);
    rows = ceil_div(p.in_channels, blocks);
    d_stride = rows * kPanel + 48;
    d_floats = piece(scheme.weight_frequencies() * d_stride);
  }

  int64_t scratch_floats(int64_t threads) const {
    return v.floats + z.floats + d_floats * (passes > 1 ? blocks * panels : threads);
  }

  static constexpr int64_t kDepth = 96;                         // tiles per multiplication
  static constexpr int64_t kPassFloats = 12 << 20 >> 2;         // 12 MB of V and Z
  static constexpr int64_t kRowBlocks = kMaxRows > 8 ? 5 : 10;  // about 64 input channels
};

void run_passes(const Conv2dParams& p, const WeightPlan& plan, const Parallel& parallel) {
  const Tiles& tiles = plan.tiles;
  const Scheme& scheme = tiles.scheme;
  const auto gather = gather_weights_of(p.dtype);
  const Image input = input_of(p), gradient = output_of(p);
  const Used used(tiles);
  float *v = static_cast<float*>(p.scratch), *z = v + plan.v.floats, *d = z + plan.z.floats;
  // Long sums are sums of sums of 96 tiles, for their accuracy; short ones go without, and reach less far in
  // L1.
  const bool few = tiles.count() <= 256;
  const int64_t depth = few ? 64 : WeightPlan::kDepth;
  for (int64_t pass = 0; pass < plan.passes; ++pass) {
    const int64_t begin = pass * plan.pass_tiles, end = min_of(begin + plan.pass_tiles, tiles.count());
    // strips of a row where channels are not adjacent, a few tiles where they are
    const int64_t some = max_of(4, min_of(strip_tiles(scheme), tiles.full_columns)),
                  groups = ceil_div(end - begin, some);
    run_tasks(parallel, 2 * groups, [&](int64_t task, int64_t) {
      const int64_t first = begin + task / 2 * some, last = min_of(first + some, end);
      if (task % 2)
        transform_tiles(gradient, p.dtype, true, tiles, first, last, 0, 0, z + (first - begin) * plan.z.tile,
                        plan.z.tile, plan.z.frequency);
      else
        transform_tiles(input, p.dtype, false, tiles, first, last, p.pad_top, p.pad_left,
                        v + (first - begin) * plan.v.tile, plan.v.tile, plan.v.frequency);
    });
    run_tasks(parallel, plan.blocks * plan.panels, [&](int64_t task, int64_t worker) {
      const int64_t c = task / plan.panels * plan.rows, o = task % plan.panels * kPanel;
      const int64_t rows = min_of(plan.rows, p.in_channels - c);
      float* sum = d + (plan.passes > 1 ? task : worker) * plan.d_floats;
      const Ahead ahead{plan.v.frequency, plan.z.frequency};
      alignas(64) float part[WeightPlan::kRowBlocks * kMaxRows * kPanel];
      for (int i = 0, f = 0; i < scheme.along; ++i)
        for (int j = 0; j < scheme.along; ++j, ++f) {
          if (!used.has(scheme.of_weights[i], scheme.of_weights[j])) continue;
          int64_t first, last;
          tiles.range(i, j, begin, end, first, last);
          float* to = sum + scheme.weight_frequency(i, j) * plan.d_stride;
          const bool goes_on = pass > 0 || !scheme.is_first_of_weights(i, j);
          if (!goes_on && first >= last) memset(to, 0, static_cast<size_t>(rows * kPanel) * sizeof(float));
          for (int64_t t = first; t < last; t += depth) {
            const bool further = goes_on || t > first, add = further && !few;
            gemm<Rows::adjacent>(rows, p.out_channels - o, min_of(depth, last - t),
                                 v + f * plan.v.frequency + t * plan.v.tile + c, plan.v.tile,
                                 z + scheme.sum_frequency(i, j) * plan.z.frequency + t * plan.z.tile + o,
                                 plan.z.tile, add ? part : to, kPanel, further && few, ahead);
            if (add) add_panel(rows, part, to, kPanel);
          }
        }
      if (pass == plan.passes - 1) gather(p, scheme, plan.d_stride, c, rows, o, used, sum);
    });
  }
}

}  // namespace

namespace weight_chunks {

bool serves(const Conv2dParams& p, Conv2dPass pass) { return is_winograd(p, pass); }

bool pays(const Conv2dParams& p) { return ChunkPlan(p, scheme_of(p, Conv2dPass::backward_weight)).fits(); }

int64_t scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  return ChunkPlan(p, scheme_of(p, pass)).scratch_floats(threads) * static_cast<int64_t>(sizeof(float));
}

void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  run_chunks(p, ChunkPlan(p, scheme_of(p, pass)), parallel);
}

}  // namespace weight_chunks

namespace weight_passes {

bool serves(const Conv2dParams& p, Conv2dPass pass) { return is_winograd(p, pass); }

int64_t scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  return WeightPlan(p, scheme_of(p, pass)).scratch_floats(threads) * static_cast<int64_t>(sizeof(float));
}

void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  run_passes(p, WeightPlan(p, scheme_of(p, pass)), parallel);
}

}  // namespace weight_passes

}  // namespace pydl::cpu::PYDL_ISA::winograd
