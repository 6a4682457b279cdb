// Direct convolution of planes (NCHW) with stride 1: a vector holds neighbouring pixels of a row. Forward and
// input gradient.
//
// With few channels (LeNet's 1 -> 6, a first layer of 3) a matrix product spends its time packing. Here an
// image is copied once into planes with borders; then a tap is one unaligned load and one broadcast weight
// per channel of the result: kOut channels by kPositions vectors stay in registers while all taps pass. The
// last vector of a row overlaps its neighbour, so that no lane is wasted from a row of `lanes` pixels on.
//
// Shorter rows: the planes of source and result, read as one long row of the source's pitch, are a
// one-dimensional correlation whose result holds a few numbers between the rows that belong to nothing.
// Where that takes fewer vectors than rows, it is done, and the rows are picked out of a buffer.
#include "kernels/cpu/base/activation.h"
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/conv2d/direct/direct.h"

namespace pydl::cpu::PYDL_ISA::direct {
namespace {

constexpr int64_t kMaxPlanes = 1 << 22;  // elements of an image's planes that a thread copies
constexpr int kOut = 6;
#if defined(PYDL_AVX512)
constexpr int kPositions = 4;  // 24 sums, 4 pixels and a weight of 32 registers
#else
constexpr int kPositions = 2;  // 12, 2 and 1 of 16
#endif

// sum[o][v] of `outs` channels at `positions` vectors, over `rows` rows of taps; in[v] points to the first
// tap of position v. `skipped`: elements between the weights of one channel that count and those of the next.
template <class A, int outs, int positions>
void rows_tile(int64_t channels, int64_t rows, int64_t taps, const A* const* in, int64_t plane, int64_t row,
               int64_t tap, const A* weights, int64_t skipped, A* result) {
  vec<A> sum[outs][positions] = {};
  int64_t at = 0;
  for (int64_t c = 0; c < channels; ++c, at += plane, weights += skipped) {
    int64_t line = at;
    for (int64_t r = 0; r < rows; ++r, line += row) {
      int64_t q = line;
      for (int64_t t = 0; t < taps; ++t, q += tap, weights += outs) {
        vec<A> x[positions];
#pragma GCC unroll 4
        for (int v = 0; v < positions; ++v) x[v] = load(in[v] + q);
#pragma GCC unroll 6
        for (int o = 0; o < outs; ++o) {
          const vec<A> w = splat(weights[o]);
#pragma GCC unroll 4
          for (int v = 0; v < positions; ++v) sum[o][v] += w * x[v];
        }
      }
    }
  }
#pragma GCC unroll 6
  for (int o = 0; o < outs; ++o)
#pragma GCC unroll 4
    for (int v = 0; v < positions; ++v) store(result + (o * kPositions + v) * lanes<A>, sum[o][v]);
}

template <class A>
using RowsTile = void (*)(int64_t, int64_t, int64_t, const A* const*, int64_t, int64_t, int64_t, const A*,
                          int64_t, A*);

template <class A, int outs, int positions>
RowsTile<A> pick_tile(int64_t wanted_outs, int64_t wanted_positions) {
  if constexpr (outs == 0) {
    return nullptr;
  } else if constexpr (positions == 0) {
    return pick_tile<A, outs - 1, kPositions>(wanted_outs, wanted_positions);
  } else {
    if (wanted_outs == outs && wanted_positions == positions) return &rows_tile<A, outs, positions>;
    return pick_tile<A, outs, positions - 1>(wanted_outs, wanted_positions);
  }
}

// How an image is cut into vectors.
template <class A>
struct RowsPlan {
  static constexpr int64_t all = lanes<A>;
  int64_t pitch, plane, per_row, positions, flat_elements;
  bool flat;

