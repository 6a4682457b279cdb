// Depthwise 3x3 of planes (NCHW) with padding 1 and stride 1 or 2, without transposing anything: a vector
// holds neighbouring pixels of a row, and a block of columns walks down the image.
//
// Each row of the source is read once per block, as three vectors, one per column of the kernel; masked loads
// supply the zeros beside the image. With stride 1 each row feeds the three results that it touches, so nine
// multiply-adds stand against three loads. The three partial sums of a result are kept apart until they are
// added, because a chain of nine multiply-adds would wait for itself. Nothing is ever copied.
//
// Only where masked loads cost nothing (AVX-512); elsewhere planes.cpp serves.
#include "kernels/cpu/conv2d/depthwise/depthwise.h"

namespace pydl::cpu::PYDL_ISA::depthwise {
namespace {

// A block of columns of one plane, with what its rows begin with and where the image ends.
template <class T>
struct Block {
  const T* data;
  int64_t row, width, first;  // elements between rows; columns of the image; first column wanted, may be -1

  // `lanes` columns from first + shift; zeros beside the image.
  PYDL_INLINE vec<acc_t<T>> at(int64_t y, int64_t shift) const {
    return load_between(data + y * row + first + shift, -first - shift, width - first - shift);
  }
};

// What the three columns of the kernel read of a row.
template <class A>
struct Three {
  vec<A> x[3];
};
template <class T>
PYDL_INLINE Three<acc_t<T>> neighbours(const Block<T>& b, int64_t y) {  // stride 1; b.first is the left one's
  return {{b.at(y, 0), b.at(y, 1), b.at(y, 2)}};
}
template <class T>
PYDL_INLINE Three<acc_t<T>> every_other(const Block<T>& b, int64_t y) {  // stride 2
  constexpr int64_t all = lanes<acc_t<T>>;
  const vec<acc_t<T>> low = b.at(y, 0), high = b.at(y, all);
  return {{even_lanes(low, high), odd_lanes(low, high), even_lanes(b.at(y, 2), b.at(y, all + 2))}};
}

template <class A>
PYDL_INLINE vec<A> sum3(const vec<A>* w, const Three<A>& s) {
  return w[0] * s.x[0] + w[1] * s.x[1] + w[2] * s.x[2];
}

// The nine weights in registers: read through a pointer they would be read again after every store.
template <class A>
struct Kernel {
  vec<A> w[9];
  explicit PYDL_INLINE Kernel(const A* from) {
#pragma GCC unroll 9
    for (int i = 0; i < 9; ++i) w[i] = pin(splat(from[i]));
  }
};

// One plane of results.
template <class T>
struct Target {
  T* data;
  int64_t row, width, height;
  acc_t<T> bias;
  Activation activation;
  bool finish;  // whether there is a bias or an activation

