// The problem that the direct algorithms solve (batch.cpp, rows.cpp): few channels, every
// product made where it falls, nothing gathered into a matrix.
//
// The input gradient with stride 1 is a convolution of the gradient with the kernel turned by half a turn and
// the two channel axes of the weight exchanged, padded by what the kernel reaches less the padding.
#pragma once

#include "kernels/cpu/conv2d/im2col.h"

namespace pydl::cpu::PYDL_ISA::direct {

// Planes of a tensor, to be copied with a border: row y of a plane is row y - pad_y of the image, or zeros.
template <class T>
struct Planes {
  const T* data;
  int64_t stride[4];  // N, C, H, W
  int64_t channels, height, width;
  int64_t pad_y, pad_x, padded_height, padded_width;

  // Rows and columns of the image that a copy has room for.
  int64_t image_rows() const { return max_of(0, min_of(height, padded_height - pad_y)); }
  int64_t used() const { return min_of(width, padded_width - pad_x); }
};

// What lies side by side where pairs of bfloat16 are multiplied: two channels, or two neighbouring taps of a row.
enum class Pairs { none, channels, taps };

// Forward pass or input gradient; out_blocks and block_channels cut its results into blocks of at most
// `most`.
template <class T>
struct DirectConv {
  Planes<T> planes;
  int64_t batch, out_channels, out_height, out_width;
  int64_t kernel_height, kernel_width, stride_y, stride_x, dilation_y, dilation_x;
  const T* weight;  // of tap (0, 0); the strides are negative where the kernel is turned
  int64_t weight_out, weight_in, weight_y, weight_x;
  T* out;
  int64_t out_stride[4];
  const T* bias;
  Activation activation;
  Pairs pairs;

  int64_t out_blocks(int64_t most) const { return ceil_div(out_channels, most); }
  int64_t block_channels(int64_t most) const { return ceil_div(out_channels, out_blocks(most)); }
  // Planes of the input, taps of a row and of all: pairs of them count once.
  int64_t plane_count() const {
    return pairs == Pairs::channels ? ceil_div(planes.channels, 2) : planes.channels;
  }
  int64_t row_taps() const { return pairs == Pairs::taps ? ceil_div(kernel_width, 2) : kernel_width; }
  int64_t taps() const { return plane_count() * kernel_height * row_taps(); }
};

static inline bool direct_supported(const Conv2dParams& p, Conv2dPass pass) {
  if (p.groups != 1 || p.dtype == DType::f64) return false;
  if (pass != Conv2dPass::backward_input) return true;
  return p.stride_height == 1 && p.stride_width == 1 &&
         p.pad_top <= (p.kernel_height - 1) * p.dilation_height &&
         p.pad_left <= (p.kernel_width - 1) * p.dilation_width;
}

template <class T>
static DirectConv<T> direct_problem(const Conv2dParams& p, Conv2dPass pass) {
  DirectConv<T> g{};
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

// Weights as [block][channel][row][tap][channel of the block], or pairs of them; beyond the last one is zero.
template <class T, class E>
static void pack_direct_weights(const DirectConv<T>& g, int64_t most, E* weights, const Parallel& parallel) {
  const int64_t per_block = g.block_channels(most);
  parallel(g.out_blocks(most), ceil_div(1024, g.taps()), [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t outs = min_of(per_block, g.out_channels - b * per_block);
      for (int64_t o = 0; o < outs; ++o) {
        E* to = weights + b * per_block * g.taps() + o;
        const T* from = g.weight + (b * per_block + o) * g.weight_out;
        auto at = [&](int64_t c, int64_t r, int64_t t) {
          return from + c * g.weight_in + r * g.weight_y + t * g.weight_x;
        };
        for (int64_t c = 0; c < g.plane_count(); ++c)
          for (int64_t r = 0; r < g.kernel_height; ++r)
            for (int64_t t = 0; t < g.row_taps(); ++t, to += outs) {
              if constexpr (__is_same(E, bf16_pair)) {
                const bool by_channel = g.pairs == Pairs::channels;
                const int64_t c2 = by_channel ? 2 * c : c, t2 = by_channel ? t : 2 * t;
                const bool two = by_channel ? c2 + 1 < g.planes.channels : t2 + 1 < g.kernel_width;
                *to = {*at(c2, r, t2), two ? *at(c2 + by_channel, r, t2 + !by_channel) : bf16{}};
              } else {
                *to = load_n(at(c, r, t), 1)[0];
              }
            }
      }
    }
  });
}

// grad_weight, and grad_bias where it is wanted, from the sums of `tasks` tasks, each [o][c][row][tap] and then [o],
// added in order to the first.
template <class T>
static void store_direct_weights(const Conv2dParams& p, float* partials, int64_t tasks) {
  const int64_t sums = p.out_channels * (p.in_channels * p.kernel_height * p.kernel_width + 1);
  for (int64_t i = 0; i < sums; i += lanes<float>) {
    const int64_t n = min_of(lanes<float>, sums - i);
    vec<float> sum{};
    for (int64_t task = 0; task < tasks; ++task) sum += load_n(partials + task * sums + i, n);
    store_n(partials + i, sum, n);
  }
  T* to = static_cast<T*>(p.weight);
  const int64_t* stride = p.weight_stride;
  for (int64_t o = 0; o < p.out_channels; ++o)
    for (int64_t c = 0; c < p.in_channels; ++c)
      for (int64_t r = 0; r < p.kernel_height; ++r)
        for (int64_t t = 0; t < p.kernel_width; ++t, ++partials)
          store_n(to + o * stride[0] + c * stride[1] + r * stride[2] + t * stride[3], splat(*partials), 1);
  if (T* bias = static_cast<T*>(p.grad_bias))
    for (int64_t o = 0; o < p.out_channels; ++o) store_n(bias + o, splat(partials[o]), 1);
}

}  // namespace pydl::cpu::PYDL_ISA::direct
