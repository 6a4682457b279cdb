// What this machine allows: the rates that benchmarks are measured against, by the shortest loops there are.
//
//   copy   output[i] = input[i], past the caches     bytes read + bytes written per second
//   read   sum of input[i]                           bytes read per second
//   fma    acc = acc * a + b in registers            floating-point operations per second
//   round_trip  one thread writes a line that another waits for, which answers     seconds for both ways
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

namespace cpu {
PYDL_CPU_ENTRY(void probe_copy(const float* input, float* output, int64_t numel, const Parallel& parallel))
PYDL_CPU_ENTRY(float probe_read(const float* input, int64_t numel, const Parallel& parallel))
// Returns the operations done; the sum of the accumulators goes to *result, so that none can be left out.
PYDL_CPU_ENTRY(double probe_fma(int64_t rounds, float* result, const Parallel& parallel))
// Returns the round trips made: none where one thread serves both sides.
PYDL_CPU_ENTRY(int64_t probe_round_trip(int64_t rounds, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
