// Winograd convolution on the CPU: forward and input gradient of 3 x 3 and 5 x 5, and of 3 x 3 and 4 x 4 with
// stride 2.
// See points.h for the transforms and tiles.h for how images are cut.
//
//   V = B^T d B     of every tile and input channel          (36 frequencies)
//   U = G g G^T     of every pair of channels
//   M = V U         one matrix product per frequency, summed over input channels
//   Y = A^T M A     of every tile and output channel, plus bias, through the activation
//
// 36 multiplications per 16 outputs of 3 x 3 taps instead of 144, or per 4 outputs of 5 x 5 instead of 100:
// the products take a quarter or a third of the time of a direct convolution, so everything else is arranged
// to stay in cache. Stride 2 has 81 frequencies instead of 144 multiplications per 16 outputs, with 4 taps 100
// instead of 256 (schemes.h). Two orders:
//
// Weights first: U is computed once. A task is a block of tiles, whose V stays in L2 while the panels of U
// stream past.
//
// Weights last: V of many tiles is computed first. A task is a panel of output channels with a block of
// tiles; it transforms 128 input channels of its weights at a time into L2 and uses them at once, because U,
// 4 times the size of the weights, would not even fit in L3. Where it does, and many blocks of tiles use it,
// it is kept.
//
// The input gradient is the same computation on the output gradient, with the roles of the weight's channels
// swapped and its taps read backwards, padded by taps - 1 - padding where the stride is 1
// (schemes.h: Transposed).
//
// Never stored: padding, M of more than one panel, reordered weights or images.
#include "kernels/conv2d.h"

#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/conv2d/algorithms.h"
#include "kernels/cpu/conv2d/winograd/output.h"
#include "kernels/cpu/conv2d/winograd/plan.h"

namespace pydl::cpu::PYDL_ISA::winograd {
namespace {

// M of tiles [begin, end) and a panel: m[tile - begin][frequency][kPanel] (+)= V U.
void multiply(const Tiles& tiles, int64_t begin, int64_t end, int64_t channels, int64_t depth, const float* v,
              const Plan& plan, const float* u, float* m, bool add, TapsAhead next = {}) {
  const Scheme& scheme = tiles.scheme;
  const int64_t lines = ceil_div(next.lines(), plan.products), m_tile = scheme.sum_frequencies() * kPanel;
  alignas(64) float sum[kMostTiles * kPanel];
  const Ahead ahead{plan.weights_first ? 0 : plan.frequency_stride, 0};  // from L3; L2 is near enough
  for (int i = 0, f = 0; i < scheme.along; ++i)
    for (int j = 0; j < scheme.along; ++j, ++f) {
      int64_t first, last;
      tiles.range(i, j, begin, end, first, last);
      if (first >= last) continue;
      next.fetch(lines);
      float* to = m + first * m_tile + scheme.sum_frequency(i, j) * kPanel;
      const float *rows = v + first * plan.tile_stride + f * plan.frequency_stride,
                  *panel = u + scheme.weight_frequency(i, j) * plan.weight_stride;
      if (!add && scheme.is_first_of_sums(i, j)) {
        gemm<Rows::strided>(last - first, channels, depth, rows, plan.tile_stride, panel, kPanel, to, m_tile,
                            false, ahead);
      } else {
        gemm<Rows::strided>(last - first, channels, depth, rows, plan.tile_stride, panel, kPanel, sum, kPanel,
                            false, ahead);
        add_panel(last - first, sum, to, m_tile);
      }
    }
}

void run_weights_first(const Problem& problem, DType dtype, const Tiles& tiles, const Plan& plan,
                       float* scratch, const Parallel& parallel) {
  const int64_t in = problem.in.channels, chunks = ceil_div(in, 16);
  const auto put = dtype == DType::bf16 ? finish<bf16> : finish<float>;
  float* u = scratch;
  const int64_t panel_stride = tiles.scheme.weight_frequencies() * plan.weight_stride;
  const Used used(tiles);
  parallel(plan.panels * chunks, 2, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t panel = i / chunks, c = i % chunks * 16;
      transform_weights(problem.weights, dtype, tiles.scheme, c, min_of(16, in - c), panel * kPanel, used,
                        u + panel * panel_stride + c * kPanel, plan.weight_stride);
    }
  });
  run_tasks(parallel, ceil_div(tiles.count(), plan.block), [&](int64_t task, int64_t worker) {
    const int64_t begin = task * plan.block, end = min_of(begin + plan.block, tiles.count());
    float *v = scratch + plan.shared + worker * plan.own, *m = v + plan.m_offset;
    transform_tiles(problem.in, dtype, false, tiles, begin, end, problem.pad_y, problem.pad_x, v,
                    plan.tile_stride, plan.frequency_stride);
    for (int64_t panel = 0; panel < plan.panels; ++panel) {
      const int64_t o = panel * kPanel;
      multiply(tiles, begin, end, problem.out.channels - o, in, v, plan, u + panel * panel_stride, m, false);
      put(problem.out, problem.bias, problem.activation, tiles, begin, end, o, m, problem.spoiled);
    }
  });
}

