// Functions of one number, and their gradients (d2l "Multilayer Perceptrons", "Transformers").
//
//   name        output                                       grad_input / grad_output           saved
//   relu        x > 0 ? x : 0                                y > 0 ? 1 : 0                      y, the output
//   leaky_relu  x > 0 ? x : a x                              x > 0 ? 1 : a                      x, the input
//   sigmoid     s(x) = 1 / (1 + exp(-x))                     y (1 - y)                          y
//   tanh        tanh(x)                                      1 - y^2                            y
//   gelu        x P(x), P the normal distribution            P(x) + x exp(-x^2 / 2) / sqrt(2 pi)  x
//   gelu_tanh   x s(2u), u = sqrt(2 / pi) (x + 0.044715 x^3) s(2u) + x s'(2u) 2u'               x
//   silu        x s(x)                                       s(x) + x s'(x)                     x
//   softplus    log(1 + exp(a x)) / a, x where a x > b       s(a x), 1 where a x > b            x
//
// GELU: Hendrycks, Gimpel, arXiv 1606.08415. SiLU: Elfwing, Uchibe, Doya, Neural Networks 2018.
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

enum class Elementwise : int32_t { relu, leaky_relu, sigmoid, tanh, gelu, gelu_tanh, silu, softplus };

struct ElementwiseParams {
  DType dtype;  // not f16, which arrives as f32
  Elementwise function;
  double a, b;
  int64_t rows, width;  // numbers of a row lie side by side, rows as many numbers apart as the strides say
  const void *input, *grad_output;  // input: of the backward, what is saved
  int64_t input_stride, grad_output_stride;
  void* output;  // dense; of the backward, the gradient of the input. It may be input or grad_output itself
};

namespace cpu {
PYDL_CPU_ENTRY(void elementwise_forward(const ElementwiseParams& params, const Parallel& parallel))
PYDL_CPU_ENTRY(void elementwise_backward(const ElementwiseParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