  PYDL_INLINE void put(int64_t y, int64_t x, vec<acc_t<T>> v) const {
    if (finish) v = activate<acc_t<T>>(v + splat(bias), activation);
    store_n(data + y * row + x, v, min_of(lanes<acc_t<T>>, width - x));
  }
};

// w: [row][tap] of the kernel.
template <class T>
void plane_stride1(const T* in, int64_t in_row, const acc_t<T>* weights, const Target<T> to) {
  using A = acc_t<T>;
  const Kernel<A> k(weights);
  for (int64_t x = 0; x < to.width; x += lanes<A>) {
    const Block<T> block = {in, in_row, to.width, x - 1};
    vec<A> above{}, here{};  // of the results of the row above and of this one, what has been summed
    for (int64_t y = 0; y < to.height; ++y) {
      const Three<A> s = neighbours(block, y);
      if (y > 0) to.put(y - 1, x, above + sum3<A>(k.w + 6, s));
      above = here + sum3<A>(k.w + 3, s);
      here = sum3<A>(k.w, s);
    }
    to.put(to.height - 1, x, above);
  }
}

template <class T>
void plane_stride2(const T* in, int64_t in_row, int64_t in_width, int64_t in_height, const acc_t<T>* weights,
                   const Target<T> to) {
  using A = acc_t<T>;
  const Kernel<A> k(weights);
  for (int64_t x = 0; x < to.width; x += lanes<A>) {
    const Block<T> block = {in, in_row, in_width, 2 * x - 1};
    vec<A> above{};  // what row 2y - 1 of the input gives
    for (int64_t y = 0; y < to.height; ++y) {
      vec<A> sum = above + sum3<A>(k.w + 3, every_other(block, 2 * y));
      if (2 * y + 1 < in_height) {
        const Three<A> s = every_other(block, 2 * y + 1);
        sum += sum3<A>(k.w + 6, s);
        above = sum3<A>(k.w, s);
      }
      to.put(y, x, sum);
    }
  }
}

// The input gradient of stride 2: gradient columns j and j + 1 give input columns 2j and 2j + 1, rows alike.
template <class T>
void plane_transposed(const T* grad, int64_t grad_row, int64_t grad_width, int64_t grad_height,
                      const acc_t<T>* weights, const Target<T> to) {
  using A = acc_t<T>;
  const Kernel<A> k(weights);
  constexpr int64_t all = lanes<A>;
  for (int64_t j = 0; j < grad_width; j += all) {
    const Block<T> block = {grad, grad_row, grad_width, j};
    auto put = [&](int64_t y, vec<A> even, vec<A> odd) {
      to.put(y, 2 * j, interleave_lanes_low(even, odd));
      if (2 * j + all < to.width) to.put(y, 2 * j + all, interleave_lanes_high(even, odd));
    };
    vec<A> here = block.at(0, 0), right = block.at(0, 1);
    for (int64_t i = 0; i < grad_height; ++i) {
      const bool last = i + 1 == grad_height;
      const vec<A> below = last ? vec<A>{} : block.at(i + 1, 0),
                   below_right = last ? vec<A>{} : block.at(i + 1, 1);
      put(2 * i, k.w[4] * here, k.w[3] * right + k.w[5] * here);
      if (2 * i + 1 < to.height)
        put(2 * i + 1, k.w[1] * below + k.w[7] * here,
            (k.w[0] * below_right + k.w[2] * below) + (k.w[6] * right + k.w[8] * here));
      here = below;
      right = below_right;
    }
  }
}

template <class A>
PYDL_INLINE void add3(vec<A>* sum, vec<A> grad, const Three<A>& s) {
#pragma GCC unroll 3
  for (int t = 0; t < 3; ++t) sum[t] += grad * s.x[t];
}

// total[row * 3 + tap] += over one plane, lane by lane.
template <class T>
void weight_stride1(const T* in, int64_t in_row, const T* grad, int64_t grad_row, int64_t width,
                    int64_t height, vec<acc_t<T>>* total) {
  using A = acc_t<T>;
  vec<A> sum[9] = {};
  for (int64_t x = 0; x < width; x += lanes<A>) {
    const Block<T> block = {in, in_row, width, x - 1}, gradient = {grad, grad_row, width, x};
    vec<A> above{}, here = gradient.at(0, 0);
    for (int64_t y = 0; y < height; ++y) {
      const Three<A> s = neighbours(block, y);
      const vec<A> below = y + 1 < height ? gradient.at(y + 1, 0) : vec<A>{};
      add3<A>(sum, below, s);
      add3<A>(sum + 3, here, s);
      add3<A>(sum + 6, above, s);
      above = here;
      here = below;
    }
  }
#pragma GCC unroll 9
  for (int i = 0; i < 9; ++i) total[i] += sum[i];
}

template <class T>
void weight_stride2(const T* in, int64_t in_row, int64_t in_width, int64_t in_height, const T* grad,
                    int64_t grad_row, int64_t width, int64_t height, vec<acc_t<T>>* total) {
  using A = acc_t<T>;
  vec<A> sum[9] = {};
  for (int64_t x = 0; x < width; x += lanes<A>) {
    const Block<T> block = {in, in_row, in_width, 2 * x - 1}, gradient = {grad, grad_row, width, x};
    Three<A> above{};
    for (int64_t y = 0; y < height; ++y) {
      const vec<A> here = gradient.at(y, 0);
      add3<A>(sum, here, above);
      add3<A>(sum + 3, here, every_other(block, 2 * y));
      if (2 * y + 1 >= in_height) continue;
      above = every_other(block, 2 * y + 1);
      add3<A>(sum + 6, here, above);
    }
  }
#pragma GCC unroll 9
  for (int i = 0; i < 9; ++i) total[i] += sum[i];
}

// The kernel of a channel; turned by half a turn for the input gradient of stride 1.
template <class T, class A>
void load_kernel(const Conv2dParams& p, int64_t channel, bool turned, A* w) {
  const T* from = static_cast<const T*>(p.weight) + channel * p.weight_stride[0];
  for (int64_t r = 0; r < 3; ++r)
    for (int64_t t = 0; t < 3; ++t)
      w[turned ? 8 - (r * 3 + t) : r * 3 + t] =
          load_n(from + r * p.weight_stride[2] + t * p.weight_stride[3], 1)[0];
}

template <class T>
void convolve(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  using A = acc_t<T>;
  const bool forward = pass == Conv2dPass::forward;
  parallel(p.batch * p.groups, 4, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t image = i / p.groups, c = i % p.groups;
      T* in = static_cast<T*>(p.input) + image * p.input_stride[0] + c * p.input_stride[1];
      T* out = static_cast<T*>(p.output) + image * p.output_stride[0] + c * p.output_stride[1];
      A w[9];
      load_kernel<T>(p, c, !forward && p.stride_width == 1, w);
      if (forward) {
        const A bias = p.bias ? load_n(static_cast<const T*>(p.bias) + c, 1)[0] : A(0);
        const Target<T> to = {out,
                              p.output_stride[2],
                              p.out_width,
                              p.out_height,
                              bias,
                              p.activation,
                              p.bias || p.activation != Activation::none};
        p.stride_width == 1 ? plane_stride1<T>(in, p.input_stride[2], w, to)
                            : plane_stride2<T>(in, p.input_stride[2], p.in_width, p.in_height, w, to);
      } else {
        const Target<T> to = {in, p.input_stride[2], p.in_width, p.in_height, A(0), Activation::none, false};
        p.stride_width == 1 ? plane_stride1<T>(out, p.output_stride[2], w, to)
                            : plane_transposed<T>(out, p.output_stride[2], p.out_width, p.out_height, w, to);
      }
    }
  });
}

