// What the layouts of softmax cross entropy share: walking the rows, the constants of a call, what is
// known of a row once its sum is, and where losses and gradients of rows lie.
#pragma once

#include "kernels/cpu/base/math.h"
#include "kernels/cpu/rows/walk.h"
#include "kernels/softmax_cross_entropy.h"

namespace pydl::cpu::PYDL_ISA {

// For everything but inner loops: inlined in each of its callers, once for every type of logits, what is done once for a row
// or a call would be most of the code.
#define PYDL_OUT_OF_LINE __attribute__((noinline))

// Classes that one partial sum covers. Fixed, so that a row split between threads adds up in the same order
// as one that is not; 32 KB of floats, so that a block is in L1 or L2 when it is read again.
static constexpr int64_t kClassBlock = 8192;
// Vectors whose exp is taken in step (see exp_nonpositive_group); 6 were no faster than 4.
static constexpr int kGroup = kVectorBytes == 64 ? 4 : 2;
// Elements per task: several microseconds, ten times the cost of a fork.
static constexpr int64_t kGrain = 16384;

static constexpr double kNan = __builtin_nan("");

// Offsets of one row after another, in elements.
struct RowCursor {
  const SoftmaxCrossEntropyParams* p;
  int64_t index[SoftmaxCrossEntropyParams::max_dims];
  int64_t row = 0, input = 0, target = 0, grad = 0, grad_output = 0;

  PYDL_OUT_OF_LINE RowCursor(const SoftmaxCrossEntropyParams& params, int64_t position) : p(&params) {
    for (int d = p->dims - 1; d >= 0; --d) {
      index[d] = position % p->size[d];
      position /= p->size[d];
      move(d, index[d]);
    }
  }
  void move(int d, int64_t steps) {
    row += steps * p->row_stride[d];
    input += steps * p->input_stride[d];
    target += steps * p->target_stride[d];
    grad += steps * p->grad_stride[d];
    grad_output += steps * p->grad_output_stride[d];
  }
  void next() {
    for (int d = p->dims - 1; d >= 0; --d) {
      move(d, 1);
      if (++index[d] < p->size[d]) return;
      move(d, -p->size[d]);
      index[d] = 0;
    }
  }
};

// Constants of a call, in the type that the op accumulates in.
template <class A>
struct CallConstants {
  const A* weight;  // or null
  A hit, smooth;    // 1 - s and s / C
  A z_loss;
  A weight_sum;    // of all classes; C without weight
  bool needs_dot;  // a loss that depends on every class's own logit, not on the target's alone

