// Depthwise convolution of channels_last tensors: a vector holds neighbouring channels. See
// conv2d_depthwise.h.
//
// Forward and input gradient are one loop: a pixel of the result sums, over the taps that reach it, a pixel
// of the other tensor times a row of weights, packed as [tap][channel]. The weight gradient sums per row of
// the output and tap; images are cut into a fixed number of parts that are added in order.
#include "kernels/cpu/conv2d_depthwise.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int kVectors = 4;        // vectors of channels at a time
constexpr int64_t kMaxParts = 16;  // of the images, for the weight gradient

template <class T>
struct PixelTap {
  const T* from;
  const acc_t<T>* weight;
};

template <class T, int vectors>
PYDL_INLINE void sum_pixel(const PixelTap<T>* taps, int64_t count, int64_t c, const T* bias,
                           Activation activation, T* to) {
  using A = acc_t<T>;
  vec<A> sum[vectors];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) sum[v] = bias ? load(bias + c + v * lanes<A>) : vec<A>{};
  for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v)
      sum[v] += load(taps[i].weight + c + v * lanes<A>) * load(taps[i].from + c + v * lanes<A>);
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) store(to + c + v * lanes<A>, activate<A>(sum[v], activation));
}

template <class T>
void pixel(const PixelTap<T>* taps, int64_t count, int64_t channels, const T* bias, Activation activation,
           T* to) {
  using A = acc_t<T>;
  int64_t c = 0;
  for (; c + kVectors * lanes<A> <= channels; c += kVectors * lanes<A>)
    sum_pixel<T, kVectors>(taps, count, c, bias, activation, to);
  for (; c + lanes<A> <= channels; c += lanes<A>) sum_pixel<T, 1>(taps, count, c, bias, activation, to);
  if (c == channels) return;
  const int64_t n = channels - c;
  vec<A> sum = bias ? load_n(bias + c, n) : vec<A>{};
  for (int64_t i = 0; i < count; ++i) sum += load_n(taps[i].weight + c, n) * load_n(taps[i].from + c, n);
  store_n(to + c, activate<A>(sum, activation), n);
}

template <class T>
int64_t slot_taps(const Conv2dParams& p) {
  return Pieces::bytes<PixelTap<T>>(p.kernel_height * p.kernel_width);
}
template <class A>
int64_t weight_bytes(const Conv2dParams& p) {
  return Pieces::bytes<A>(p.kernel_height * p.kernel_width * p.out_channels);
}

template <class T>
void gather(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  using A = acc_t<T>;
  const bool forward = pass == Conv2dPass::forward;
  const int64_t channels = p.out_channels, taps = p.kernel_height * p.kernel_width;
  Pieces pieces{static_cast<char*>(p.scratch)};
  A* weights = pieces.take<A>(taps * channels);
  for (int64_t r = 0; r < p.kernel_height; ++r)
    for (int64_t t = 0; t < p.kernel_width; ++t)
      copy_strided(weights + (r * p.kernel_width + t) * channels,
                   static_cast<const T*>(p.weight) + r * p.weight_stride[2] + t * p.weight_stride[3],
                   p.weight_stride[0], channels);
  const T* from = static_cast<const T*>(forward ? p.input : p.output);
  T* to = static_cast<T*>(forward ? p.output : p.input);
  const int64_t *from_stride = forward ? p.input_stride : p.output_stride,
                *to_stride = forward ? p.output_stride : p.input_stride;
  const int64_t height = forward ? p.out_height : p.in_height, width = forward ? p.out_width : p.in_width;
  const int64_t rows = p.batch * height, threads = max_of(1, min_of(parallel.threads, rows));
  const T* bias = forward ? static_cast<const T*>(p.bias) : nullptr;
  const Activation activation = forward ? p.activation : Activation::none;
  auto row_of = [&](int64_t y, int64_t r) {
    return forward ? tap_input(y, r, p.stride_height, p.pad_top, p.dilation_height, p.in_height)
                   : tap_output(y, r, p.stride_height, p.pad_top, p.dilation_height, p.out_height);
  };
  auto column_of = [&](int64_t x, int64_t t) {
    return forward ? tap_input(x, t, p.stride_width, p.pad_left, p.dilation_width, p.in_width)
                   : tap_output(x, t, p.stride_width, p.pad_left, p.dilation_width, p.out_width);
  };
  parallel(threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) {
      Pieces own{pieces.next + slot * slot_taps<T>(p)};
      PixelTap<T>* list = own.take<PixelTap<T>>(taps);
      for (int64_t row = rows * slot / threads; row < rows * (slot + 1) / threads; ++row) {
        const int64_t image = row / height, y = row % height;
        for (int64_t x = 0; x < width; ++x) {
          int64_t count = 0;
          for (int64_t r = 0; r < p.kernel_height; ++r) {
            const int64_t at_y = row_of(y, r);
            if (at_y < 0) continue;
            for (int64_t t = 0; t < p.kernel_width; ++t) {
              const int64_t at_x = column_of(x, t);
              if (at_x < 0) continue;
              list[count++] = {from + image * from_stride[0] + at_y * from_stride[2] + at_x * from_stride[3],
                               weights + (r * p.kernel_width + t) * channels};
            }
          }
          pixel(list, count, channels, bias, activation,
                to + image * to_stride[0] + y * to_stride[2] + x * to_stride[3]);
        }
      }
    }
  });
}

