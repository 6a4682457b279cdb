// The seed of a mask of dropout.
#pragma once

#include <ATen/core/Tensor.h>

namespace pydl::autograd {

at::Tensor dropout_seed();  // one int64, of torch's generator

}  // namespace pydl::autograd
