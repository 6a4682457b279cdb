// The input gradient of strided first layers (phases.cpp).
#pragma once

#include "kernels/conv2d.h"

namespace pydl::cpu::PYDL_ISA::implicit {

// Whether the phases of the stride, times the few input channels, fill the columns of one product.
bool spread_pays(const Conv2dParams& params);
int64_t spread_scratch(const Conv2dParams& params, int64_t threads);
void spread_backward_input(const Conv2dParams& params, const Parallel& parallel);

}  // namespace pydl::cpu::PYDL_ISA::implicit
