// How places of maxima are kept (max_pool2d.cpp, max_pool3d.cpp).
#pragma once

#include "csrc/pool2d_call.h"
#include "kernels/max_pool2d.h"

namespace pydl {

inline ScalarType place_type(const Pool2dParams& p) {
  return p.kernel_height * p.kernel_width <= kMaxPool2dByteTaps ? ScalarType::Byte : ScalarType::Int;
}

}  // namespace pydl
