// Depthwise convolution by planes: see conv2d_depthwise.h.
#include "kernels/cpu/conv2d_depthwise.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// One addend of a row: weight * from[x], for every x of the row.
template <class A>
struct Tap {
  const A* from;
  A weight;
};

// to[x] = sum of taps, whole vectors; every tap may be read that far.
template <class A, int vectors>
PYDL_INLINE void sum_taps_block(const Tap<A>* taps, int64_t count, int64_t x, A* to) {
  vec<A> sum[vectors] = {};
  for (int64_t i = 0; i < count; ++i) {
    const vec<A> w = splat(taps[i].weight);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[v] += w * load(taps[i].from + x + v * lanes<A>);
  }
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) store(to + x + v * lanes<A>, sum[v]);
}
template <class A>
void sum_taps(const Tap<A>* taps, int64_t count, int64_t width, A* to) {
  int64_t x = 0;
  for (; x + 3 * lanes<A> < width; x += 4 * lanes<A>) sum_taps_block<A, 4>(taps, count, x, to);
  for (; x + lanes<A> < width; x += 2 * lanes<A>) sum_taps_block<A, 2>(taps, count, x, to);
  for (; x < width; x += lanes<A>) sum_taps_block<A, 1>(taps, count, x, to);
}

// Sizes of the planes in scratch. Input columns are kept by phase: column px - pad of the image is number px
// / stride of phase px % stride. Both planes end in a vector of zeros per row, since rows are read in whole
// vectors.
template <class T>
struct Shape {
  using A = acc_t<T>;
  const Conv2dParams& p;
  int64_t multiplier, reach_x, phase_width, pitch;  // of the input plane
  int64_t border, grad_pitch;                       // of the gradient's plane: zeros left and right

  explicit Shape(const Conv2dParams& p) : p(p) {
    multiplier = p.out_channels / p.groups;
    reach_x = (p.kernel_width - 1) * p.dilation_width;
    phase_width =
        max_of(ceil_div(max_of((p.out_width - 1) * p.stride_width + reach_x + 1, p.pad_left + p.in_width),
                        p.stride_width),
               1);
    pitch = ceil_div(phase_width + 4 * lanes<A>, lanes<A>) * lanes<A>;
    border = (reach_x + p.pad_left) / p.stride_width + 1;
    grad_pitch =
        ceil_div(2 * border + max_of(p.out_width, ceil_div(p.in_width, p.stride_width)) + 4 * lanes<A>,
                 lanes<A>) *
        lanes<A>;
  }
  int64_t taps() const { return p.kernel_height * p.kernel_width; }
  int64_t input_elements() const { return p.in_height * p.stride_width * pitch; }
  int64_t grad_elements() const { return p.out_height * grad_pitch; }
  int64_t slot_bytes() const {
    return Pieces::bytes<A>(input_elements()) + Pieces::bytes<A>(multiplier * grad_elements()) +
           Pieces::bytes<A>(pitch + grad_pitch) + Pieces::bytes<Tap<A>>(taps() * multiplier) +
           Pieces::bytes<A>(taps() * lanes<A>) + Pieces::bytes<A>(taps() * multiplier) +
           Pieces::bytes<int64_t>(p.kernel_width);
  }
};

// plane[row][phase][column]: the image of one channel.
template <class T, class A>
void pack_input(const Shape<T>& s, const T* from, A* plane) {
  const Conv2dParams& p = s.p;
  memset(plane, 0, static_cast<size_t>(s.input_elements()) * sizeof(A));
  for (int64_t y = 0; y < p.in_height; ++y, from += p.input_stride[2])
    for (int64_t phase = 0; phase < p.stride_width; ++phase) {
      // the first image column of this phase, and its number
      const int64_t first = ((phase - p.pad_left) % p.stride_width + p.stride_width) % p.stride_width;
      if (first >= p.in_width) continue;
      const int64_t count = ceil_div(p.in_width - first, p.stride_width),
                    step = p.stride_width * p.input_stride[3];
      A* to = plane + (y * p.stride_width + phase) * s.pitch + (first + p.pad_left) / p.stride_width;
      if (step == 2)
        copy_span<2>(to, from + first * p.input_stride[3], 0, count, count);
      else
        copy_strided(to, from + first * p.input_stride[3], step, count);
    }
}

