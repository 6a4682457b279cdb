// Steps of optimizers over all tensors of a model together, and the norm of all gradients (d2l "Optimization
// Algorithms").
//
//   g = maximize ? -grad : grad, to which weight_decay p is added; decoupled: p is multiplied by `decay` instead
//
//   sgd            p -= lr g
//   sgd_momentum   b = momentum b + (1 - dampening) g;  p -= lr b, with nesterov p -= lr (g + momentum b)
//   adam           m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g²;  p -= step_size m / (root sqrt(v) + eps)
//   adam_amsgrad   the same with w = max(w, v) under the root
//   rmsprop        v = beta2 v + (1 - beta2) g²;  p -= lr g / (sqrt(v) + eps); beta2 is torch's alpha
//     _centered    a += (1 - beta2) (g - a), and v - a² under the root
//     _momentum    b = momentum b + g / (...);  p -= lr b
//   adadelta       v = beta2 v + (1 - beta2) g²;  d = sqrt(u + eps) / sqrt(v + eps) g;  u = beta2 u + (1 - beta2) d²;
//                  p -= lr d; beta2 is torch's rho
//
// SGD: Sutskever et al., ICML 2013. Adam: Kingma, Ba, arXiv 1412.6980; AMSGrad: Reddi et al., ICLR 2018; decoupled
// decay: Loshchilov, Hutter, ICLR 2019. RMSprop: Tieleman, Hinton, 2012; centered: Graves, arXiv 1308.0850. Adadelta:
// Zeiler, arXiv 1212.5701.
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

enum class Optimizer : int32_t {
  sgd,
  sgd_momentum,
  adam,
  adam_amsgrad,
  rmsprop,
  rmsprop_centered,
  rmsprop_momentum,
  rmsprop_centered_momentum,
  adadelta,
};

struct OptimOptions {
  double lr, weight_decay, decay;  // decay: 1 where the decay is not decoupled
  double momentum, dampening, beta1, beta2, eps;
  bool maximize, nesterov;
};

// Numbers that lie one after another at each pointer; none overlaps another tensor that is written.
struct OptimTensor {
  const OptimOptions* options;
  void* param;
  const void* grad;
  void* state[3];  // sgd_momentum: b; adam: m, v, w; rmsprop: v, then a, then b; adadelta: v, u
  int64_t count;
  double step_size, root;  // of adam: lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
};

struct OptimParams {
  DType dtype;  // f32 or f64, of all tensors
  Optimizer optimizer;
  int64_t tensors;
  const OptimTensor* tensor;
  const int64_t* first_chunk;  // of each tensor, and one more: chunks of kOptimChunk numbers, counted through
};

struct GradsParams {
  DType dtype;  // f32 or f64, of all gradients
  int64_t tensors;
  void* const* grad;
  const int64_t* count;
  const int64_t* first_chunk;  // as above
  double* sums;                // one number for each chunk
  double factor;
};

constexpr int64_t kOptimChunk = 4096;

namespace cpu {
PYDL_CPU_ENTRY(void optim_step(const OptimParams& params, const Parallel& parallel))
// sums[chunk] = the sum of the squares of its numbers
PYDL_CPU_ENTRY(void grads_square_sums(const GradsParams& params, const Parallel& parallel))
// grad *= factor
PYDL_CPU_ENTRY(void grads_scale(const GradsParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
