// Direct convolution over batch lanes (batch.h): forward, and the input gradient for stride 1.
//
// The input gradient with stride 1 is a convolution of the gradient with the kernel turned by half a turn and
// the two channel axes of the weight exchanged, padded by what the kernel reaches less the padding.
//
// A task is a block of images: the input is transposed once; each row of the output is computed in registers,
// kOut channels by kPixels pixels at a time, one broadcast weight against kPixels aligned loads; the row is
// transposed back while it is in the first-level cache. The block of the output is never stored.
#include "kernels/cpu/conv2d/direct/batch.h"

#include "kernels/cpu/base/activation.h"
#include "kernels/cpu/base/tasks.h"

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
template <class A>
struct Target {
  A* to;
  int64_t channel, pixel;  // elements between neighbours
  const A* bias;           // of the tile's channels
  Activation activation;
};

// target[o][x] = act(bias[o] + sum) of `outs` channels and `pixels` pixels; weights are
// [channel][row][tap][outs]. Between the rows of one channel that count and those of the next lie `skipped`
// elements, between the taps of rows `skipped_taps`.
template <class A, int outs, int pixels>
void direct_tile(int64_t channels, int64_t rows, int64_t taps, const A* in, const Steps& steps,
                 const A* weights, int64_t skipped, int64_t skipped_taps, const Target<A>& target) {
  vec<A> sum[outs][pixels] = {};
  for (int64_t c = 0; c < channels; ++c, in += steps.channel, weights += skipped) {
    const A* line = in;
    for (int64_t r = 0; r < rows; ++r, line += steps.row, weights += skipped_taps) {
      const A* at = line;
      for (int64_t t = 0; t < taps; ++t, at += steps.tap, weights += outs) {
        vec<A> x[pixels];
#pragma GCC unroll 4
        for (int i = 0; i < pixels; ++i) x[i] = load(at + i * steps.pixel);
#pragma GCC unroll 6
        for (int o = 0; o < outs; ++o) {
          const vec<A> w = splat(weights[o]);
#pragma GCC unroll 4
          for (int i = 0; i < pixels; ++i) sum[o][i] += w * x[i];
        }
      }
    }
  }
  A* to = target.to;
  const bool relu = target.activation == Activation::relu;
#pragma GCC unroll 6
  for (int o = 0; o < outs; ++o, to += target.channel) {
    const vec<A> bias = splat(target.bias[o]);
#pragma GCC unroll 4
    for (int i = 0; i < pixels; ++i) {
      vec<A> x = sum[o][i] + bias;
      if (relu) x = x < vec<A>{} ? vec<A>{} : x;  // nan stays nan
      store(to + i * target.pixel, x);
    }
  }
  if (target.activation != Activation::sigmoid) return;
#pragma GCC unroll 1
  for (int q = 0; q < outs * pixels; ++q) {
    A* at = target.to + q / pixels * target.channel + q % pixels * target.pixel;
    store(at, activate<A>(load(at), target.activation));
  }
}

template <class A>
using DirectTile = void (*)(int64_t, int64_t, int64_t, const A*, const Steps&, const A*, int64_t, int64_t,
                            const Target<A>&);

template <class A, int outs, int pixels>
DirectTile<A> pick_tile(int64_t wanted_outs, int64_t wanted_pixels) {
  if constexpr (outs == 0) {
    return nullptr;
  } else if constexpr (pixels == 0) {
    return pick_tile<A, outs - 1, kPixels>(wanted_outs, wanted_pixels);
  } else {
    if (wanted_outs == outs && wanted_pixels == pixels) return &direct_tile<A, outs, pixels>;
    return pick_tile<A, outs, pixels - 1>(wanted_outs, wanted_pixels);
  }
}

// Rows of the result that are transposed back together: as many as fill whole squares, where a channel's rows
// follow one another in memory.
template <class T>
int64_t rows_together(const DirectConv<T>& g) {
  constexpr int64_t all = lanes<acc_t<T>>, most = 8 * all;
  if (g.out_stride[3] != 1 || g.out_stride[2] != g.out_width || g.out_channels == 1) return 1;
  int64_t rows = 1;
  while (rows * g.out_width % all != 0 && 2 * rows * g.out_width <= most) rows *= 2;
  return min_of(rows, g.out_height);
}

template <class T>
int64_t slot_bytes(const DirectConv<T>& g) {
  using A = acc_t<T>;
  return Pieces::bytes<A>(g.planes.elements() * lanes<A>) +
         Pieces::bytes<A>(g.out_channels * rows_together(g) * g.out_width * lanes<A>);
}

template <class T>
int64_t batch_bytes(const DirectConv<T>& g, int64_t threads) {
  return Pieces::bytes<acc_t<T>>(g.taps() * g.out_blocks(kOut) * kOut) +
         Pieces::bytes<acc_t<T>>(g.out_channels) + threads * slot_bytes(g);
}

