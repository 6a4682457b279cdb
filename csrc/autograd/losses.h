// What the losses of class indices share.
#pragma once

#include "csrc/autograd/arguments.h"
#include "csrc/autograd/node.h"

namespace pydl::autograd {

struct LossOptions {
  int64_t reduction, ignore_index;
  double label_smoothing, z_loss;
};

int64_t reduction(const char* name);  // torch's number of it; what there is not is refused in Python

}  // namespace pydl::autograd
