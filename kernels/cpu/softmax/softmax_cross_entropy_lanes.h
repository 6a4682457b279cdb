// Softmax cross entropy with a row in each lane, as far as it does not depend on the logits' type: what is done once for
// a row (targets, norms, losses, terms of gradients), and the exponentials. In blocks of neighbouring rows, whose
// arrays are padded to whole vectors.
#pragma once

#include "kernels/cpu/softmax/softmax_cross_entropy_common.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// A block's rows, and the numbers of its tile, which stays in the second-level cache. Where there are many classes a block
// has fewer rows; where even the fewest rows leave no room for all classes, the tile takes a segment of them at a time.
constexpr int64_t kMostRows = 512, kFewestRows = 64;
template <class A>
constexpr int64_t kTile = 262144 / static_cast<int64_t>(sizeof(A));
constexpr int kChunk = 4;  // classes at once
// As a target: of another segment, or of none; of a row that is ignored.
constexpr int kElsewhere = -1, kIgnored = -2;

// Lanes [0, n) of p[0], p[stride], ...; the others read as zero. Calls: for what does not fill a vector as it lies.
template <class T>
PYDL_OUT_OF_LINE vec<acc_t<T>> load_rows(const T* p, int64_t stride, int64_t n) {
  if (stride == 1) return load_n(p, n);
  T gathered[lanes<acc_t<T>>] = {};
  for (int64_t i = 0; i < n; ++i) gathered[i] = p[i * stride];
  return load(gathered);
}
template <class T>
PYDL_OUT_OF_LINE void store_rows(T* p, int64_t stride, vec<acc_t<T>> v, int64_t n) {
  if (stride == 1) return store_n(p, v, n);
  T scattered[lanes<acc_t<T>>];
  store(scattered, v);
  for (int64_t i = 0; i < n; ++i) p[i * stride] = scattered[i];
}

template <int kValue>
struct Size {
  static constexpr int value = kValue;
};

template <class A>
struct alignas(64) Block {
  A max[kMostRows], sum[kMostRows], log_sum[kMostRows];  // RowNorm, and what log_sum is the log of
  A logit[kMostRows], weight[kMostRows];                 // of the target
  A q_loss[kMostRows], q_total[kMostRows];               // sums over all classes
  A softmax[kMostRows], grad_output[kMostRows], one_hot[kMostRows];  // GradientTerms
  mask<A> target[kMostRows / lanes<A>];  // within the segment, or a constant from above
  A tile[kTile<A>];                      // [classes of a segment][block_rows]: logits, then exp(x - max)

  mask<A> counts(int64_t i) const { return target[i / lanes<A>] != kIgnored; }
};

// Logits of the segment after this one.
struct Ahead {
  const char* logits;
  int64_t class_bytes, vector_bytes;
};

// One call, as far as it does not depend on the logits' type.
template <class A>
struct LaneRows {
  static constexpr int L = lanes<A>;
  using Index = decltype(mask<A>{}[0] + 0);
  const SoftmaxCrossEntropyParams& p;
  const CallConstants<A> k;
  const double shared;
  const int last;  // the dimension that goes across the lanes
  const int64_t row_stride, t_stride;
  // whether targets are told apart by as many bits as a lane has
  const bool narrow_targets;
  const int64_t block_rows, segment;  // segment: classes of one

  PYDL_OUT_OF_LINE explicit LaneRows(const SoftmaxCrossEntropyParams& params)
      : p(params),
        k(params),
        shared(p.grad_output || p.grad_input ? shared_gradient(p) : 0),
        last(p.dims - 1),
        row_stride(p.row_stride[last]),
        t_stride(p.target_stride[last]),
        narrow_targets(t_stride == 1 && p.classes <= INT32_MAX &&
                       p.ignore_index == static_cast<Index>(p.ignore_index)),
        block_rows(rows_of_block(p.classes)),
        segment(kTile<A> / block_rows) {}

  static int64_t rows_of_block(int64_t classes) {
    const int64_t rows = kTile<A> / max_of(classes, 1) / L * L;
    return rows < kFewestRows ? kMostRows : min_of(rows, kMostRows);
  }
  bool is_one_segment() const { return p.classes <= segment; }

  const int64_t* classes_at(const RowCursor& at) const {
    return static_cast<const int64_t*>(p.target) + at.target;
  }

