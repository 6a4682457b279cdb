// The weight gradient over batch lanes (batch.h).
//
//   grad_weight[o,c,r,t] = sum over lanes, images, pixels of grad_output[o][pixel] * input[c][pixel's tap (r,
//   t)]
//
// Each lane sums its own images; lanes are added once per task. A task is a fixed number of blocks of images,
// so that the order of additions depends on the shape alone; tasks are added in order. The gradient is
// transposed a few rows at a time, as many as stay in the second-level cache while every (channel, row of
// taps) passes over them. Before that it goes through the activation; after it, it is summed for the bias.
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/conv2d/direct/pairs.h"
#include "kernels/cpu/conv2d/direct/weight_tile.h"

namespace pydl::cpu::PYDL_ISA::direct {
namespace {

constexpr int kOut = kWeightOuts, kTaps = kWeightTaps;
constexpr int64_t kGradientBytes = 256 << 10;

template <class E, int outs, int taps>
void weight_tile(int64_t rows, int64_t columns, const E* grad, int64_t grad_out, int64_t grad_row,
                 const E* in, int64_t in_row, int64_t in_pixel, int64_t in_tap, float* sums,
                 int64_t sums_out) {
  constexpr int64_t all = lanes<float>;
  vec<float> sum[outs][taps];
#pragma GCC unroll 4
  for (int o = 0; o < outs; ++o)
#pragma GCC unroll 6
    for (int t = 0; t < taps; ++t) sum[o][t] = load(sums + o * sums_out + t * all);
  for (int64_t y = 0; y < rows; ++y, grad += grad_row, in += in_row) {
    const E *g = grad, *x = in;
    for (int64_t i = 0; i < columns; ++i, g += all, x += in_pixel) {
      decltype(load_elements(g)) left[outs];
#pragma GCC unroll 4
      for (int o = 0; o < outs; ++o) left[o] = load_elements(g + o * grad_out);
#pragma GCC unroll 6
      for (int t = 0; t < taps; ++t) {
        const auto right = load_elements(x + t * in_tap);
#pragma GCC unroll 4
        for (int o = 0; o < outs; ++o) sum[o][t] = multiply_add(left[o], right, sum[o][t]);
      }
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < outs; ++o)
#pragma GCC unroll 6
    for (int t = 0; t < taps; ++t) store(sums + o * sums_out + t * all, sum[o][t]);
}

template <class E, int outs, int taps>
WeightTile<E> pick_tile(int64_t wanted_outs, int64_t wanted_taps) {
  if constexpr (outs == 0) {
    return nullptr;
  } else if constexpr (taps == 0) {
    return pick_tile<E, outs - 1, kTaps>(wanted_outs, wanted_taps);
  } else {
    if (wanted_outs == outs && wanted_taps == taps) return &weight_tile<E, outs, taps>;
    return pick_tile<E, outs, taps - 1>(wanted_outs, wanted_taps);
  }
}

// The slope of an activation by its output y (kernels/elementwise.h), without a branch for each vector: relu's is 0 up to
// `floor`, sigmoid's y (1 - y) where `bends`.
struct Slope {
  float floor;
  vec<float> bends;

  explicit Slope(Activation activation)
      : floor(activation == Activation::relu ? 0.0f : __builtin_nanf("")),
        bends(splat(activation == Activation::relu ? 0.0f : 1.0f)) {}
  PYDL_INLINE vec<float> times(vec<float> grad, vec<float> y) const {
    const vec<float> slope = bends > 0.0f ? (1.0f - y) * y : vec<float>{} + 1.0f;
    return y <= floor ? vec<float>{} : grad * slope;
  }
};

// An element of a block, and sum + the numbers in it.
template <class T, class E>
struct Reader {
  using Rows = PlaneRows<T>;
  static PYDL_INLINE vec<float> add(vec<float> sum, vec<float> v) { return sum + v; }
  static PYDL_INLINE vec<float> through(vec<float> grad, vec<float> y, const Slope& slope) {
    return slope.times(grad, y);
  }
};
#if defined(PYDL_BF16_DOT)
template <>
struct Reader<bf16, bf16_pair> {
  using Rows = ImagePairs;
  static PYDL_INLINE vec<float> add(vec<float> sum, vec<float> v) {
    return multiply_add(u32v{} + 0x3f803f80u, bit_cast<u32v>(v), sum);  // (1, 1)
  }
  static PYDL_INLINE vec<float> through(vec<float> grad, vec<float> y, const Slope& slope) {
    const u32v g = bit_cast<u32v>(grad), of = bit_cast<u32v>(y);
    auto low = [](u32v v) { return bit_cast<vec<float>>(v << 16); };
    auto high = [](u32v v) { return bit_cast<vec<float>>(v & 0xffff0000u); };
    return bit_cast<vec<float>>(
        halves_side_by_side(narrow_bf16_fast(slope.times(low(g), low(of)), slope.times(high(g), high(of)))));
  }
};
#endif

// Rows of the gradient through the activation, that gave `output`.
template <class T, class E>
struct Activated {
  typename Reader<T, E>::Rows grad, output;
  Slope slope;

  using Lane = float;
  PYDL_INLINE Activated moved(int64_t by) const { return {grad.moved(by), output.moved(by), slope}; }
  PYDL_INLINE bool full() const { return grad.full(); }
  PYDL_INLINE vec<float> at(int64_t i, int64_t q) const {
    return Reader<T, E>::through(grad.at(i, q), output.at(i, q), slope);
  }
  PYDL_INLINE vec<float> at(int64_t i, int64_t q, int64_t n) const {
    return Reader<T, E>::through(grad.at(i, q, n), output.at(i, q, n), slope);
  }
};

// sum[lane] += `count` vectors of a block, four in step since additions wait for one another.
template <class T, class E>
void add_vectors(const E* block, int64_t count, float* sum) {
  vec<float> part[4] = {load(sum)};
  int64_t i = 0;
  auto add = [&](int64_t k) {
    part[k] = Reader<T, E>::add(part[k], bit_cast<vec<float>>(load_elements(block + (i + k) * lanes<float>)));
  };
  for (; i + 4 <= count; i += 4)
#pragma GCC unroll 4
    for (int64_t k = 0; k < 4; ++k) add(k);
  for (; i < count; ++i) add(0);
  store(sum, (part[0] + part[1]) + (part[2] + part[3]));
}

template <class T, class E>
struct BatchWeight {
  using Rows = typename Reader<T, E>::Rows;
  static constexpr int64_t all = lanes<float>;
  Planes<T> input, gradient;
  const T* activated;
  Activation activation;
  int64_t weights, sums, blocks, blocks_per_task, tasks, chunk_rows;  // sums: weights and biases

  explicit BatchWeight(const Conv2dParams& p) {
    input = {static_cast<const T*>(p.input),
             {p.input_stride[0], p.input_stride[1], p.input_stride[2], p.input_stride[3]},
             p.in_channels,
             p.in_height,
             p.in_width,
             p.pad_top,
             p.pad_left,
             (p.out_height - 1) * p.stride_height + (p.kernel_height - 1) * p.dilation_height + 1,
             (p.out_width - 1) * p.stride_width + (p.kernel_width - 1) * p.dilation_width + 1};
    gradient = {static_cast<const T*>(p.output),
                {p.output_stride[0], p.output_stride[1], p.output_stride[2], p.output_stride[3]},
                p.out_channels,
                p.out_height,
                p.out_width,
                0,
                0,
                p.out_height,
                p.out_width};
    activated = static_cast<const T*>(p.activated);
    activation = p.activation;
    weights = p.out_channels * p.in_channels * p.kernel_height * p.kernel_width;
    sums = weights + p.out_channels;
    blocks = ceil_div(p.batch, Rows::kImages);
    blocks_per_task = max_of(1, blocks / 8);
    tasks = ceil_div(blocks, blocks_per_task);
    const int64_t row = p.out_channels * p.out_width * kVectorBytes;
    chunk_rows = max_of(1, min_of(p.out_height, kGradientBytes / row));
  }
  int64_t input_elements() const {
    return input.channels * plane_vectors(input.padded_height, input.padded_width) * all;
  }
  int64_t chunk_elements() const {
    return gradient.channels * plane_vectors(chunk_rows, gradient.width) * all;
  }
  int64_t slot_bytes() const {
    return Pieces::bytes<E>(input_elements()) + Pieces::bytes<E>(chunk_elements()) +
           Pieces::bytes<float>(sums * all) + kApart;
  }
  int64_t bytes(int64_t threads) const { return Pieces::bytes<float>(tasks * sums) + threads * slot_bytes(); }

  // Rows [first, last) of the gradients of images [image, image + images) to a block; adds each channel to its vector of
  // `biases`, if any, while it is near.
  void pack_gradient(int64_t image, int64_t images, int64_t first, int64_t last, E* data,
                     float* biases) const {
    const int64_t plane = gradient.stride[0], at = image * plane;
    const Block<E> block = {data, first, last - first, gradient.padded_width};
    const Rows rows = {gradient.data + at, plane, images};
    auto add = [&](int64_t c, int64_t y, int64_t count) {
      if (biases) add_vectors<T>(block.at(c, y, 0), count * block.width, biases + c * all);
    };
    if (activated)
      gather_image(gradient, block, Activated<T, E>{rows, {activated + at, plane, images}, Slope(activation)},
                   add);
    else
      gather_image(gradient, block, rows, add);
  }
};

// partial[o][c][r][t], and then [o]: the sums of one task.
template <class T, class E>
void run_task(const Conv2dParams& p, const BatchWeight<T, E>& g, int64_t task, float* partial,
              Pieces scratch) {
  using Rows = typename BatchWeight<T, E>::Rows;
  constexpr int64_t all = lanes<float>;
  E* block = scratch.take<E>(g.input_elements());
  E* grad = scratch.take<E>(g.chunk_elements());
  float* sums = scratch.take<float>(g.sums * all);
  memset(sums, 0, static_cast<size_t>(g.sums * all) * sizeof(float));
  const int64_t width = g.input.padded_width, out_blocks = ceil_div(p.out_channels, kOut);
  const int64_t outs_per_block = ceil_div(p.out_channels, out_blocks);
  const int64_t tap_blocks = ceil_div(p.kernel_width, kTaps),
                taps_per_block = ceil_div(p.kernel_width, tap_blocks);
  const int64_t per_out = g.weights / p.out_channels;
  for (int64_t b = task * g.blocks_per_task; b < min_of((task + 1) * g.blocks_per_task, g.blocks); ++b) {
    const int64_t image = b * Rows::kImages, images = min_of(Rows::kImages, p.batch - image);
    pack_block<Rows>(g.input, image, images, 0, g.input.padded_height, block);
    for (int64_t y = 0; y < p.out_height; y += g.chunk_rows) {
      const int64_t rows = min_of(g.chunk_rows, p.out_height - y);
      g.pack_gradient(image, images, y, y + rows, grad, p.grad_bias ? sums + g.weights * all : nullptr);
      for (int64_t o = 0; o < p.out_channels; o += outs_per_block)
        for (int64_t c = 0; c < p.in_channels; ++c)
          for (int64_t r = 0; r < p.kernel_height; ++r)
            for (int64_t t = 0; t < p.kernel_width; t += taps_per_block) {
              const E* in =
                  block + (c * plane_vectors(g.input.padded_height, width) +
                           (y * p.stride_height + r * p.dilation_height) * width + t * p.dilation_width) *
                              all;
              pick_tile<E, kOut, kTaps>(min_of(outs_per_block, p.out_channels - o),
                                        min_of(taps_per_block, p.kernel_width - t))(
                  rows, p.out_width, grad + o * plane_vectors(rows, p.out_width) * all,
                  plane_vectors(rows, p.out_width) * all, p.out_width * all, in,
                  p.stride_height * width * all, p.stride_width * all, p.dilation_width * all,
                  sums + (o * per_out + (c * p.kernel_height + r) * p.kernel_width + t) * all, per_out * all);
            }
    }
  }
  add_lanes(sums, g.sums, partial);
}

}  // namespace

WeightTile<float> weight_tile_of(int64_t outs, int64_t taps) {
  return pick_tile<float, kOut, kTaps>(outs, taps);
}

void add_lanes(const float* sums, int64_t count, float* to) {
  constexpr int64_t all = lanes<float>;
  for (int64_t i = 0; i < count; i += all) {  // a square at a time
    const int64_t n = min_of(all, count - i);
    vec<float> square[all];
    for (int64_t j = 0; j < all; ++j) square[j] = j < n ? load(sums + (i + j) * all) : vec<float>{};
    transpose(square);
    for (int64_t half = all / 2; half > 0; half /= 2)
      for (int64_t j = 0; j < half; ++j) square[j] += square[j + half];
    store_n(to + i, square[0], n);
  }
}

namespace batch_weight {

bool serves(const Conv2dParams& p, Conv2dPass pass) { return direct_supported(p, pass); }

int64_t scratch(const Conv2dParams& p, Conv2dPass, int64_t threads) {
  int64_t bytes = 0;
  dispatch_elements(p.dtype, [&](auto number, auto element) {
    bytes = BatchWeight<decltype(number), decltype(element)>(p).bytes(threads);
  });
  return bytes;
}

void run(const Conv2dParams& p, Conv2dPass, const Parallel& parallel) {
  dispatch_elements(p.dtype, [&](auto number, auto element) {
    using T = decltype(number);
    const BatchWeight<T, decltype(element)> g(p);
    Pieces pieces{static_cast<char*>(p.scratch)};
    float* partials = pieces.take<float>(g.tasks * g.sums);
    run_tasks(parallel, g.tasks, [&](int64_t task, int64_t slot) {
      run_task(p, g, task, partials + task * g.sums, Pieces{pieces.next + slot * g.slot_bytes()});
    });
    store_direct_weights<T>(p, partials, g.tasks);
  });
}

}  // namespace batch_weight

}  // namespace pydl::cpu::PYDL_ISA::direct
