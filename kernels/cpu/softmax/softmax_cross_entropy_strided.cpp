// Softmax cross entropy where the classes of a row lie apart: (N, C, H, W), transposed logits, any strides.
//
// Rows go across the lanes, so nothing is transposed: a block of up to kBlockRows neighbouring rows keeps its
// running maximum and sum in L1 while the classes pass by, kChunk of them at once, so that memory is read in
// kChunk streams of one or two kilobytes each. A class takes part in the sum as it passes (online softmax,
// one rescaling per chunk). Rows that do not lie side by side either are gathered, lane by lane.
#include "kernels/cpu/softmax/softmax_cross_entropy_common.h"
#include "kernels/machine.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int kBlockRows = 512;
constexpr int kChunk = 4;
// Target classes are compared in 32 bits, counted from the first class of a segment.
constexpr int64_t kSegment = int64_t{1} << 30;

// Lanes [0, n) of p[0], p[stride], ...; the others read as zero.
template <class T>
PYDL_INLINE vec<acc_t<T>> load_rows(const T* p, int64_t stride, int64_t n) {
  using A = acc_t<T>;
  if (stride == 1) return n == lanes<A> ? load(p) : load_n(p, n);
  T gathered[lanes<A>] = {};
  for (int64_t i = 0; i < n; ++i) gathered[i] = p[i * stride];
  return load(gathered);
}
template <class T>
PYDL_INLINE void store_rows(T* p, int64_t stride, vec<acc_t<T>> v, int64_t n, bool streams = false) {
  using A = acc_t<T>;
  if (stride == 1) {
    if (n == lanes<A>) return streams ? stream(p, v) : store(p, v);
    return store_n(p, v, n);
  }
  T scattered[lanes<A>];
  store(scattered, v);
  for (int64_t i = 0; i < n; ++i) p[i * stride] = scattered[i];
}

// State of a block of rows. Arrays are padded to whole vectors.
template <class A>
struct alignas(64) Block {
  A max[kBlockRows], log_sum[kBlockRows];                               // RowNorm; at first the sum itself
  A q_loss[kBlockRows], q_total[kBlockRows];                            // sums over all classes
  A softmax[kBlockRows], grad_output[kBlockRows], one_hot[kBlockRows];  // GradientTerms
  typename vector_of<A>::mask target[kBlockRows / lanes<A>];            // within the segment, or -1
};

template <class T>
struct StridedCall {
  using A = acc_t<T>;
  static constexpr int L = lanes<A>;
  static constexpr int64_t kBytes = sizeof(T), kVector = L * kBytes;
  const SoftmaxCrossEntropyParams& p;
  const bool narrow;  // probabilities are of type T, not of A
  const CallConstants<A> k;
  const double shared;
  const int last;  // the dimension that goes across the lanes
  const int64_t x_stride, t_stride, y_stride, x_class, t_class, y_class;
  const bool past_cache;

  explicit StridedCall(const SoftmaxCrossEntropyParams& params)
      : p(params),
        narrow(p.target_dtype == p.dtype),
        k(params),
        shared(p.grad_output || p.grad_input ? shared_gradient(p) : 0),
        last(p.dims - 1),
        x_stride(p.input_stride[last]),
        t_stride(p.target_stride[last]),
        y_stride(p.grad_stride[last]),
        x_class(p.input_class_stride),
        t_class(p.target_class_stride),
        y_class(p.grad_class_stride),
        past_cache(p.grad_input && y_stride == 1 && y_class * kBytes % kVector == 0 &&
                   p.rows * p.classes * kBytes >= least_streamed_bytes()) {}

  const int64_t* classes_at(const RowCursor& at) const {
    return static_cast<const int64_t*>(p.target) + at.target;
  }
  int64_t row(const RowCursor& at, int64_t i) const { return at.row + i * p.row_stride[last]; }
  A weight_of(int64_t t) const { return k.weight ? k.weight[t] : A(1); }
  bool ignored(const RowCursor& at, int64_t i) const {
    return !p.probabilities && classes_at(at)[i * t_stride] == p.ignore_index;
  }

  // n rows of the probabilities from element t on
  vec<A> target_at(int64_t t, int64_t n) const {
    if constexpr (!__is_same(T, A))
      if (narrow) return load_rows(static_cast<const T*>(p.target) + t, t_stride, n);
    return load_rows(static_cast<const A*>(p.target) + t, t_stride, n);
  }
  // q_c of n rows, without the part of a class index
  vec<A> q(int64_t t, int64_t c, int64_t n) const {
    vec<A> share = broadcast(k.smooth);
    if (p.probabilities) share += target_at(t + c * t_class, n) * k.hit;
    return k.weight ? share * k.weight[c] : share;
  }

