// The kernels of kernels/optim.h with torch's threads, for pydl._torch: which reads the tensors of an optimizer, and
// finds this table in the capsule pydl._C.optim. Not an op: a step writes to all tensors of a model at once.
#pragma once

#include "kernels/optim.h"

namespace pydl {

struct OptimLaunchers {
  void (*step)(const OptimParams&);
  void (*square_sums)(const GradsParams&);
  void (*scale)(const GradsParams&);
};
constexpr const char* kOptimCapsule = "pydl._C.optim";

extern const OptimLaunchers optim_launchers;

}  // namespace pydl