  // The low bits of L targets, as many as a lane has.
  static mask<A> low_bits(const int64_t* target) {
    if constexpr (sizeof(A) == sizeof(int64_t)) {
      return bit_cast<mask<A>>(load(reinterpret_cast<const A*>(target)));
    } else {
      const A* const halves = reinterpret_cast<const A*>(target);
      return bit_cast<mask<A>>(even_lanes(load(halves), load(halves + L)));
    }
  }

  // Targets of the rows in the segment [first, end) of classes.
  PYDL_OUT_OF_LINE void set_targets(Block<A>& b, const RowCursor& at, int64_t rows, int64_t first,
                                    int64_t end) const {
    for (int64_t i = 0; i < rows; i += L) {
      mask<A>& target = b.target[i / L];
      target = mask<A>{} + (p.probabilities ? kElsewhere : kIgnored);
      if (p.probabilities) continue;
      const int64_t* const classes = classes_at(at) + i * t_stride;
      if (narrow_targets && rows - i >= L) {
        const mask<A> t = low_bits(classes);
        const mask<A> inside = (t >= static_cast<Index>(first)) & (t < static_cast<Index>(end));
        target = inside ? t - static_cast<Index>(first) : mask<A>{} + kElsewhere;
        target = t == static_cast<Index>(p.ignore_index) ? mask<A>{} + kIgnored : target;
        continue;
      }
      for (int64_t j = 0; j < min_of(L, rows - i); ++j) {
        const int64_t t = classes[j * t_stride];
        if (t != p.ignore_index)
          target[j] = static_cast<Index>(t >= first && t < end ? t - first : kElsewhere);
      }
    }
  }

