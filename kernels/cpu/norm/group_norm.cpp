// Group normalisation on the CPU, of planes: a task is a group of a sample, which lies in one piece and mostly stays in a
// cache from its sums to what they give. See kernels/group_norm.h for the formulas.
//
// The forward takes a group's sums over all of it as over one row; the backward needs them of each channel. The gradients
// of the parameters are sums over samples of what each leaves beside, in order, so that nothing depends on the number of
// threads.
#include "kernels/cpu/norm/group_norm.h"

#include "kernels/cpu/base/simd_reduce.h"
#include "kernels/cpu/rows/ends.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kChunk = 2048;  // vectors' numbers that are summed in one go: errors grow with their number
constexpr int kSums = 4;          // vectors in step

// The sums over n numbers of x - near and of its square.
template <class T, class A>
void sums_of(const T* x, int64_t n, A near, double& sum, double& squares) {
  sum = squares = 0;
  for (int64_t begin = 0; begin < n; begin += kSums * kChunk) {
    const int64_t end = min_of(begin + kSums * kChunk, n);
    vec<A> total[2 * kSums] = {};
    auto add = [&](int64_t j, int u, auto part) PYDL_INLINE_LAMBDA {
      const vec<A> d = inside_part<A>(load_part(x + j, part) - near, part, A(0));
      total[u] += d;
      total[kSums + u] += d * d;
    };
    int64_t j = begin;
    for (; j + kSums * lanes<A> <= end; j += kSums * lanes<A>) {
      prefetch_far_ahead(x + j, kFarAheadBytes / static_cast<int64_t>(sizeof(T)));
#pragma GCC unroll 4
      for (int u = 0; u < kSums; ++u) add(j + u * lanes<A>, u, WholeVector{});
    }
    for (; j + lanes<A> <= end; j += lanes<A>) add(j, 0, WholeVector{});
    at_the_end<A>(j, end, [&](int64_t at, auto part) PYDL_INLINE_LAMBDA { add(at, 1, part); });
    A each[2 * kSums];
    reduce_add_each(total, each);
    for (int u = 0; u < kSums; ++u) {
      sum += static_cast<double>(each[u]);
      squares += static_cast<double>(each[kSums + u]);
    }
  }
}

template <class T, class Put>
PYDL_INLINE void apply(const GroupNorm& w, int64_t group, const T* x, T* y, acc_t<T> near, const Put& put) {
  using A = acc_t<T>;
  const int64_t first = group % w.p.groups * w.of_group, spatial = w.p.spatial;
  for (int64_t c = first; c < first + w.of_group; ++c, x += spatial, y += spatial) {
    A scale, offset;
    w.affine(group, c, near, scale, offset);
    along_twice<A>(spatial, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA {
      put(y + j, (load_part(x + j, part) - near) * scale + offset, part);
    });
  }
}

template <class T>
void normalise(const GroupNorm& w, int64_t group, bool past_cache) {
  using A = acc_t<T>;
  const int64_t size = w.of_group * w.p.spatial, some = min_of(size, lanes<A>);
  const T* x = static_cast<const T*>(w.p.input) + group * size;
  T* y = static_cast<T*>(w.p.output) + group * size;
  A near = reduce_add(load_n(x, some)) / static_cast<A>(some);  // of the first vector: near the mean
  for (bool last = false;; last = true) {
    double sum, squares;
    sums_of(x, size, near, sum, squares);
    if (w.set_moments(group, sum, squares, near, last)) break;
  }
  write_results<T>(past_cache, [&](const auto& put) PYDL_INLINE_LAMBDA { apply(w, group, x, y, near, put); });
}

// The sums over a channel of the gradient, and of that times x - near.
template <class T, class A>
void gradient_sums(const T* x, const T* g, int64_t n, A near, double& of_grad, double& of_product) {
  of_grad = of_product = 0;
  for (int64_t begin = 0; begin < n; begin += 2 * kChunk) {
    const int64_t end = min_of(begin + 2 * kChunk, n);
    vec<A> total[4] = {};
    auto add = [&](int64_t j, int u, auto part) PYDL_INLINE_LAMBDA {
      const vec<A> grad = inside_part<A>(load_part(g + j, part), part, A(0));
      total[u] += grad;
      total[2 + u] += grad * (load_part(x + j, part) - near);
    };
    int64_t j = begin;
    for (; j + 2 * lanes<A> <= end; j += 2 * lanes<A>) {
      prefetch_far_ahead(x + j, kFarAheadBytes / static_cast<int64_t>(sizeof(T)));
      prefetch_far_ahead(g + j, kFarAheadBytes / static_cast<int64_t>(sizeof(T)));
      add(j, 0, WholeVector{});
      add(j + lanes<A>, 1, WholeVector{});
    }
    if (j + lanes<A> <= end) {
      add(j, 0, WholeVector{});
      j += lanes<A>;
    }
    at_the_end<A>(j, end, [&](int64_t at, auto part) PYDL_INLINE_LAMBDA { add(at, 1, part); });
    A each[4];
    reduce_add_each(total, each);
    of_grad += static_cast<double>(each[0] + each[1]);
    of_product += static_cast<double>(each[2] + each[3]);
  }
}