void run_weights_last(const Problem& problem, DType dtype, const Tiles& tiles, const Plan& plan,
                      float* scratch, const Parallel& parallel) {
  const Scheme& scheme = tiles.scheme;
  const int64_t in = problem.in.channels, size = dtype == DType::bf16 ? 2 : 4;
  const auto put = dtype == DType::bf16 ? finish<bf16> : finish<float>;
  const int64_t part_floats = scheme.weight_frequencies() * plan.weight_stride;
  const Used used(tiles);
  float* v = scratch;
  float* all_u =
      plan.weights_once ? scratch + plan.shared - piece(plan.panels * plan.parts * part_floats) : nullptr;
  if (plan.weights_once)
    run_tasks(parallel, plan.panels * plan.parts, [&](int64_t task, int64_t) {
      const int64_t c = task % plan.parts * plan.depth;
      transform_weights(problem.weights, dtype, scheme, c, min_of(plan.depth, in - c),
                        task / plan.parts * kPanel, used, all_u + task * part_floats, plan.weight_stride);
    });
  for (int64_t pass = 0; pass < tiles.count(); pass += plan.pass_tiles) {
    const int64_t pass_end = min_of(pass + plan.pass_tiles, tiles.count());
    constexpr int64_t kSome = 4;
    run_tasks(parallel, ceil_div(pass_end - pass, kSome), [&](int64_t task, int64_t) {
      const int64_t begin = pass + task * kSome, end = min_of(begin + kSome, pass_end);
      transform_tiles(problem.in, dtype, false, tiles, begin, end, problem.pad_y, problem.pad_x,
                      v + (begin - pass) * plan.tile_stride, plan.tile_stride, plan.frequency_stride);
    });
    const int64_t blocks = ceil_div(pass_end - pass, plan.block);
    run_tasks(parallel, blocks * plan.panels, [&](int64_t task, int64_t worker) {
      const int64_t begin = pass + task % blocks * plan.block, end = min_of(begin + plan.block, pass_end);
      const int64_t o = task / blocks * kPanel;
      float *u = scratch + plan.shared + worker * plan.own, *m = u + plan.m_offset;
      for (int64_t c = 0; c < in; c += plan.depth) {
        const int64_t depth = min_of(plan.depth, in - c);
        if (plan.weights_once)
          u = all_u + (task / blocks * plan.parts + c / plan.depth) * part_floats;
        else
          transform_weights(problem.weights, dtype, scheme, c, depth, o, used, u, plan.weight_stride);
        TapsAhead next;
        if (!plan.weights_once) {
          const int64_t rest = in - c - depth, panel = (task + 1) / blocks;
          if (rest > 0)
            next = TapsAhead::of(problem.weights, scheme.taps, size, c + depth, min_of(plan.depth, rest), o);
          else if (panel < plan.panels)
            next = TapsAhead::of(problem.weights, scheme.taps, size, 0, plan.depth, panel * kPanel);
        }
        multiply(tiles, begin, end, problem.out.channels - o, depth,
                 v + (begin - pass) * plan.tile_stride + c, plan, u, m, c > 0, next);
      }
      put(problem.out, problem.bias, problem.activation, tiles, begin, end, o, m, problem.spoiled);
    });
  }
}

}  // namespace

