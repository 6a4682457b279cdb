// The pool of csrc/memory.h as it serves all of torch (pydl.memory.serve_torch): pydl._torch has the allocator, and is
// given the pool in a capsule.
#pragma once

#include <cstdint>

namespace pydl::memory {

struct Shared {
  void* (*allocate)(int64_t bytes,
                    int64_t* got);  // as in csrc/memory.h; null too when this is torch's to serve
  void (*release)(void* data, int64_t got);
};
constexpr const char* kCapsule = "pydl.memory";

const Shared* shared();
// Whether torch's large tensors come from the pool, once there is an allocator that asks. Outputs of our ops are torch's
// empty tensors then, which may be resized: enabled() is false meanwhile.
void serve_torch(bool on);
bool serves_torch();

}  // namespace pydl::memory
