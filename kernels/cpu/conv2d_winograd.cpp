// Winograd convolution on the CPU: forward and input gradient of 3 x 3, stride 1. See
// conv2d_winograd_points.h for the transforms and conv2d_winograd_tiles.h for how images are cut.
//
//   V = B^T d B     of every tile and input channel          (36 frequencies)
//   U = G g G^T     of every pair of channels
//   M = V U         one matrix product per frequency, summed over input channels
//   Y = A^T M A     of every tile and output channel, plus bias, through the activation
//
// 36 multiplications per 16 outputs instead of 144: the products take a quarter of the time of a direct
// convolution, so everything else is arranged to stay in cache. Two orders:
//
//   weights first: U is computed once. A task is a block of tiles: its V stays in L2 while the panels of U
//   stream past. weights last:  V of many tiles is computed first. A task is a panel of output channels with
//   a block of tiles; it
//                  transforms 128 input channels of its weights at a time into L2 and uses them at once,
//                  because U (16 times the weights' size at 36 / 9 x 4 bytes) would not even fit in L3.
//
// The input gradient is the same computation on the output gradient, with the roles of the weight's channels
// swapped and its taps read backwards, padded by 2 - padding.
//
// Never stored: padding, M of more than one panel, reordered weights or images.
#include "kernels/conv2d.h"

#include "kernels/cpu/conv2d_algorithms.h"
#include "kernels/cpu/conv2d_winograd_gemm.h"
#include "kernels/cpu/conv2d_winograd_tasks.h"
#include "kernels/cpu/conv2d_winograd_tiles.h"
#include "kernels/cpu/math.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int L = lanes<float>;

struct Weights {
  const void* data;
  int64_t in, out, row, column;  // strides in elements
  int64_t in_channels, out_channels;
  bool flip;
};

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

Problem problem_of(const Conv2dParams& p, Conv2dPass pass) {
  const Image input = image_of(p.input, p.input_stride, p.in_channels, p.in_height, p.in_width);
  const Image output = image_of(p.output, p.output_stride, p.out_channels, p.out_height, p.out_width);
  const int64_t* s = p.weight_stride;
  if (pass == Conv2dPass::forward)
    return {input,   output,      {p.weight, s[1], s[0], s[2], s[3], p.in_channels, p.out_channels, false},
            p.batch, p.pad_top,   p.pad_left,
            p.bias,  p.activation};
  return {output,  input,           {p.weight, s[0], s[1], s[2], s[3], p.out_channels, p.in_channels, true},
          p.batch, 2 - p.pad_top,   2 - p.pad_left,
          nullptr, Activation::none};
}

// What goes where in the scratch, in floats.
struct Plan {
  bool weights_first;
  int64_t block;             // tiles per task
  int64_t pass_tiles;        // weights last: tiles whose V is held at a time
  int64_t depth;             // input channels of U per multiplication
  int64_t panels;            // of output channels
  int64_t frequency_stride;  // of V
  int64_t tile_stride;       // of V: 37 frequencies, so that rows of one frequency spread over the cache sets
  int64_t weight_stride;     // between frequencies of U
  int64_t shared, own;       // of all workers, of each

  Plan(const Problem& problem, const Tiles& tiles, int64_t threads) {
    const int64_t in = problem.in.channels, out = problem.out.channels;
    panels = ceil_div(out, kPanel);
    // a power-of-two stride between frequencies would put all of them into a few cache sets
    frequency_stride = ceil_div(in, L) * L;
    if (frequency_stride % 128 == 0) frequency_stride += 16;
    tile_stride = (kFrequencies + 1) * frequency_stride;
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
      block = kMaxRows * ceil_div(64, kMaxRows);
      pass_tiles = max_of(block, kPassFloats / tile_stride / block * block);
    }
    block = ceil_div(min_of(pass_tiles, tiles.count()), ceil_div(min_of(pass_tiles, tiles.count()), block));
    if (weights_first) block = max_of(1, min_of(block, ceil_div(tiles.count(), threads)));
    pass_tiles = min_of(pass_tiles, tiles.count());
    weight_stride = depth * kPanel + 48;
    const int64_t v = piece((weights_first ? block : pass_tiles) * tile_stride);
    const int64_t u = piece((weights_first ? panels : 1) * kFrequencies * weight_stride);
    const int64_t m = piece(block * kFrequencies * kPanel);
    shared = weights_first ? u : v;
    own = m + (weights_first ? v : u);
  }

  int64_t m_offset() const { return own - piece(block * kFrequencies * kPanel); }

  static constexpr int64_t kMaxWeightFloats = 3 << 20 >> 2;  // 3 MB
  static constexpr int64_t kBlockFloats = 300 << 10 >> 2;    // 300 KB
  static constexpr int64_t kPassFloats = 12 << 20 >> 2;      // 12 MB
};