// Stride 2, measured on Zen 4 against implicit GEMM. 1.65 to 1.78 times fewer products bear less than stride
// 1's four: not a V that comes from L3 for panel after panel where direct products come from L1, which is
// what input gradients of many tiles and large weights would do.
static bool strided_pays(const Conv2dParams& p, Conv2dPass pass) {
  const int64_t tiles =
      p.batch * ceil_div(p.out_height, Strided::kSide) * ceil_div(p.out_width, Strided::kSide);
  const int64_t least = min_of(p.in_channels, p.out_channels), weights = p.in_channels * p.out_channels;
  if (p.kernel_height == 4)
    return least >= 16 && tiles >= 16;  // 2.56 times fewer: 1.2 to 2.0 on Zen 5, with AVX2 1.1 to 2.1
  if (p.dtype == DType::bf16 && kVectorBytes == 64 && cpu_has_bf16_dot()) return false;
  if (pass == Conv2dPass::backward_weight) return least >= 256 && tiles >= 8;
  if (pass == Conv2dPass::forward) return least >= 32 && (tiles >= 16 || weights >= 128 * 256);
  const bool near = kFrequencies * weights <= Plan::kMaxWeightFloats ||
                    tiles <= most_tiles(kSchemes[static_cast<int>(Kind::strided)]);
  return least >= 32 && near && (tiles >= 16 || (tiles >= 8 && weights >= 256 * 512));
}

// Measured on Zen 5 against implicit GEMM (NOTES.md). The transforms cost the same whatever
// the number of channels on the other side, so a side with fewer channels than half a vector outweighs what
// the products save; the input gradient transforms its outputs alone on that side, and gains even there. With
// very few tiles the transform of the weights does not pay for itself.
bool pays(const Conv2dParams& p, Conv2dPass pass) {
  if (p.stride_height == 2) return strided_pays(p, pass);
  const int64_t tile = p.kernel_height == 3 ? kTile<3> : kTile<5>;
  const int64_t tiles = p.batch * ceil_div(p.out_height, tile) * ceil_div(p.out_width, tile);
  if (tiles < 8 && pass != Conv2dPass::backward_weight && p.in_channels * p.out_channels < 256 * 256)
    return false;
  // where pairs of bf16 are multiplied at twice the rate, fewer products gain less: below some hundred pixels nothing,
  // and what one core transforms and the other multiplies costs time when they are far apart
  if (p.dtype == DType::bf16 && kVectorBytes == 64 && cpu_has_bf16_dot()) {
    constexpr int64_t kFewPixels = 384;
    const int64_t pixels = p.batch * p.out_height * p.out_width,
                  least = min_of(p.in_channels, p.out_channels);
    const bool weight = pass == Conv2dPass::backward_weight;
    if (p.kernel_height == 5) return weight && pixels <= kFewPixels && least >= 24;
    return least >= 32 && (weight || pixels >= kFewPixels);
  }
  const int64_t least = p.kernel_height == 3 ? 8 : 16;
  return p.out_channels >= least && (p.in_channels >= least || pass == Conv2dPass::backward_input);
}

namespace tiles {

bool serves(const Conv2dParams& p, Conv2dPass pass) { return is_winograd(p, pass); }

int64_t scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  const Scheme& scheme = scheme_of(p, pass);
  const Problem problem = problem_of(p, pass, scheme);
  const Tiles tiles = tiles_of(problem, scheme);
  if (tiles.count() == 0) return 0;
  const Plan plan(problem, tiles, threads);
  return (plan.shared + threads * plan.own) * static_cast<int64_t>(sizeof(float));
}

void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  const Scheme& scheme = scheme_of(p, pass);
  const Problem problem = problem_of(p, pass, scheme);
  const Tiles tiles = tiles_of(problem, scheme);
  if (tiles.count() == 0 || problem.out.channels == 0) return;
  const Plan plan(problem, tiles, parallel.threads);
  const auto run = plan.weights_first ? run_weights_first : run_weights_last;
  run(problem, p.dtype, tiles, plan, static_cast<float*>(p.scratch), parallel);
}

}  // namespace tiles

}  // namespace pydl::cpu::PYDL_ISA::winograd
