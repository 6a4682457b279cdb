// The weight gradient over lanes of pixels: planes (NCHW) of stride 1 whose rows fill vectors.
//
//   grad_weight[o,c,r,t] = sum over images and pixels of grad_output[o][pixel] * input[c][pixel's tap (r, t)]
//
// With few channels slabs (implicit/weight_slabs.cpp) leave most of their panels empty. Here the gradient is read where it
// lies, a vector of neighbouring pixels at a time, by the tile of batch lanes (batch_weight.cpp): taps of a row are loads one
// element apart. Of the input a few rows at a time are copied between zeros. Each lane sums its own columns; lanes are added
// once per task. A task is a fixed number of such pieces, so that the order of additions depends on the shape alone.
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/conv2d/direct/weight_tile.h"

namespace pydl::cpu::PYDL_ISA::direct {
namespace {

constexpr int64_t kTileBytes =
    16 << 10;  // of the gradient, which every row of taps passes over in the first level
constexpr int64_t kMaxTasks = 32;

struct RowsWeight {
  const Conv2dParams& p;
  int64_t width, rows;  // of a copied row; of the gradient in a piece
  int64_t per_image, pieces, per_task, tasks, sums;

  explicit RowsWeight(const Conv2dParams& params) : p(params) {
    width = p.out_width + (p.kernel_width - 1) * p.dilation_width;
    rows = min_of(p.out_height, max_of(1, kTileBytes / (kWeightOuts * p.out_width * 4)));
    per_image = ceil_div(p.out_height, rows);
    pieces = p.batch * per_image;
    per_task = max_of(1, ceil_div(pieces, kMaxTasks));
    tasks = max_of(1, ceil_div(pieces, per_task));  // without images one, of zeros
    sums = p.out_channels *
           (p.in_channels * p.kernel_height * p.kernel_width + 1);  // store_direct_weights: and biases
  }
  int64_t copied_rows() const { return rows + (p.kernel_height - 1) * p.dilation_height; }
  int64_t copied() const { return p.in_channels * copied_rows() * width; }
  int64_t slot_bytes() const {
    return Pieces::bytes<float>(copied()) + Pieces::bytes<float>(sums * lanes<float>) + kApart;
  }
  int64_t bytes(int64_t threads) const { return Pieces::bytes<float>(tasks * sums) + threads * slot_bytes(); }
};

// Rows of every plane of an image that windows of the gradient's rows from `first` on see, between zeros.
[[maybe_unused]] void copy_rows(const RowsWeight& g, int64_t image, int64_t first, float* to) {
  const Conv2dParams& p = g.p;
  const int64_t left = min_of(p.pad_left, g.width), used = max_of(0, min_of(p.in_width, g.width - left));
  for (int64_t c = 0; c < p.in_channels; ++c) {
    const float* plane =
        static_cast<const float*>(p.input) + image * p.input_stride[0] + c * p.input_stride[1];
    for (int64_t r = 0; r < g.copied_rows(); ++r, to += g.width) {
      const int64_t y = first - p.pad_top + r;
      const bool inside = y >= 0 && y < p.in_height;
      memset(to, 0, static_cast<size_t>(inside ? left : g.width) * sizeof(float));
      if (!inside) continue;
      memcpy(to + left, plane + y * p.input_stride[2], static_cast<size_t>(used) * sizeof(float));
      memset(to + left + used, 0, static_cast<size_t>(g.width - left - used) * sizeof(float));
    }
  }
}

// partial[o][c][r][t], the sums of one task; biases, which are not summed here, are 0.
[[maybe_unused]] void run_task(const RowsWeight& g, int64_t task, float* partial, Pieces scratch) {
  const Conv2dParams& p = g.p;
  constexpr int64_t all = lanes<float>;
  float* block = scratch.take<float>(g.copied());
  float* sums = scratch.take<float>(g.sums * all);
  memset(sums, 0, static_cast<size_t>(g.sums * all) * sizeof(float));
  const int64_t outs = ceil_div(p.out_channels, ceil_div(p.out_channels, kWeightOuts));
  const int64_t taps = ceil_div(p.kernel_width, ceil_div(p.kernel_width, kWeightTaps));
  const int64_t plane_rows = p.in_channels * p.kernel_height;
  for (int64_t piece = task * g.per_task; piece < min_of((task + 1) * g.per_task, g.pieces); ++piece) {
    const int64_t image = piece / g.per_image, first = piece % g.per_image * g.rows;
    copy_rows(g, image, first, block);
    const float* grad =
        static_cast<const float*>(p.output) + image * p.output_stride[0] + first * p.output_stride[2];
    for (int64_t o = 0; o < p.out_channels; o += outs)
      for (int64_t i = 0; i < plane_rows; ++i)
        for (int64_t t = 0; t < p.kernel_width; t += taps) {
          const int64_t c = i / p.kernel_height, r = i % p.kernel_height;
          weight_tile_of(min_of(outs, p.out_channels - o), min_of(taps, p.kernel_width - t))(
              min_of(g.rows, p.out_height - first), p.out_width / all, grad + o * p.output_stride[1],
              p.output_stride[1], p.output_stride[2],
              block + (c * g.copied_rows() + r * p.dilation_height) * g.width + t * p.dilation_width, g.width,
              all, p.dilation_width, sums + ((o * plane_rows + i) * p.kernel_width + t) * all,
              plane_rows * p.kernel_width * all);
        }
  }
  add_lanes(sums, g.sums, partial);
}

}  // namespace

namespace rows_weight {

constexpr bool kServes = kVectorBytes == 64;  // else nothing of this is compiled

bool serves(const Conv2dParams& p, Conv2dPass) {
  return kServes && p.dtype == DType::f32 && p.groups == 1 && p.stride_height == 1 && p.stride_width == 1 &&
         p.input_stride[3] == 1 && p.output_stride[3] == 1 && p.out_width % lanes<float> == 0;
}

int64_t scratch(const Conv2dParams& p, Conv2dPass, int64_t threads) {
  return kServes ? RowsWeight(p).bytes(threads) : 0;
}

void run(const Conv2dParams& p, Conv2dPass, const Parallel& parallel) {
  if constexpr (kServes) {
    const RowsWeight g(p);
    Pieces pieces{static_cast<char*>(p.scratch)};
    float* partials = pieces.take<float>(g.tasks * g.sums);
    run_tasks(parallel, g.tasks, [&](int64_t task, int64_t slot) {
      run_task(g, task, partials + task * g.sums, Pieces{pieces.next + slot * g.slot_bytes()});
    });
    store_direct_weights<float>(p, partials, g.tasks);
  }
}

}  // namespace rows_weight

}  // namespace pydl::cpu::PYDL_ISA::direct
