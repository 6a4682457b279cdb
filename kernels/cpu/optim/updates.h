// How each optimizer of kernels/optim.h changes a vector of parameters: p, its gradient g and its state s.
//
// Each formula is written in the order in which torch's own ops compute it, so that what overflows there overflows here.
#pragma once

#include "kernels/cpu/base/simd_sqrt.h"
#include "kernels/optim.h"

namespace pydl::cpu::PYDL_ISA {

// The numbers of a tensor's step in the type that it is computed in.
template <class A>
struct Coefficients {
  explicit Coefficients(const OptimTensor& t)
      : lr(static_cast<A>(t.options->lr)),
        weight_decay(static_cast<A>(t.options->weight_decay)),
        decay(static_cast<A>(t.options->decay)),
        momentum(static_cast<A>(t.options->momentum)),
        undamped(static_cast<A>(1 - t.options->dampening)),
        weight1(static_cast<A>(1 - t.options->beta1)),
        beta2(static_cast<A>(t.options->beta2)),
        weight2(static_cast<A>(1 - t.options->beta2)),
        eps(static_cast<A>(t.options->eps)),
        step_size(static_cast<A>(t.step_size)),
        root(static_cast<A>(t.root)),
        maximize(t.options->maximize),
        nesterov(t.options->nesterov) {}
  A lr, weight_decay, decay, momentum, undamped, weight1, beta2, weight2, eps, step_size, root;
  bool maximize, nesterov;
};

template <class A>
using Cs = const Coefficients<A>&;

// from + weight (to - from), in torch's two forms: an infinite `to` gives nan in the second
template <class A>
PYDL_INLINE vec<A> lerp(vec<A> from, vec<A> to, A weight) {
  return weight < A(0.5) ? from + weight * (to - from) : to - (to - from) * (A(1) - weight);
}

template <class A>
PYDL_INLINE vec<A> average_of_squares(vec<A> v, vec<A> g, Cs<A> c) {
  return v * c.beta2 + c.weight2 * g * g;
}

template <bool kMomentum>
struct Sgd {
  static constexpr int states = kMomentum;
  template <class A>
  PYDL_INLINE static void update(vec<A>& p, vec<A> g, vec<A>* s, Cs<A> c) {
    if constexpr (kMomentum) {
      s[0] = s[0] * c.momentum + c.undamped * g;
      g = c.nesterov ? g + c.momentum * s[0] : s[0];
    }
    p -= c.lr * g;
  }
};

template <bool kMaximum>
struct Adam {
  static constexpr int states = 2 + kMaximum;
  template <class A>
  PYDL_INLINE static void update(vec<A>& p, vec<A> g, vec<A>* s, Cs<A> c) {
    p *= c.decay;
    s[0] = lerp<A>(s[0], g, c.weight1);
    s[1] = average_of_squares<A>(s[1], g, c);
    if constexpr (kMaximum) {
      const mask<A> stays = (s[2] >= s[1]) | (s[2] != s[2]);  // nan stays, and v's takes its place
      s[2] = stays ? s[2] : s[1];
    }
    p -= c.step_size * s[0] / (square_root(s[1 + kMaximum]) * c.root + c.eps);
  }
};

template <bool kCentered, bool kMomentum>
struct RmsProp {
  static constexpr int states = 1 + kCentered + kMomentum;
  template <class A>
  PYDL_INLINE static void update(vec<A>& p, vec<A> g, vec<A>* s, Cs<A> c) {
    s[0] = average_of_squares<A>(s[0], g, c);
    vec<A> average = s[0];
    if constexpr (kCentered) {
      s[1] = lerp<A>(s[1], g, c.weight2);
      average -= s[1] * s[1];
    }
    average = square_root(average) + c.eps;
    if constexpr (kMomentum) {
      vec<A>& b = s[1 + kCentered];
      b = b * c.momentum + g / average;
      p -= c.lr * b;
    } else {
      p -= c.lr * g / average;
    }
  }
};

struct Adadelta {
  static constexpr int states = 2;
  template <class A>
  PYDL_INLINE static void update(vec<A>& p, vec<A> g, vec<A>* s, Cs<A> c) {
    s[0] = average_of_squares<A>(s[0], g, c);
    const vec<A> delta = square_root(s[1] + c.eps) / square_root(s[0] + c.eps) * g;
    s[1] = average_of_squares<A>(s[1], delta, c);
    p -= c.lr * delta;
  }
};

}  // namespace pydl::cpu::PYDL_ISA