// sums[channel] += over `count` pixels of gradient * input, for `vectors` vectors of channels.
template <class T, class A, int vectors>
PYDL_INLINE void weight_run(int64_t count, const T* grad, int64_t grad_step, const T* in, int64_t in_step,
                            A* sums) {
  vec<A> sum[vectors];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) sum[v] = load(sums + v * lanes<A>);
  for (int64_t x = 0; x < count; ++x, grad += grad_step, in += in_step)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[v] += load(grad + v * lanes<A>) * load(in + v * lanes<A>);
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) store(sums + v * lanes<A>, sum[v]);
}

template <class T>
void weight(const Conv2dParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  const int64_t channels = p.out_channels, taps = p.kernel_height * p.kernel_width;
  const int64_t parts = max_of(1, min_of(p.batch, kMaxParts));
  A* partials = static_cast<A*>(p.scratch);  // [part][tap][channel]
  parallel(parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      A* sums = partials + part * taps * channels;
      memset(sums, 0, static_cast<size_t>(taps * channels) * sizeof(A));
      for (int64_t image = p.batch * part / parts; image < p.batch * (part + 1) / parts; ++image)
        for (int64_t y = 0; y < p.out_height; ++y)
          for (int64_t r = 0; r < p.kernel_height; ++r) {
            const int64_t in_y = tap_input(y, r, p.stride_height, p.pad_top, p.dilation_height, p.in_height);
            if (in_y < 0) continue;
            for (int64_t t = 0; t < p.kernel_width; ++t) {
              const Axis axis = {p.kernel_width,   p.stride_width, -p.pad_left,
                                 p.dilation_width, p.in_width,     p.out_width};
              const Span span = inside(axis, 0, p.out_width, axis.first + t * axis.spacing);
              const int64_t count = span.high - span.low;
              const T* grad = static_cast<const T*>(p.output) + image * p.output_stride[0] +
                              y * p.output_stride[2] + span.low * p.output_stride[3];
              const T* in = static_cast<const T*>(p.input) + image * p.input_stride[0] +
                            in_y * p.input_stride[2] +
                            (span.low * p.stride_width + axis.first + t * axis.spacing) * p.input_stride[3];
              A* to = sums + (r * p.kernel_width + t) * channels;
              const int64_t grad_step = p.output_stride[3], in_step = p.stride_width * p.input_stride[3];
              int64_t c = 0;
              for (; c + kVectors * lanes<A> <= channels; c += kVectors * lanes<A>)
                weight_run<T, A, kVectors>(count, grad + c, grad_step, in + c, in_step, to + c);
              for (; c + lanes<A> <= channels; c += lanes<A>)
                weight_run<T, A, 1>(count, grad + c, grad_step, in + c, in_step, to + c);
              if (c < channels) {
                const int64_t n = channels - c;
                vec<A> sum = load_n(to + c, n);
                for (int64_t x = 0; x < count; ++x)
                  sum += load_n(grad + x * grad_step + c, n) * load_n(in + x * in_step + c, n);
                store_n(to + c, sum, n);
              }
            }
          }
    }
  });
  for (int64_t tap = 0; tap < taps; ++tap) {
    T* to = static_cast<T*>(p.weight) + tap / p.kernel_width * p.weight_stride[2] +
            tap % p.kernel_width * p.weight_stride[3];
    for (int64_t c = 0; c < channels; c += lanes<A>) {
      const int64_t n = min_of(lanes<A>, channels - c);
      vec<A> sum{};
      for (int64_t part = 0; part < parts; ++part)
        sum += load_n(partials + (part * taps + tap) * channels + c, n);
      T some[lanes<A>];
      store(some, sum);
      for (int64_t j = 0; j < n; ++j) to[(c + j) * p.weight_stride[0]] = some[j];
    }
  }
}

}  // namespace

bool depthwise_by_pixel(const Conv2dParams& p) {
  return p.out_channels == p.groups && p.input_stride[1] == 1 && p.output_stride[1] == 1 && p.groups > 1;
}

int64_t depthwise_pixels_scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  int64_t bytes = 0;
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    bytes = weight_bytes<acc_t<T>>(p) *
                (pass == Conv2dPass::backward_weight ? max_of(1, min_of(p.batch, kMaxParts)) : 1) +
            threads * slot_taps<T>(p);
  });
  return bytes;
}

void depthwise_pixels_gather(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) { gather<decltype(type)>(p, pass, parallel); });
}

void depthwise_pixels_weight(const Conv2dParams& p, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) { weight<decltype(type)>(p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
