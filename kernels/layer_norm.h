// Normalisation of rows: layer norm (Ba, Kiros, Hinton, 2016; d2l "Transformer") and RMS norm (Zhang, Sennrich, NeurIPS
// 2019), forward and backward.
//
// For each row of `width` values x:
//
//   mean = sum(x) / width                      0 for RMS norm
//   scale = 1 / sqrt(sum((x - mean)^2) / width + eps)
//   xhat = (x - mean) * scale                  output = xhat * weight + bias
//
//   g = grad_output * weight
//   grad_input  = scale * (g - sum(g) / width - xhat * sum(g * xhat) / width)      without sum(g) for RMS norm
//   grad_weight = sum over rows of grad_output * xhat                              grad_bias = sum of grad_output
//
// mean and scale are kept in float64 for every dtype: a float32 mean near 1e4 is coarser than a deviation of 1e-2.
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

struct LayerNormParams {
  DType dtype;      // of input, output and their gradients: not f16, which arrives as f32
  DType parameter;  // of weight, bias and their gradients: dtype, or f32
  bool centered;    // layer norm, or RMS norm
  int64_t rows, width;
  double eps;
  const void* input;          // all tensors are contiguous
  const void *weight, *bias;  // `width` elements each; null for 1 and 0
  void* output;
  double *mean, *scale;  // one for each row; mean is null if not centered

  const void* grad_output;
  void *grad_input, *grad_weight, *grad_bias;  // null where not wanted
  void* scratch;                               // layer_norm_scratch() bytes, 64-byte aligned
};

namespace cpu {
PYDL_CPU_ENTRY(int64_t layer_norm_scratch(const LayerNormParams& params, bool backward))
PYDL_CPU_ENTRY(void layer_norm_forward(const LayerNormParams& params, const Parallel& parallel))
PYDL_CPU_ENTRY(void layer_norm_backward(const LayerNormParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
