// The bias gradient: a sum over the pixels and images of each output channel.
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

}  // namespace

void conv2d_backward_bias(const Conv2dParams& p, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) { run_bias<decltype(type)>(p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
