// Winograd convolution on the CPU: forward and input gradient of 3 x 3 and 5 x 5, stride 1. See
// conv2d_winograd_points.h for the transforms and conv2d_winograd_tiles.h for how images are cut.
//
//   V = B^T d B     of every tile and input channel          (36 frequencies)
//   U = G g G^T     of every pair of channels
//   M = V U         one matrix product per frequency, summed over input channels
//   Y = A^T M A     of every tile and output channel, plus bias, through the activation
//
// 36 multiplications per 16 outputs of 3 x 3 taps instead of 144, or per 4 outputs of 5 x 5 instead of 100:
// the products take a quarter or a third of the time of a direct convolution, so everything else is arranged
// to stay in cache. Two orders:
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
// swapped and its taps read backwards, padded by taps - 1 - padding.
//
// Never stored: padding, M of more than one panel, reordered weights or images.
#include "kernels/conv2d.h"

#include "kernels/cpu/conv2d_algorithms.h"
#include "kernels/cpu/conv2d_winograd_gemm.h"
#include "kernels/cpu/conv2d_winograd_images.h"
#include "kernels/cpu/conv2d_winograd_output.h"
#include "kernels/cpu/conv2d_winograd_scratch.h"
#include "kernels/cpu/conv2d_winograd_taps.h"
#include "kernels/cpu/tasks.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int L = lanes<float>;

struct Problem {
  Image in, out;
  Weights weights;
  int64_t batch, pad_y, pad_x;
  const void* bias;
  Activation activation;
};

Image image_of(void* data, const int64_t stride[4], int64_t channels, int64_t height, int64_t width) {
  return {data, stride[0], stride[1], stride[2], stride[3], channels, height, width};
}

template <class S>
Problem problem_of(const Conv2dParams& p, Conv2dPass pass) {
  const Image input = image_of(p.input, p.input_stride, p.in_channels, p.in_height, p.in_width);
  const Image output = image_of(p.output, p.output_stride, p.out_channels, p.out_height, p.out_width);
  const int64_t* s = p.weight_stride;
  if (pass == Conv2dPass::forward)
    return {input,   output,      {p.weight, s[1], s[0], s[2], s[3], p.in_channels, p.out_channels, false},
            p.batch, p.pad_top,   p.pad_left,
            p.bias,  p.activation};
  // a position of Spread reads from its own place on where the padding is 1
  auto pad = [](int64_t pad) { return S::kSpread == 2 ? -(pad - 1) / 2 : S::kTaps - 1 - pad; };
  return {output,
          input,
          {p.weight, s[0], s[1], s[2], s[3], p.out_channels, p.in_channels, true},
          p.batch,
          pad(p.pad_top),
          pad(p.pad_left),
          nullptr,
          Activation::none};
}

template <class S>
Tiles<S> tiles_of(const Problem& problem) {
  return {problem.batch, ceil_div(problem.out.height, S::kSpread), ceil_div(problem.out.width, S::kSpread)};
}

// V's frequencies, and tiles of a block when weights come last: as many floats of M for each scheme.
template <class S>
constexpr int kProducts = S::kAlong * S::kAlong;
template <class S>
constexpr int64_t kMostTiles = kMaxRows * ceil_div(64 * kFrequencies / kProducts<S>, kMaxRows);

// What goes where in the scratch, in floats.
struct Plan {
  bool weights_first;
  bool weights_once;         // weights last: all of U is kept, because many blocks of tiles use it
  int64_t block;             // tiles per task
  int64_t pass_tiles;        // weights last: tiles whose V is held at a time
  int64_t depth, parts;      // input channels of U per multiplication, and how many such parts there are
  int64_t panels;            // of output channels
  int64_t frequency_stride;  // of V
  int64_t tile_stride;       // of V; weights first: one frequency more, which spreads rows over the cache sets
  int64_t weight_stride;     // between frequencies of U
  int64_t shared, own;       // of all workers, of each
  int64_t m_floats;          // of `own`, at its end

