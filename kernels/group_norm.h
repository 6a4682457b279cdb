// Group normalisation (Wu, He, ECCV 2018), forward and backward.
//
// For each sample and each group of channels / groups channels, over their n values x:
//
//   mean = sum(x) / n                  scale = 1 / sqrt(sum((x - mean)^2) / n + eps)
//   xhat = (x - mean) * scale          output = xhat * weight + bias               weight, bias: of the channel
//
//   g = grad_output * weight
//   grad_input  = scale * (g - sum(g) / n - xhat * sum(g * xhat) / n)
//   grad_weight = sum over samples and places of grad_output * xhat                grad_bias = sum of grad_output
//
// mean and scale are kept in float64 for every dtype, as in layer_norm.h.
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

struct GroupNormParams {
  DType dtype;      // of input, output and their gradients: not f16, which arrives as f32
  DType parameter;  // of weight, bias and their gradients: dtype, or f32
  bool
      channels_last;  // tensors are dense, (samples, spatial, channels) in memory; else (samples, channels, spatial)
  int64_t samples, channels, groups, spatial;
  double eps;
  const void* input;
  const void *weight, *bias;  // (channels); null for 1 and 0
  void* output;
  double *mean, *scale;  // (samples, groups)

  const void* grad_output;                     // null in the forward
  void *grad_input, *grad_weight, *grad_bias;  // null where not wanted
  void* scratch;                               // group_norm_scratch() bytes, 64-byte aligned
};

namespace cpu {
PYDL_CPU_ENTRY(int64_t group_norm_scratch(const GroupNormParams& params, int64_t threads))
PYDL_CPU_ENTRY(void group_norm_forward(const GroupNormParams& params, const Parallel& parallel))
PYDL_CPU_ENTRY(void group_norm_backward(const GroupNormParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
