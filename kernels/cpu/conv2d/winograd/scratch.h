// Scratch of Winograd convolution, cut into aligned pieces.
#pragma once

#include "kernels/cpu/base/scratch.h"
#include "kernels/cpu/base/simd.h"

namespace pydl::cpu::PYDL_ISA::winograd {
namespace {

constexpr int64_t kApartFloats = kApart / static_cast<int64_t>(sizeof(float));

// floats, rounded up to whole pages' worth of cache lines plus a few, so that pieces do not start in the same
// cache set
constexpr int64_t piece(int64_t floats) { return ceil_div(floats, 16) * 16 + 80; }

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::winograd
