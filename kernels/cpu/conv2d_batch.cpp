// Direct convolution over batch lanes (conv2d_batch.h): forward, and the input gradient for stride 1.
//
// The input gradient with stride 1 is a convolution of the gradient with the kernel turned by half a turn and
// the two channel axes of the weight exchanged, padded by what the kernel reaches less the padding.
//
// A task is a block of images: the input is transposed once; each row of the output is computed in registers,
// kOut channels by kPixels pixels at a time, one broadcast weight against kPixels aligned loads; the row is
// transposed back while it is in the first-level cache. The block of the output is never stored.
#include "kernels/cpu/conv2d_batch.h"

#include "kernels/cpu/conv2d_finish.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

#if defined(PYDL_AVX512)
constexpr int kOut = 6;  // 24 accumulators of 32 registers
#else
constexpr int kOut = 3;  // 12 of 16
#endif
constexpr int kPixels = 4;

template <class T>
struct BatchConv {
  Planes<T> planes;
  int64_t batch, out_channels, out_height, out_width;
  int64_t kernel_height, kernel_width, stride_y, stride_x, dilation_y, dilation_x;
  const T* weight;  // of tap (0, 0); the strides are negative where the kernel is turned
  int64_t weight_out, weight_in, weight_y, weight_x;
  T* out;
  int64_t out_stride[4];
  const T* bias;
  Activation activation;

  int64_t out_blocks() const { return ceil_div(out_channels, kOut); }
  int64_t block_channels() const { return ceil_div(out_channels, out_blocks()); }
  int64_t taps() const { return planes.channels * kernel_height * kernel_width; }
};

// How far apart taps lie in a block, in elements.
struct Steps {
  int64_t channel, row, tap, pixel;
};

