// An inf or nan must spoil the results that its windows reach and no others. Algorithms that mix a tile's numbers, or
// multiply some with zeros, spoil more: they watch their results, and conv2d_run says that the pass is to be made again
// by products of each window alone. Loss scaling makes infs by design, so this has to be right, not quick.
#pragma once

#include "kernels/cpu/base/simd.h"

namespace pydl::cpu::PYDL_ISA {

// seen stays zero for finite numbers; 0 times inf or nan is nan, which stays.
template <class V>  // vec<float> or vec<double>
PYDL_INLINE void watch(V numbers, V& seen) {
  seen += numbers * V{};
}

template <class V>
PYDL_INLINE void report_spoiled(V seen, int32_t* spoiled) {
  if (reduce_add(seen) != 0) __atomic_store_n(spoiled, 1, __ATOMIC_RELAXED);
}

}  // namespace pydl::cpu::PYDL_ISA