template <class T>
void weight(const Conv2dParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  parallel(p.groups, 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      vec<A> total[9] = {};
      for (int64_t image = 0; image < p.batch; ++image) {
        const T* in = static_cast<const T*>(p.input) + image * p.input_stride[0] + c * p.input_stride[1];
        const T* grad = static_cast<const T*>(p.output) + image * p.output_stride[0] + c * p.output_stride[1];
        p.stride_width == 1 ? weight_stride1<T>(in, p.input_stride[2], grad, p.output_stride[2], p.out_width,
                                                p.out_height, total)
                            : weight_stride2<T>(in, p.input_stride[2], p.in_width, p.in_height, grad,
                                                p.output_stride[2], p.out_width, p.out_height, total);
      }
      T* to = static_cast<T*>(p.weight) + c * p.weight_stride[0];
      for (int64_t i = 0; i < 9; ++i)
        store_n(to + i / 3 * p.weight_stride[2] + i % 3 * p.weight_stride[3], splat(reduce_add(total[i])), 1);
    }
  });
}

}  // namespace

namespace planes_3x3 {

constexpr bool kServes = kVectorBytes == 64;  // else nothing of this is compiled

bool serves(const Conv2dParams& p, Conv2dPass) {
  return kServes && is_depthwise(p) && p.in_channels == p.groups && p.out_channels == p.groups &&
         p.kernel_height == 3 && p.kernel_width == 3 && p.pad_top == 1 && p.pad_left == 1 &&
         p.stride_height == p.stride_width && p.stride_width <= 2 && p.dilation_height == 1 &&
         p.dilation_width == 1 && p.input_stride[3] == 1 && p.output_stride[3] == 1 &&
         p.out_height == (p.in_height - 1) / p.stride_height + 1 &&
         p.out_width == (p.in_width - 1) / p.stride_width + 1;
}

int64_t scratch(const Conv2dParams&, Conv2dPass, int64_t) { return 0; }

void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  dispatch_trained(p.dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (kServes)
      pass == Conv2dPass::backward_weight ? weight<T>(p, parallel) : convolve<T>(p, pass, parallel);
  });
}

}  // namespace planes_3x3

}  // namespace pydl::cpu::PYDL_ISA::depthwise