// taps[(c * 9 + tap) * L + lane] for input channels [c, c + count) and output channels [o, o + width) of the
// weights, width <= L. Whatever runs of memory are contiguous are read as vectors and transposed.
template <class T>
void load_taps(const Weights& w, int64_t c, int64_t count, int64_t o, int64_t width, float* taps) {
  const T* from = static_cast<const T*>(w.data) + c * w.in + o * w.out;
  const bool taps_adjacent = w.row == 3 && w.column == 1;
  if (taps_adjacent && w.in == 9) {
    transpose_in(from, w.out, width, count * 9, taps, L);
  } else if (taps_adjacent && w.out != 1) {
    for (int64_t i = 0; i < count; ++i) transpose_in(from + i * w.in, w.out, width, 9, taps + i * 9 * L, L);
  } else {
    for (int tap = 0; tap < 9; ++tap) {
      const T* at = from + tap / 3 * w.row + tap % 3 * w.column;
      if (w.in == 1 && w.out != 1) {
        transpose_in(at, w.out, width, count, taps + tap * L, 9 * L);
        continue;
      }
      for (int64_t i = 0; i < count; ++i) {
        vec<float> v{};
        if (w.out == 1)
          v = width == L ? load(at + i * w.in) : load_n(at + i * w.in, width);
        else
          for (int64_t l = 0; l < width; ++l) v[l] = load_n(at + i * w.in + l * w.out, 1)[0];
        store(taps + (i * 9 + tap) * L, v);
      }
    }
  }
}

// U of input channels [c, c + count) and the panel of output channels from o on:
// to[frequency * stride + channel * kPanel + lane].
template <class T>
void transform_weights(const Weights& w, int64_t c, int64_t count, int64_t o, float* to, int64_t stride) {
  alignas(64) float taps[16 * 9 * L];
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t some = min_of(16, count - i);
    for (int half = 0; half < 2 && o + half * L < w.out_channels; ++half) {
      load_taps<T>(w, c + i, some, o + half * L, min_of(L, w.out_channels - o - half * L), taps);
      for (int64_t k = 0; k < some; ++k) {
        const float* tap = taps + k * 9 * L;
        float* u = to + (i + k) * kPanel + half * L;
        vec<float> column[3][kPoints];
#pragma GCC unroll 3
        for (int s = 0; s < 3; ++s) {
          vec<float> g[3];
#pragma GCC unroll 3
          for (int r = 0; r < 3; ++r) g[r] = load(tap + (w.flip ? 8 - (r * 3 + s) : r * 3 + s) * L);
          transform_weight_1d(g, column[s]);
        }
#pragma GCC unroll 6
        for (int r = 0; r < kPoints; ++r) {
          const vec<float> g[3] = {column[0][r], column[1][r], column[2][r]};
          vec<float> v[kPoints];
          transform_weight_1d(g, v);
#pragma GCC unroll 6
          for (int s = 0; s < kPoints; ++s) store(u + (r * kPoints + s) * stride, v[s]);
        }
      }
    }
  }
}

// M of tiles [begin, end) and a panel: m[tile - begin][frequency][kPanel] (+)= V U.
void multiply(const Tiles& tiles, int64_t begin, int64_t end, int64_t channels, int64_t depth, const float* v,
              const Plan& plan, const float* u, float* m, bool add) {
  for (int f = 0; f < kFrequencies; ++f) {
    int64_t first, last;
    tiles.range(f / kPoints, f % kPoints, begin, end, first, last);
    gemm<Rows::strided>(last - first, channels, depth,
                        v + first * plan.tile_stride + f * plan.frequency_stride, plan.tile_stride,
                        u + f * plan.weight_stride, kPanel, m + (first * kFrequencies + f) * kPanel,
                        kFrequencies * kPanel, add);
  }
}