  template <class S>
  Plan(const Problem& problem, const Tiles<S>& tiles, int64_t threads) {
    const int64_t in = problem.in.channels, out = problem.out.channels;
    panels = ceil_div(out, kPanel);
    // a power-of-two stride between frequencies would put all of them into a few cache sets
    frequency_stride = ceil_div(in, L) * L;
    if (frequency_stride % 128 == 0) frequency_stride += 16;
    tile_stride = (kProducts<S> + 1) * frequency_stride;
    const int64_t weight_floats = panels * kPanel * in * kFrequencies;
    weights_first = weight_floats <= kMaxWeightFloats;
    if (weights_first) {
      depth = in;
      // V of a block in less than a third of L2 (1 MB), in steps of the register block, and enough tasks for
      // the threads
      block = max_of(1, min_of(3, kBlockFloats / (kMaxRows * tile_stride))) * kMaxRows;
      pass_tiles = tiles.count();
    } else {
      depth = min_of(in, 128);
      block = kMostTiles<S>;
      pass_tiles = max_of(block, kPassFloats / tile_stride / block * block);
    }
    block = ceil_div(min_of(pass_tiles, tiles.count()), ceil_div(min_of(pass_tiles, tiles.count()), block));
    if (weights_first) block = max_of(1, min_of(block, ceil_div(tiles.count(), threads)));
    pass_tiles = min_of(pass_tiles, tiles.count());
    if (!weights_first) {
      // V comes from L3: the tiles of a frequency follow each other, so that the hardware fetches ahead
      tile_stride = (ceil_div(in, L) | 1) * L;
      frequency_stride = tile_stride * pass_tiles + 48;
    }
    weight_stride = depth * kPanel + 48;
    parts = ceil_div(in, depth);
    weights_once = !weights_first && weight_floats <= kMostWeightFloats && tiles.count() > 2 * block;
    const int64_t v = piece(weights_first ? block * tile_stride : kProducts<S> * frequency_stride);
    const int64_t u =
        piece((weights_first || weights_once ? panels * parts : 1) * kFrequencies * weight_stride);
    m_floats = piece(block * kProducts<S> * kPanel);
    shared = weights_first ? u : weights_once ? u + v : v;
    own = m_floats + (weights_first ? v : weights_once ? 0 : u);
  }

  int64_t m_offset() const { return own - m_floats; }

  static constexpr int64_t kMaxWeightFloats = 3 << 20 >> 2;    // 3 MB
  static constexpr int64_t kMostWeightFloats = 12 << 20 >> 2;  // 12 MB
  static constexpr int64_t kBlockFloats = 300 << 10 >> 2;      // 300 KB
  static constexpr int64_t kPassFloats = 12 << 20 >> 2;        // 12 MB
};

// M of tiles [begin, end) and a panel: m[tile - begin][frequency][kPanel] (+)= V U.
template <class S>
void multiply(const Tiles<S>& tiles, int64_t begin, int64_t end, int64_t channels, int64_t depth,
              const float* v, const Plan& plan, const float* u, float* m, bool add) {
  alignas(64) float sum[kMostTiles<S> * kPanel];
  const Ahead ahead{plan.weights_first ? 0 : plan.frequency_stride, 0};  // from L3; L2 is near enough
  for (int f = 0; f < kProducts<S>; ++f) {
    const int i = f / S::kAlong, j = f % S::kAlong;
    int64_t first, last;
    tiles.range(i, j, begin, end, first, last);
    float* to = m + (first * kProducts<S> + f) * kPanel;
    const float *rows = v + first * plan.tile_stride + f * plan.frequency_stride,
                *panel = u + (S::of_weights(i) * kPoints + S::of_weights(j)) * plan.weight_stride;
    if (!add) {
      gemm<Rows::strided>(last - first, channels, depth, rows, plan.tile_stride, panel, kPanel, to,
                          kProducts<S> * kPanel, false, ahead);
    } else {
      gemm<Rows::strided>(last - first, channels, depth, rows, plan.tile_stride, panel, kPanel, sum, kPanel,
                          false, ahead);
      add_panel(last - first, sum, to, kProducts<S> * kPanel);
    }
  }
}

