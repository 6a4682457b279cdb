// The bias of a transposed convolution, and the bias gradient: a sum over the pixels and images of each output channel.
#include "kernels/cpu/base/simd.h"
#include "kernels/cpu/conv2d/algorithms.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// grad_bias[o]: each image's sum over its pixels, the images added in order.
template <class T>
void run_bias(const Conv2dParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  constexpr int64_t kChannels = 4 * lanes<A>;
  const int64_t* stride = p.output_stride;
  const bool by_channel = stride[1] == 1 && p.out_channels > 1;
  parallel(by_channel ? ceil_div(p.out_channels, kChannels) : p.out_channels, 1,
           [&](int64_t first, int64_t last) {
             for (int64_t t = first; t < last; ++t) {
               const T* from = static_cast<const T*>(p.output) + t * (by_channel ? kChannels : 1) * stride[1];
               T* to = static_cast<T*>(p.grad_bias) + t * (by_channel ? kChannels : 1);
               if (by_channel) {
                 const int64_t channels = min_of(kChannels, p.out_channels - t * kChannels);
                 vec<A> total[4] = {};
                 for (int64_t n = 0; n < p.batch; ++n) {
                   vec<A> sum[4] = {};
                   for (int64_t y = 0; y < p.out_height; ++y)
                     for (int64_t x = 0; x < p.out_width; ++x) {
                       const T* at = from + n * stride[0] + y * stride[2] + x * stride[3];
                       for (int v = 0; v < 4 && v * lanes<A> < channels; ++v)
                         sum[v] += load_n(at + v * lanes<A>, min_of(lanes<A>, channels - v * lanes<A>));
                     }
                   for (int v = 0; v < 4; ++v) total[v] += sum[v];
                 }
                 for (int v = 0; v < 4 && v * lanes<A> < channels; ++v)
                   store_n(to + v * lanes<A>, total[v], min_of(lanes<A>, channels - v * lanes<A>));
                 continue;
               }
               const bool flat = stride[3] == 1 && stride[2] == p.out_width;
               const int64_t rows = flat ? 1 : p.out_height,
                             columns = flat ? p.out_height * p.out_width : p.out_width;
               A total = 0;
               for (int64_t n = 0; n < p.batch; ++n) {
                 vec<A> sum[2] = {};
                 A rest = 0;
                 for (int64_t y = 0; y < rows; ++y) {
                   const T* at = from + n * stride[0] + y * stride[2];
                   int64_t x = 0;
                   if (stride[3] == 1) {
                     for (; x + 2 * lanes<A> <= columns; x += 2 * lanes<A>) {
                       sum[0] += load(at + x);
                       sum[1] += load(at + x + lanes<A>);
                     }
                     for (; x < columns; x += lanes<A>)
                       sum[0] += load_n(at + x, min_of(lanes<A>, columns - x));
                   } else {
                     for (; x < columns; ++x) rest += load_n(at + x * stride[3], 1)[0];
                   }
                 }
                 total += reduce_add(sum[0] + sum[1]) + rest;
               }
               store_n(to, vec<A>{} + total, 1);
             }
           });
}

// Images are rows of pixels in NCHW, in channels_last rows of channels.
template <class T>
void run_add(const Conv2dParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  const int64_t channels = p.in_channels, pixels = p.in_height * p.in_width;
  const bool by_channel = p.input_stride[1] == 1 && channels > 1;
  const int64_t rows = p.batch * (by_channel ? pixels : channels), length = by_channel ? channels : pixels;
  const T* bias = static_cast<const T*>(p.bias);
  parallel(rows, ceil_div(1 << 13, length), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* at = static_cast<T*>(p.input) + row * length;
      const vec<A> one = vec<A>{} + load_n(bias + (by_channel ? 0 : row % channels), 1)[0];
      for (int64_t j = 0; j < length; j += lanes<A>) {
        const int64_t n = min_of(lanes<A>, length - j);
        store_n(at + j, load_n(at + j, n) + (by_channel ? load_n(bias + j, n) : one), n);
      }
    }
  });
}

}  // namespace

void add_bias(const Conv2dParams& p, const Parallel& parallel) {
  dispatch_every(p.dtype, [&](auto type) { run_add<decltype(type)>(p, parallel); });
}

void conv2d_backward_bias(const Conv2dParams& p, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) { run_bias<decltype(type)>(p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
