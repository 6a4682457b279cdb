// Bias and activation of a transposed convolution, and the bias gradient: a sum over the pixels and images of each output channel.
#include "kernels/cpu/base/activation.h"
#include "kernels/cpu/base/simd.h"
#include "kernels/cpu/conv2d/algorithms.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// grad_bias[o]: each image's sum over its pixels, the images added in order. Channels that lie side by side are
// column_sums of kernels/matmul.h.
template <class T>
void run_bias(const Conv2dParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  const int64_t* stride = p.output_stride;
  const bool flat = stride[3] == 1 && stride[2] == p.out_width;
  const int64_t rows = flat ? 1 : p.out_height, columns = flat ? p.out_height * p.out_width : p.out_width;
  parallel(p.out_channels, 1, [&](int64_t first, int64_t last) {
    for (int64_t o = first; o < last; ++o) {
      A total = 0;
      for (int64_t n = 0; n < p.batch; ++n) {
        vec<A> sum[2] = {};
        A rest = 0;
        for (int64_t y = 0; y < rows; ++y) {
          const T* at = static_cast<const T*>(p.output) + n * stride[0] + o * stride[1] + y * stride[2];
          int64_t x = 0;
          if (stride[3] == 1) {
            for (; x + 2 * lanes<A> <= columns; x += 2 * lanes<A>) {
              sum[0] += load(at + x);
              sum[1] += load(at + x + lanes<A>);
            }
            for (; x < columns; x += lanes<A>) sum[0] += load_n(at + x, min_of(lanes<A>, columns - x));
          } else {
            for (; x < columns; ++x) rest += load_n(at + x * stride[3], 1)[0];
          }
        }
        total += reduce_add(sum[0] + sum[1]) + rest;
      }
      store_n(static_cast<T*>(p.grad_bias) + o, vec<A>{} + total, 1);
    }
  });
}

// Images are rows of pixels in NCHW, in channels_last rows of channels.
template <class T>
void run_finish(const Conv2dParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  const int64_t channels = p.in_channels, pixels = p.in_height * p.in_width;
  const bool by_channel = p.input_stride[1] == 1 && channels > 1;
  const int64_t rows = p.batch * (by_channel ? pixels : channels), length = by_channel ? channels : pixels;
  const T* bias = static_cast<const T*>(p.bias);
  parallel(rows, ceil_div(1 << 13, length), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* at = static_cast<T*>(p.input) + row * length;
      const vec<A> one = bias ? splat(A(load_n(bias + (by_channel ? 0 : row % channels), 1)[0])) : vec<A>{};
      for (int64_t j = 0; j < length; j += lanes<A>) {
        const int64_t n = min_of(lanes<A>, length - j);
        const vec<A> v = load_n(at + j, n) + (bias && by_channel ? load_n(bias + j, n) : one);
        store_n(at + j, activate<A>(v, p.activation), n);
      }
    }
  });
}

}  // namespace

void finish(const Conv2dParams& p, const Parallel& parallel) {
  dispatch_every(p.dtype, [&](auto type) { run_finish<decltype(type)>(p, parallel); });
}

void conv2d_backward_bias(const Conv2dParams& p, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) { run_bias<decltype(type)>(p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
