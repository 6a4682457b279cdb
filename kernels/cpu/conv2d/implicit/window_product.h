// The products of weights and windows that the forward pass and the input gradient of implicit GEMM are.
//
// Forward pass and input gradient are the same problem: every pixel of a result reads a window of another
// tensor, and a small matrix of weights turns the window into the pixel's channels. The input gradient with
// stride s splits into s * s such problems, one per phase of the pixel grid: within a phase every pixel is
// reached by the same taps, one step apart.
//
//   result[pixel][m] = act(bias[m] + sum_k weight[m][k] * window[pixel][k])
#pragma once

#include "kernels/cpu/conv2d/im2col.h"

namespace pydl::cpu::PYDL_ISA::implicit {
namespace {

// One of them: `groups` times a matrix of weights over windows.
template <class T>
struct WindowProduct {
  Windows<T> windows;  // of group 0; window_group further for each group
  int64_t window_group;
  int64_t groups, batch;

  const T* weight;  // element (m, channel, y tap, x tap) of group 0
  int64_t weight_group, weight_m, weight_channel, weight_y, weight_x;

  T* result;
  int64_t channels;          // per group
  int64_t result_group;      // elements between groups
  int64_t result_stride[4];  // N, C, H, W of the pixels of this problem
  const T* bias;             // may be null; `channels` of them per group
  Activation activation;

  int64_t pixels() const { return batch * windows.y.out_size * windows.x.out_size; }
  bool channels_contiguous() const { return result_stride[1] == 1 && channels > 1; }
};

template <class T>
WindowProduct<T> forward_problem(const Conv2dParams& p) {
  WindowProduct<T> g{};
  const int64_t channels = p.in_channels / p.groups;
  g.windows = {static_cast<const T*>(p.input),
               {p.input_stride[0], p.input_stride[1], p.input_stride[2], p.input_stride[3]},
               channels,
               {p.kernel_height, p.stride_height, -p.pad_top, p.dilation_height, p.in_height, p.out_height},
               {p.kernel_width, p.stride_width, -p.pad_left, p.dilation_width, p.in_width, p.out_width}};
  g.window_group = channels * p.input_stride[1];
  g.groups = p.groups;
  g.batch = p.batch;
  g.weight = static_cast<const T*>(p.weight);
  g.channels = p.out_channels / p.groups;
  g.weight_group = g.channels * p.weight_stride[0];
  g.weight_m = p.weight_stride[0];
  g.weight_channel = p.weight_stride[1];
  g.weight_y = p.weight_stride[2];
  g.weight_x = p.weight_stride[3];
  g.result = static_cast<T*>(p.output);
  g.result_group = g.channels * p.output_stride[1];
  for (int d = 0; d < 4; ++d) g.result_stride[d] = p.output_stride[d];
  g.bias = static_cast<const T*>(p.bias);
  g.activation = p.activation;
  return g;
}

// The taps that reach input positions phase, phase + stride, ...: position phase + a * stride is read by
// output a + (phase + pad - tap * dilation) / stride, for the taps where that divides.
struct PhaseAxis {
  Axis axis;
  int64_t first_tap, tap_step;
};
inline PhaseAxis phase_axis(int64_t phase, int64_t stride, int64_t pad, int64_t dilation, int64_t kernel,
                            int64_t in_size, int64_t out_size) {
  int64_t taps = 0, first_tap = 0, tap_step = 1;
  for (int64_t t = 0; t < kernel; ++t) {
    if ((phase + pad - t * dilation) % stride != 0) continue;
    if (taps == 0) first_tap = t;
    if (taps == 1) tap_step = t - first_tap;
    ++taps;
  }
  const int64_t pixels = phase < in_size ? ceil_div(in_size - phase, stride) : 0;
  return {{taps, 1, taps ? (phase + pad - first_tap * dilation) / stride : 0, -(tap_step * dilation / stride),
           out_size, pixels},
          first_tap,
          tap_step};
}

template <class T>
WindowProduct<T> phase_problem(const Conv2dParams& p, int64_t phase_y, int64_t phase_x) {
  const PhaseAxis y = phase_axis(phase_y, p.stride_height, p.pad_top, p.dilation_height, p.kernel_height,
                                 p.in_height, p.out_height);
  const PhaseAxis x = phase_axis(phase_x, p.stride_width, p.pad_left, p.dilation_width, p.kernel_width,
                                 p.in_width, p.out_width);
  WindowProduct<T> g{};
  const int64_t channels = p.out_channels / p.groups;
  g.windows = {static_cast<const T*>(p.output),
               {p.output_stride[0], p.output_stride[1], p.output_stride[2], p.output_stride[3]},
               channels,
               y.axis,
               x.axis};
  g.window_group = channels * p.output_stride[1];
  g.groups = p.groups;
  g.batch = p.batch;
  g.weight =
      static_cast<const T*>(p.weight) + y.first_tap * p.weight_stride[2] + x.first_tap * p.weight_stride[3];
  g.channels = p.in_channels / p.groups;
  g.weight_group = channels * p.weight_stride[0];
  g.weight_m = p.weight_stride[1];
  g.weight_channel = p.weight_stride[0];
  g.weight_y = y.tap_step * p.weight_stride[2];
  g.weight_x = x.tap_step * p.weight_stride[3];
  g.result = static_cast<T*>(p.input) + phase_y * p.input_stride[2] + phase_x * p.input_stride[3];
  g.result_group = g.channels * p.input_stride[1];
  g.result_stride[0] = p.input_stride[0];
  g.result_stride[1] = p.input_stride[1];
  g.result_stride[2] = p.input_stride[2] * p.stride_height;
  g.result_stride[3] = p.input_stride[3] * p.stride_width;
  g.bias = static_cast<const T*>(p.bias);
  g.activation = p.activation;
  return g;
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::implicit
