// What the two layouts of group norm share: the numbers of a group and of its channels. See kernels/group_norm.h for the
// formulas.
#pragma once

#include "kernels/cpu/base/scratch.h"
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/norm/batch_norm.h"
#include "kernels/cpu/rows/along.h"
#include "kernels/group_norm.h"
#include "kernels/machine.h"

namespace pydl::cpu::PYDL_ISA {

// A call, with its working memory. Arrays are of float64 and small beside the tensors.
struct GroupNorm {
  const GroupNormParams& p;
  int64_t of_group;        // channels
  double count;            // numbers of a group
  double *weight, *bias;   // of the channels
  double *sum, *sum_xhat;  // (samples, channels), of the backward: of grad_output, and of that times xhat
  char* of_workers;        // what remains of the scratch

  explicit GroupNorm(const GroupNormParams& params)
      : p(params), of_group(p.channels / p.groups), count(static_cast<double>(of_group * p.spatial)) {
    Pieces pieces{static_cast<char*>(p.scratch)};
    const int64_t sums = p.grad_output ? p.samples * p.channels : 0;
    weight = pieces.take<double>(p.channels);
    bias = pieces.take<double>(p.channels);
    sum = pieces.take<double>(sums);
    sum_xhat = pieces.take<double>(sums);
    of_workers = pieces.next;
    for (int64_t c = 0; c < p.channels; ++c) {
      weight[c] = param_at(p.parameter, p.weight, c, 1.0);
      bias[c] = param_at(p.parameter, p.bias, c, 0.0);
    }
  }
  static int64_t bytes(const GroupNormParams& p) {
    const int64_t sums = p.grad_output ? p.samples * p.channels : 0;
    return 2 * (Pieces::bytes<double>(p.channels) + Pieces::bytes<double>(sums));
  }

  // From the sums over a group of x - near and of its square. False where near was so far from the mean that the variance
  // has lost digits; it becomes the mean found then, and the sums are to be taken once more.
  template <class A>
  bool set_moments(int64_t group, double sum, double squares, A& near, bool last) const {
    const double off = sum / count, var = squares / count - off * off;
    if (!last && off * off > kFar * var) {
      near = static_cast<A>(static_cast<double>(near) + off);
      return false;
    }
    p.mean[group] = static_cast<double>(near) + off;
    p.scale[group] = 1.0 / __builtin_sqrt((var < 0 ? 0.0 : var) + p.eps);  // nan stays
    return true;
  }
  // Of a channel: output = (x - near) * scale + offset.
  template <class A>
  void affine(int64_t group, int64_t channel, A near, A& scale, A& offset) const {
    const double by = weight[channel] * p.scale[group];
    scale = static_cast<A>(by);
    offset = static_cast<A>(bias[channel] - (p.mean[group] - static_cast<double>(near)) * by);
  }

  // The sums over a channel of grad_output and of that times x - near become what the parameters' gradients are made of;
  // `of_group` += its part in the group's sums.
  template <class A>
  void add_channel(int64_t group, int64_t channel, A near, double of_grad, double of_product,
                   double (&of_group)[2]) const {
    const int64_t at = group / p.groups * p.channels + channel;
    sum[at] = of_grad;
    sum_xhat[at] = (of_product - (p.mean[group] - static_cast<double>(near)) * of_grad) * p.scale[group];
    of_group[0] += weight[channel] * of_grad;
    of_group[1] += weight[channel] * sum_xhat[at];
  }
  // grad_input = grad_output * (weight * scale) + (x - near) * slope + constant
  template <class A>
  void slope_of(int64_t group, A near, const double (&of_group)[2], A& slope, A& constant) const {
    const double scale = p.scale[group], lost = p.mean[group] - static_cast<double>(near);
    const double along_x = -scale * scale * of_group[1] / count;
    slope = static_cast<A>(along_x);
    constant = static_cast<A>(-scale * of_group[0] / count - lost * along_x);
  }

  static constexpr double kFar = 4;  // (mean - near)² / variance: what the variance may lose of its digits
};

constexpr int64_t kGroupTask = 16384;  // numbers; for fewer a thread is not woken

namespace {

// Whether a result goes past the caches: whole lines alone, `run` numbers of it lying together.
bool streams(const GroupNormParams& p, const void* to, int64_t run) {
  const int64_t of_one = p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2;
  return !kPlain && p.dtype != DType::f64 && reinterpret_cast<uintptr_t>(to) % 64 == 0 &&
         run * of_one % 64 == 0 && p.samples * p.channels * p.spatial * of_one >= least_streamed_bytes();
}

// walk(put), where put(q, v, part) stores a vector at q, past the caches or not.
template <class T, class F>
PYDL_INLINE void write_results(bool past_cache, const F& walk) {
  using A = acc_t<T>;
  if constexpr (!kOneWalk<T>)
    if (past_cache)  // whole vectors alone
      return walk([](T* q, vec<A> v, auto) PYDL_INLINE_LAMBDA { stream(q, v); });
  walk([](T* q, vec<A> v, auto part) PYDL_INLINE_LAMBDA { store_part(q, v, part); });
}

}  // namespace

void group_norm_columns_forward(const GroupNorm& call, const Parallel& parallel);
void group_norm_columns_backward(const GroupNorm& call, const Parallel& parallel);
int64_t group_norm_columns_scratch(const GroupNormParams& p, int64_t threads);

}  // namespace pydl::cpu::PYDL_ISA