  PYDL_OUT_OF_LINE void set_weights(Block<A>& b, const RowCursor& at, int64_t rows) const {
    if (!k.weight || p.probabilities) return;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t t = classes_at(at)[i * t_stride];
      b.weight[i] = t == p.ignore_index ? A(0) : k.weight[t];
    }
  }
  vec<A> weight(const Block<A>& b, int64_t i) const {
    return k.weight ? load(b.weight + i) : broadcast(A(1));
  }

  // Before the first segment. A backward has its norms from the forward.
  PYDL_OUT_OF_LINE void clear_sums(Block<A>& b) const {
    for (int64_t i = 0; i < kMostRows; i += L) {
      store(b.max + i, broadcast(-MathConstants<A>::largest));
      store(b.sum + i, vec<A>{});
      store(b.logit + i, vec<A>{});
    }
  }

  // The sums so far are about `before`.
  PYDL_OUT_OF_LINE void rescale_sums(Block<A>& b, const A* before, int64_t rows) const {
    for (int64_t i = 0; i < rows; i += L)
      store(b.sum + i, load(b.sum + i) * softmax_exp<A>(load(before + i) - load(b.max + i)));
  }

  // The tile's logits of `classes` classes become exp(x - max), and are added up. ahead: where those of the next segment lie,
  // of the first class; classes lie apart, where no hardware looks ahead.
  template <bool kHalf>
  PYDL_OUT_OF_LINE void exponentiate(Block<A>& b, int64_t classes, int64_t rows, const Ahead& ahead) const {
    auto chunk = [&](auto size, int64_t c) PYDL_INLINE_LAMBDA {
      constexpr int kSize = decltype(size)::value;
      A* const tile = b.tile + c * block_rows;
      const char* next = ahead.logits + c * ahead.class_bytes;
      for (int64_t i = 0; i < rows; i += L) {
        const mask<A> target = b.target[i / L];
        const vec<A> m = load(b.max + i);
        vec<A> v[kSize], logit = load(b.logit + i), sum = load(b.sum + i);
#pragma GCC unroll 4
        for (int j = 0; j < kSize; ++j) {
          v[j] = load(tile + j * block_rows + i);
          prefetch_l2(next + j * ahead.class_bytes);
        }
        next += ahead.vector_bytes;
#pragma GCC unroll 4
        for (int j = 0; j < kSize; ++j) logit = target == static_cast<Index>(c + j) ? v[j] : logit;
        store(b.logit + i, logit);
#pragma GCC unroll 4
        for (int j = 0; j < kSize; ++j) v[j] -= m;
        exp_nonpositive_group<kHalf, A>(v);
#pragma GCC unroll 4
        for (int j = 0; j < kSize; ++j) store(tile + j * block_rows + i, v[j]);
#pragma GCC unroll 4
        for (int j = 0; j < kSize; ++j) sum += v[j];
        store(b.sum + i, sum);
      }
    };
    int64_t c = 0;
    for (; c + kChunk <= classes; c += kChunk) chunk(Size<kChunk>{}, c);
    for (; c < classes; ++c) chunk(Size<1>{}, c);
  }

  PYDL_OUT_OF_LINE void finish_sums(Block<A>& b, const RowCursor& at, int64_t rows) const {
    const vec<A> nan = broadcast(static_cast<A>(kNan));
    A* const norm = static_cast<A*>(p.norm) + at.row;
    for (int64_t i = 0; i < rows; i += L) {
      const int64_t n = min_of(L, rows - i);
      const vec<A> m = load(b.max + i), sum = load(b.sum + i);
      // as torch: a row of -inf alone, or with an inf or nan, has no softmax
      vec<A> log_sum = sum == A(0) ? nan : log(sum);
      log_sum = m == static_cast<A>(__builtin_inf()) ? nan : log_sum;
      store(b.log_sum + i, log_sum);
      const mask<A> counts = b.counts(i);
      store_rows(norm + i * row_stride, row_stride, counts ? m : vec<A>{}, n);
      store_rows(norm + p.rows + i * row_stride, row_stride, counts ? log_sum : vec<A>{}, n);
    }
  }

  PYDL_OUT_OF_LINE void load_norms(Block<A>& b, const RowCursor& at, int64_t rows) const {
    const A* const norm = static_cast<const A*>(p.norm) + at.row;
    for (int64_t i = 0; i < rows; i += L) {
      const int64_t n = min_of(L, rows - i);
      store(b.max + i, load_rows(norm + i * row_stride, row_stride, n));
      store(b.log_sum + i, load_rows(norm + p.rows + i * row_stride, row_stride, n));
    }
  }

  PYDL_OUT_OF_LINE void put_losses(const Block<A>& b, const RowCursor& at, int64_t rows) const {
    const bool direct = p.reduction != Reduction::none || sizeof(A) == 8 || p.output_dtype == DType::f32;
    A* const losses =
        static_cast<A*>(p.reduction != Reduction::none ? p.scratch : p.output) + (direct ? at.row : 0);
    for (int64_t i = 0; i < rows; i += L) {
      const int64_t n = min_of(L, rows - i);
      const vec<A> m = load(b.max + i), log_sum = load(b.log_sum + i);
      vec<A> loss = z_term(k, m + log_sum);
      if (!p.probabilities) loss += k.hit * weight(b, i) * (log_sum + (m - load(b.logit + i)));
      if (k.needs_dot) loss += load(b.q_loss + i);
      loss = b.counts(i) ? loss : vec<A>{};
      if (direct)
        store_rows(losses + i * row_stride, row_stride, loss, n);
      else
        for (int64_t j = 0; j < n; ++j) put_loss<A>(p, at.row + (i + j) * row_stride, loss[j]);
    }
  }

  // What the rows' gradients are multiplied by.
  PYDL_OUT_OF_LINE void set_grad_output(A* to, const RowCursor& at, int64_t rows) const {
    for (int64_t i = 0; i < rows; ++i)
      to[i] = row_gradient<A>(p, shared, at.grad_output + i * p.grad_output_stride[last]);
  }

  PYDL_OUT_OF_LINE void set_terms(Block<A>& b, const RowCursor& at, int64_t rows) const {
    set_grad_output(b.grad_output, at, rows);
    for (int64_t i = 0; i < rows; i += L) {
      const vec<A> log_sum = load(b.log_sum + i), lse = load(b.max + i) + log_sum,
                   g = load(b.grad_output + i);
      const GradientTerms<vec<A>> terms = p.probabilities ? probability_terms(k, load(b.q_total + i), lse, g)
                                                          : class_terms(k, weight(b, i), lse, g);
      store(b.softmax + i, terms.softmax * softmax_exp<A>(-log_sum));
      store(b.one_hot + i, terms.one_hot);
    }
  }
};

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
