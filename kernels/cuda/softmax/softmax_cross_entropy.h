// What the kernels of softmax cross entropy share: where a row lies, q, and the running state of a row.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/softmax_cross_entropy.h"

namespace pydl::cuda {
namespace {  // a copy in every translation unit

using Params = SoftmaxCrossEntropyParams;

// ---- constants of a call

template <class A>
struct Constants {
  A hit, smooth;  // 1 - s and s / C
  A z_loss;
  bool probabilities;
  DType target_dtype;
  int64_t target_class_stride;
  const A* weight;  // [classes], or null

  explicit PYDL_METHOD Constants(const Params& p)
      : hit(static_cast<A>(1.0 - p.label_smoothing)),
        smooth(p.classes > 0 ? static_cast<A>(p.label_smoothing) / static_cast<A>(p.classes) : A(0)),
        z_loss(static_cast<A>(p.z_loss)),
        probabilities(p.probabilities),
        target_dtype(p.target_dtype),
        target_class_stride(p.target_class_stride),
        weight(static_cast<const A*>(p.weight)) {}
};

// Whether the loss depends on the logit of every class, not on the target's and the sum alone.
inline bool is_dense(const Params& p) { return p.probabilities || p.label_smoothing > 0; }

// q_c without the part of a class index.
template <class A>
PYDL_DEVICE A dense_q(const Constants<A>& k, int64_t row_target, int64_t c, const void* target) {
  A q = k.smooth;
  if (k.probabilities)
    q += k.hit * read_as<A>(k.target_dtype, target, row_target + c * k.target_class_stride);
  return k.weight ? q * k.weight[c] : q;
}

// ---- a row

struct Row {
  int64_t row, input, target, grad, grad_output;  // offsets in elements
};

PYDL_DEVICE Row row_at(const Params& p, int64_t position) {
  Row at{};
  for (int d = p.dims - 1; d >= 0; --d) {
    const int64_t k = d == 0 ? position : position % p.size[d];
    if (d > 0) position /= p.size[d];
    at.row += k * p.row_stride[d];
    at.input += k * p.input_stride[d];
    at.target += k * p.target_stride[d];
    at.grad += k * p.grad_stride[d];
    at.grad_output += k * p.grad_output_stride[d];
  }
  return at;
}

// The class index of a row, -1 for probabilities.
PYDL_DEVICE int64_t class_of(const Params& p, const Row& at) {
  return p.probabilities ? -1 : static_cast<const int64_t*>(p.target)[at.target];
}
PYDL_DEVICE bool is_ignored(const Params& p, int64_t target) {
  return !p.probabilities && target == p.ignore_index;
}
PYDL_DEVICE bool is_class(const Params& p, int64_t target) { return target >= 0 && target < p.classes; }

// ---- arithmetic

template <class A>
constexpr A kLowest = static_cast<A>(-3.402823466e38f);
template <>
constexpr double kLowest<double> = -1.7976931348623157e308;

PYDL_DEVICE float exponential(float x) { return expf(x); }
PYDL_DEVICE double exponential(double x) { return exp(x); }
PYDL_DEVICE float logarithm(float x) { return logf(x); }
PYDL_DEVICE double logarithm(double x) { return log(x); }
PYDL_DEVICE float larger(float a, float b) { return fmaxf(a, b); }  // of a number and nan: the number
PYDL_DEVICE double larger(double a, double b) { return fmax(a, b); }

// exp of x <= 0, as exact as logits of type T call for.
template <class T>
PYDL_DEVICE acc_t<T> softmax_exp(acc_t<T> x) {
  if constexpr (sizeof(T) == 2)
    return ptx::exp2_quick(x * 1.44269504f);
  else
    return exponential(x);
}

// What is known of some classes of a row: their maximum, sum of exp(x - maximum), sum of q (x - maximum), sum
// of q. A nan does not become the maximum but makes the sum nan; so does an infinite maximum.
template <class A>
struct State {
  A maximum = kLowest<A>, sum = 0, q_x = 0, q_total = 0;
};

// sum of q (x - to) from that of q (x - from)
template <class A>
PYDL_DEVICE A moved(A q_x, A q_total, A from, A to) {
  return q_total == 0 || from == to ? q_x : q_x - q_total * (to - from);
}

template <class T, bool kDense>
PYDL_DEVICE void merge(State<acc_t<T>>& a, const State<acc_t<T>>& b) {
  const acc_t<T> maximum = larger(a.maximum, b.maximum);
  a.sum = a.sum * softmax_exp<T>(a.maximum - maximum) + b.sum * softmax_exp<T>(b.maximum - maximum);
  if constexpr (kDense) {
    a.q_x = moved(a.q_x, a.q_total, a.maximum, maximum) + moved(b.q_x, b.q_total, b.maximum, maximum);
    a.q_total += b.q_total;
  }
  a.maximum = maximum;
}

// Takes kCount logits and their q in: one rescaling for all of them.
template <class T, bool kDense, int kCount>
PYDL_DEVICE void absorb(State<acc_t<T>>& state, const acc_t<T> (&x)[kCount],
                        const acc_t<T> (&q)[kDense ? kCount : 1]) {
  using A = acc_t<T>;
  A maximum = state.maximum;
#pragma unroll
  for (int i = 0; i < kCount; ++i) maximum = larger(maximum, x[i]);
  A sum = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum += softmax_exp<T>(x[i] - maximum);
  state.sum = state.sum * softmax_exp<T>(state.maximum - maximum) + sum;
  if constexpr (kDense) {
    A q_x = 0, q_total = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      q_x += q[i] * (x[i] - maximum);
      q_total += q[i];
    }
    state.q_x = moved(state.q_x, state.q_total, state.maximum, maximum) + q_x;
    state.q_total += q_total;
  }
  state.maximum = maximum;
}

// The merge over a warp, for every lane; over lanes in a fixed order.
template <class T, bool kDense>
PYDL_DEVICE void merge_warp(State<acc_t<T>>& state) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    State<acc_t<T>> other;
    other.maximum = __shfl_xor_sync(kAllLanes, state.maximum, distance);
    other.sum = __shfl_xor_sync(kAllLanes, state.sum, distance);
    if constexpr (kDense) {
      other.q_x = __shfl_xor_sync(kAllLanes, state.q_x, distance);
      other.q_total = __shfl_xor_sync(kAllLanes, state.q_total, distance);
    }
    merge<T, kDense>(state, other);
  }
}

