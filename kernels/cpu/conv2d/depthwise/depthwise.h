// Depthwise convolution: each channel is convolved alone, so there is no matrix product, and memory decides.
// Groups of a few channels, as many out as in, are served alike: where the groups of a vector of channels
// fill it, every result in it sums over the same lanes of its group in turn, so that a tile needs one
// rearrangement of lanes per source and channel of a group beside its products (grouped_tiles.cpp).
//
// 3x3 kernels of padding 1 walk down the rows of planes (planes_3x3.cpp). Everywhere else a vector
// holds neighbouring channels at one pixel. With channels_last tensors it is read and written
// where it lies (pixels.cpp). Planes (NCHW, any other strides, several filters per channel)
// are first turned into lanes, a vector's worth of channels and a strip of rows at a time, into scratch that
// stays in the second-level cache (planes.cpp): transposing in and out costs about as much
// as the nine products of a 3x3 kernel, and no row is too short.
//
// These two run the same tiles (tiles.cpp): kTilePixels neighbouring pixels of a row share
// weights and loads. A tile gets its pixels as lists of pointers, one list per kernel row that lies on the
// image; what lies beside the image points to a row of zeros, and results beside it to a place that nobody
// reads. The input gradient reads the gradient in the same way, so nothing is ever padded.
#pragma once

#include "kernels/cpu/base/activation.h"
#include "kernels/cpu/conv2d/algorithms.h"
#include "kernels/cpu/conv2d/im2col.h"

namespace pydl::cpu::PYDL_ISA::depthwise {

#if defined(PYDL_AVX512)
// 7 sums, 9 pixels and a weight of 32 registers; divides 7, 14, ..., 112
static constexpr int kTilePixels = 7;
#else
static constexpr int kTilePixels = 4;  // 4, 6 and 1 of 16
#endif

// How the pixels of a tile read their sources, of which a kernel row has `sources()`.
//   strided: pixel i, tap t reads source i * step + t
//   transposed: stride 2 backward; pixels 2i and 2i + 1 read the gradients that their even and odd taps reach
//   any:    pixel i, tap t reads source t * kTilePixels + i
struct TileShape {
  enum Pattern { strided, transposed, any } pattern;
  int64_t taps, step;

  int64_t sources() const {
    if (pattern == strided) return (kTilePixels - 1) * step + taps;
    return pattern == transposed ? kTilePixels + (taps + 1) / 2 - 1 : kTilePixels * taps;
  }
  int64_t results() const { return pattern == transposed ? 2 * kTilePixels : kTilePixels; }
};

// One tile: `results` pixels of all channels. Blocks are vectors of channels; the last one overlaps its
// neighbour where the channels do not fill it.
template <class T>
struct Tile {
  int64_t channels;            // at least lanes
  int64_t inputs;              // channels that each result sums over
  int64_t rows;                // kernel rows on the image
  const T* const* sources;     // [row][pitch]
  int64_t pitch;               // pointers between rows
  const int64_t* row_weights;  // where each row's weights begin within a block
  const acc_t<T>* weights;     // [block][...][input][tap][lane]; forward and input gradient
  int64_t block;               // elements between blocks of weights (or sums)
  const acc_t<T>* bias;        // [block][lane] within the blocks of weights, or null
  Activation activation;
  bool stream;                // store past the caches
  T* const* results;          // [pixel]; forward and input gradient
  const T* const* gradients;  // [pixel]; weight gradient
  acc_t<T>* sums;             // [block][...][input][tap][lane], added to; weight gradient
  int64_t taps;               // of a row, for TileShape::any
};

template <class T>
using RunTile = void (*)(const Tile<T>&);

// Adds the bias, applies the activation and stores the results of one block.
template <class T, int count>
static PYDL_INLINE void finish_tile(const Tile<T>& tile, const vec<acc_t<T>> (&sum)[count], int64_t c) {
  using A = acc_t<T>;
  if (tile.activation == Activation::none) {
    if (tile.stream) {
#pragma GCC unroll 16
      for (int i = 0; i < count; ++i) stream(tile.results[i] + c, sum[i]);
      return;
    }
#pragma GCC unroll 16
    for (int i = 0; i < count; ++i) store(tile.results[i] + c, sum[i]);
    return;
  }
  A some[count * lanes<A>];
#pragma GCC unroll 16
  for (int i = 0; i < count; ++i) store(some + i * lanes<A>, sum[i]);
#pragma GCC unroll 1
  for (int i = 0; i < count; ++i)
    store(tile.results[i] + c, activate<A>(load(some + i * lanes<A>), tile.activation));
}

// The tile of the forward pass and the input gradient, and that of the weight gradient (strided and any).
template <class T>
RunTile<T> depthwise_tile(const TileShape& shape);
template <class T>
RunTile<T> depthwise_weight_tile(const TileShape& shape);
// The same where a result sums over several channels.
template <class T>
RunTile<T> grouped_tile(const TileShape& shape);
template <class T>
RunTile<T> grouped_weight_tile(const TileShape& shape);

// Channels that a result sums over.
static PYDL_INLINE int64_t inputs_of(const Conv2dParams& p) { return p.in_channels / p.groups; }

static PYDL_INLINE int64_t first_channel(int64_t block, int64_t channels, int64_t all) {
  return min_of(block * all, channels - all);
}

// body(first channel, block) for every block of channels.
template <class T, class F>
static PYDL_INLINE void each_block(const Tile<T>& tile, const F& body) {
  constexpr int64_t all = lanes<acc_t<T>>;
  const int64_t blocks = ceil_div(tile.channels, all);
  for (int64_t b = 0; b < blocks; ++b) body(first_channel(b, tile.channels, all), b * tile.block);
}

// What any form of depthwise convolution serves: of these, planes serve all.
static inline bool is_depthwise(const Conv2dParams& p) {
  if (p.dtype == DType::f64) return false;
  const int64_t inputs = inputs_of(p);
  if (inputs == 1) return p.out_channels % p.groups == 0;
  return p.groups > 1 && p.out_channels == p.in_channels && lanes<float> % inputs == 0;
}

}  // namespace pydl::cpu::PYDL_ISA::depthwise
