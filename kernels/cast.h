// float32 to bfloat16, rounded to nearest even as torch does it, and back: of several tensors together.
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

// Numbers that lie one after another at both pointers.
struct CastTensor {
  const void* from;
  void* to;
  int64_t count;
  bool narrows;  // from float32
};

struct CastParams {
  int64_t tensors;
  const CastTensor* tensor;
};

namespace cpu {
PYDL_CPU_ENTRY(void cast(const CastParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
