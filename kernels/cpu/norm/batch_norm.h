// What the two layouts of batch_norm share: the affine form of a channel, the activation and its gradient.
#pragma once

#include "kernels/batch_norm.h"
#include "kernels/cpu/base/math.h"
#include "kernels/cpu/rows/walk.h"

namespace pydl::cpu::PYDL_ISA {

// ---- parameters of a channel, in any dtype

PYDL_INLINE double param_at(DType dtype, const void* data, int64_t c, double absent) {
  if (data == nullptr) return absent;
  switch (dtype) {
    case DType::f32:
      return static_cast<const float*>(data)[c];
    case DType::f64:
      return static_cast<const double*>(data)[c];
    case DType::bf16:
      return load_n(static_cast<const bf16*>(data) + c, 1)[0];
    case DType::f16:
      return load_n(static_cast<const f16*>(data) + c, 1)[0];
  }
  return absent;
}

PYDL_INLINE void set_param(DType dtype, void* data, int64_t c, double value) {
  if (data == nullptr) return;
  switch (dtype) {
    case DType::f32:
      static_cast<float*>(data)[c] = static_cast<float>(value);
      break;
    case DType::f64:
      static_cast<double*>(data)[c] = value;
      break;
    case DType::bf16:
      store_n(static_cast<bf16*>(data) + c, broadcast(static_cast<float>(value)), 1);
      break;
    case DType::f16:
      store_n(static_cast<f16*>(data) + c, broadcast(static_cast<float>(value)), 1);
      break;
  }
}

PYDL_INLINE double invstd_at(const BatchNormParams& p, int64_t c) {
  return 1.0 / __builtin_sqrt(p.var[c] + p.eps);
}

// z = (x - shift) * scale + offset. shift is the mean rounded to the accumulation type, and what rounding
// took from it goes into offset: x - shift is exact where x is near the mean, so a mean far above the
// deviation costs no digits.
template <class A>
struct Affine {
  A shift, scale, offset;
};

template <class A>  // out of line, with all that reads and writes parameters: a channel's work is long
__attribute__((noinline)) static Affine<A> affine_at(const BatchNormParams& p, int64_t c) {
  const double scale = param_at(p.param_dtype, p.weight, c, 1.0) * invstd_at(p, c);
  const A shift = static_cast<A>(p.mean[c]);
  const double offset =
      param_at(p.param_dtype, p.bias, c, 0.0) - (p.mean[c] - static_cast<double>(shift)) * scale;
  return {shift, static_cast<A>(scale), static_cast<A>(offset)};
}

// grad_input = gz * scale + (x - shift) * slope + constant
template <class A>
struct AffineGradient {
  A slope, constant;
};

template <class A>
__attribute__((noinline)) static AffineGradient<A> affine_gradient_at(const BatchNormParams& p, int64_t c) {
  const double invstd = invstd_at(p, c), scale = param_at(p.param_dtype, p.weight, c, 1.0) * invstd;
  const double lost = p.mean[c] - static_cast<double>(static_cast<A>(p.mean[c]));
  const double slope = -scale * invstd * p.sum_grad_xhat[c] / p.count;
  return {static_cast<A>(slope), static_cast<A>(-scale * p.sum_grad[c] / p.count - lost * slope)};
}

// Sums over gz and gz * (x - shift) become those of the contract.
template <class A>
__attribute__((noinline)) static void finish_gradient_sums(const BatchNormParams& p, int64_t c, double sum,
                                                           double sum_shifted) {
  const double lost = p.mean[c] - static_cast<double>(static_cast<A>(p.mean[c]));
  p.sum_grad[c] = sum;
  p.sum_grad_xhat[c] = (sum_shifted - lost * sum) * invstd_at(p, c);
  set_param(p.param_dtype, p.grad_bias, c, p.sum_grad[c]);
  set_param(p.param_dtype, p.grad_weight, c, p.sum_grad_xhat[c]);
}

// m2 is the sum of squared deviations from the mean.
__attribute__((noinline, unused)) static void finish_moments(const BatchNormParams& p, int64_t c, double mean,
                                                             double m2) {
  const double n = static_cast<double>(p.batch * p.spatial), k = p.momentum;
  p.mean[c] = mean;
  p.var[c] = m2 / n;
  if (p.running_mean == nullptr) return;
  set_param(p.param_dtype, p.running_mean, c,
            (1 - k) * param_at(p.param_dtype, p.running_mean, c, 0) + k * mean);
  set_param(p.param_dtype, p.running_var, c,
            (1 - k) * param_at(p.param_dtype, p.running_var, c, 0) + k * (m2 / (n - 1)));
}

// ---- the same for all channels at once, for layouts that take them side by side: loops over float64 that
// the compiler turns into vectors. One by one, the square roots and divisions of 120 channels take as long as
// the other work of a (256, 120) input.

__attribute__((noinline, unused)) static void widen_params(const BatchNormParams& p, const void* data,
                                                           double absent, double* to) {
  if (data && p.param_dtype == DType::f32) {
    for (int64_t c = 0; c < p.channels; ++c) to[c] = static_cast<double>(static_cast<const float*>(data)[c]);
  } else {
    for (int64_t c = 0; c < p.channels; ++c) to[c] = param_at(p.param_dtype, data, c, absent);
  }
}

__attribute__((noinline, unused)) static void narrow_params(const BatchNormParams& p, const double* from,
                                                            void* data) {
  if (data && p.param_dtype == DType::f32) {
    for (int64_t c = 0; c < p.channels; ++c) static_cast<float*>(data)[c] = static_cast<float>(from[c]);
  } else {
    for (int64_t c = 0; c < p.channels; ++c) set_param(p.param_dtype, data, c, from[c]);
  }
}

// a, b: room for (channels) each
template <class A>  // never inlined: forward and backward must get the same bits
__attribute__((noinline)) static void affine_of_channels(const BatchNormParams& p, double* __restrict a,
                                                         double* __restrict b, A* __restrict shift,
                                                         A* __restrict scale, A* __restrict offset) {
  const double eps = p.eps;
  const double* __restrict mean = p.mean, * __restrict var = p.var;
  widen_params(p, p.weight, 1.0, a);
  widen_params(p, p.bias, 0.0, b);
  for (int64_t c = 0; c < p.channels; ++c) {
    const double s = a[c] * (1.0 / __builtin_sqrt(var[c] + eps));
    const A near = static_cast<A>(mean[c]);
    shift[c] = near;
    scale[c] = static_cast<A>(s);
    offset[c] = static_cast<A>(b[c] - (mean[c] - static_cast<double>(near)) * s);
  }
}

template <class A>
static inline void affine_gradient_of_channels(const BatchNormParams& p, double* __restrict a,
                                               A* __restrict slope, A* __restrict constant) {
  const double eps = p.eps, per_count = 1.0 / p.count;
  const double* __restrict mean = p.mean, * __restrict var = p.var;
  const double* __restrict sum = p.sum_grad, * __restrict sum_xhat = p.sum_grad_xhat;
  widen_params(p, p.weight, 1.0, a);
  for (int64_t c = 0; c < p.channels; ++c) {
    const double invstd = 1.0 / __builtin_sqrt(var[c] + eps), s = a[c] * invstd;
    const double lost = mean[c] - static_cast<double>(static_cast<A>(mean[c]));
    const double m = -s * invstd * sum_xhat[c] * per_count;
    slope[c] = static_cast<A>(m);
    constant[c] = static_cast<A>(-s * sum[c] * per_count - lost * m);
  }
}

// sum_grad and sum_grad_xhat hold sums over gz and gz * (x - shift).
template <class A>
__attribute__((noinline)) static void finish_gradient_sums_of_channels(const BatchNormParams& p) {
  const double eps = p.eps;
  const double* __restrict mean = p.mean, * __restrict var = p.var, * __restrict sum = p.sum_grad;
  double* __restrict shifted = p.sum_grad_xhat;
  for (int64_t c = 0; c < p.channels; ++c) {
    const double lost = mean[c] - static_cast<double>(static_cast<A>(mean[c]));
    shifted[c] = (shifted[c] - lost * sum[c]) * (1.0 / __builtin_sqrt(var[c] + eps));
  }
  narrow_params(p, p.sum_grad, p.grad_bias);
  narrow_params(p, p.sum_grad_xhat, p.grad_weight);
}

// mean is done, var holds the sums of squared deviations. a, b: room for (channels) each
static inline void finish_moments_of_channels(const BatchNormParams& p, double* __restrict a,
                                              double* __restrict b) {
  const double n = static_cast<double>(p.batch * p.spatial), k = p.momentum;
  const double per_n = 1.0 / n, unbiased = k / (n - 1);
  double* __restrict mean = p.mean, * __restrict var = p.var;
  if (p.running_mean != nullptr) {
    widen_params(p, p.running_mean, 0.0, a);
    widen_params(p, p.running_var, 0.0, b);
    for (int64_t c = 0; c < p.channels; ++c) {
      a[c] = (1 - k) * a[c] + k * mean[c];
      b[c] = (1 - k) * b[c] + unbiased * var[c];
    }
    narrow_params(p, a, p.running_mean);
    narrow_params(p, b, p.running_var);
  }
  for (int64_t c = 0; c < p.channels; ++c) var[c] *= per_n;
}

// ---- vectors

template <class A>
PYDL_INLINE vec<A> keep_first(vec<A> v, int64_t n) {  // lanes from n on become zero, whatever they were
  mask<A> index;
  for (int i = 0; i < lanes<A>; ++i) index[i] = i;
  using I = decltype(index[0] + 0);
  return bit_cast<vec<A>>((index < static_cast<I>(n)) & bit_cast<mask<A>>(v));
}

// Here and below the activation is a constant once inlined, but for types of one walk.
template <class V>
PYDL_INLINE V activated(V z, Activation activation) {
  if (activation == Activation::relu) return max(V{}, z);  // nan stays nan
  if (activation == Activation::sigmoid) return 1 / (1 + exp(-z));
  return z;
}

// gz from grad_output g, z or output v; nan passes the gradient, as torch's ReLU does.
template <class V>
PYDL_INLINE V activation_gradient(V g, V v, BatchNormGradient gradient) {
  if (gradient == BatchNormGradient::sigmoid_output) return g * v * (1 - v);
  return v <= 0 ? V{} : g;
}

// ---- dispatch: runtime choices become template arguments, but for types of one walk (kOneWalk)

static constexpr Activation kAnyActivation{-1};
static constexpr BatchNormGradient kAnyGradient{-1};

template <Activation value>
struct ActivationTag {
  static constexpr Activation activation = value;
};
template <BatchNormGradient value>
struct GradientTag {
  static constexpr BatchNormGradient gradient = value;
};

template <class T, class F>
PYDL_INLINE void dispatch_activation(Activation activation, const F& body) {
  if constexpr (kOneWalk<T>) return body(ActivationTag<kAnyActivation>{});
  switch (activation) {
    case Activation::none:
      return body(ActivationTag<Activation::none>{});
    case Activation::relu:
      return body(ActivationTag<Activation::relu>{});
    case Activation::sigmoid:
      return body(ActivationTag<Activation::sigmoid>{});
  }
}

template <class T, class F>
PYDL_INLINE void dispatch_gradient(BatchNormGradient gradient, const F& body) {
  if constexpr (kOneWalk<T>) return body(GradientTag<kAnyGradient>{});
  switch (gradient) {
    case BatchNormGradient::linear:
      return body(GradientTag<BatchNormGradient::linear>{});
    case BatchNormGradient::relu_input:
      return body(GradientTag<BatchNormGradient::relu_input>{});
    case BatchNormGradient::relu_output:
      return body(GradientTag<BatchNormGradient::relu_output>{});
    case BatchNormGradient::sigmoid_output:
      return body(GradientTag<BatchNormGradient::sigmoid_output>{});
  }
}

// The activation of a walk: its template argument, or what the call asks for.
template <Activation kActivation>
PYDL_INLINE Activation activation_of(const BatchNormParams& p) {
  return kActivation == kAnyActivation ? p.activation : kActivation;
}
template <BatchNormGradient kGradient>
PYDL_INLINE BatchNormGradient gradient_of(const BatchNormParams& p) {
  return kGradient == kAnyGradient ? p.gradient : kGradient;
}

// ---- the layouts

int64_t batch_norm_rows_scratch(const BatchNormParams& p);
void batch_norm_rows_forward(const BatchNormParams& p, bool stats, bool apply, const Parallel& parallel);
void batch_norm_rows_backward(const BatchNormParams& p, bool reduce, bool apply, const Parallel& parallel);
int64_t batch_norm_columns_scratch(const BatchNormParams& p);
void batch_norm_columns_forward(const BatchNormParams& p, bool stats, bool apply, const Parallel& parallel);
void batch_norm_columns_backward(const BatchNormParams& p, bool reduce, bool apply, const Parallel& parallel);

// Whether rows are cut by images: a convolution of few channels is, and so is pooling, and in the caches what the other core
// wrote costs more than to read the input twice.
static inline bool batch_norm_cuts_images(const BatchNormParams& p) { return p.channels <= 16 && !p.stream; }

// small planes of NCHW, by the walks of columns: needs no scratch
void batch_norm_planes_forward(const BatchNormParams& p, bool stats, bool apply, const Parallel& parallel);
void batch_norm_planes_backward(const BatchNormParams& p, bool reduce, bool apply, const Parallel& parallel);

}  // namespace pydl::cpu::PYDL_ISA