// ---- scratch: losses of the rows, partial sums of the reduction, states of split rows, sums of q

// Rows whose losses one block adds up: four for each of its threads; as many as save a launch where they are few,
// and no more than a thousand parts of very many.
inline int64_t reduced_rows(const Params& p) {
  return p.rows <= 4096 ? 4096 : max_of(ceil_div(p.rows, 1024 * 1024) * 1024, 1024);
}

inline int64_t splits_of(const Params& p) {
  // a segment of at least 8192 classes, and no more blocks than fill a large GPU a few times
  if (p.rows >= 512 || p.classes < 16384 || p.input_class_stride != 1) return 1;
  return max_of(min_of(ceil_div(1024, max_of(p.rows, 1)), p.classes / 8192), 1);
}

struct Scratch {
  int64_t losses, sums, states, totals, bytes;
  explicit Scratch(const Params& p) {
    const int64_t size = p.dtype == DType::f64 ? 8 : 4, splits = splits_of(p);
    int64_t at = 0;
    auto take = [&](int64_t count, int64_t each) {
      const int64_t begin = at;
      at = ceil_div(at + count * each, 64) * 64;
      return begin;
    };
    losses = take(p.reduction == Reduction::none ? 0 : p.rows, size);
    sums = take(2 * ceil_div(p.rows, reduced_rows(p)), 8);
    states = take(splits > 1 ? p.rows * splits : 0, 4 * size);
    totals = take(is_dense(p) ? max_of(p.rows, 1) : 0, size);
    bytes = at;
  }
};

}  // namespace
}  // namespace pydl::cuda