template <class T, class A>
void pack_gradient(const Shape<T>& s, const T* from, A* plane) {
  memset(plane, 0, static_cast<size_t>(s.grad_elements()) * sizeof(A));
  for (int64_t y = 0; y < s.p.out_height; ++y)
    copy_strided(plane + y * s.grad_pitch + s.border, from + y * s.p.output_stride[2], s.p.output_stride[3],
                 s.p.out_width);
}

template <class T, class A>
void store_row(const A* from, T* to, int64_t stride, int64_t count, A bias, Activation activation) {
  for (int64_t x = 0; x < count; x += lanes<A>) {
    const int64_t n = min_of(lanes<A>, count - x);
    const vec<A> v = activate<A>(load(from + x) + splat(bias), activation);
    if (stride == 1) {
      n == lanes<A> ? store(to + x, v) : store_n(to + x, v, n);
    } else {
      T some[lanes<A>];
      store(some, v);
      for (int64_t j = 0; j < n; ++j) to[(x + j) * stride] = some[j];
    }
  }
}

// The weights of `channels` channels, [channel][row][tap].
template <class T, class A>
void load_weights(const Conv2dParams& p, int64_t channel, int64_t channels, A* to) {
  const T* from = static_cast<const T*>(p.weight) + channel * p.weight_stride[0];
  for (int64_t c = 0; c < channels; ++c, from += p.weight_stride[0])
    for (int64_t r = 0; r < p.kernel_height; ++r, to += p.kernel_width)
      copy_strided(to, from + r * p.weight_stride[2], p.weight_stride[3], p.kernel_width);
}

// Where tap t begins within a row of the input's plane.
template <class T>
void input_offsets(const Shape<T>& s, int64_t* offset) {
  for (int64_t t = 0; t < s.p.kernel_width; ++t) {
    const int64_t at = t * s.p.dilation_width;
    offset[t] = at % s.p.stride_width * s.pitch + at / s.p.stride_width;
  }
}

template <class T>
void forward_plane(const Shape<T>& s, int64_t image, int64_t group, Pieces scratch) {
  using A = acc_t<T>;
  const Conv2dParams& p = s.p;
  A* plane = scratch.take<A>(s.input_elements());
  A* row = scratch.take<A>(s.pitch + s.grad_pitch);
  Tap<A>* taps = scratch.take<Tap<A>>(s.taps());
  A* weights = scratch.take<A>(s.taps() * s.multiplier);
  int64_t* offset = scratch.take<int64_t>(p.kernel_width);
  load_weights<T>(p, group * s.multiplier, s.multiplier, weights);
  input_offsets(s, offset);
  pack_input(s, static_cast<const T*>(p.input) + image * p.input_stride[0] + group * p.input_stride[1],
             plane);
  for (int64_t m = 0; m < s.multiplier; ++m) {
    const int64_t channel = group * s.multiplier + m;
    const A bias = p.bias ? load_n(static_cast<const T*>(p.bias) + channel, 1)[0] : A(0);
    T* to = static_cast<T*>(p.output) + image * p.output_stride[0] + channel * p.output_stride[1];
    for (int64_t y = 0; y < p.out_height; ++y) {
      int64_t count = 0;
      for (int64_t r = 0; r < p.kernel_height; ++r) {
        const int64_t in = tap_input(y, r, p.stride_height, p.pad_top, p.dilation_height, p.in_height);
        if (in < 0) continue;
        const A *line = plane + in * p.stride_width * s.pitch,
                *w = weights + m * s.taps() + r * p.kernel_width;
        for (int64_t t = 0; t < p.kernel_width; ++t) taps[count++] = {line + offset[t], w[t]};
      }
      sum_taps(taps, count, p.out_width, row);
      store_row(row, to + y * p.output_stride[2], p.output_stride[3], p.out_width, bias, p.activation);
    }
  }
}

