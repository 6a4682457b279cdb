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

// sigmoid of kCount vectors, in step. kHalf: for what is rounded to a half type.
template <bool kHalf, int kCount>
PYDL_INLINE void sigmoid_group(float* at) {
  vec<float> x[kCount], e[kCount];
#pragma GCC unroll 8
  for (int k = 0; k < kCount; ++k) {
    x[k] = load(at + k * lanes<float>);
    e[k] = -absolute<float>(x[k]);
  }
  exp_nonpositive_group<kHalf, float>(e);
#pragma GCC unroll 8
  for (int k = 0; k < kCount; ++k) x[k] = sigmoid_of<float>(x[k], e[k]);
#pragma GCC unroll 8
  for (int k = 0; k < kCount; ++k) store(at + k * lanes<float>, x[k]);
}

// sigmoid of `floats` numbers in place, whole vectors.
template <bool kHalf>
__attribute__((noinline, unused)) static void sigmoid_strip(float* strip, int64_t floats) {
  constexpr int64_t all = lanes<float>, kStep = kVectorBytes == 64 ? 8 : 4;
  int64_t i = 0;
  for (; i + kStep * all <= floats; i += kStep * all) sigmoid_group<kHalf, kStep>(strip + i);
  for (; i < floats; i += all) sigmoid_group<kHalf, 1>(strip + i);
}

}  // namespace pydl::cpu::PYDL_ISA
