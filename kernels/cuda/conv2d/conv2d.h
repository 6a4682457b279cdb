// What the kernels of conv2d share: the convolution as a matrix product whose operands are never built, only
// read.
//
//   forward          output[m, o]      = sum_k image(m, k) weight(o, k)        k = (i, r, s), m a pixel of the output
//   input gradient   grad_input[m, i]  = sum_k gradient(m, k) weight(i, k)     k = (o, r, s), m a pixel of the input
//   weight gradient  grad_weight[o, k] = sum_m grad_output(o, m) image(m, k)
//
// An operand turns a row and a column number into parts of an address, which are worked out once and then
// combined for each value. Padding, stride, dilation, groups and any strides of the tensors come in there and
// nowhere else.
#pragma once

#include "kernels/conv2d.h"
#include "kernels/cuda/device.h"

namespace pydl::cuda {
namespace {  // a copy in every translation unit

using Params = Conv2dParams;

// Quotient and rest by a number known before the launch; quick for what 31 bits hold.
struct Split {
  int64_t by;
  Divisor quick;
  Split() = default;
  explicit Split(int64_t n) : by(n), quick(n) {}
  PYDL_METHOD void operator()(int64_t n, int64_t& quotient, int& rest) const {
    if (quick.divisor != 0 && n < (int64_t{1} << 31)) {
      const uint32_t q = quick.quotient(static_cast<uint32_t>(n));
      quotient = q;
      rest = static_cast<int>(static_cast<uint32_t>(n) - q * quick.divisor);
    } else {
      quotient = n / by;
      rest = static_cast<int>(n - quotient * by);
    }
  }
};

// The same for what 31 bits hold.
PYDL_DEVICE int split(const Divisor& by, int n, int& rest) {
  const uint32_t quotient = by.quotient(static_cast<uint32_t>(n));
  rest = static_cast<int>(static_cast<uint32_t>(n) - quotient * by.divisor);
  return static_cast<int>(quotient);
}

// Whether neighbouring channels are neighbours in memory.
inline bool is_channels_last(const int64_t* stride) { return stride[1] == 1 && stride[3] != 1; }

// A convolution, with what its index arithmetic divides by.
struct Geometry {
  Params p;
  int64_t in_per_group, out_per_group, area;  // area: of the kernel
  bool channels_first;                        // k counts channels fastest (channels_last tensors), or s
  Split out_image, out_width, in_image, in_width, kernel_area, kernel_width, in_group, out_group;
  Divisor stride_height, stride_width;