template <class T>
void backward_plane(const Shape<T>& s, int64_t image, int64_t group, Pieces scratch) {
  using A = acc_t<T>;
  const Conv2dParams& p = s.p;
  A* planes = scratch.take<A>(s.multiplier * s.grad_elements());
  A* row = scratch.take<A>(s.pitch + s.grad_pitch);
  Tap<A>* taps = scratch.take<Tap<A>>(s.taps() * s.multiplier);
  A* weights = scratch.take<A>(s.taps() * s.multiplier);
  int64_t* offset = scratch.take<int64_t>(p.kernel_width);
  load_weights<T>(p, group * s.multiplier, s.multiplier, weights);
  for (int64_t m = 0; m < s.multiplier; ++m)
    pack_gradient(s,
                  static_cast<const T*>(p.output) + image * p.output_stride[0] +
                      (group * s.multiplier + m) * p.output_stride[1],
                  planes + m * s.grad_elements());
  T* image_to = static_cast<T*>(p.input) + image * p.input_stride[0] + group * p.input_stride[1];
  for (int64_t phase = 0; phase < min_of(p.stride_width, p.in_width); ++phase) {
    const int64_t pixels = ceil_div(p.in_width - phase, p.stride_width);
    for (int64_t t = 0; t < p.kernel_width; ++t) {  // where tap t begins within a row of the gradient's plane
      const int64_t scaled = phase + p.pad_left - t * p.dilation_width;
      offset[t] = scaled % p.stride_width == 0 ? s.border + scaled / p.stride_width : -1;
    }
    T* to = image_to + phase * p.input_stride[3];
    for (int64_t y = 0; y < p.in_height; ++y, to += p.input_stride[2]) {
      int64_t count = 0;
      for (int64_t r = 0; r < p.kernel_height; ++r) {
        const int64_t out = tap_output(y, r, p.stride_height, p.pad_top, p.dilation_height, p.out_height);
        if (out < 0) continue;
        for (int64_t m = 0; m < s.multiplier; ++m) {
          const A* line = planes + m * s.grad_elements() + out * s.grad_pitch;
          const A* w = weights + m * s.taps() + r * p.kernel_width;
          for (int64_t t = 0; t < p.kernel_width; ++t)
            if (offset[t] >= 0) taps[count++] = {line + offset[t], w[t]};
        }
      }
      sum_taps(taps, count, pixels, row);
      store_row(row, to, p.stride_width * p.input_stride[3], pixels, A(0), Activation::none);
    }
  }
}

// sums[t] += over pixels of gradient * input, lane by lane, for `taps` taps of one kernel row.
template <class A, int taps>
void weight_row(int64_t width, const A* grad, const A* const* in, A* sums) {
  vec<A> sum[taps];
#pragma GCC unroll 4
  for (int t = 0; t < taps; ++t) sum[t] = load(sums + t * lanes<A>);
  for (int64_t x = 0; x < width; x += lanes<A>) {
    const vec<A> g = load(grad + x);  // zeros beyond the width
#pragma GCC unroll 4
    for (int t = 0; t < taps; ++t) sum[t] += g * load(in[t] + x);
  }
#pragma GCC unroll 4
  for (int t = 0; t < taps; ++t) store(sums + t * lanes<A>, sum[t]);
}

