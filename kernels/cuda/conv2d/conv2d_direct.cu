// conv2d of few channels a group (depthwise, and grouped below 16): every result is summed by one thread, in
// the order of the taps, since no tile of a matrix product would be filled. Neighbouring threads make
// neighbouring results in memory, so that what they read is contiguous too; the taps of a depthwise kernel
// stay in the first-level cache. The weight gradient is conv2d_direct_weight.cu's.
#include "kernels/cuda/conv2d/conv2d.h"

namespace pydl::cuda {
namespace {

constexpr int kThreads = 256;

// Result `at` as (pixel, channel), channels fastest where they are in memory.
PYDL_DEVICE void place_of(int64_t at, bool last, const Split& image, const Split& channels, int64_t& n,
                          int& pixel, int& channel) {
  int64_t rest;
  if (last) {
    channels(at, rest, channel);
    image(rest, n, pixel);
  } else {
    int64_t row;
    image(at, row, pixel);
    channels(row, n, channel);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    conv2d_direct_forward_kernel(PYDL_CONSTANT Geometry g, Split channels, int64_t count, bool last) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= count) return;
  int64_t n;
  int pixel, channel;
  place_of(at, last, g.out_image, channels, n, pixel, channel);
  const int group = channel / static_cast<int>(g.out_per_group);
  const Image<T> image{static_cast<const T*>(g.p.input) + group * g.in_per_group * g.p.input_stride[1]};
  const T* weight = static_cast<const T*>(g.p.weight) + channel * g.p.weight_stride[0];
  const int64_t m = n * g.out_image.by + pixel;
  const Part corner = image.pixel(g, m);
  acc_t<T> sum = 0;
  for (int i = 0; i < g.in_per_group; ++i)
    for (int r = 0; r < g.p.kernel_height; ++r)
      for (int s = 0; s < g.p.kernel_width; ++s) {
        const Part tap{i * g.p.input_stride[1], static_cast<int>(r * g.p.dilation_height),
                       static_cast<int>(s * g.p.dilation_width), true};
        sum += image.value(g, corner, tap) * widen(weight[weight_offset(g, 0, {i, r, s})]);
      }
  if (g.p.bias) sum += widen(static_cast<const T*>(g.p.bias)[channel]);
  static_cast<T*>(g.p.output)[output_offset(g, m) + channel * g.p.output_stride[1]] = activated<T>(g.p, sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T>)
    conv2d_direct_input_kernel(PYDL_CONSTANT Geometry g, Split channels, int64_t count, bool last) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= count) return;
  int64_t n;
  int pixel, channel;
  place_of(at, last, g.in_image, channels, n, pixel, channel);
  const int group = channel / static_cast<int>(g.in_per_group);
  const int i = channel - group * static_cast<int>(g.in_per_group);
  const Spread<T> spread{static_cast<const T*>(g.p.output) + group * g.out_per_group * g.p.output_stride[1]};
  const T* weight = static_cast<const T*>(g.p.weight) + group * g.out_per_group * g.p.weight_stride[0];
  const int64_t m = n * g.in_image.by + pixel;
  const Part place = spread.pixel(g, m);
  acc_t<T> sum = 0;
  for (int o = 0; o < g.out_per_group; ++o)
    for (int r = 0; r < g.p.kernel_height; ++r)
      for (int s = 0; s < g.p.kernel_width; ++s) {
        const Part tap{o * g.p.output_stride[1], static_cast<int>(r * g.p.dilation_height),
                       static_cast<int>(s * g.p.dilation_width), true};
        sum += spread.value(g, place, tap) * widen(weight[weight_offset(g, o, {i, r, s})]);
      }
  static_cast<T*>(g.p.input)[input_offset(g, m) + channel * g.p.input_stride[1]] = narrow<T>(sum);
}

}  // namespace

int conv2d_direct_forward(const Params& p, void* stream) {
  const Geometry g(p);
  const int64_t count = g.out_pixels() * p.out_channels;
  int error = 0;
  dispatch_dtype(p.dtype, [&](auto type) {
    error = launch(conv2d_direct_forward_kernel<decltype(type)>, ceil_div(count, kThreads), kThreads, stream,
                   g, Split(p.out_channels), count, is_channels_last(p.output_stride));
  });
  return error;
}

int conv2d_direct_backward_input(const Params& p, void* stream) {
  const Geometry g(p);
  const int64_t count = g.in_pixels() * p.in_channels;
  int error = 0;
  dispatch_dtype(p.dtype, [&](auto type) {
    error = launch(conv2d_direct_input_kernel<decltype(type)>, ceil_div(count, kThreads), kThreads, stream, g,
                   Split(p.in_channels), count, is_channels_last(p.input_stride));
  });
  return error;
}

}  // namespace pydl::cuda