template <class T>
void gradient(const GroupNorm& w, int64_t group, bool past_cache) {
  using A = acc_t<T>;
  const int64_t first = group % w.p.groups * w.of_group, spatial = w.p.spatial;
  const int64_t offset = group * w.of_group * spatial;
  const T* x = static_cast<const T*>(w.p.input) + offset;
  const T* g = static_cast<const T*>(w.p.grad_output) + offset;
  const A near = static_cast<A>(w.p.mean[group]);
  double of_group[2] = {};
  for (int64_t c = 0; c < w.of_group; ++c) {
    double of_grad, of_product;
    gradient_sums(x + c * spatial, g + c * spatial, spatial, near, of_grad, of_product);
    w.add_channel(group, first + c, near, of_grad, of_product, of_group);
  }
  if (w.p.grad_input == nullptr) return;
  A slope, constant;
  w.slope_of(group, near, of_group, slope, constant);
  write_results<T>(past_cache, [&](const auto& put) PYDL_INLINE_LAMBDA {
    T* to = static_cast<T*>(w.p.grad_input) + offset;
    for (int64_t k = 0; k < w.of_group; ++k) {
      const A scale = static_cast<A>(w.weight[first + k] * w.p.scale[group]);
      const int64_t at = k * spatial;
      along_twice<A>(spatial, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA {
        const vec<A> rest = (load_part(x + at + j, part) - near) * slope + constant;
        // rounded before the sum, as in the mean that is taken off it: of a group of one number nothing may remain
        put(to + at + j, pin(load_part(g + at + j, part) * scale) + rest, part);
      });
    }
  });
}

// One pass over the group of a sample.
using Pass = void (*)(const GroupNorm& w, int64_t group, bool past_cache);

void each_group(const GroupNorm& w, const void* result, const Parallel& parallel, Pass pass) {
  const bool past_cache = streams(w.p, result, w.p.spatial);
  parallel(w.p.samples * w.p.groups, ceil_div(kGroupTask, w.of_group * w.p.spatial),
           [&](int64_t begin, int64_t end) {
             for (int64_t group = begin; group < end; ++group) pass(w, group, past_cache);
             if (past_cache) stream_fence();
           });
}

// gradient[c] = sum over the samples
void add_samples(const GroupNormParams& p, double* of_samples, void* gradient) {
  if (gradient == nullptr) return;
  for (int64_t n = 1; n < p.samples; ++n)
    for (int64_t c = 0; c < p.channels; ++c) of_samples[c] += of_samples[n * p.channels + c];
  for (int64_t c = 0; c < p.channels; ++c) set_param(p.parameter, gradient, c, of_samples[c]);
}

}  // namespace

int64_t group_norm_scratch(const GroupNormParams& p, int64_t threads) {
  return GroupNorm::bytes(p) + (p.channels_last ? group_norm_columns_scratch(p, threads) : 0);
}

void group_norm_forward(const GroupNormParams& p, const Parallel& parallel) {
  const GroupNorm w(p);
  if (p.channels_last) return group_norm_columns_forward(w, parallel);
  Pass pass = nullptr;
  dispatch_rows(p.dtype, [&](auto type) { pass = normalise<decltype(type)>; });
  each_group(w, p.output, parallel, pass);
}

void group_norm_backward(const GroupNormParams& p, const Parallel& parallel) {
  const GroupNorm w(p);
  if (p.channels_last) {
    group_norm_columns_backward(w, parallel);
  } else {
    Pass pass = nullptr;
    dispatch_rows(p.dtype, [&](auto type) { pass = gradient<decltype(type)>; });
    each_group(w, p.grad_input, parallel, pass);
  }
  add_samples(p, w.sum, p.grad_bias);
  add_samples(p, w.sum_xhat, p.grad_weight);
}

}  // namespace pydl::cpu::PYDL_ISA