template <class T, class A>
void run_block(const DirectConv<T>& g, int64_t image, const A* weights, const A* bias, Pieces scratch) {
  constexpr int64_t all = lanes<A>;
  const int64_t images = min_of(all, g.batch - image), width = g.planes.padded_width;
  A* block = scratch.take<A>(g.planes.elements() * all);
  const int64_t together = rows_together(g);
  A* buffer = scratch.take<A>(g.out_channels * together * g.out_width * all);
  pack_block(g.planes, image, images, 0, g.planes.padded_height, block);
  const Steps steps = {g.planes.padded_height * width * all, g.dilation_y * width * all, g.dilation_x * all,
                       g.stride_x * all};
  // the buffer is in the order of the output's memory: (channel, row, column) or (column, channel)
  const bool by_channel = g.out_stride[1] == 1 && g.out_stride[3] == g.out_channels;
  const int64_t row_channel = by_channel ? all : together * g.out_width * all,
                row_pixel = by_channel ? g.out_channels * all : all;
  const int64_t per_block = g.block_channels(kOut);
  for (int64_t y = 0; y < g.out_height; ++y) {
    // rows of taps [first, end) lie on rows of the image; the others would add zeros
    int64_t first = 0, end = g.kernel_height;
    const int64_t top = y * g.stride_y - g.planes.pad_y;
    while (first < end && top + first * g.dilation_y < 0) ++first;
    while (end > first && top + (end - 1) * g.dilation_y >= g.planes.height) --end;
    A* row = buffer + y % together * g.out_width * all;
    const A* line = block + (y * g.stride_y + first * g.dilation_y) * width * all;
    // all channels of some pixels in succession: what they see stays in the first-level cache
    for (int64_t x = 0; x < g.out_width; x += kPixels) {
      const int64_t pixels = min_of(kPixels, g.out_width - x);
      // of the taps of a row, [left, right) reach the image from some pixel
      int64_t left = 0, right = g.kernel_width;
      const int64_t begin = x * g.stride_x - g.planes.pad_x;
      while (left < right && begin + (pixels - 1) * g.stride_x + left * g.dilation_x < 0) ++left;
      while (right > left && begin + (right - 1) * g.dilation_x >= g.planes.width) --right;
      for (int64_t b = 0; b < g.out_blocks(kOut); ++b) {
        const int64_t o0 = b * per_block, outs = min_of(per_block, g.out_channels - o0);
        const int64_t row_weights = g.kernel_width * outs;
        pick_tile<A, kOut, kPixels>(outs, pixels)(
            g.planes.channels, end - first, right - left, line + (x * g.stride_x + left * g.dilation_x) * all,
            steps, weights + b * per_block * g.taps() + first * row_weights + left * outs,
            (g.kernel_height - (end - first)) * row_weights, (g.kernel_width - (right - left)) * outs,
            {row + o0 * row_channel + x * row_pixel, row_channel, row_pixel, bias + o0, g.activation});
      }
    }
    const int64_t rows = y % together + 1;  // in the buffer
    if (rows < together && y + 1 < g.out_height) continue;
    T* to = g.out + image * g.out_stride[0] + (y + 1 - rows) * g.out_stride[2];
    auto from = [&](const A* at) { return [=](int64_t q) { return load(at + q * all); }; };
    if (by_channel) {
      scatter_lanes(from(buffer), to, g.out_stride[0], images, g.out_width * g.out_channels);
    } else if (g.out_stride[3] == 1) {
      for (int64_t o = 0; o < g.out_channels; ++o)
        scatter_lanes(from(buffer + o * row_channel), to + o * g.out_stride[1], g.out_stride[0], images,
                      rows * g.out_width);
    } else {
      for (int64_t o = 0; o < g.out_channels; ++o)
        for (int64_t x = 0; x < g.out_width; ++x)
          scatter_lanes(from(buffer + o * row_channel + x * row_pixel),
                        to + o * g.out_stride[1] + x * g.out_stride[3], g.out_stride[0], images, 1);
    }
  }
}

template <class T>
void run_batch(const DirectConv<T>& g, void* scratch, const Parallel& parallel) {
  using A = acc_t<T>;
  Pieces pieces{static_cast<char*>(scratch)};
  A* weights = pieces.take<A>(g.taps() * g.out_blocks(kOut) * kOut);
  pack_direct_weights(g, kOut, weights, parallel);
  A* bias = pieces.take<A>(g.out_channels);
  for (int64_t o = 0; o < g.out_channels; ++o) bias[o] = g.bias ? load_n(g.bias + o, 1)[0] : A(0);
  run_tasks(parallel, ceil_div(g.batch, lanes<A>), [&](int64_t task, int64_t slot) {
    run_block(g, task * lanes<A>, weights, bias, Pieces{pieces.next + slot * slot_bytes(g)});
  });
}

}  // namespace

namespace batch {

bool serves(const Conv2dParams& p, Conv2dPass pass) { return direct_supported(p, pass); }

int64_t scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  int64_t bytes = 0;
  dispatch_trained(p.dtype,
                   [&](auto type) { bytes = batch_bytes(direct_problem<decltype(type)>(p, pass), threads); });
  return bytes;
}

void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  dispatch_trained(
      p.dtype, [&](auto type) { run_batch(direct_problem<decltype(type)>(p, pass), p.scratch, parallel); });
}

}  // namespace batch

}  // namespace pydl::cpu::PYDL_ISA::direct