  template <class T>
  explicit RowsPlan(const DirectConv<T>& g) {
    pitch = g.planes.padded_width;
    plane = g.planes.padded_height * pitch;
    per_row = ceil_div(g.out_width, all);
    const int64_t along = ceil_div((g.out_height - 1) * pitch + g.out_width, all);
    flat = g.out_width < all && along < g.out_height;
    positions = flat ? along : per_row * g.out_height;
    flat_elements = flat ? along * all : 0;
  }
  int64_t row(int64_t position) const { return flat ? position * all / pitch : position / per_row; }
  int64_t last_row(int64_t position) const {
    return flat ? (position * all + all - 1) / pitch : row(position);
  }
  int64_t column(int64_t position, int64_t width) const {
    return width < all ? 0 : min_of(position % per_row * all, width - all);
  }
};

template <class T>
int64_t slot_bytes(const DirectConv<T>& g) {
  using A = acc_t<T>;
  const RowsPlan<A> plan(g);
  return Pieces::bytes<A>(g.planes.channels * plan.plane + 2 * lanes<A> + plan.pitch) +
         Pieces::bytes<A>(kOut * plan.flat_elements) + kApart;
}

template <class T>
int64_t rows_bytes(const DirectConv<T>& g, int64_t threads) {
  return Pieces::bytes<acc_t<T>>(g.taps() * g.out_blocks(kOut) * kOut) + threads * slot_bytes(g);
}

// The planes of one image with their borders.
template <class T, class A>
void pack_planes(const Planes<T>& p, int64_t image, A* to) {
  const int64_t used = max_of(0, min_of(p.width, p.padded_width - p.pad_x));
  for (int64_t c = 0; c < p.channels; ++c)
    for (int64_t y = 0; y < p.padded_height; ++y, to += p.padded_width) {
      const int64_t row = y - p.pad_y;
      if (row < 0 || row >= p.height) {
        fill_zero(to, p.padded_width);
        continue;
      }
      fill_zero(to, p.pad_x);
      copy_strided(to + p.pad_x, p.data + image * p.stride[0] + c * p.stride[1] + row * p.stride[2],
                   p.stride[3], used);
      fill_zero(to + p.pad_x + used, p.padded_width - p.pad_x - used);
    }
}

template <class T, class A>
PYDL_INLINE void put(const DirectConv<T>& g, vec<A> v, A bias, T* to, int64_t count) {
  if (g.bias || g.activation != Activation::none) v = activate<A>(v + splat(bias), g.activation);
  count == lanes<A> ? store(to, v) : store_n(to, v, count);
}

template <class T, class A>
void run_image(const DirectConv<T>& g, const RowsPlan<A>& plan, int64_t image, const A* weights,
               Pieces scratch) {
  constexpr int64_t all = lanes<A>;
  const int64_t elements = g.planes.channels * plan.plane, slack = 2 * all + plan.pitch;
  A* planes = scratch.take<A>(elements + slack);
  A* flat = scratch.take<A>(kOut * plan.flat_elements);
  pack_planes(g.planes, image, planes);
  fill_zero(planes + elements, slack);  // read by vectors that reach over the last row, into lanes not kept
  const int64_t per_block = g.block_channels(kOut), width = min_of(g.out_width, all);
  for (int64_t b = 0; b < g.out_blocks(kOut); ++b) {
    const int64_t o0 = b * per_block, outs = min_of(per_block, g.out_channels - o0);
    const int64_t row_weights = g.kernel_width * outs;
    T* out = g.out + image * g.out_stride[0] + o0 * g.out_stride[1];
    A bias[kOut] = {};
    if (g.bias)
      for (int64_t o = 0; o < outs; ++o) bias[o] = load_n(g.bias + o0 + o, 1)[0];
    for (int64_t i = 0; i < plan.positions; i += kPositions) {
      const int64_t count = min_of(kPositions, plan.positions - i);
      // rows of taps [first, end) lie on rows of the image for some position; the others would add zeros
      const int64_t top = plan.row(i) - g.planes.pad_y,
                    bottom = min_of(plan.last_row(i + count - 1), g.out_height - 1) - g.planes.pad_y;
      int64_t first = 0, end = g.kernel_height;
      while (first < end && bottom + first * g.dilation_y < 0) ++first;
      while (end > first && top + (end - 1) * g.dilation_y >= g.planes.height) --end;
      const A* in[kPositions];
      for (int64_t v = 0; v < count; ++v)
        in[v] = planes + first * g.dilation_y * plan.pitch +
                (plan.flat ? (i + v) * all : plan.row(i + v) * plan.pitch + plan.column(i + v, g.out_width));
      A tile[kOut * kPositions * all];
      pick_tile<A, kOut, kPositions>(outs, count)(g.planes.channels, end - first, g.kernel_width, in,
                                                  plan.plane, g.dilation_y * plan.pitch, g.dilation_x,
                                                  weights + b * per_block * g.taps() + first * row_weights,
                                                  (g.kernel_height - (end - first)) * row_weights, tile);
      for (int64_t o = 0; o < outs; ++o)
        for (int64_t v = 0; v < count; ++v) {
          const vec<A> sum = load(tile + (o * kPositions + v) * all);
          if (plan.flat)
            store(flat + o * plan.flat_elements + (i + v) * all, sum);
          else
            put(g, sum, bias[o],
                out + o * g.out_stride[1] + plan.row(i + v) * g.out_stride[2] +
                    plan.column(i + v, g.out_width),
                width);
        }
    }
    if (!plan.flat) continue;
    for (int64_t o = 0; o < outs; ++o)
      for (int64_t y = 0; y < g.out_height; ++y)
        put(g, load_n(flat + o * plan.flat_elements + y * plan.pitch, width), bias[o],
            out + o * g.out_stride[1] + y * g.out_stride[2], width);
  }
}

template <class T>
void run_rows(const DirectConv<T>& g, void* scratch, const Parallel& parallel) {
  using A = acc_t<T>;
  const RowsPlan<A> plan(g);
  Pieces pieces{static_cast<char*>(scratch)};
  A* weights = pieces.take<A>(g.taps() * g.out_blocks(kOut) * kOut);
  pack_direct_weights(g, kOut, weights, parallel);
  run_tasks(parallel, g.batch, [&](int64_t image, int64_t slot) {
    run_image(g, plan, image, weights, Pieces{pieces.next + slot * slot_bytes(g)});
  });
}

}  // namespace

namespace rows {

// One row, whose results leave a fifth of the panels of channels empty. Measured on Zen 5 against slabs, at up to 300
// channels: 20, 50 and 100 results take 0.80 to 0.92 of the time, 64, 80, 128 and 200 1.02 to 1.25 of it.
static bool is_row_of_few(const Conv2dParams& p, Conv2dPass pass) {
  constexpr int64_t panel = 2 * lanes<float>;
  const int64_t results = pass == Conv2dPass::forward ? p.out_channels : p.in_channels;
  return kVectorBytes == 64 && p.dtype == DType::f32 && p.in_height == 1 && p.kernel_height == 1 &&
         results > lanes<float> && 5 * results <= 4 * panel * ceil_div(results, panel);
}

bool serves(const Conv2dParams& p, Conv2dPass pass) {
  return direct_supported(p, pass) && p.stride_height == 1 && p.stride_width == 1 && p.input_stride[3] == 1 &&
         p.output_stride[3] == 1;
}

// Measured on Zen 5: a first layer, whose images are not enough for batch lanes or whose rows fill the
// vectors. Against implicit GEMM the forward pass takes 0.7 to 0.95 of the time, the input gradient half.
bool pays(const Conv2dParams& p, Conv2dPass pass) {
  const int64_t vector = lanes<float>;
  const bool row = is_row_of_few(p, pass);
  if ((p.in_channels > 4 && !row) || p.kernel_height * p.kernel_width == 1) return false;
  if (pass == Conv2dPass::backward_input && p.batch >= vector && !row) return false;
  bool pays = false;
  dispatch_trained(p.dtype, [&](auto type) {
    using T = decltype(type);
    const DirectConv<T> g = direct_problem<T>(p, pass);
    const RowsPlan<acc_t<T>> plan(g);
    const int64_t useful = g.out_height * g.out_width, done = plan.positions * lanes<acc_t<T>>;
    if (g.planes.channels * plan.plane > kMaxPlanes) return;
    pays = 10 * useful >= (pass == Conv2dPass::forward ? 9 : 7) * done;
  });
  return pays;
}

int64_t scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  int64_t bytes = 0;
  dispatch_trained(p.dtype,
                   [&](auto type) { bytes = rows_bytes(direct_problem<decltype(type)>(p, pass), threads); });
  return bytes;
}

void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  dispatch_trained(
      p.dtype, [&](auto type) { run_rows(direct_problem<decltype(type)>(p, pass), p.scratch, parallel); });
}

}  // namespace rows

}  // namespace pydl::cpu::PYDL_ISA::direct
