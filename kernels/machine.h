// The caches of this machine, and the thresholds that follow from them.
#pragma once

#include <stdint.h>

namespace pydl {

// Bytes of the data caches that one core uses. Where the operating system names none: 32 KB, 1 MB and 32 MB.
struct Machine {
  int64_t level1, level2, level3;
};

const Machine& machine();          // asked once
void machine_set(Machine caches);  // for tests, and for who tunes

// A large server, or a virtual machine of one, names the last level that all its cores share: of more than this much no
// core has the use.
constexpr int64_t kMostOfLastLevel = 32 << 20;

// static: each instruction set has its own, so that none is shared with code for a better CPU (tests/build/test_build.py)
static inline int64_t last_level_bytes() {
  const int64_t bytes = machine().level3;
  return bytes < kMostOfLastLevel ? bytes : kMostOfLastLevel;
}

// A result of so many bytes has left the caches before anyone reads it: it is written past them (stream() in
// cpu/base/simd.h). Half of the last level, since the inputs pass through it too.
static inline int64_t least_streamed_bytes() { return last_level_bytes() / 2; }

}  // namespace pydl
