// What calls of conv2d's kernels share: conv3d makes several out of one of its own.
#pragma once

#include "csrc/torch.h"
#include "kernels/conv2d.h"

namespace pydl {

// One pass on the CPU by the plan for p, which is given its scratch; returns the name of the algorithm. preferred: the one
// to take where none is asked for, and which must serve p; or null.
const char* conv2d_on_cpu(Conv2dParams& p, Conv2dPass pass, const char* preferred = nullptr);

}  // namespace pydl
