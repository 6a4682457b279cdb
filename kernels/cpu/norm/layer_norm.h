// What both passes of layer norm share. See kernels/layer_norm.h for the formulas.
#pragma once

#include "kernels/cpu/base/scratch.h"
#include "kernels/cpu/base/simd_reduce.h"
#include "kernels/cpu/rows/along.h"
#include "kernels/cpu/rows/walk.h"
#include "kernels/layer_norm.h"
#include "kernels/machine.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kTaskElements = 16384;  // for fewer a thread is not woken

template <class A>
PYDL_INLINE int64_t pitch_of(int64_t width) {
  return ceil_div(width, lanes<A>) * lanes<A>;
}

// A parameter as the loops read it, in the accumulation type: where it lies, or widened into `copy`; of one that is
// absent, `fill`.
template <class T, class A>
const A* widened_parameter(const void* from, DType dtype, int64_t width, A fill, A* copy) {
  if (from == nullptr) {
    for (int64_t j = 0; j < width; j += lanes<A>) store(copy + j, broadcast(fill));  // up to a whole vector
    return copy;
  }
  if constexpr (sizeof(T) == 2) {
    if (dtype != DType::f32) {
      const T* p = static_cast<const T*>(from);
      for (int64_t j = 0; j < width; j += lanes<A>)
        store(copy + j, load_n(p + j, min_of(lanes<A>, width - j)));
      return copy;
    }
  }
  return static_cast<const A*>(from);
}

template <class T>
bool goes_past_cache(const void* p, int64_t rows, int64_t width) {
  const int64_t row = width * static_cast<int64_t>(sizeof(T));
  return reinterpret_cast<uintptr_t>(p) % 64 == 0 && row % 64 == 0 && rows * row >= least_streamed_bytes();
}

PYDL_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
PYDL_INLINE double square_root(double x) { return __builtin_sqrt(x); }

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
