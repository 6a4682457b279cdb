// What is applied to a sum before it is stored: the activation.
#pragma once

#include "kernels/cpu/simd.h"

namespace pydl::cpu::PYDL_ISA {

template <class A>
PYDL_INLINE vec<A> activate(vec<A> x, Activation activation) {
  switch (activation) {
    case Activation::none:
      break;
    case Activation::relu:
      return x < vec<A>{} ? vec<A>{} : x;  // nan stays nan, as in torch
    case Activation::sigmoid: {
      A lane[lanes<A>];
      store(lane, x);
      for (A& value : lane) value = A(1) / (A(1) + static_cast<A>(__builtin_exp(-value)));
      return load(lane);
    }
  }
  return x;
}

}  // namespace pydl::cpu::PYDL_ISA