  void sum_classes(Block<A>& b, const T* x, int64_t rows) const {
    for (int64_t i = 0; i < rows; i += L) {
      store(b.max + i, broadcast(-MathConstants<A>::largest));
      store(b.log_sum + i, vec<A>{});
    }
    int64_t c = 0;
    auto chunk = [&](auto size) {
      constexpr int kSize = decltype(size)::value;
      for (int64_t i = 0; i < rows; i += L) {
        const int64_t n = min_of(L, rows - i);
        vec<A> v[kSize];
#pragma GCC unroll 4
        for (int j = 0; j < kSize; ++j) {
          const T* at = x + (c + j) * x_class + i * x_stride;
          v[j] = load_rows(at, x_stride, n);
          prefetch_l2(at + kBlockRows * x_stride);  // classes lie apart, where no hardware looks ahead
        }
        const vec<A> before = load(b.max + i);
        vec<A> m = before;
#pragma GCC unroll 4
        for (int j = 0; j < kSize; ++j) m = max(v[j], m);
        vec<A> sum = load(b.log_sum + i) * softmax_exp<T>(before - m);
#pragma GCC unroll 4
        for (int j = 0; j < kSize; ++j) v[j] -= m;
        softmax_exp<T>(v);
#pragma GCC unroll 4
        for (int j = 0; j < kSize; ++j) sum += v[j];
        store(b.max + i, m);
        store(b.log_sum + i, sum);
      }
    };
    for (; c + kChunk <= p.classes; c += kChunk) chunk(Size<kChunk>{});
    for (; c < p.classes; ++c) chunk(Size<1>{});
  }

  // log_sum becomes what it is called
  void finish_sums(Block<A>& b, const RowCursor& at, int64_t rows) const {
    const vec<A> nan = broadcast(static_cast<A>(kNan)), infinity = broadcast(static_cast<A>(__builtin_inf()));
    for (int64_t i = 0; i < rows; i += L) {
      const vec<A> m = load(b.max + i), sum = load(b.log_sum + i);
      // as torch: a row of -inf alone, or with an inf or nan, has no softmax
      vec<A> log_sum = sum == A(0) ? nan : log(sum);
      log_sum = m == infinity ? nan : log_sum;
      store(b.log_sum + i, log_sum);
    }
    for (int64_t i = 0; i < rows; ++i)
      put_norm<A>(p, row(at, i), ignored(at, i) ? RowNorm<A>{0, 0} : RowNorm<A>{b.max[i], b.log_sum[i]});
  }

  void load_norms(Block<A>& b, const RowCursor& at, int64_t rows) const {
    for (int64_t i = 0; i < rows; ++i) {
      const RowNorm<A> norm = read_norm<A>(p, row(at, i));
      b.max[i] = norm.max;
      b.log_sum[i] = norm.log_sum;
    }
  }

  void sum_q(Block<A>& b, const T* x, int64_t t, int64_t rows) const {
    for (int64_t i = 0; i < rows; i += L) {
      const int64_t n = min_of(L, rows - i);
      const vec<A> m = load(b.max + i), log_sum = load(b.log_sum + i);
      vec<A> loss{}, total{};
      for (int64_t c = 0; c < p.classes; ++c) {
        const vec<A> share = q(t + i * t_stride, c, n);
        loss += share * ((m - load_rows(x + c * x_class + i * x_stride, x_stride, n)) + log_sum);
        total += share;
      }
      store(b.q_loss + i, loss);
      store(b.q_total + i, total);
    }
  }

  void put_losses(Block<A>& b, const RowCursor& at, const T* x, int64_t rows) const {
    for (int64_t i = 0; i < rows; ++i) {
      A loss = 0;
      if (!ignored(at, i)) {
        loss = z_term<A>(k, b.max[i] + b.log_sum[i]);
        if (p.probabilities) {
          loss += b.q_loss[i];
        } else {
          const int64_t t = classes_at(at)[i * t_stride];
          const A logit = load_n(x + t * x_class + i * x_stride, 1)[0];
          loss += k.hit * weight_of(t) * (b.log_sum[i] + (b.max[i] - logit));
          if (k.needs_dot) loss += b.q_loss[i];
        }
      }
      put_loss<A>(p, row(at, i), loss);
    }
  }

  void set_terms(Block<A>& b, const RowCursor& at, int64_t rows) const {
    for (int64_t i = 0; i < rows; ++i) {
      GradientTerms<A> terms{};
      if (!ignored(at, i)) {
        const A g = row_gradient<A>(p, shared, at.grad_output + i * p.grad_output_stride[last]);
        const A lse = b.max[i] + b.log_sum[i];
        terms = p.probabilities ? probability_terms<A>(k, b.q_total[i], lse, g)
                                : class_terms<A>(k, weight_of(classes_at(at)[i * t_stride]), lse, g);
      }
      b.softmax[i] = terms.softmax;
      b.grad_output[i] = terms.grad_output;
      b.one_hot[i] = terms.one_hot;
    }
  }