// Out of line: rare, and the common activations should not pay for its registers.
__attribute__((noinline)) vec<float> sigmoid(vec<float> y) { return 1.0f / (1.0f + exp(-y)); }

// Outputs of tiles [begin, end), channels from o on, out of m.
template <class T>
void finish(const Problem& problem, const Tiles& tiles, int64_t begin, int64_t end, int64_t o,
            const float* m) {
  const Image& out = problem.out;
  const int64_t channels_end = min_of(o + kPanel, out.channels);
  const Activation activation = problem.activation;
  alignas(64) float strip[kTile * kStripTiles * kTile * L];
  for (int64_t index = begin; index < end;) {
    const Tile tile = tiles[index];
    const int64_t run = out.channel == 1 ? 1 : min_of(min_of(tile.run, end - index), kStripTiles);
    const int64_t width = (run - 1) * kTile + tile.columns;
    for (int64_t c = o; c < channels_end; c += L) {
      const int64_t count = min_of(L, channels_end - c);
      const vec<float> bias =
          problem.bias ? load_n(static_cast<const T*>(problem.bias) + c, count) : vec<float>{};
      auto activate = [&](vec<float> y) __attribute__((always_inline)) {
        y += bias;
        if (activation == Activation::relu) return max(vec<float>{}, y);  // nan stays nan
        if (activation == Activation::sigmoid) return sigmoid(y);
        return y;
      };
      const float* from = m + (index - begin) * kFrequencies * kPanel + (c - o);
      if (out.channel == 1 && count == L) {
        T* to = static_cast<T*>(out.data) + tile.n * out.batch + tile.y * out.row + tile.x * out.column + c;
        transform_output(from, kPanel, tile.rows, tile.columns,
                         [&](int i, int j, vec<float> y) __attribute__((always_inline)) {
                           store(to + i * out.row + j * out.column, activate(y));
                         });
        continue;
      }
      for (int64_t t = 0; t < run; ++t)
        transform_output(from + t * kFrequencies * kPanel, kPanel, tile.rows, tile.columns,
                         [&](int i, int j, vec<float> y) __attribute__((always_inline)) {
                           store(strip + (i * width + t * kTile + j) * L, activate(y));
                         });
      store_strip<T>(out, tile.n, c, count, tile.y, tile.x, tile.rows, width, strip);
    }
    index += run;
  }
}

template <class T>
void run_weights_first(const Problem& problem, const Tiles& tiles, const Plan& plan, float* scratch,
                       const Parallel& parallel) {
  const int64_t in = problem.in.channels, chunks = ceil_div(in, 16);
  float* u = scratch;
  const int64_t panel_stride = kFrequencies * plan.weight_stride;
  parallel(plan.panels * chunks, 2, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t panel = i / chunks, c = i % chunks * 16;
      transform_weights<T>(problem.weights, c, min_of(16, in - c), panel * kPanel,
                           u + panel * panel_stride + c * kPanel, plan.weight_stride);
    }
  });
  run_tasks(parallel, parallel.threads, ceil_div(tiles.count(), plan.block),
            [&](int64_t task, int64_t worker) {
              const int64_t begin = task * plan.block, end = min_of(begin + plan.block, tiles.count());
              float *v = scratch + plan.shared + worker * plan.own, *m = v + plan.m_offset();
              transform_tiles<T, false>(problem.in, tiles, begin, end, problem.pad_y, problem.pad_x, v,
                                        plan.tile_stride, plan.frequency_stride);
              for (int64_t panel = 0; panel < plan.panels; ++panel) {
                const int64_t o = panel * kPanel;
                multiply(tiles, begin, end, problem.out.channels - o, in, v, plan, u + panel * panel_stride,
                         m, false);
                finish<T>(problem, tiles, begin, end, o, m);
              }
            });
}