  explicit Geometry(const Params& params)
      : p(params),
        in_per_group(params.in_channels / params.groups),
        out_per_group(params.out_channels / params.groups),
        area(params.kernel_height * params.kernel_width),
        channels_first(false),
        out_image(params.out_height * params.out_width),
        out_width(params.out_width),
        in_image(max_of(params.in_height * params.in_width, 1)),
        in_width(max_of(params.in_width, 1)),
        kernel_area(area),
        kernel_width(params.kernel_width),
        in_group(max_of(in_per_group, 1)),
        out_group(out_per_group),
        stride_height(params.stride_height),
        stride_width(params.stride_width) {}
  int64_t out_pixels() const { return p.batch * p.out_height * p.out_width; }
  int64_t in_pixels() const { return p.batch * p.in_height * p.in_width; }
};

struct Tap {
  int channel, r, s;
};
// k as (channel, r, s), of `channels` a group.
PYDL_DEVICE Tap tap_of(const Geometry& g, const Split& channels, int64_t k) {
  int64_t high, rs;
  Tap tap;
  if (g.channels_first) {
    channels(k, rs, tap.channel);
  } else {
    int rest;
    g.kernel_area(k, high, rest);
    tap.channel = static_cast<int>(high);
    rs = rest;
  }
  g.kernel_width(rs, high, tap.s);
  tap.r = static_cast<int>(high);
  return tap;
}

// Part of an address: an offset, and a place in the image (a window's corner, or a step from it).
struct Part {
  int64_t offset;
  int y, x;
  bool inside;
};

template <class T>
struct Image {  // image(pixel, tap): the input, 0 outside
  const T* data;
  PYDL_METHOD Part pixel(const Geometry& g, int64_t m) const {
    Part part{};
    part.inside = m < g.p.batch * g.out_image.by;
    if (!part.inside) return part;
    int64_t n, y;
    int rest, x;
    g.out_image(m, n, rest);
    g.out_width(rest, y, x);
    part.offset = n * g.p.input_stride[0];
    part.y = static_cast<int>(y * g.p.stride_height - g.p.pad_top);
    part.x = static_cast<int>(x * g.p.stride_width - g.p.pad_left);
    return part;
  }
  PYDL_METHOD Part tap(const Geometry& g, int64_t k) const {
    Part part{};
    part.inside = k < g.in_per_group * g.area;
    if (!part.inside) return part;
    return part_of(g, tap_of(g, g.in_group, k));
  }
  static PYDL_METHOD Part part_of(const Geometry& g, const Tap& tap) {
    return {tap.channel * g.p.input_stride[1], static_cast<int>(tap.r * g.p.dilation_height),
            static_cast<int>(tap.s * g.p.dilation_width), true};
  }
  // null where the value is 0
  PYDL_METHOD const T* address(const Geometry& g, const Part& pixel, const Part& tap) const {
    const int y = pixel.y + tap.y, x = pixel.x + tap.x;
    if (!pixel.inside || !tap.inside || y < 0 || x < 0 || y >= g.p.in_height || x >= g.p.in_width)
      return nullptr;
    return data + pixel.offset + tap.offset + y * g.p.input_stride[2] + x * g.p.input_stride[3];
  }
  PYDL_METHOD acc_t<T> value(const Geometry& g, const Part& pixel, const Part& tap) const {
    const T* at = address(g, pixel, tap);
    return at ? widen(*at) : acc_t<T>(0);
  }
};

template <class T>
struct Spread {  // gradient(pixel of the input, tap): the output's gradient where this tap joins the two,
                 // else 0
  const T* data;
  PYDL_METHOD Part pixel(const Geometry& g, int64_t m) const {
    Part part{};
    part.inside = m < g.p.batch * g.in_image.by;
    if (!part.inside) return part;
    int64_t n, y;
    int rest, x;
    g.in_image(m, n, rest);
    g.in_width(rest, y, x);
    part.offset = n * g.p.output_stride[0];
    part.y = static_cast<int>(y + g.p.pad_top);
    part.x = static_cast<int>(x + g.p.pad_left);
    return part;
  }
  PYDL_METHOD Part tap(const Geometry& g, int64_t k) const {
    Part part{};
    part.inside = k < g.out_per_group * g.area;
    if (!part.inside) return part;
    const Tap tap = tap_of(g, g.out_group, k);
    part.offset = tap.channel * g.p.output_stride[1];
    part.y = static_cast<int>(tap.r * g.p.dilation_height);
    part.x = static_cast<int>(tap.s * g.p.dilation_width);
    return part;
  }
  // null where the value is 0
  PYDL_METHOD const T* address(const Geometry& g, const Part& pixel, const Part& tap) const {
    const int y = pixel.y - tap.y, x = pixel.x - tap.x;
    if (!pixel.inside || !tap.inside || y < 0 || x < 0) return nullptr;
    const uint32_t oy = g.stride_height.quotient(static_cast<uint32_t>(y));
    const uint32_t ox = g.stride_width.quotient(static_cast<uint32_t>(x));
    if (oy * g.stride_height.divisor != static_cast<uint32_t>(y) || oy >= g.p.out_height) return nullptr;
    if (ox * g.stride_width.divisor != static_cast<uint32_t>(x) || ox >= g.p.out_width) return nullptr;
    return data + pixel.offset + tap.offset + oy * g.p.output_stride[2] + ox * g.p.output_stride[3];
  }
  PYDL_METHOD acc_t<T> value(const Geometry& g, const Part& pixel, const Part& tap) const {
    const T* at = address(g, pixel, tap);
    return at ? widen(*at) : acc_t<T>(0);
  }
};

// Offsets of weight[o, i, r, s]; o and i within the group, whose first filter `data` points to.
PYDL_DEVICE int64_t weight_offset(const Geometry& g, int o, const Tap& i_r_s) {
  return o * g.p.weight_stride[0] + i_r_s.channel * g.p.weight_stride[1] + i_r_s.r * g.p.weight_stride[2] +
         i_r_s.s * g.p.weight_stride[3];
}
// Offsets of output pixel m of channel 0.
PYDL_DEVICE int64_t output_offset(const Geometry& g, int64_t m) {
  int64_t n, y;
  int rest, x;
  g.out_image(m, n, rest);
  g.out_width(rest, y, x);
  return n * g.p.output_stride[0] + y * g.p.output_stride[2] + x * g.p.output_stride[3];
}
PYDL_DEVICE int64_t input_offset(const Geometry& g, int64_t m) {
  int64_t n, y;
  int rest, x;
  g.in_image(m, n, rest);
  g.in_width(rest, y, x);
  return n * g.p.input_stride[0] + y * g.p.input_stride[2] + x * g.p.input_stride[3];
}

template <class T>
PYDL_DEVICE T activated(const Params& p, acc_t<T> z) {
  using A = acc_t<T>;
  if (p.activation == Activation::relu) z = z <= 0 ? A(0) : z;  // nan stays nan
  if (p.activation == Activation::sigmoid) {
    if constexpr (sizeof(A) == 8)
      z = 1.0 / (1.0 + exp(-z));
    else
      z = 1.0f / (1.0f + expf(-z));
  }
  return narrow<T>(z);
}

// How a product is cut: tiles of a group's results, and parts of the sum.
struct Tiles {
  int64_t rows, columns, splits;
  int64_t terms, split_terms;  // of the whole sum and of a part
  bool a_along_terms,
      b_along_terms;  // lanes that read an operand go along its terms, or its rows (plain cores)
};

constexpr int64_t kScratchMost = int64_t{256} << 20;

// The weight gradient's: enough blocks to fill a large GPU, no part of less than 512 pixels, no more scratch
// than kScratchMost; parts of at most 16384 pixels where that allows it, for the accuracy of long sums.
inline Tiles weight_tiles(const Geometry& g, int tile_rows, int tile_columns) {
  Tiles tiles{};
  const int64_t taps = g.in_per_group * g.area, bytes = g.p.out_channels * taps * 4;
  tiles.rows = ceil_div(g.out_per_group, tile_rows);
  tiles.columns = ceil_div(taps, tile_columns);
  tiles.terms = g.out_pixels();
  const int64_t wanted =
      max_of(ceil_div(1024, tiles.rows * tiles.columns * g.p.groups), ceil_div(tiles.terms, 16384));
  const int64_t most = min_of(ceil_div(tiles.terms, 512), kScratchMost / max_of(bytes, 1));
  tiles.split_terms = ceil_div(ceil_div(tiles.terms, max_of(min_of(wanted, most), 1)), 32) * 32;
  tiles.splits = ceil_div(tiles.terms, max_of(tiles.split_terms, 1));
  return tiles;
}

// A convolution of few channels a group fills no tile of a matrix product: each output is summed by itself.
inline bool is_direct(const Params& p) {
  return p.groups > 1 && p.in_channels / p.groups < 16 && p.out_channels / p.groups < 16;
}

}  // namespace

// Whether tensor cores can serve a pass on the current device; the passes, of which the weight gradient
// leaves parts.
bool conv2d_tensor_serves(const Conv2dParams& params, Conv2dPass pass);
int64_t conv2d_tensor_weight_splits(const Conv2dParams& params);
int conv2d_tensor_forward(const Conv2dParams& params, void* stream);
int conv2d_tensor_backward_input(const Conv2dParams& params, void* stream);
int conv2d_tensor_backward_weight(const Conv2dParams& params, void* stream);

// Whether planes in shared memory serve a pass (NCHW on plain cores), better than a matrix product; the passes.
bool conv2d_planes_serves(const Conv2dParams& params, Conv2dPass pass);
int conv2d_planes_forward(const Conv2dParams& params, void* stream);
int conv2d_planes_backward_input(const Conv2dParams& params, void* stream);

int conv2d_direct_forward(const Conv2dParams& params, void* stream);
int conv2d_direct_backward_input(const Conv2dParams& params, void* stream);
// Whether the weight gradient is summed pair by pair of channels, and not as a matrix product.
bool conv2d_direct_weight_serves(const Conv2dParams& params);
int conv2d_direct_backward_weight(const Conv2dParams& params, void* stream);
int64_t conv2d_direct_weight_scratch(const Conv2dParams& params);

// The weight gradient from `splits` parts of it in the scratch: [splits][out_channels][taps of a filter].
int conv2d_weight_sum(const Conv2dParams& params, int64_t splits, bool channels_first, void* stream);

}  // namespace pydl::cuda