template <class S, class T>
void run_weights_first(const Problem& problem, const Tiles<S>& tiles, const Plan& plan, float* scratch,
                       const Parallel& parallel) {
  const int64_t in = problem.in.channels, chunks = ceil_div(in, 16);
  float* u = scratch;
  const int64_t panel_stride = kFrequencies * plan.weight_stride;
  parallel(plan.panels * chunks, 2, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t panel = i / chunks, c = i % chunks * 16;
      transform_weights<S, T>(problem.weights, c, min_of(16, in - c), panel * kPanel,
                                  u + panel * panel_stride + c * kPanel, plan.weight_stride);
    }
  });
  run_tasks(parallel, ceil_div(tiles.count(), plan.block), [&](int64_t task, int64_t worker) {
    const int64_t begin = task * plan.block, end = min_of(begin + plan.block, tiles.count());
    float *v = scratch + plan.shared + worker * plan.own, *m = v + plan.m_offset();
    transform_tiles<S, T, false>(problem.in, tiles, begin, end, problem.pad_y, problem.pad_x, v,
                                     plan.tile_stride, plan.frequency_stride);
    for (int64_t panel = 0; panel < plan.panels; ++panel) {
      const int64_t o = panel * kPanel;
      multiply(tiles, begin, end, problem.out.channels - o, in, v, plan, u + panel * panel_stride, m, false);
      finish<S, T>(problem.out, problem.bias, problem.activation, tiles, begin, end, o, m);
    }
  });
}

template <class S, class T>
void run_weights_last(const Problem& problem, const Tiles<S>& tiles, const Plan& plan, float* scratch,
                      const Parallel& parallel) {
  const int64_t in = problem.in.channels;
  const int64_t part_floats = kFrequencies * plan.weight_stride;
  float* v = scratch;
  float* all_u =
      plan.weights_once ? scratch + plan.shared - piece(plan.panels * plan.parts * part_floats) : nullptr;
  if (plan.weights_once)
    run_tasks(parallel, plan.panels * plan.parts, [&](int64_t task, int64_t) {
      const int64_t c = task % plan.parts * plan.depth;
      transform_weights<S, T>(problem.weights, c, min_of(plan.depth, in - c), task / plan.parts * kPanel,
                                  all_u + task * part_floats, plan.weight_stride);
    });
  for (int64_t pass = 0; pass < tiles.count(); pass += plan.pass_tiles) {
    const int64_t pass_end = min_of(pass + plan.pass_tiles, tiles.count());
    constexpr int64_t kSome = 4;
    run_tasks(parallel, ceil_div(pass_end - pass, kSome), [&](int64_t task, int64_t) {
      const int64_t begin = pass + task * kSome, end = min_of(begin + kSome, pass_end);
      transform_tiles<S, T, false>(problem.in, tiles, begin, end, problem.pad_y, problem.pad_x,
                                       v + (begin - pass) * plan.tile_stride, plan.tile_stride,
                                       plan.frequency_stride);
    });
    const int64_t blocks = ceil_div(pass_end - pass, plan.block);
    run_tasks(parallel, blocks * plan.panels, [&](int64_t task, int64_t worker) {
      const int64_t begin = pass + task % blocks * plan.block, end = min_of(begin + plan.block, pass_end);
      const int64_t o = task / blocks * kPanel;
      float *u = scratch + plan.shared + worker * plan.own, *m = u + plan.m_offset();
      for (int64_t c = 0; c < in; c += plan.depth) {
        const int64_t depth = min_of(plan.depth, in - c);
        if (plan.weights_once)
          u = all_u + (task / blocks * plan.parts + c / plan.depth) * part_floats;
        else
          transform_weights<S, T>(problem.weights, c, depth, o, u, plan.weight_stride);
        multiply(tiles, begin, end, problem.out.channels - o, depth,
                 v + (begin - pass) * plan.tile_stride + c, plan, u, m, c > 0);
      }
      finish<S, T>(problem.out, problem.bias, problem.activation, tiles, begin, end, o, m);
    });
  }
}