template <class T>
void weight_group(const Shape<T>& s, int64_t group, Pieces scratch) {
  using A = acc_t<T>;
  const Conv2dParams& p = s.p;
  A* plane = scratch.take<A>(s.input_elements());
  A* grad = scratch.take<A>(s.grad_elements());
  A* sums = scratch.take<A>(s.taps() * lanes<A>);
  int64_t* offset = scratch.take<int64_t>(p.kernel_width);
  input_offsets(s, offset);
  for (int64_t channel = group * s.multiplier; channel < (group + 1) * s.multiplier; ++channel) {
    memset(sums, 0, static_cast<size_t>(s.taps() * lanes<A>) * sizeof(A));
    for (int64_t image = 0; image < p.batch; ++image) {
      pack_input(s, static_cast<const T*>(p.input) + image * p.input_stride[0] + group * p.input_stride[1],
                 plane);
      pack_gradient(
          s, static_cast<const T*>(p.output) + image * p.output_stride[0] + channel * p.output_stride[1],
          grad);
      for (int64_t y = 0; y < p.out_height; ++y)
        for (int64_t r = 0; r < p.kernel_height; ++r) {
          const int64_t in = tap_input(y, r, p.stride_height, p.pad_top, p.dilation_height, p.in_height);
          if (in < 0) continue;
          for (int64_t t = 0; t < p.kernel_width; t += 4) {
            const A* from[4];
            const int64_t n = min_of(4, p.kernel_width - t);
            for (int64_t i = 0; i < n; ++i) from[i] = plane + in * p.stride_width * s.pitch + offset[t + i];
            const A* g = grad + y * s.grad_pitch + s.border;
            A* to = sums + (r * p.kernel_width + t) * lanes<A>;
            if (n == 4) weight_row<A, 4>(p.out_width, g, from, to);
            if (n == 3) weight_row<A, 3>(p.out_width, g, from, to);
            if (n == 2) weight_row<A, 2>(p.out_width, g, from, to);
            if (n == 1) weight_row<A, 1>(p.out_width, g, from, to);
          }
        }
    }
    for (int64_t r = 0; r < p.kernel_height; ++r)
      for (int64_t t = 0; t < p.kernel_width; ++t)
        store_n(static_cast<T*>(p.weight) + channel * p.weight_stride[0] + r * p.weight_stride[2] +
                    t * p.weight_stride[3],
                splat(reduce_add(load(sums + (r * p.kernel_width + t) * lanes<A>))), 1);
  }
}

// body(item, scratch of its own) for every item; a slot of scratch per thread.
template <class T, class F>
void run_items(const Conv2dParams& p, const Shape<T>& s, int64_t items, const Parallel& parallel,
               const F& body) {
  const int64_t threads = max_of(1, min_of(parallel.threads, items));
  parallel(threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot)
      for (int64_t item = items * slot / threads; item < items * (slot + 1) / threads; ++item)
        body(item, Pieces{static_cast<char*>(p.scratch) + slot * s.slot_bytes()});
  });
}

}  // namespace

bool conv2d_depthwise_supported(const Conv2dParams& p, Conv2dPass) {
  return p.groups == p.in_channels && p.out_channels % p.groups == 0;
}

int64_t conv2d_depthwise_scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  if (depthwise_by_pixel(p)) return depthwise_pixels_scratch(p, pass, threads);
  int64_t bytes = 0;
  dispatch_dtype(p.dtype, [&](auto type) { bytes = threads * Shape<decltype(type)>(p).slot_bytes(); });
  return bytes;
}

void conv2d_depthwise_forward(const Conv2dParams& p, const Parallel& parallel) {
  if (depthwise_by_pixel(p)) return depthwise_pixels_gather(p, Conv2dPass::forward, parallel);
  dispatch_dtype(p.dtype, [&](auto type) {
    const Shape<decltype(type)> s(p);
    run_items(p, s, p.batch * p.groups, parallel, [&](int64_t item, Pieces scratch) {
      forward_plane(s, item / p.groups, item % p.groups, scratch);
    });
  });
}

void conv2d_depthwise_backward_input(const Conv2dParams& p, const Parallel& parallel) {
  if (depthwise_by_pixel(p)) return depthwise_pixels_gather(p, Conv2dPass::backward_input, parallel);
  dispatch_dtype(p.dtype, [&](auto type) {
    const Shape<decltype(type)> s(p);
    run_items(p, s, p.batch * p.groups, parallel, [&](int64_t item, Pieces scratch) {
      backward_plane(s, item / p.groups, item % p.groups, scratch);
    });
  });
}

void conv2d_depthwise_backward_weight(const Conv2dParams& p, const Parallel& parallel) {
  if (depthwise_by_pixel(p)) return depthwise_pixels_weight(p, parallel);
  dispatch_dtype(p.dtype, [&](auto type) {
    const Shape<decltype(type)> s(p);
    run_items(p, s, p.groups, parallel,
              [&](int64_t item, Pieces scratch) { weight_group(s, item, scratch); });
  });
}

}  // namespace pydl::cpu::PYDL_ISA
