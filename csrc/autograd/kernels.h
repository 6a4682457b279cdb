// The kernels of pydl._C that are called as they are, without an op around them.
#pragma once

#include "csrc/launchers.h"

namespace pydl::autograd {

const Launchers& kernels();  // found when the module was loaded

}  // namespace pydl::autograd