template <class S, class T>
void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  const Problem problem = problem_of<S>(p, pass);
  const Tiles<S> tiles = tiles_of<S>(problem);
  if (tiles.count() == 0 || problem.out.channels == 0) return;
  const Plan plan(problem, tiles, parallel.threads);
  float* scratch = static_cast<float*>(p.scratch);
  plan.weights_first ? run_weights_first<S, T>(problem, tiles, plan, scratch, parallel)
                     : run_weights_last<S, T>(problem, tiles, plan, scratch, parallel);
}

// Calls body(scheme).
template <class F>
void with_scheme(const Conv2dParams& p, Conv2dPass pass, const F& body) {
  if (p.stride_height == 2) return pass == Conv2dPass::forward ? body(Strided{}) : body(Spread{});
  p.kernel_height == 3 ? body(Dense<3>{}) : body(Dense<5>{});
}

void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  with_scheme(p, pass, [&](auto scheme) {
    dispatch_trained(p.dtype, [&](auto type) { run<decltype(scheme), decltype(type)>(p, pass, parallel); });
  });
}

template <class S>
int64_t scratch_bytes(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  const Problem problem = problem_of<S>(p, pass);
  const Tiles<S> tiles = tiles_of<S>(problem);
  if (tiles.count() == 0) return 0;
  const Plan plan(problem, tiles, threads);
  return (plan.shared + threads * plan.own) * static_cast<int64_t>(sizeof(float));
}

}  // namespace

int64_t conv2d_winograd_weight_scratch(const Conv2dParams& p, int64_t threads);  // conv2d_winograd_weight.cpp

bool conv2d_winograd_supported(const Conv2dParams& p, Conv2dPass pass) {
  const bool square = p.kernel_height == p.kernel_width && p.stride_height == p.stride_width;
  if (!square || p.dilation_height != 1 || p.dilation_width != 1 || p.groups != 1 || p.in_channels == 0)
    return false;
  if (p.stride_height == 1) return p.kernel_height == 3 || p.kernel_height == 5;
  if (p.stride_height != 2 || p.kernel_height != 3 || pass == Conv2dPass::backward_weight) return false;
  return pass == Conv2dPass::forward || (p.pad_top % 2 == 1 && p.pad_left % 2 == 1);
}

// Measured on Zen 5 against implicit GEMM (NOTES_conv2d_winograd.md). The transforms cost the same whatever
// the number of channels on the other side, so a side with fewer channels than half a vector outweighs what
// the products save; the input gradient transforms its outputs alone on that side, and gains even there. With
// very few tiles the transform of the weights does not pay for itself.
bool conv2d_winograd_worthwhile(const Conv2dParams& p, Conv2dPass pass) {
  if (!conv2d_winograd_supported(p, pass)) return false;
  const int64_t tile = p.kernel_height == 3 ? kTile<3> : kTile<5>;
  const int64_t tiles = p.batch * ceil_div(p.out_height, tile) * ceil_div(p.out_width, tile);
  if (tiles < 8 && pass != Conv2dPass::backward_weight && p.in_channels * p.out_channels < 256 * 256)
    return false;
  // where pairs of bf16 are multiplied at twice the rate, fewer products gain less
  if (p.dtype == DType::bf16 && kVectorBytes == 64 && cpu_has_bf16_dot())
    return min_of(p.in_channels, p.out_channels) >= (p.kernel_height == 3 ? 32 : 96);
  const int64_t least = p.kernel_height == 3 ? 8 : 16;
  return p.out_channels >= least && (p.in_channels >= least || pass == Conv2dPass::backward_input);
}

int64_t conv2d_winograd_scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  if (pass == Conv2dPass::backward_weight) return conv2d_winograd_weight_scratch(p, threads);
  int64_t bytes = 0;
  with_scheme(p, pass, [&](auto scheme) { bytes = scratch_bytes<decltype(scheme)>(p, pass, threads); });
  return bytes;
}

void conv2d_winograd_forward(const Conv2dParams& p, const Parallel& parallel) {
  run(p, Conv2dPass::forward, parallel);
}

void conv2d_winograd_backward_input(const Conv2dParams& p, const Parallel& parallel) {
  run(p, Conv2dPass::backward_input, parallel);
}

}  // namespace pydl::cpu::PYDL_ISA
