// Kernels with torch's threads, for pydl._torch, which finds this table in the capsule pydl._C.launchers. No ops: a
// step of an optimizer writes to all tensors of a model at once, and casts are a part of the op that reads them.
#pragma once

#include "kernels/cast.h"
#include "kernels/optim.h"

namespace pydl {

struct Launchers {
  void (*step)(const OptimParams&);
  void (*square_sums)(const GradsParams&);
  void (*scale)(const GradsParams&);
  void (*cast)(const CastParams&);
};
constexpr const char* kLaunchersCapsule = "pydl._C.launchers";

extern const Launchers launchers;

}  // namespace pydl
