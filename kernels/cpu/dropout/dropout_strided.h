// Dropout where input and output are not one dense run: kernels/cpu/dropout/dropout_strided.cpp.
#pragma once

#include "kernels/cpu/base/simd.h"
#include "kernels/dropout.h"

namespace pydl::cpu::PYDL_ISA {

// past_cache: the output will not stay in the caches, so non-temporal stores pay where its rows are aligned.
void dropout_strided(const DropoutParams& params, bool past_cache, const Parallel& parallel);

}  // namespace pydl::cpu::PYDL_ISA