  // Targets of the rows, counted from class `first`. An ignored row gets -2, which blanks it.
  void set_targets(Block<A>& b, const RowCursor& at, int64_t rows, int64_t first) const {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t t = p.probabilities ? -1 : classes_at(at)[i * t_stride];
      const int64_t within = ignored(at, i) ? -2 : t >= first && t < first + kSegment ? t - first : -1;
      b.target[i / L][i % L] = static_cast<decltype(b.target[0][0] + 0)>(within);
    }
  }

  void gradient(Block<A>& b, const RowCursor& at, const T* x, T* y, int64_t rows) const {
    const bool streams = past_cache && reinterpret_cast<uintptr_t>(y) % kVector == 0;
    for (int64_t first = 0; first < p.classes; first += kSegment) {
      set_targets(b, at, rows, first);
      const int64_t end = min_of(first + kSegment, p.classes);
      for (int64_t c = first; c < end; ++c)
        for (int64_t i = 0; i < rows; i += L) {
          const int64_t n = min_of(L, rows - i);
          const mask<A> target = b.target[i / L];
          const vec<A> v = load_rows(x + c * x_class + i * x_stride, x_stride, n);
          vec<A> g = load(b.softmax + i) * softmax_exp<T>((v - load(b.max + i)) - load(b.log_sum + i));
          if (k.needs_dot) g -= load(b.grad_output + i) * q(at.target + i * t_stride, c, n);
          g -= target == static_cast<decltype(target[0] + 0)>(c - first) ? load(b.one_hot + i) : vec<A>{};
          g = target == -2 ? vec<A>{} : g;  // whatever the logits of an ignored row hold
          store_rows(y + c * y_class + i * y_stride, y_stride, g, n, streams);
        }
    }
  }

  template <int kValue>
  struct Size {
    static constexpr int value = kValue;
  };

  // body(at, rows, x) over blocks of neighbouring rows
  template <class F>
  void each_block(const Parallel& parallel, const F& body) const {
    const int64_t width = p.size[last], blocks = ceil_div(width, kBlockRows);
    const int64_t grain = ceil_div(kGrain, max_of(p.classes, 1) * min_of(width, kBlockRows));
    parallel(p.rows / width * blocks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % blocks * kBlockRows;
        const RowCursor at(p, i / blocks * width + first);
        body(at, min_of(kBlockRows, width - first), static_cast<const T*>(p.input) + at.input);
      }
      if (past_cache) stream_fence();
    });
  }
};

template <class F>
void with_call(const SoftmaxCrossEntropyParams& p, F&& body) {
  dispatch_dtype(p.dtype, [&](auto type) { body(StridedCall<decltype(type)>(p), type); });
}

}  // namespace

void strided_forward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel) {
  with_call(p, [&](const auto& call, auto type) {
    using T = decltype(type);
    call.each_block(parallel, [&](const RowCursor& at, int64_t rows, const T* x) {
      Block<acc_t<T>> b;
      call.sum_classes(b, x, rows);
      call.finish_sums(b, at, rows);
      if (call.k.needs_dot) call.sum_q(b, x, at.target, rows);
      call.put_losses(b, at, x, rows);
      if (p.grad_input) {
        call.set_terms(b, at, rows);
        call.gradient(b, at, x, static_cast<T*>(p.grad_input) + at.grad, rows);
      }
    });
  });
}

void strided_backward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel) {
  with_call(p, [&](const auto& call, auto type) {
    using T = decltype(type);
    call.each_block(parallel, [&](const RowCursor& at, int64_t rows, const T* x) {
      Block<acc_t<T>> b;
      call.load_norms(b, at, rows);
      if (p.probabilities) call.sum_q(b, x, at.target, rows);
      call.set_terms(b, at, rows);
      call.gradient(b, at, x, static_cast<T*>(p.grad_input) + at.grad, rows);
    });
  });
}

// Here p.grad_stride and p.grad_class_stride are those of grad_target.
void strided_backward_target(const SoftmaxCrossEntropyParams& p, const Parallel& parallel) {
  with_call(p, [&](const auto& call, auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    call.each_block(parallel, [&](const RowCursor& at, int64_t rows, const T* x) {
      Block<A> b;
      call.load_norms(b, at, rows);
      for (int64_t i = 0; i < rows; ++i)
        b.softmax[i] = call.k.hit *
                       row_gradient<A>(p, call.shared, at.grad_output + i * p.grad_output_stride[call.last]);
      for (int64_t c = 0; c < p.classes; ++c)
        for (int64_t i = 0; i < rows; i += lanes<A>) {
          const int64_t n = min_of(lanes<A>, rows - i);
          const vec<A> v = load_rows(x + c * call.x_class + i * call.x_stride, call.x_stride, n);
          vec<A> g = load(b.softmax + i) * ((load(b.max + i) - v) + load(b.log_sum + i));
          if (call.k.weight) g *= call.k.weight[c];
          const int64_t to = at.grad + c * call.y_class + i * call.y_stride;
          if (call.narrow)
            store_rows(static_cast<T*>(p.grad_target) + to, call.y_stride, g, n);
          else
            store_rows(static_cast<A*>(p.grad_target) + to, call.y_stride, g, n);
        }
    });
  });
}

}  // namespace pydl::cpu::PYDL_ISA
