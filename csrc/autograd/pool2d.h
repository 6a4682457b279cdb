// Pooling behind an activation whose input nobody else sees (conv2d.cpp): what the pools' nodes are told.
#pragma once

#include "csrc/autograd/activation.h"
#include "csrc/autograd/arguments.h"

namespace pydl::autograd {

enum class Pool { none, maximum, average };

// Whether the running backward takes this pool's gradient through the activation as well. A maximum's is multiplied by
// what the pool itself gave. An average's by the image: where that is to be differentiated, it is the convolution's.
inline bool goes_through_activation(Pool pool) {
  return pool == Pool::maximum || (pool == Pool::average && !at::GradMode::is_enabled());
}

// behind: the activation that made the input. The pool's gradient is then that of what the activation was given: a
// maximum has the activation's slope, so that the pooled gradient is multiplied, and an average's as it is spread.
struct MaxPoolOptions {
  Integers kernel, stride, padding, dilation;
  bool ceil_mode, channels_last;
  Activation behind = none;
};

struct AvgPoolOptions {
  Integers kernel, stride, padding;
  bool ceil_mode, count_include_pad;
  int64_t divisor;
  bool channels_last, grad_channels_last;
  Activation behind = none;
};

// From the arguments of max_pool2d and avg_pool2d but for the first, which begin at i.
MaxPoolOptions max_pool_options(const Arguments& arguments, int i, bool channels_last);
AvgPoolOptions avg_pool_options(const Arguments& arguments, int i, bool channels_last);

Tensor max_pool2d_call(const Tensor& input, MaxPoolOptions&& options);
Tensor avg_pool2d_call(const Tensor& input, AvgPoolOptions&& options);

}  // namespace pydl::autograd
