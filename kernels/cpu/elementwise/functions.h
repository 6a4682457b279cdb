// The functions of kernels/elementwise.h over kCount vectors in step, so that their exponentials are so many chains.
//
//   F::forward<kHalf, A>(x, o)        x[i] becomes f(x[i])
//   F::backward<kHalf, A>(s, g, o)    g[i] becomes g[i] f'(x), from what is saved, s[i]; s is used up
//
// Every exponential is of a number that is not positive: none overflows, and both tails of a logistic function keep
// their digits. kHalf: for results that are rounded to half types.
#pragma once

#include "kernels/cpu/base/math.h"

namespace pydl::cpu::PYDL_ISA {

template <class A>
struct ElementwiseOptions {
  A a, b;
};

#define PYDL_EACH _Pragma("GCC unroll 4") for (int i = 0; i < kCount; ++i)

// s = 1 / (1 + exp(-x)), and where asked its derivative s (1 - s), in which nothing cancels.
template <bool kHalf, class A, int kCount>
PYDL_INLINE void logistic(const vec<A> (&x)[kCount], vec<A> (&s)[kCount], vec<A>* slope = nullptr) {
  PYDL_EACH s[i] = -absolute<A>(x[i]);
  exp_nonpositive_group<kHalf, A>(s);
  PYDL_EACH {
    const vec<A> e = s[i], r = A(1) / (A(1) + e);
    s[i] = x[i] >= A(0) ? r : e * r;
    if (slope) slope[i] = e * r * r;
  }
}

struct Relu {
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void forward(vec<A> (&x)[kCount], const ElementwiseOptions<A>&) {
    PYDL_EACH x[i] = max(vec<A>{}, x[i]);  // nan stays nan
  }
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void backward(vec<A> (&y)[kCount], vec<A> (&g)[kCount], const ElementwiseOptions<A>&) {
    PYDL_EACH g[i] = y[i] <= A(0) ? vec<A>{} : g[i];
  }
};

struct LeakyRelu {
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void forward(vec<A> (&x)[kCount], const ElementwiseOptions<A>& o) {
    PYDL_EACH x[i] = x[i] > A(0) ? x[i] : x[i] * o.a;
  }
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void backward(vec<A> (&x)[kCount], vec<A> (&g)[kCount], const ElementwiseOptions<A>& o) {
    PYDL_EACH g[i] = x[i] > A(0) ? g[i] : g[i] * o.a;
  }
};

struct Sigmoid {
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void forward(vec<A> (&x)[kCount], const ElementwiseOptions<A>&) {
    vec<A> s[kCount];
    logistic<kHalf, A>(x, s);
    PYDL_EACH x[i] = s[i];
  }
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void backward(vec<A> (&y)[kCount], vec<A> (&g)[kCount], const ElementwiseOptions<A>&) {
    PYDL_EACH g[i] *= (A(1) - y[i]) * y[i];
  }
};

struct Tanh {
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void forward(vec<A> (&x)[kCount], const ElementwiseOptions<A>&) {
    vec<A> m[kCount];
    PYDL_EACH m[i] = absolute<A>(x[i]) * A(-2);
    exp_nonpositive_group<kHalf, A, true>(m);
    PYDL_EACH x[i] = copy_sign<A>(m[i] / (m[i] + A(2)), x[i]);  // of tanh|x|; zeros keep theirs
  }
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void backward(vec<A> (&y)[kCount], vec<A> (&g)[kCount], const ElementwiseOptions<A>&) {
    PYDL_EACH g[i] *= A(1) - y[i] * y[i];
  }
};

// P(-|x|) = exp(-x^2 / 2) t Q(t), t = 1 / (1 + step |x|): Q interpolates at Chebyshev nodes, lowest power first.
// Largest relative error of P: 2e-7, for halves 8e-6, for double 3e-16.
template <class A, bool kHalf>
struct NormalTail;
template <>
struct NormalTail<float, false> {
  static constexpr int terms = 8;
  static constexpr float step = 0.31f, c[terms] = {0.12365055f,   0.12416002f, 0.10714497f, 0.112163424f,
                                                   -0.018723214f, 0.15912502f, -0.1438964f, 0.03637572f};
};
template <>
struct NormalTail<float, true> {
  static constexpr int terms = 6;
  static constexpr float step = 0.31f, c[terms] = {0.123908736f,  0.11989772f, 0.13566296f,
                                                   0.0115297325f, 0.18415615f, -0.075158276f};
};
template <>
struct NormalTail<double, false> {
  static constexpr int terms = 21;
  static constexpr double step = 0.2,
                          c[terms] = {0.07978845604646642,  0.07978845814507987,   0.07659685992392917,
                                      0.070214833388966,    0.06101057288368251,   0.049887385458959474,
                                      0.036942632479392425, 0.028828832021233403,  0.002625287791041838,
                                      0.04549045344299818,  -0.09301364219803947,  0.1814008673831841,
                                      -0.2777997701704991,  0.31659389065916244,   -0.2675992295585986,
                                      0.14829559297109748,  -0.03600527323274967,  -0.012288273401059698,
                                      0.01280755818557985,  -0.004049182771793658, 0.00048369055196716273};
};

struct Gelu {
  // p: the normal distribution P(x); e: exp(-x^2 / 2)
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void normal(const vec<A> (&x)[kCount], vec<A> (&p)[kCount], vec<A> (&e)[kCount]) {
    using N = NormalTail<A, kHalf>;
    vec<A> t[kCount];
    PYDL_EACH e[i] = x[i] * x[i] * A(-0.5);
    exp_nonpositive_group<kHalf, A>(e);
    PYDL_EACH t[i] = A(1) / (absolute<A>(x[i]) * N::step + A(1));
    PYDL_EACH p[i] = t[i] * N::c[N::terms - 1] + N::c[N::terms - 2];
#pragma GCC unroll 20
    for (int k = N::terms - 3; k >= 0; --k) PYDL_EACH p[i] = p[i] * t[i] + N::c[k];
    PYDL_EACH {
      const vec<A> tail = p[i] * (t[i] * e[i]);
      p[i] = x[i] < A(0) ? tail : A(1) - tail;
    }
  }
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void forward(vec<A> (&x)[kCount], const ElementwiseOptions<A>&) {
    vec<A> p[kCount], e[kCount];
    normal<kHalf, A>(x, p, e);
    PYDL_EACH x[i] *= p[i];
  }
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void backward(vec<A> (&x)[kCount], vec<A> (&g)[kCount], const ElementwiseOptions<A>&) {
    vec<A> p[kCount], e[kCount];
    normal<kHalf, A>(x, p, e);
    PYDL_EACH g[i] *= p[i] + x[i] * (e[i] * A(0.3989422804014327));
  }
};

struct GeluTanh {
  static constexpr double kLinear = 1.5957691216057308, kCubic = kLinear * 0.044715;  // 2 sqrt(2 / pi)

  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void forward(vec<A> (&x)[kCount], const ElementwiseOptions<A>&) {
    vec<A> u[kCount], s[kCount];
    PYDL_EACH u[i] = x[i] * (x[i] * x[i] * A(kCubic) + A(kLinear));
    logistic<kHalf, A>(u, s);
    PYDL_EACH x[i] *= s[i];
  }
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void backward(vec<A> (&x)[kCount], vec<A> (&g)[kCount], const ElementwiseOptions<A>&) {
    vec<A> u[kCount], s[kCount], slope[kCount];
    PYDL_EACH u[i] = x[i] * (x[i] * x[i] * A(kCubic) + A(kLinear));
    logistic<kHalf, A>(u, s, slope);
    PYDL_EACH g[i] *= s[i] + x[i] * slope[i] * (x[i] * x[i] * A(3 * kCubic) + A(kLinear));
  }
};

struct Silu {
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void forward(vec<A> (&x)[kCount], const ElementwiseOptions<A>&) {
    vec<A> s[kCount];
    logistic<kHalf, A>(x, s);
    PYDL_EACH x[i] *= s[i];
  }
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void backward(vec<A> (&x)[kCount], vec<A> (&g)[kCount], const ElementwiseOptions<A>&) {
    vec<A> s[kCount], slope[kCount];
    logistic<kHalf, A>(x, s, slope);
    PYDL_EACH g[i] *= s[i] + x[i] * slope[i];
  }
};

struct Softplus {
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void forward(vec<A> (&x)[kCount], const ElementwiseOptions<A>& o) {
    vec<A> e[kCount];
    PYDL_EACH e[i] = -absolute<A>(x[i] * o.a);
    exp_nonpositive_group<kHalf, A>(e);
    PYDL_EACH {
      const vec<A> v = x[i] * o.a, u = e[i] + A(1);
      const vec<A> log1p = log(u) - ((u - A(1)) - e[i]) / u;  // what the sum lost, to first order
      const vec<A> y = (max(vec<A>{}, v) + log1p) / o.a;
      x[i] = v > o.b ? x[i] : y;
    }
  }
  template <bool kHalf, class A, int kCount>
  PYDL_INLINE static void backward(vec<A> (&x)[kCount], vec<A> (&g)[kCount], const ElementwiseOptions<A>& o) {
    vec<A> v[kCount], s[kCount];
    PYDL_EACH v[i] = x[i] * o.a;
    logistic<kHalf, A>(v, s);
    PYDL_EACH g[i] = v[i] > o.b ? g[i] : g[i] * s[i];
  }
};

#undef PYDL_EACH

}  // namespace pydl::cpu::PYDL_ISA
