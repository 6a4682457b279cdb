// What is applied to a sum before it is stored: the activation.
#pragma once

#include "kernels/cpu/base/math.h"

namespace pydl::cpu::PYDL_ISA {

template <class A>
PYDL_INLINE vec<A> activate(vec<A> x, Activation activation) {
  switch (activation) {
    case Activation::none:
      break;
    case Activation::relu:
      return x < vec<A>{} ? vec<A>{} : x;  // nan stays nan, as in torch
    case Activation::sigmoid:
      return A(1) / (A(1) + exp(-x));
  }
  return x;
}

}  // namespace pydl::cpu::PYDL_ISA
