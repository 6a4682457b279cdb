// Rows times a panel of any depth, in equal parts: each is summed in registers and then added to the result, so that a
// part of `right` stays in the first cache and rounding errors stay in bounds.
#pragma once

#include "kernels/cpu/gemm/panel.h"

namespace pydl::cpu::PYDL_ISA::gemm {
namespace {

// product.depth may be any.
template <class A>
void multiply_in_parts(const PanelProduct<A>& product) {
  const int64_t parts = ceil_div(product.depth, kDepth);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t k = product.depth * part / parts;
    PanelProduct<A> one = product;
    one.depth = product.depth * (part + 1) / parts - k;
    one.left += k;
    one.right += k * product.right_pitch;
    one.add = product.add || part > 0;
    multiply_panel(one);
  }
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::gemm
