// What a cell makes of its sums, for one vector of units of one sequence: kernels/recurrent.h has the formulas.
#pragma once

#include "kernels/cpu/base/math.h"
#include "kernels/recurrent.h"

namespace pydl::cpu::PYDL_ISA::recurrent {
namespace {

// tanh stands for relu too: which of the two is asked at run time.
template <Cell cell>
struct CellConstant {
  static constexpr Cell value = cell;
};

// Calls body(T{}, CellConstant) with the type of the tensors and the cell.
template <class F>
void dispatch(const RecurrentParams& p, const F& body) {
  const auto of_type = [&](auto type) {
    switch (p.cell) {
      case Cell::gru:
        return body(type, CellConstant<Cell::gru>{});
      case Cell::lstm:
        return body(type, CellConstant<Cell::lstm>{});
      default:
        return body(type, CellConstant<Cell::tanh>{});
    }
  };
  switch (p.dtype) {
    case DType::f32:
      return of_type(float{});
    case DType::f64:
      return of_type(double{});
    default:
      return of_type(bf16{});
  }
}

template <class A, int kCount>
PYDL_INLINE void tanh_group(vec<A> (&x)[kCount]) {
  vec<A> e[kCount];
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) e[i] = absolute<A>(x[i]) * A(-2);
  exp_nonpositive_group<false, A>(e);
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) x[i] = tanh_of<A>(x[i], e[i]);
}
template <class A>
PYDL_INLINE vec<A> tanh_one(vec<A> x) {
  vec<A> one[1] = {x};
  tanh_group<A>(one);
  return one[0];
}

// r, z and n from the sums of both, and from those of the input and of the state.
template <class A>
struct GruGates {
  vec<A> r, z, n;
  PYDL_INLINE GruGates(vec<A> sum_r, vec<A> sum_z, vec<A> input_n, vec<A> state_n) {
    vec<A> e[2] = {-absolute<A>(sum_r), -absolute<A>(sum_z)};
    exp_nonpositive_group<false, A>(e);
    r = sigmoid_of<A>(sum_r, e[0]);
    z = sigmoid_of<A>(sum_z, e[1]);
    n = tanh_one<A>(input_n + r * state_n);
  }
};

template <class A>
struct LstmGates {
  vec<A> i, f, g, o;
  PYDL_INLINE explicit LstmGates(const vec<A> (&sum)[4]) {
    vec<A> e[4] = {-absolute<A>(sum[0]), -absolute<A>(sum[1]), absolute<A>(sum[2]) * A(-2),
                   -absolute<A>(sum[3])};
    exp_nonpositive_group<false, A>(e);
    i = sigmoid_of<A>(sum[0], e[0]);
    f = sigmoid_of<A>(sum[1], e[1]);
    g = tanh_of<A>(sum[2], e[2]);
    o = sigmoid_of<A>(sum[3], e[3]);
  }
};

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::recurrent
