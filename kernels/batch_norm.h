// Batch normalisation (Ioffe, Szegedy, ICML 2015; d2l "Batch Normalization"), forward and backward.
//
// For each channel c over the n = batch * spatial values x of the channel:
//
//   mean = sum(x) / n                       var = sum((x - mean)^2) / n
//   z = (x - mean) * invstd * weight + bias + residual                  invstd = 1 / sqrt(var + eps)
//   output = activation(z)
//   running_mean += momentum * (mean - running_mean)                    running_var: the same with var * n / (n - 1)
//
//   gz = grad_output * activation'(z)       xhat = (x - mean) * invstd
//   grad_residual = gz    grad_bias = sum(gz)    grad_weight = sum(gz * xhat)
//   grad_input = weight * invstd * (gz - sum(gz) / n - xhat * sum(gz * xhat) / n)       in training
//   grad_input = weight * invstd * gz                                                   with given statistics
//
// mean and var travel in float64 for every dtype: a float32 mean near 1e4 is coarser than a standard
// deviation of 1e-2. No mask and no normalised input is stored. What the derivative of the activation is read
// from, BatchNormGradient says.
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

// One tensor of logical shape (batch, channels, spatial); strides count elements.
//   rows     (NCHW):          element (n, c, s) at n * row_stride + c * channel_stride + s
//   columns  (channels_last): element (m, c) at m * row_stride + c, where m = n * spatial + s
// Where outputs are pooled, output and grad_output are (batch, channels, windows), in rows.
// A stride of 0 repeats a row, which is how an expanded gradient is read.
struct BatchNormView {
  void* data;  // null where the tensor is absent
  int64_t row_stride, channel_stride;
};

// Where gz comes from.
enum class BatchNormGradient : int32_t {
  linear,         // no activation: gz = grad_output
  relu_input,     // ReLU without residual: z is computed again from the input, bit for bit as in the forward
  relu_output,    // ReLU with residual: output <= 0 masks, one stream instead of the residual's
  sigmoid_output  // grad_output * output * (1 - output)
};

static constexpr bool reads_output(BatchNormGradient g) {
  return g == BatchNormGradient::relu_output || g == BatchNormGradient::sigmoid_output;
}

// The largest plane whose output can be pooled.
static constexpr int64_t kMaxPooledPlane = 4096;

struct BatchNormParams {
  DType dtype;        // of input, residual, output and their gradients
  DType param_dtype;  // of weight, bias, their gradients and the running statistics
  Activation activation;
  BatchNormGradient gradient;
  bool channels_last;  // columns, or rows
  bool training;       // forward: compute mean and var; backward: they depend on the input
  int64_t batch, channels, spatial;

  BatchNormView input, residual, output;
  BatchNormView grad_output, grad_input, grad_residual;  // grad_input, grad_residual: null when not wanted

  const void *weight, *bias;         // (channels), null for 1 and 0
  void *running_mean, *running_var;  // (channels); read when not training, else updated when not null
  double eps, momentum;

  double *mean, *var;                // (channels), biased variance
  double *sum_grad, *sum_grad_xhat;  // (channels): sum(gz), sum(gz * xhat)
  double count;                   // backward: values per channel, over all processes where several share them
  void *grad_weight, *grad_bias;  // (channels), null when not wanted

  bool stream;    // outputs leave the cache: store past it
  void* scratch;  // batch_norm_scratch() bytes, 64-byte aligned

  // CPU, rows of float32 and bfloat16, with an activation and without residual: not 0 where outputs are the means of 2x2
  // pixels, two apart, of planes of this width; a last row or column that is in no window counts in the statistics alone
  int64_t pooled_width;
};

// running = (1 - momentum) * running + momentum * factor * batch, for the mean (0) and the variance (1).
struct BatchNormUpdate {
  int64_t channels;
  void* running[2];
  DType dtype[2];
  int64_t stride[2];
  const double* batch[2];
  double factor[2];
  double momentum;
};

namespace cpu {
PYDL_CPU_ENTRY(int64_t batch_norm_scratch(const BatchNormParams& params))
// mean and var from input; updates the running statistics when they are given
PYDL_CPU_ENTRY(void batch_norm_stats(const BatchNormParams& params, const Parallel& parallel))
// output from input, residual, mean and var
PYDL_CPU_ENTRY(void batch_norm_apply(const BatchNormParams& params, const Parallel& parallel))
// both in one; without training, mean and var are taken from the running statistics
PYDL_CPU_ENTRY(void batch_norm_forward(const BatchNormParams& params, const Parallel& parallel))
// sum_grad and sum_grad_xhat, and grad_weight and grad_bias from them
PYDL_CPU_ENTRY(void batch_norm_backward_reduce(const BatchNormParams& params, const Parallel& parallel))
// grad_input and grad_residual from the sums
PYDL_CPU_ENTRY(void batch_norm_backward_apply(const BatchNormParams& params, const Parallel& parallel))
// both in one; the reduction is left out where nothing wants it
PYDL_CPU_ENTRY(void batch_norm_backward(const BatchNormParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