  PYDL_OUT_OF_LINE explicit CallConstants(const SoftmaxCrossEntropyParams& p)
      : weight(static_cast<const A*>(p.weight)),
        hit(static_cast<A>(1.0 - p.label_smoothing)),
        smooth(static_cast<A>(p.classes > 0 ? p.label_smoothing / static_cast<double>(p.classes) : 0.0)),
        z_loss(static_cast<A>(p.z_loss)),
        needs_dot(p.probabilities || p.label_smoothing > 0) {
    double sum = static_cast<double>(p.classes);
    if (weight && needs_dot) {
      sum = 0;
      for (int64_t c = 0; c < p.classes; ++c) sum += static_cast<double>(weight[c]);
    }
    weight_sum = static_cast<A>(sum);
  }
};

// The log-sum-exp of a row as the sum of two: (x - max) - log_sum loses nothing of x - lse.
template <class A>
struct RowNorm {
  A max, log_sum;
  A lse() const { return max + log_sum; }
};
template <class A>
static inline RowNorm<A> read_norm(const SoftmaxCrossEntropyParams& p, int64_t row) {
  const A* norm = static_cast<const A*>(p.norm);
  return {norm[row], norm[p.rows + row]};
}
template <class A>
static inline void put_norm(const SoftmaxCrossEntropyParams& p, int64_t row, RowNorm<A> norm) {
  static_cast<A*>(p.norm)[row] = norm.max;
  static_cast<A*>(p.norm)[p.rows + row] = norm.log_sum;
}

// grad_input_c = softmax * exp(x_c - lse) - grad_output * q_c - (c == target ? one_hot : 0), q_c without the
// class index's own part
template <class V>
struct GradientTerms {
  V softmax, grad_output, one_hot;
};

// z_loss lse^2 and its derivative. V, here and below: A, or a vector of rows.
template <class A, class V>
PYDL_INLINE V z_term(const CallConstants<A>& k, V lse) {
  return k.z_loss != 0 ? k.z_loss * lse * lse : V{};
}
template <class A, class V>
PYDL_INLINE V z_slope(const CallConstants<A>& k, V lse) {
  return k.z_loss != 0 ? 2 * k.z_loss * lse : V{};
}

template <class A, class V>
PYDL_INLINE GradientTerms<V> class_terms(const CallConstants<A>& k, V w, V lse, V g) {
  const V hit = k.hit * w;
  return {g * (hit + k.smooth * k.weight_sum + z_slope(k, lse)), g, g * hit};
}
template <class A, class V>
PYDL_INLINE GradientTerms<V> probability_terms(const CallConstants<A>& k, V total, V lse, V g) {
  return {g * (total + z_slope(k, lse)), g, V{}};
}

// Scratch: losses of the rows (unless they are the output), then one TargetCount per block of targets, then
// the partial sums of split rows.
struct TargetCount {
  double weight;
  int64_t bad, first_bad;  // whether a target is out of range, and its value
};
static constexpr int64_t kTargetBlock = 16384;

struct ScratchLayout {
  int64_t counts, partials, bytes;
  ScratchLayout(const SoftmaxCrossEntropyParams& p, int64_t partial_bytes) {
    auto round_up = [](int64_t n) { return ceil_div(n, 64) * 64; };
    const int64_t loss = p.reduction == Reduction::none ? 0 : p.rows * (p.dtype == DType::f64 ? 8 : 4);
    counts = round_up(loss);
    partials = counts +
               round_up(p.probabilities ? 0 : ceil_div(p.rows, kTargetBlock) * (int64_t)sizeof(TargetCount));
    bytes = partials + partial_bytes;
  }
};

template <class A>
static inline void put_loss(const SoftmaxCrossEntropyParams& p, int64_t row, A loss) {
  if (p.reduction != Reduction::none) {
    static_cast<A*>(p.scratch)[row] = loss;
  } else if constexpr (sizeof(A) == 8) {
    static_cast<double*>(p.output)[row] = loss;
  } else if (p.output_dtype == DType::f32) {
    static_cast<float*>(p.output)[row] = loss;
  } else if (p.output_dtype == DType::bf16) {
    store_n(static_cast<bf16*>(p.output) + row, broadcast<float>(loss), 1);
  } else {
    store_n(static_cast<f16*>(p.output) + row, broadcast<float>(loss), 1);
  }
}

static inline double read_output_gradient(const SoftmaxCrossEntropyParams& p, int64_t offset) {
  switch (p.output_dtype) {
    case DType::f64:
      return static_cast<const double*>(p.grad_output)[offset];
    case DType::f32:
      return static_cast<double>(static_cast<const float*>(p.grad_output)[offset]);
    case DType::bf16:
      return static_cast<double>(load_n(static_cast<const bf16*>(p.grad_output) + offset, 1)[0]);
    case DType::f16:
      return static_cast<double>(load_n(static_cast<const f16*>(p.grad_output) + offset, 1)[0]);
  }
  return 0;
}

// What every row's gradient is multiplied by; reduction none reads its own instead.
[[maybe_unused]] PYDL_OUT_OF_LINE static double shared_gradient(const SoftmaxCrossEntropyParams& p) {
  if (p.reduction == Reduction::none) return 1.0;
  const double g = p.grad_output ? read_output_gradient(p, 0) : 1.0;
  return p.reduction == Reduction::mean ? g / *p.denominator : g;
}
template <class A>
static inline A row_gradient(const SoftmaxCrossEntropyParams& p, double shared, int64_t offset) {
  return static_cast<A>(p.reduction == Reduction::none ? read_output_gradient(p, offset) : shared);
}

// exp as exact as the logits' type calls for.
template <class T, int kCount>
PYDL_INLINE void softmax_exp(vec<acc_t<T>> (&x)[kCount]) {
  exp_nonpositive_group<sizeof(T) == 2, acc_t<T>>(x);
}
template <class T>
PYDL_INLINE vec<acc_t<T>> softmax_exp(vec<acc_t<T>> x) {
  vec<acc_t<T>> one[1] = {x};
  softmax_exp<T>(one);
  return one[0];
}

// Lanes [0, n) set: for loads whose other lanes must be neutral to what follows.
template <class A>
PYDL_INLINE mask<A> first_lanes(int64_t n) {
  mask<A> index;
  for (int i = 0; i < lanes<A>; ++i) index[i] = i;
  return index < static_cast<decltype(index[0] + 0)>(n);
}
// value in lane i, 0 in the others.
template <class A>
PYDL_INLINE vec<A> lane_is(int64_t i, A value) {
  mask<A> index;
  for (int j = 0; j < lanes<A>; ++j) index[j] = j;
  return index == static_cast<decltype(index[0] + 0)>(i) ? broadcast(value) : vec<A>{};
}
// Lanes [0, n) of what lies at x, `other` in the rest.
template <class T>
PYDL_INLINE vec<acc_t<T>> load_or(const T* x, int64_t n, acc_t<T> other) {
  using A = acc_t<T>;
#if defined(PYDL_AVX512)
  return first_lanes<A>(n) ? load_n(x, n) : broadcast<A>(other);
#else
  return n == lanes<A>       ? load(x)
         : first_lanes<A>(n) ? load_n(x, n)
                             : broadcast<A>(other);  // load_n is a call
#endif
}
template <class T, class V>
PYDL_INLINE void store_some(T* y, V v, int64_t n) {
#if defined(PYDL_AVX512)
  store_n(y, v, n);
#else
  n == lanes<acc_t<T>> ? store(y, v) : store_n(y, v, n);  // the latter is a call
#endif
}

// What a call does before and after its rows: checks the class indices and sets the mean's denominator; adds up the losses
// that the rows left in scratch.
SoftmaxCrossEntropyStatus weigh_targets(const SoftmaxCrossEntropyParams& p, const Parallel& parallel);
void put_reduced_loss(const SoftmaxCrossEntropyParams& p);

// The layouts: classes of a row side by side in memory (rows; short, where they are few), or rows side by
// side (strided).
bool short_supported(const SoftmaxCrossEntropyParams& p);
void short_forward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel);
void short_backward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel);
int64_t rows_partial_bytes(const SoftmaxCrossEntropyParams& p, int64_t threads);
void rows_forward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel);
void rows_backward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel);
void strided_forward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel);
void strided_backward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel);
void strided_backward_target(const SoftmaxCrossEntropyParams& p, const Parallel& parallel);

}  // namespace pydl::cpu::PYDL_ISA
