// Direct convolution over batch lanes (batch.h): forward, and the input gradient for stride 1.
//
// The input gradient with stride 1 is a convolution of the gradient with the kernel turned by half a turn and
// the two channel axes of the weight exchanged, padded by what the kernel reaches less the padding.
//
// A task is a block of images: the input is transposed once; each row of the output is computed in registers,
// kOut channels by kPixels pixels at a time, one broadcast weight against kPixels aligned loads; the row is
// transposed back while it is in the first-level cache. The block of the output is never stored.
#include "kernels/cpu/base/activation.h"
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/conv2d/direct/pairs.h"

namespace pydl::cpu::PYDL_ISA::direct {
namespace {

#if defined(PYDL_AVX512)
constexpr int kOut = 6;  // 24 accumulators of 32 registers
#else
constexpr int kOut = 3;  // 12 of 16
#endif
constexpr int kPixels = 4;

// How far apart taps lie in a block, in elements.
struct Steps {
  int64_t channel, row, tap, pixel;
};

// Where a tile of results goes, and what is done to it on the way.
struct Target {
  float* to;
  int64_t channel, pixel;  // elements between neighbours
  const float* bias;       // of the tile's channels
  bool relu;
};

// target[o][x] = act(bias[o] + sum) of `outs` channels and `pixels` pixels; weights are
// [channel][row][tap][outs]. Between the rows of one channel that count and those of the next lie `skipped`
// elements, between the taps of rows `skipped_taps`. Tap number `halved` has no second pixel.
template <class E, int outs, int pixels>
void direct_tile(int64_t channels, int64_t rows, int64_t taps, const E* in, const Steps& steps,
                 const E* weights, int64_t skipped, int64_t skipped_taps, int64_t halved,
                 const Target& target) {
  vec<float> sum[outs][pixels] = {};
  for (int64_t c = 0; c < channels; ++c, in += steps.channel, weights += skipped) {
    const E* line = in;
    for (int64_t r = 0; r < rows; ++r, line += steps.row, weights += skipped_taps) {
      const E* at = line;
      for (int64_t t = 0; t < taps; ++t, at += steps.tap, weights += outs) {
        decltype(load_elements(at)) x[pixels];
#pragma GCC unroll 4
        for (int i = 0; i < pixels; ++i) x[i] = load_elements(at + i * steps.pixel);
        if constexpr (!__is_same(E, float))
          if (t == halved)  // the other may be inf, which times zero is nan
#pragma GCC unroll 4
            for (int i = 0; i < pixels; ++i) x[i] &= 0xffffu;
#pragma GCC unroll 6
        for (int o = 0; o < outs; ++o) {
          const auto w = splat_element<E>(weights + o);
#pragma GCC unroll 4
          for (int i = 0; i < pixels; ++i) sum[o][i] = multiply_add(w, x[i], sum[o][i]);
        }
      }
    }
  }
  float* to = target.to;
#pragma GCC unroll 6
  for (int o = 0; o < outs; ++o, to += target.channel) {
    const vec<float> bias = splat(target.bias[o]);
#pragma GCC unroll 4
    for (int i = 0; i < pixels; ++i) {
      vec<float> x = sum[o][i] + bias;
      if (target.relu) x = x < vec<float>{} ? vec<float>{} : x;  // nan stays nan
      store(to + i * target.pixel, x);
    }
  }
}

template <class E>
using DirectTile = void (*)(int64_t, int64_t, int64_t, const E*, const Steps&, const E*, int64_t, int64_t,
                            int64_t, const Target&);

template <class E, int outs, int pixels>
DirectTile<E> pick_tile(int64_t wanted_outs, int64_t wanted_pixels) {
  if constexpr (outs == 0) {
    return nullptr;
  } else if constexpr (pixels == 0) {
    return pick_tile<E, outs - 1, kPixels>(wanted_outs, wanted_pixels);
  } else {
    if (wanted_outs == outs && wanted_pixels == pixels) return &direct_tile<E, outs, pixels>;
    return pick_tile<E, outs, pixels - 1>(wanted_outs, wanted_pixels);
  }
}

// Rows of the result that are transposed back together: as many as fill whole squares, where a channel's rows
// follow one another in memory.
template <class T>
int64_t rows_together(const DirectConv<T>& g) {
  constexpr int64_t all = lanes<float>, most = 8 * all;
  if (g.out_stride[3] != 1 || g.out_stride[2] != g.out_width || g.out_channels == 1) return 1;
  const int64_t square = g.pairs == Pairs::none ? all : 2 * all;
  int64_t rows = 1;
  while (rows * g.out_width % square != 0 && 2 * rows * g.out_width <= most) rows *= 2;
  return min_of(rows, g.out_height);
}

// Elements of a block: rows of taps outside of the image are skipped, so they are not in it.
template <class T>
int64_t block_elements(const DirectConv<T>& g) {
  return g.plane_count() * plane_vectors(g.planes.image_rows(), g.planes.padded_width) * lanes<float>;
}

template <class T>
int64_t slot_bytes(const DirectConv<T>& g) {
  return Pieces::bytes<float>(block_elements(g)) +
         Pieces::bytes<float>(g.out_channels * rows_together(g) * g.out_width * lanes<float>) + kApart;
}

template <class T>
int64_t batch_bytes(const DirectConv<T>& g, int64_t threads) {
  return Pieces::bytes<float>(g.taps() * g.out_blocks(kOut) * kOut) + Pieces::bytes<float>(g.out_channels) +
         threads * slot_bytes(g);
}

// Pairs of channels or of taps, whichever leaves fewer halves empty.
template <class E, class T>
DirectConv<T> batch_problem(const Conv2dParams& p, Conv2dPass pass) {
  DirectConv<T> g = direct_problem<T>(p, pass);
  if (__is_same(E, float)) return g;
  const int64_t channels = g.planes.channels, taps = g.kernel_width;
  const bool by_tap = g.dilation_x == 1 && ceil_div(taps, 2) * channels < ceil_div(channels, 2) * taps;
  g.pairs = by_tap ? Pairs::taps : Pairs::channels;
  return g;
}

// The order of the buffer is that of the output's memory: (channel, row, column) or (column, channel).
template <class T>
bool is_by_channel(const DirectConv<T>& g) {
  return g.out_stride[1] == 1 && g.out_stride[3] == g.out_channels;
}

// Rows [first, first + rows) of the result from the buffer.
template <class E, class T>
void put_rows(const DirectConv<T>& g, const float* buffer, int64_t row_channel, int64_t row_pixel,
              int64_t image, int64_t images, int64_t first, int64_t rows) {
  T* to = g.out + image * g.out_stride[0] + first * g.out_stride[2];
  auto put = [&](const float* at, T* plane, int64_t length) {
    auto get = [=](int64_t q) { return load(at + q * lanes<float>); };
#if defined(PYDL_BF16_DOT)
    if constexpr (!__is_same(E, float))
      return scatter_rounded(get, plane, g.out_stride[0], images, length);
    else
#endif
      scatter_lanes(get, plane, g.out_stride[0], images, length);
  };
  if (is_by_channel(g)) return put(buffer, to, g.out_width * g.out_channels);
  for (int64_t o = 0; o < g.out_channels; ++o, buffer += row_channel, to += g.out_stride[1])
    if (g.out_stride[3] == 1)
      put(buffer, to, rows * g.out_width);
    else
      for (int64_t x = 0; x < g.out_width; ++x) put(buffer + x * row_pixel, to + x * g.out_stride[3], 1);
}

template <class T, class E>
void run_block(const DirectConv<T>& g, int64_t image, const E* weights, const float* bias, Pieces scratch) {
  constexpr int64_t all = lanes<float>;
  const int64_t images = min_of(all, g.batch - image), width = g.planes.padded_width;
  E* block = scratch.take<E>(block_elements(g));
  const int64_t together = rows_together(g);
  float* buffer = scratch.take<float>(g.out_channels * together * g.out_width * all);
#if defined(PYDL_BF16_DOT)
  if constexpr (!__is_same(E, float))
    pack_pairs(g.planes, g.pairs, image, images, block);
  else
#endif
    pack_block<PlaneRows<T>>(g.planes, image, images, g.planes.pad_y, g.planes.pad_y + g.planes.image_rows(),
                             block);
  const int64_t taps = g.row_taps(), tap_pixels = (g.pairs == Pairs::taps ? 2 : 1) * g.dilation_x;
  const bool odd = g.pairs == Pairs::taps && g.kernel_width % 2 == 1;
  const Steps steps = {plane_vectors(g.planes.image_rows(), width) * all, g.dilation_y * width * all,
                       tap_pixels * all, g.stride_x * all};
  const bool by_channel = is_by_channel(g);
  const int64_t row_channel = by_channel ? all : together * g.out_width * all,
                row_pixel = by_channel ? g.out_channels * all : all;
  const int64_t per_block = g.block_channels(kOut);
  const int64_t tiles = ceil_div(g.out_width, kPixels), least = g.out_width / tiles,
                larger = g.out_width % tiles;
  for (int64_t y = 0; y < g.out_height; ++y) {
    // rows of taps [first, end) lie on rows of the image; the others would add zeros
    int64_t first = 0, end = g.kernel_height;
    const int64_t top = y * g.stride_y - g.planes.pad_y;
    while (first < end && top + first * g.dilation_y < 0) ++first;
    while (end > first && top + (end - 1) * g.dilation_y >= g.planes.height) --end;
    float* row = buffer + y % together * g.out_width * all;
    const E* line = block + (top + first * g.dilation_y) * width * all;
    // all channels of some pixels in succession: what they see stays in the first-level cache
    for (int64_t x = 0, i = 0, pixels; i < tiles; ++i, x += pixels) {
      pixels = least + (i < larger);
      // of the taps of a row, [left, right) reach the image from some pixel
      int64_t left = 0, right = taps;
      const int64_t begin = x * g.stride_x - g.planes.pad_x, reach = tap_pixels - g.dilation_x;  // of a pair
      while (left < right && begin + (pixels - 1) * g.stride_x + left * tap_pixels + reach < 0) ++left;
      while (right > left && begin + (right - 1) * tap_pixels >= g.planes.width) --right;
      for (int64_t b = 0; b < g.out_blocks(kOut); ++b) {
        const int64_t o0 = b * per_block, outs = min_of(per_block, g.out_channels - o0);
        const int64_t row_weights = taps * outs;
        pick_tile<E, kOut, kPixels>(outs, pixels)(
            g.plane_count(), end - first, right - left, line + (x * g.stride_x + left * tap_pixels) * all,
            steps, weights + b * per_block * g.taps() + first * row_weights + left * outs,
            (g.kernel_height - (end - first)) * row_weights, (taps - (right - left)) * outs,
            odd ? taps - 1 - left : -1,
            {row + o0 * row_channel + x * row_pixel, row_channel, row_pixel, bias + o0,
             g.activation == Activation::relu});
      }
    }
    const int64_t rows = y % together + 1;  // in the buffer
    if (rows < together && y + 1 < g.out_height) continue;
    if (g.activation == Activation::sigmoid) {
      const int64_t used = (by_channel ? g.out_channels : rows) * g.out_width * all;
      for (int64_t o = 0; o < (by_channel ? 1 : g.out_channels); ++o)
        sigmoid_strip<!__is_same(T, float)>(buffer + o * row_channel, used);
    }
    put_rows<E>(g, buffer, row_channel, row_pixel, image, images, y + 1 - rows, rows);
  }
}

template <class E, class T>
void run_batch(const DirectConv<T>& g, void* scratch, const Parallel& parallel) {
  Pieces pieces{static_cast<char*>(scratch)};
  E* weights = pieces.take<E>(g.taps() * g.out_blocks(kOut) * kOut);
  pack_direct_weights(g, kOut, weights, parallel);
  float* bias = pieces.take<float>(g.out_channels);
  for (int64_t o = 0; o < g.out_channels; ++o) bias[o] = g.bias ? load_n(g.bias + o, 1)[0] : 0.0f;
  run_tasks(parallel, ceil_div(g.batch, lanes<float>), [&](int64_t task, int64_t slot) {
    run_block(g, task * lanes<float>, weights, bias, Pieces{pieces.next + slot * slot_bytes(g)});
  });
}

}  // namespace

namespace batch {

bool serves(const Conv2dParams& p, Conv2dPass pass) { return direct_supported(p, pass); }

int64_t scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  int64_t bytes = 0;
  dispatch_elements(p.dtype, [&](auto number, auto element) {
    bytes = batch_bytes(batch_problem<decltype(element), decltype(number)>(p, pass), threads);
  });
  return bytes;
}

void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  dispatch_elements(p.dtype, [&](auto number, auto element) {
    using E = decltype(element);
    run_batch<E>(batch_problem<E, decltype(number)>(p, pass), p.scratch, parallel);
  });
}

}  // namespace batch

}  // namespace pydl::cpu::PYDL_ISA::direct
