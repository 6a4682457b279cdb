// What the two layouts of batch_norm share: the affine form of a channel, the activation and its gradient.
#pragma once

#include "kernels/batch_norm.h"
#include "kernels/cpu/simd.h"

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

template <class A>
PYDL_INLINE Affine<A> affine_at(const BatchNormParams& p, int64_t c) {
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
PYDL_INLINE AffineGradient<A> affine_gradient_at(const BatchNormParams& p, int64_t c) {
  const double invstd = invstd_at(p, c), scale = param_at(p.param_dtype, p.weight, c, 1.0) * invstd;
  const double lost = p.mean[c] - static_cast<double>(static_cast<A>(p.mean[c]));
  const double slope = -scale * invstd * p.sum_grad_xhat[c] / p.count;
  return {static_cast<A>(slope), static_cast<A>(-scale * p.sum_grad[c] / p.count - lost * slope)};
}

// Sums over gz and gz * (x - shift) become those of the contract.
template <class A>
PYDL_INLINE void finish_gradient_sums(const BatchNormParams& p, int64_t c, double sum, double sum_shifted) {
  const double lost = p.mean[c] - static_cast<double>(static_cast<A>(p.mean[c]));
  p.sum_grad[c] = sum;
  p.sum_grad_xhat[c] = (sum_shifted - lost * sum) * invstd_at(p, c);
  set_param(p.param_dtype, p.grad_bias, c, p.sum_grad[c]);
  set_param(p.param_dtype, p.grad_weight, c, p.sum_grad_xhat[c]);
}

// m2 is the sum of squared deviations from the mean.
PYDL_INLINE void finish_moments(const BatchNormParams& p, int64_t c, double mean, double m2) {
  const double n = static_cast<double>(p.batch * p.spatial), k = p.momentum;
  p.mean[c] = mean;
  p.var[c] = m2 / n;
  if (p.running_mean == nullptr) return;
  set_param(p.param_dtype, p.running_mean, c,
            (1 - k) * param_at(p.param_dtype, p.running_mean, c, 0) + k * mean);
  set_param(p.param_dtype, p.running_var, c,
            (1 - k) * param_at(p.param_dtype, p.running_var, c, 0) + k * (m2 / (n - 1)));
}

// ---- vectors

template <class A>
PYDL_INLINE vec<A> keep_first(vec<A> v, int64_t n) {  // lanes from n on become zero, whatever they were
  mask<A> index;
  for (int i = 0; i < lanes<A>; ++i) index[i] = i;
  using I = decltype(index[0] + 0);
  return bit_cast<vec<A>>((index < static_cast<I>(n)) & bit_cast<mask<A>>(v));
}

// exp by Cody and Waite: 2^k times a polynomial on [-ln 2 / 2, ln 2 / 2]; relative error below 2 units in the
// last place for |x| <= 87 (float) or 708 (double), to which the argument is cut.
PYDL_INLINE vec<float> exp_clamped(vec<float> x) {
  x = x > 87.0f ? broadcast(87.0f) : x;
  x = x < -87.0f ? broadcast(-87.0f) : x;
  const vec<float> t = x * 1.44269504f + 0x1.8p23f;  // the low bits of t hold k
  const vec<float> k = t - 0x1.8p23f;
  const vec<float> r = (x - k * 0.693145751953125f) - k * 1.42860677e-06f;
  vec<float> y = broadcast(1.0f / 720);
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  return bit_cast<vec<float>>(bit_cast<i32v>(y) + (bit_cast<i32v>(t) << 23));
}
PYDL_INLINE vec<double> exp_clamped(vec<double> x) {
  x = x > 708.0 ? broadcast(708.0) : x;
  x = x < -708.0 ? broadcast(-708.0) : x;
  const vec<double> t = x * 1.4426950408889634 + 0x1.8p52;
  const vec<double> k = t - 0x1.8p52;
  const vec<double> r = (x - k * 0x1.62e42fee00000p-1) - k * 0x1.a39ef35793c76p-33;
  double factorial = 6227020800.0;  // 13!
  vec<double> y = broadcast(1.0 / factorial);
#pragma GCC unroll 13
  for (int i = 13; i > 0; --i) {
    factorial /= i;
    y = y * r + 1.0 / factorial;
  }
  return bit_cast<vec<double>>(bit_cast<i64v>(y) + (bit_cast<i64v>(t) << 52));
}

template <Activation kActivation, class V>
PYDL_INLINE V activate(V z) {
  if constexpr (kActivation == Activation::relu) return max(V{}, z);  // nan stays nan
  if constexpr (kActivation == Activation::sigmoid) return 1 / (1 + exp_clamped(-z));
  return z;
}

// gz from grad_output g, z or output v; nan passes the gradient, as torch's ReLU does.
template <BatchNormGradient kGradient, class V>
PYDL_INLINE V activation_gradient(V g, V v) {
  if constexpr (kGradient == BatchNormGradient::sigmoid_output) return g * v * (1 - v);
  if constexpr (kGradient == BatchNormGradient::relu_input || kGradient == BatchNormGradient::relu_output)
    return v <= 0 ? V{} : g;
  return g;
}

// ---- dispatch: runtime choices become template arguments

template <Activation value>
struct ActivationTag {
  static constexpr Activation activation = value;
};
template <BatchNormGradient value>
struct GradientTag {
  static constexpr BatchNormGradient gradient = value;
};

template <class F>
PYDL_INLINE void dispatch_activation(Activation activation, const F& body) {
  switch (activation) {
    case Activation::none:
      return body(ActivationTag<Activation::none>{});
    case Activation::relu:
      return body(ActivationTag<Activation::relu>{});
    case Activation::sigmoid:
      return body(ActivationTag<Activation::sigmoid>{});
  }
}

template <class F>
PYDL_INLINE void dispatch_gradient(BatchNormGradient gradient, const F& body) {
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

// ---- the two layouts

int64_t batch_norm_rows_scratch(const BatchNormParams& p);
void batch_norm_rows_forward(const BatchNormParams& p, bool stats, bool apply, const Parallel& parallel);
void batch_norm_rows_backward(const BatchNormParams& p, bool reduce, bool apply, const Parallel& parallel);
int64_t batch_norm_columns_scratch(const BatchNormParams& p);
void batch_norm_columns_forward(const BatchNormParams& p, bool stats, bool apply, const Parallel& parallel);
void batch_norm_columns_backward(const BatchNormParams& p, bool reduce, bool apply, const Parallel& parallel);

}  // namespace pydl::cpu::PYDL_ISA