// sum[o][x] of `outs` channels and `pixels` pixels; weights are [channel][row][tap][outs], `skipped` elements
// between the rows of one channel that count and those of the next.
template <class A, int outs, int pixels>
void direct_tile(int64_t channels, int64_t rows, int64_t taps, const A* in, const Steps& steps,
                 const A* weights, int64_t skipped, A* result) {
  vec<A> sum[outs][pixels] = {};
  for (int64_t c = 0; c < channels; ++c, in += steps.channel, weights += skipped) {
    const A* line = in;
    for (int64_t r = 0; r < rows; ++r, line += steps.row) {
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
#pragma GCC unroll 6
  for (int o = 0; o < outs; ++o)
#pragma GCC unroll 4
    for (int i = 0; i < pixels; ++i) store(result + (o * kPixels + i) * lanes<A>, sum[o][i]);
}

template <class A>
using DirectTile = void (*)(int64_t, int64_t, int64_t, const A*, const Steps&, const A*, int64_t, A*);

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

template <class T>
int64_t slot_bytes(const BatchConv<T>& g) {
  using A = acc_t<T>;
  return Pieces::bytes<A>(g.planes.elements() * lanes<A>) +
         Pieces::bytes<A>(g.out_channels * g.out_width * lanes<A>);
}

template <class T>
int64_t batch_bytes(const BatchConv<T>& g, int64_t threads) {
  return Pieces::bytes<acc_t<T>>(g.taps() * g.out_blocks() * kOut) + threads * slot_bytes(g);
}

template <class T, class A>
void run_block(const BatchConv<T>& g, int64_t image, const A* weights, Pieces scratch) {
  constexpr int64_t all = lanes<A>;
  const int64_t images = min_of(all, g.batch - image), width = g.planes.padded_width;
  A* block = scratch.take<A>(g.planes.elements() * all);
  A* row = scratch.take<A>(g.out_channels * g.out_width * all);
  pack_block(g.planes, image, images, 0, g.planes.padded_height, block);
  const Steps steps = {g.planes.padded_height * width * all, g.dilation_y * width * all, g.dilation_x * all,
                       g.stride_x * all};
  // the row buffer is in the order of the output's memory: (channel, column) or (column, channel)
  const bool by_channel = g.out_stride[1] == 1 && g.out_stride[3] == g.out_channels;
  const int64_t row_channel = by_channel ? all : g.out_width * all,
                row_pixel = by_channel ? g.out_channels * all : all;
  const int64_t per_block = g.block_channels();
  for (int64_t y = 0; y < g.out_height; ++y) {
    // rows of taps [first, end) lie on rows of the image; the others would add zeros
    int64_t first = 0, end = g.kernel_height;
    const int64_t top = y * g.stride_y - g.planes.pad_y;
    while (first < end && top + first * g.dilation_y < 0) ++first;
    while (end > first && top + (end - 1) * g.dilation_y >= g.planes.height) --end;
    for (int64_t b = 0; b < g.out_blocks(); ++b) {
      const int64_t o0 = b * per_block, outs = min_of(per_block, g.out_channels - o0);
      const int64_t row_weights = g.kernel_width * outs;
      const A* block_weights = weights + b * per_block * g.taps() + first * row_weights;
      const A* line = block + (y * g.stride_y + first * g.dilation_y) * width * all;
      for (int64_t x = 0; x < g.out_width; x += kPixels) {
        const int64_t pixels = min_of(kPixels, g.out_width - x);
        A tile[kOut * kPixels * all];
        pick_tile<A, kOut, kPixels>(outs, pixels)(g.planes.channels, end - first, g.kernel_width,
                                                  line + x * g.stride_x * all, steps, block_weights,
                                                  (g.kernel_height - (end - first)) * row_weights, tile);
        for (int64_t o = 0; o < outs; ++o) {
          const vec<A> bias = g.bias ? splat(load_n(g.bias + o0 + o, 1)[0]) : vec<A>{};
          for (int64_t i = 0; i < pixels; ++i)
            store(row + (o0 + o) * row_channel + (x + i) * row_pixel,
                  activate<A>(load(tile + (o * kPixels + i) * all) + bias, g.activation));
        }
      }
    }
    T* to = g.out + image * g.out_stride[0] + y * g.out_stride[2];
    if (by_channel) {
      scatter_lanes(row, to, g.out_stride[0], images, g.out_width * g.out_channels);
    } else if (g.out_stride[3] == 1) {
      for (int64_t o = 0; o < g.out_channels; ++o)
        scatter_lanes(row + o * row_channel, to + o * g.out_stride[1], g.out_stride[0], images, g.out_width);
    } else {
      for (int64_t o = 0; o < g.out_channels; ++o)
        for (int64_t x = 0; x < g.out_width; ++x)
          scatter_lanes(row + o * row_channel + x * row_pixel, to + o * g.out_stride[1] + x * g.out_stride[3],
                        g.out_stride[0], images, 1);
    }
  }
}

template <class T>
void run_batch(const BatchConv<T>& g, void* scratch, const Parallel& parallel) {
  using A = acc_t<T>;
  Pieces pieces{static_cast<char*>(scratch)};
  A* weights = pieces.take<A>(g.taps() * g.out_blocks() * kOut);
  const int64_t per_block = g.block_channels();
  parallel(g.out_blocks(), ceil_div(1024, g.taps()), [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      A* to = weights + b * per_block * g.taps();
      for (int64_t c = 0; c < g.planes.channels; ++c)
        for (int64_t r = 0; r < g.kernel_height; ++r)
          for (int64_t t = 0; t < g.kernel_width; ++t)
            for (int64_t o = b * per_block; o < min_of((b + 1) * per_block, g.out_channels); ++o)
              *to++ = load_n(g.weight + o * g.weight_out + c * g.weight_in + r * g.weight_y + t * g.weight_x,
                             1)[0];
    }
  });
  const int64_t tasks = ceil_div(g.batch, lanes<A>), threads = max_of(1, min_of(parallel.threads, tasks));
  parallel(threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot)
      for (int64_t task = tasks * slot / threads; task < tasks * (slot + 1) / threads; ++task)
        run_block(g, task * lanes<A>, weights, Pieces{pieces.next + slot * slot_bytes(g)});
  });
}

