// The losses of kernels/losses.h over kCount vectors in step.
//
//   F::loss<kHalf, A>(x, t, p, o)     x[i] becomes the loss, without its weight
//   F::slope<kHalf, A>(x, t, p, o)    x[i] becomes its derivative by x
//
// p: the weights of positive targets, read by the functions that have kWeights. kHalf: for half types and sums.
#pragma once

#include "kernels/cpu/base/math.h"

namespace pydl::cpu::PYDL_ISA {

template <class A>
struct LossOptions {
  A limit, square, linear, offset;
  A undefined;  // the slope of a difference that is neither small, positive nor negative
};

#define PYDL_EACH _Pragma("GCC unroll 4") for (int i = 0; i < kCount; ++i)

struct Difference {
  static constexpr bool kWeights = false;
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void loss(vec<A> (&x)[kCount], const vec<A> (&t)[kCount], const vec<A> (&)[kCount],
                               const LossOptions<A>& o) {
    PYDL_EACH {
      const vec<A> d = x[i] - t[i], size = absolute<A>(d);
      x[i] = size <= o.limit ? d * d * o.square : size * o.linear - o.offset;
    }
  }
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void slope(vec<A> (&x)[kCount], const vec<A> (&t)[kCount], const vec<A> (&)[kCount],
                                const LossOptions<A>& o) {
    const vec<A> up = broadcast<A>(o.linear), neither = broadcast<A>(o.undefined);
    PYDL_EACH {
      const vec<A> d = x[i] - t[i];
      const vec<A> far = d > A(0) ? up : (d < A(0) ? -up : neither);
      x[i] = absolute<A>(d) <= o.limit ? d * (2 * o.square) : far;
    }
  }
};

// Every exponential is of a number that is not positive, and neither tail of the logistic function is a difference.
struct BinaryCrossEntropy {
  static constexpr bool kWeights = true;
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void loss(vec<A> (&x)[kCount], const vec<A> (&t)[kCount], const vec<A> (&p)[kCount],
                               const LossOptions<A>&) {
    vec<A> e[kCount];
    PYDL_EACH e[i] = -absolute<A>(x[i]);
    exp_nonpositive_group<kHalf, A>(e);
    PYDL_EACH {
      const vec<A> u = e[i] + A(1);
      const vec<A> log1p = log(u) - ((u - A(1)) - e[i]) / u;  // what the sum lost, to first order
      const vec<A> softplus =
          max(vec<A>{}, -x[i]) + log1p;  // log(1 + exp(-x)); max's second argument may be nan
      x[i] = (A(1) - t[i]) * x[i] + ((p[i] - A(1)) * t[i] + A(1)) * softplus;
    }
  }
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void slope(vec<A> (&x)[kCount], const vec<A> (&t)[kCount], const vec<A> (&p)[kCount],
                                const LossOptions<A>&) {
    vec<A> e[kCount];
    PYDL_EACH e[i] = -absolute<A>(x[i]);
    exp_nonpositive_group<kHalf, A>(e);
    PYDL_EACH {
      const vec<A> near = A(1) / (A(1) + e[i]), far = e[i] * near;  // s(|x|), s(-|x|)
      const mask<A> positive = x[i] >= A(0);
      const vec<A> s = positive ? near : far, rest = positive ? far : near;
      x[i] = (A(1) - t[i]) * s - p[i] * t[i] * rest;
    }
  }
};

#undef PYDL_EACH

}  // namespace pydl::cpu::PYDL_ISA