template <class T>
void run_weights_last(const Problem& problem, const Tiles& tiles, const Plan& plan, float* scratch,
                      const Parallel& parallel) {
  const int64_t in = problem.in.channels;
  float* v = scratch;
  for (int64_t pass = 0; pass < tiles.count(); pass += plan.pass_tiles) {
    const int64_t pass_end = min_of(pass + plan.pass_tiles, tiles.count());
    constexpr int64_t kSome = 4;
    run_tasks(parallel, parallel.threads, ceil_div(pass_end - pass, kSome), [&](int64_t task, int64_t) {
      const int64_t begin = pass + task * kSome, end = min_of(begin + kSome, pass_end);
      transform_tiles<T, false>(problem.in, tiles, begin, end, problem.pad_y, problem.pad_x,
                                v + (begin - pass) * plan.tile_stride, plan.tile_stride,
                                plan.frequency_stride);
    });
    const int64_t blocks = ceil_div(pass_end - pass, plan.block);
    run_tasks(parallel, parallel.threads, blocks * plan.panels, [&](int64_t task, int64_t worker) {
      const int64_t begin = pass + task % blocks * plan.block, end = min_of(begin + plan.block, pass_end);
      const int64_t o = task / blocks * kPanel;
      float *u = scratch + plan.shared + worker * plan.own, *m = u + plan.m_offset();
      for (int64_t c = 0; c < in; c += plan.depth) {
        const int64_t depth = min_of(plan.depth, in - c);
        transform_weights<T>(problem.weights, c, depth, o, u, plan.weight_stride);
        multiply(tiles, begin, end, problem.out.channels - o, depth,
                 v + (begin - pass) * plan.tile_stride + c, plan, u, m, c > 0);
      }
      finish<T>(problem, tiles, begin, end, o, m);
    });
  }
}

void run(const Problem& problem, DType dtype, void* memory, const Parallel& parallel) {
  const Tiles tiles(problem.batch, problem.out.height, problem.out.width);
  if (tiles.count() == 0 || problem.out.channels == 0) return;
  const Plan plan(problem, tiles, parallel.threads);
  float* scratch = static_cast<float*>(memory);
  auto typed = [&](auto type) {
    using T = decltype(type);
    plan.weights_first ? run_weights_first<T>(problem, tiles, plan, scratch, parallel)
                       : run_weights_last<T>(problem, tiles, plan, scratch, parallel);
  };
  switch (dtype) {
    case DType::bf16:
      return typed(bf16{});
    case DType::f16:
      return typed(f16{});
    default:
      return typed(float{});
  }
}

}  // namespace

int64_t conv2d_winograd_weight_scratch(const Conv2dParams& p, int64_t threads);  // conv2d_winograd_weight.cpp

bool conv2d_winograd_supported(const Conv2dParams& p, Conv2dPass) {
  return p.kernel_height == 3 && p.kernel_width == 3 && p.stride_height == 1 && p.stride_width == 1 &&
         p.dilation_height == 1 && p.dilation_width == 1 && p.groups == 1 && p.dtype != DType::f64 &&
         p.in_channels > 0 && p.out_channels > 0;
}

// Measured on Zen 5 against implicit GEMM. The transforms cost the same whatever the number of channels on
// the other side, so with few channels they outweigh what the products save; the weight gradient has two of
// them per pair of channels. With few tiles and few channels the transform of the weights does not pay for
// itself.
bool conv2d_winograd_worthwhile(const Conv2dParams& p, Conv2dPass pass) {
  if (!conv2d_winograd_supported(p, pass)) return false;
  const int64_t fewest = min_of(p.in_channels, p.out_channels), pairs = p.in_channels * p.out_channels;
  const int64_t tiles = p.batch * ceil_div(p.out_height, kTile) * ceil_div(p.out_width, kTile);
  if (tiles < 24 && pairs < 128 * 128) return false;
  return pass == Conv2dPass::backward_weight ? fewest >= 16 && pairs >= 1024 : fewest >= 8 && pairs >= 256;
}

int64_t conv2d_winograd_scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  if (pass == Conv2dPass::backward_weight) return conv2d_winograd_weight_scratch(p, threads);
  const Problem problem = problem_of(p, pass);
  const Tiles tiles(problem.batch, problem.out.height, problem.out.width);
  if (tiles.count() == 0) return 0;
  const Plan plan(problem, tiles, threads);
  return (plan.shared + threads * plan.own) * static_cast<int64_t>(sizeof(float));
}

void conv2d_winograd_forward(const Conv2dParams& p, const Parallel& parallel) {
  run(problem_of(p, Conv2dPass::forward), p.dtype, p.scratch, parallel);
}

void conv2d_winograd_backward_input(const Conv2dParams& p, const Parallel& parallel) {
  run(problem_of(p, Conv2dPass::backward_input), p.dtype, p.scratch, parallel);
}

}  // namespace pydl::cpu::PYDL_ISA