template <class T>
BatchConv<T> batch_problem(const Conv2dParams& p, Conv2dPass pass) {
  BatchConv<T> g{};
  const int64_t reach_y = (p.kernel_height - 1) * p.dilation_height,
                reach_x = (p.kernel_width - 1) * p.dilation_width;
  g.batch = p.batch;
  g.kernel_height = p.kernel_height;
  g.kernel_width = p.kernel_width;
  g.dilation_y = p.dilation_height;
  g.dilation_x = p.dilation_width;
  g.weight = static_cast<const T*>(p.weight);
  if (pass == Conv2dPass::forward) {
    g.stride_y = p.stride_height;
    g.stride_x = p.stride_width;
    g.out_channels = p.out_channels;
    g.out_height = p.out_height;
    g.out_width = p.out_width;
    g.planes = {static_cast<const T*>(p.input),
                {},
                p.in_channels,
                p.in_height,
                p.in_width,
                p.pad_top,
                p.pad_left,
                0,
                0};
    g.weight_out = p.weight_stride[0];
    g.weight_in = p.weight_stride[1];
    g.weight_y = p.weight_stride[2];
    g.weight_x = p.weight_stride[3];
    g.out = static_cast<T*>(p.output);
    g.bias = static_cast<const T*>(p.bias);
    g.activation = p.activation;
    for (int d = 0; d < 4; ++d) g.planes.stride[d] = p.input_stride[d], g.out_stride[d] = p.output_stride[d];
  } else {
    g.stride_y = g.stride_x = 1;
    g.out_channels = p.in_channels;
    g.out_height = p.in_height;
    g.out_width = p.in_width;
    g.planes = {static_cast<const T*>(p.output),
                {},
                p.out_channels,
                p.out_height,
                p.out_width,
                reach_y - p.pad_top,
                reach_x - p.pad_left,
                0,
                0};
    g.weight += (p.kernel_height - 1) * p.weight_stride[2] + (p.kernel_width - 1) * p.weight_stride[3];
    g.weight_out = p.weight_stride[1];
    g.weight_in = p.weight_stride[0];
    g.weight_y = -p.weight_stride[2];
    g.weight_x = -p.weight_stride[3];
    g.out = static_cast<T*>(p.input);
    for (int d = 0; d < 4; ++d) g.planes.stride[d] = p.output_stride[d], g.out_stride[d] = p.input_stride[d];
  }
  g.planes.padded_height = (g.out_height - 1) * g.stride_y + reach_y + 1;
  g.planes.padded_width = (g.out_width - 1) * g.stride_x + reach_x + 1;
  return g;
}

}  // namespace

bool conv2d_batch_supported(const Conv2dParams& p, Conv2dPass pass) {
  if (p.groups != 1) return false;
  if (pass != Conv2dPass::backward_input) return true;
  return p.stride_height == 1 && p.stride_width == 1 &&
         p.pad_top <= (p.kernel_height - 1) * p.dilation_height &&
         p.pad_left <= (p.kernel_width - 1) * p.dilation_width;
}

int64_t conv2d_batch_gather_scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  int64_t bytes = 0;
  dispatch_dtype(p.dtype,
                 [&](auto type) { bytes = batch_bytes(batch_problem<decltype(type)>(p, pass), threads); });
  return bytes;
}

void conv2d_batch_forward(const Conv2dParams& p, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) {
    run_batch(batch_problem<decltype(type)>(p, Conv2dPass::forward), p.scratch, parallel);
  });
}

void conv2d_batch_backward_input(const Conv2dParams& p, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) {
    run_batch(batch_problem<decltype(type)>(p, Conv2dPass::backward_input), p.scratch, parallel);
  });
}

}  // namespace pydl::cpu::PYDL_ISA
