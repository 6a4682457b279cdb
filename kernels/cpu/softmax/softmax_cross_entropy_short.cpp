// Softmax cross entropy of short rows, (N, C) with a few classes: the heads of d2l's classifiers.
//
// A row of ten classes fills no vector, and what a row takes beside its classes (lanes combined, one log, the
// target's logit) costs more than they do. So a tile of as many rows as a vector has lanes is transposed in
// registers: classes pass one after another, every lane is a row, and a log serves all rows of the tile. The
// tile stays in L1; its exponentials become the gradient in place and are transposed back.
//
// Class indices without label smoothing; a backward on its own makes the exponentials again by the same
// function, the same bits.
#include "kernels/cpu/base/simd_transpose.h"
#include "kernels/cpu/softmax/softmax_cross_entropy_common.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int L = lanes<float>;
// Beyond, a row fills its vectors and softmax_cross_entropy_rows.cpp is as fast
// (NOTES.md).
constexpr int64_t kMostClasses = 128;
// Of a task, a row counting as eight more: ten classes take some 20 cycles, a fork several thousand.
constexpr int64_t kTaskElements = 32768;

// Class after class, each a vector of rows.
struct Tile {
  alignas(64) float x[kMostClasses * L];
};

vec<float> largest(const Tile& tile, int64_t classes) {
  // max keeps its second operand where one is nan; that the sum is nan does not depend on it
  vec<float> m[2] = {broadcast(-MathConstants<float>::largest), broadcast(-MathConstants<float>::largest)};
  int64_t c = 0;
  for (; c + 2 <= classes; c += 2) {
    m[0] = max(load(tile.x + c * L), m[0]);
    m[1] = max(load(tile.x + (c + 1) * L), m[1]);
  }
  if (c < classes) m[0] = max(load(tile.x + c * L), m[0]);
  return max(m[0], m[1]);
}

// x becomes exp(x - max). Returns the sums over the classes. kHalf: as exact as half types call for.
template <bool kHalf>
PYDL_OUT_OF_LINE vec<float> exponentiate(Tile& tile, int64_t classes, vec<float> max) {
  vec<float> sum{};
  auto some = [&](int64_t c, auto& v) PYDL_INLINE_LAMBDA {
    constexpr int kCount = sizeof(v) / sizeof(v[0]);
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) v[j] = load(tile.x + (c + j) * L) - max;
    exp_nonpositive_group<kHalf, float>(v);
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) store(tile.x + (c + j) * L, v[j]);
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) sum += v[j];
  };
  int64_t c = 0;
  for (vec<float> v[kGroup]; c + kGroup <= classes; c += kGroup) some(c, v);
  for (vec<float> v[2]; c + 2 <= classes; c += 2) some(c, v);
  for (vec<float> v[1]; c < classes; ++c) some(c, v);
  return sum;
}

// What a tile knows of its rows, lane by lane.
struct Rows {
  vec<float> max, log_sum, weight;  // of the target
  i32v target, counts;              // counts: 0 for rows that are ignored, and beyond the last
};

// exp(x - max) becomes the gradient.
PYDL_OUT_OF_LINE void make_gradient(const CallConstants<float>& k, const Rows& rows, vec<float> g,
                                    int64_t classes, Tile& tile) {
  const vec<float> one_hot = g * (k.hit * rows.weight);
  vec<float> softmax = k.hit * rows.weight;
  if (k.z_loss != 0) softmax += 2 * k.z_loss * (rows.max + rows.log_sum);
  const vec<float> factor = g * softmax * softmax_exp<float>(-rows.log_sum);
  for (int64_t c = 0; c < classes; ++c) {
    vec<float> v = load(tile.x + c * L) * factor;
    v -= rows.target == static_cast<int32_t>(c) ? one_hot : vec<float>{};
    store(tile.x + c * L, bit_cast<vec<float>>(bit_cast<i32v>(v) & rows.counts));  // whatever the logits held
  }
}

// The logits' type is asked for at each tile: sixteen rows, of which loads and stores are a small part.
struct ShortCall {
  const SoftmaxCrossEntropyParams& p;
  const CallConstants<float> k;
  const double shared;

  explicit ShortCall(const SoftmaxCrossEntropyParams& params)
      : p(params), k(params), shared(p.grad_input ? shared_gradient(p) : 0) {}

  template <class F>
  PYDL_INLINE void with_type(const F& body) const {
    dispatch_storage(p.dtype, [&](auto type) {
      if constexpr (sizeof(type) < sizeof(double)) body(type);
    });
  }

  void load_logits(int64_t row, int64_t n, Tile& tile) const {
    const int64_t stride = p.input_stride[0];
    with_type([&](auto type) {
      transpose_in(static_cast<const decltype(type)*>(p.input) + row * stride, stride, n, p.classes, tile.x,
                   L);
    });
  }

  vec<float> exponentials(Tile& tile, vec<float> max) const {
    return p.dtype == DType::f32 ? exponentiate<false>(tile, p.classes, max)
                                 : exponentiate<true>(tile, p.classes, max);
  }

