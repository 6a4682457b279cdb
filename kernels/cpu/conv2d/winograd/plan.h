// A Winograd forward pass or input gradient as its kernels see it, and how it is cut: which order
// (forward.cpp has the two), blocks, and what goes where in the scratch.
#pragma once

#include "kernels/cpu/conv2d/winograd/gemm.h"
#include "kernels/cpu/conv2d/winograd/images.h"
#include "kernels/cpu/conv2d/winograd/scratch.h"
#include "kernels/cpu/conv2d/winograd/taps.h"

namespace pydl::cpu::PYDL_ISA::winograd {
namespace {

constexpr int L = lanes<float>;

struct Problem {
  Image in, out;
  Weights weights;
  int64_t batch, pad_y, pad_x;
  const void* bias;
  Activation activation;
  int32_t* spoiled;
};

inline Problem problem_of(const Conv2dParams& p, Conv2dPass pass, const Scheme& scheme) {
  const Image input = input_of(p), output = output_of(p);
  const int64_t* s = p.weight_stride;
  if (pass == Conv2dPass::forward)
    return {input,   output,       {p.weight, s[1], s[0], s[2], s[3], p.in_channels, p.out_channels, false},
            p.batch, p.pad_top,    p.pad_left,
            p.bias,  p.activation, p.spoiled};
  // where the padding is 1 a position of Transposed reads from its own place on, with 4 taps from one before
  auto pad = [&](int64_t pad) {
    return scheme.output_step == 2 ? scheme.taps - 3 - (pad - 1) / 2 : scheme.taps - 1 - pad;
  };
  return {output,  input,          {p.weight, s[0], s[1], s[2], s[3], p.out_channels, p.in_channels, true},
          p.batch, pad(p.pad_top), pad(p.pad_left),
          p.bias,  p.activation,   p.spoiled};
}

inline Tiles tiles_of(const Problem& problem, const Scheme& scheme) {
  return {scheme, problem.batch, ceil_div(problem.out.height, scheme.output_step),
          ceil_div(problem.out.width, scheme.output_step)};
}

// Tiles of a block when weights come last: as many floats of M for each scheme. Larger blocks where U is not kept,
// because each block transforms it again.
constexpr int64_t block_tiles(const Scheme& scheme) {
  return kMaxRows * ceil_div(64 * kFrequencies / scheme.products(), kMaxRows);
}
constexpr int64_t most_tiles(const Scheme& scheme) {
  return (scheme.has_4_taps() ? 4 : 2) * block_tiles(scheme);
}
constexpr int64_t kMostTiles =
    max_of(most_tiles(Scheme::of(Dense<3>{})), most_tiles(Scheme::of(StridedOf4{})));

// What goes where in the scratch, in floats.
struct Plan {
  bool weights_first;
  bool weights_once;         // weights last: all of U is kept, because many blocks of tiles use it
  int64_t block;             // tiles per task
  int64_t pass_tiles;        // weights last: tiles whose V is held at a time
  int64_t depth, parts;      // input channels of U per multiplication, and how many such parts there are
  int64_t panels;            // of output channels
  int64_t products;          // frequencies of V that any tile has
  int64_t frequency_stride;  // of V
  int64_t tile_stride;    // of V; weights first: one frequency more, which spreads rows over the cache sets
  int64_t weight_stride;  // between frequencies of U
  int64_t shared, own;    // of all workers, of each
  int64_t m_offset;       // of M in `own`

  Plan(const Problem& problem, const Tiles& tiles, int64_t threads) {
    const Scheme& scheme = tiles.scheme;
    const int64_t in = problem.in.channels, out = problem.out.channels;
    panels = ceil_div(out, kPanel);
    products = 0;
    for (int i = 0; i < scheme.along; ++i)
      for (int j = 0; j < scheme.along; ++j) {
        int64_t first, last;
        tiles.range(i, j, 0, tiles.count(), first, last);
        products += first < last;
      }
    // a power-of-two stride between frequencies would put all of them into a few cache sets
    frequency_stride = ceil_div(in, L) * L;
    if (frequency_stride % 128 == 0) frequency_stride += 16;
    tile_stride = (scheme.products() + 1) * frequency_stride;
    const int64_t weight_floats = panels * kPanel * in * scheme.weight_frequencies();
    // with 4 taps V is as large as U of a quarter of the tiles: of many it stays with who makes it, and U comes from
    // L3; of transposed ones, whose M is as large again, of fewer tiles too
    const bool four = scheme.has_4_taps();
    const bool many = tiles.count() >= kManyTiles && weight_floats <= kLargeWeightFloats;
    const bool some =
        scheme.output_step == 2 && tiles.count() >= kManyTiles / 2 && weight_floats <= kSomeWeightFloats;
    weights_first = weight_floats <= kMaxWeightFloats || (four && (many || some));
    weights_once = false;
    if (weights_first) {
      depth = in;
      // V of a block in less than a third of L2 (1 MB), with 4 taps V and M in two thirds, so that U passes by less
      // often; in steps of the register block
      const int64_t floats = four ? kFourBlockFloats / (tile_stride + scheme.sum_frequencies() * kPanel)
                                  : kBlockFloats / tile_stride;
      block = max_of(1, min_of(3, floats / kMaxRows)) * kMaxRows;
      pass_tiles = tiles.count();
    } else {
      depth = min_of(in, 128);
      weights_once = weight_floats <= kMostWeightFloats && tiles.count() > most_tiles(scheme);
      block = weights_once ? block_tiles(scheme) : most_tiles(scheme);
      pass_tiles = max_of(block, kPassFloats / tile_stride / block * block);
    }
    pass_tiles = min_of(pass_tiles, tiles.count());
    int64_t blocks = ceil_div(pass_tiles, block);
    if (weights_first) blocks = ceil_div(blocks, threads) * threads;  // as many for each
    block = ceil_div(pass_tiles, blocks);
    if (!weights_first) {
      // V comes from L3: the tiles of a frequency follow each other, so that the hardware fetches ahead
      tile_stride = (ceil_div(in, L) | 1) * L;
      frequency_stride = tile_stride * pass_tiles + 48;
    }
    weight_stride = depth * kPanel + 48;
    parts = ceil_div(in, depth);
    const int64_t v = piece(weights_first ? block * tile_stride : scheme.products() * frequency_stride);
    const int64_t u = piece((weights_first || weights_once ? panels * parts : 1) *
                            scheme.weight_frequencies() * weight_stride);
    shared = weights_first ? u : weights_once ? u + v : v;
    m_offset = weights_first ? v : weights_once ? 0 : u;
    own = m_offset + piece(block * scheme.sum_frequencies() * kPanel) + kApartFloats;
  }

  static constexpr int64_t kMaxWeightFloats = 3 << 20 >> 2;     // 3 MB
  static constexpr int64_t kSomeWeightFloats = 4 << 20 >> 2;    // 4 MB
  static constexpr int64_t kLargeWeightFloats = 16 << 20 >> 2;  // 16 MB
  static constexpr int64_t kMostWeightFloats = 12 << 20 >> 2;   // 12 MB
  static constexpr int64_t kBlockFloats = 300 << 10 >> 2;       // 300 KB
  static constexpr int64_t kFourBlockFloats = 700 << 10 >> 2;   // 700 KB
  static constexpr int64_t kPassFloats = 12 << 20 >> 2;         // 12 MB
  static constexpr int64_t kManyTiles = 128;
};

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::winograd