  void load_targets(int64_t row, int64_t n, Rows& rows) const {
    const int64_t* target = static_cast<const int64_t*>(p.target) + row * p.target_stride[0];
    alignas(64) int32_t class_of[L] = {}, counts[L] = {};
    alignas(64) float weight[L] = {};
    for (int64_t i = 0; i < n; ++i) {
      const int64_t t = target[i * p.target_stride[0]];
      if (t == p.ignore_index) continue;
      class_of[i] = static_cast<int32_t>(t);
      counts[i] = -1;
      weight[i] = k.weight ? k.weight[t] : 1.0f;
    }
    memcpy(&rows.target, class_of, sizeof class_of);
    memcpy(&rows.counts, counts, sizeof counts);
    rows.weight = load(weight);
  }

  // the target's logit, while x still holds logits
  vec<float> target_logits(const Tile& tile, const Rows& rows) const {
    i32v lane;
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) lane[i] = i;
    return gather(tile.x, rows.target * L + lane, rows.counts);
  }

  void put_losses(int64_t row, int64_t n, const Rows& rows, vec<float> logit) const {
    vec<float> loss = k.hit * rows.weight * (rows.log_sum + (rows.max - logit));
    if (k.z_loss != 0) {
      const vec<float> lse = rows.max + rows.log_sum;
      loss += k.z_loss * lse * lse;
    }
    loss = bit_cast<vec<float>>(bit_cast<i32v>(loss) & rows.counts);
    if (p.reduction != Reduction::none) return store_n(static_cast<float*>(p.scratch) + row, loss, n);
    for (int64_t i = 0; i < n; ++i) put_loss<float>(p, row + i, loss[i]);
  }

  vec<float> gradient_of_losses(int64_t row, int64_t n) const {
    if (p.reduction != Reduction::none) return broadcast(static_cast<float>(shared));
    alignas(64) float g[L] = {};
    for (int64_t i = 0; i < n; ++i)
      g[i] = row_gradient<float>(p, shared, (row + i) * p.grad_output_stride[0]);
    return load(g);
  }

  void put_gradient(int64_t row, int64_t n, const Rows& rows, Tile& tile) const {
    make_gradient(k, rows, gradient_of_losses(row, n), p.classes, tile);
    const int64_t stride = p.grad_stride[0];
    with_type([&](auto type) {
      transpose_out(tile.x, L, p.classes, n, static_cast<decltype(type)*>(p.grad_input) + row * stride,
                    stride);
    });
  }

  void forward(int64_t row, int64_t n, Tile& tile) const {
    Rows rows;
    load_logits(row, n, tile);
    load_targets(row, n, rows);
    const vec<float> logit = target_logits(tile, rows);
    rows.max = largest(tile, p.classes);
    const vec<float> sum = exponentials(tile, rows.max);
    // as torch: a row of -inf alone, or with an inf or nan, has no softmax
    const vec<float> nan = broadcast(static_cast<float>(kNan));
    rows.log_sum = sum == 0.0f ? nan : log(sum);
    rows.log_sum = rows.max == static_cast<float>(__builtin_inf()) ? nan : rows.log_sum;
    float* const norm = static_cast<float*>(p.norm) + row;
    store_n(norm, bit_cast<vec<float>>(bit_cast<i32v>(rows.max) & rows.counts), n);
    store_n(norm + p.rows, bit_cast<vec<float>>(bit_cast<i32v>(rows.log_sum) & rows.counts), n);
    put_losses(row, n, rows, logit);
    if (p.grad_input) put_gradient(row, n, rows, tile);
  }

  void backward(int64_t row, int64_t n, Tile& tile) const {
    Rows rows;
    load_logits(row, n, tile);
    load_targets(row, n, rows);
    const float* const norm = static_cast<const float*>(p.norm) + row;
    rows.max = load_n(norm, n);
    rows.log_sum = load_n(norm + p.rows, n);
    exponentials(tile, rows.max);
    put_gradient(row, n, rows, tile);
  }

  template <class F>
  void each_tile(const Parallel& parallel, const F& body) const {
    const int64_t tiles = ceil_div(p.rows, L);
    parallel(tiles, ceil_div(kTaskElements, (p.classes + 8) * L), [&](int64_t begin, int64_t end) {
      Tile tile;
      for (int64_t i = begin; i < end; ++i) body(i * L, min_of(L, p.rows - i * L), tile);
    });
  }
};

}  // namespace

bool short_supported(const SoftmaxCrossEntropyParams& p) {
  return !p.probabilities && !(p.label_smoothing > 0) && p.dtype != DType::f64 && p.dims == 1 &&
         p.row_stride[0] == 1 && p.classes > 0 && p.classes <= kMostClasses;
}

void short_forward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel) {
  const ShortCall call(p);
  call.each_tile(parallel, [&](int64_t row, int64_t n, Tile& tile) { call.forward(row, n, tile); });
}

void short_backward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel) {
  const ShortCall call(p);
  call.each_tile(parallel, [&](int64_t row, int64_t n, Tile& tile) { call.backward(row, n, tile); });
}

}  // namespace pydl::cpu::PYDL_ISA
