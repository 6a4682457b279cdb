// Softmax cross entropy where the classes of a row lie apart: (N, C, H, W), transposed logits, any strides.
//
// Rows go across the lanes, so nothing is transposed: a block of neighbouring rows keeps what is known
// of them in L1 while the classes pass by, kChunk of them at once, so that memory is read in kChunk streams of one or
// two kilobytes each. The logits of a segment of classes are copied to a tile, their maximum is taken on the way, and the
// tile becomes their exponentials: where one segment has all classes, these become the gradient. A backward on its own
// makes them again, in the same way, so that both give the same bits. Rows that do not lie side by side either are
// gathered, lane by lane.
#include "kernels/cpu/softmax/softmax_cross_entropy_lanes.h"
#include "kernels/machine.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

template <class T>
struct StridedCall : LaneRows<acc_t<T>> {
  using A = acc_t<T>;
  using Rows = LaneRows<A>;
  using Rows::block_rows, Rows::k, Rows::last, Rows::p, Rows::segment, Rows::t_stride;
  static constexpr int L = lanes<A>;
  static constexpr int64_t kBytes = sizeof(T), kVector = L * kBytes;
  const bool narrow;  // probabilities are of type T, not of A
  const int64_t x_stride, y_stride, x_class, t_class, y_class;
  const bool past_cache;

  PYDL_OUT_OF_LINE explicit StridedCall(const SoftmaxCrossEntropyParams& params)
      : Rows(params),
        narrow(p.target_dtype == p.dtype),
        x_stride(p.input_stride[last]),
        y_stride(p.grad_stride[last]),
        x_class(p.input_class_stride),
        t_class(p.target_class_stride),
        y_class(p.grad_class_stride),
        past_cache(p.grad_input && y_stride == 1 && y_class * kBytes % kVector == 0 &&
                   p.rows * p.classes * kBytes >= least_streamed_bytes()) {}

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

  // body(first, end) over segments of classes
  template <class F>
  void each_segment(const F& body) const {
    int64_t first = 0;
    do body(first, min_of(first + segment, p.classes));  // once, too, where there are no classes
    while ((first += segment) < p.classes);
  }

  // end: of a segment
  Ahead ahead(const T* x, int64_t end) const {
    const T* const next = end < p.classes ? x + end * x_class : x + block_rows * x_stride;
    return {reinterpret_cast<const char*>(next), x_class * kBytes, L * x_stride * kBytes};
  }

  // A segment's logits to the tile; the maximum rises to theirs.
  void load_classes(Block<A>& b, const T* x, int64_t first, int64_t end, int64_t rows) const {
    auto chunk = [&](auto size, int64_t c) PYDL_INLINE_LAMBDA {
      constexpr int kSize = decltype(size)::value;
      const T* const from = x + c * x_class;
      A* const tile = b.tile + (c - first) * block_rows;
      int64_t i = 0;
      for (; x_stride == 1 && i + L <= rows; i += L) {
        vec<A> m = load(b.max + i);
#pragma GCC unroll 4
        for (int j = 0; j < kSize; ++j) {
          const vec<A> v = load(from + j * x_class + i);
          store(tile + j * block_rows + i, v);
          m = max(v, m);  // m where the other is nan
        }
        store(b.max + i, m);
      }
      for (; i < rows; i += L)
        for (int j = 0; j < kSize; ++j) {
          const vec<A> v = load_rows(from + j * x_class + i * x_stride, x_stride, min_of(L, rows - i));
          store(tile + j * block_rows + i, v);
          store(b.max + i, max(v, load(b.max + i)));
        }
    };
    int64_t c = first;
    for (; c + kChunk <= end; c += kChunk) chunk(Size<kChunk>{}, c);
    for (; c < end; ++c) chunk(Size<1>{}, c);
  }

  void sum_classes(Block<A>& b, const RowCursor& at, const T* x, int64_t rows) const {
    this->clear_sums(b);
    A* const before = b.softmax;
    each_segment([&](int64_t first, int64_t end) {
      this->set_targets(b, at, rows, first, end);
      memcpy(before, b.max, sizeof b.max);
      load_classes(b, x, first, end, rows);
      if (first > 0) this->rescale_sums(b, before, rows);
      this->template exponentiate<sizeof(T) == 2>(b, end - first, rows, ahead(x, end));
    });
  }

  PYDL_OUT_OF_LINE void sum_q(Block<A>& b, const T* x, int64_t t, int64_t rows) const {
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

  // The tile becomes the gradient but for what the class index subtracts.
  PYDL_OUT_OF_LINE void subtract_q(Block<A>& b, int64_t t, int64_t first, int64_t end, int64_t rows) const {
    for (int64_t c = first; c < end; ++c)
      for (int64_t i = 0; i < rows; i += L) {
        A* const to = b.tile + (c - first) * block_rows + i;
        store(to, load(to) * load(b.softmax + i) -
                      load(b.grad_output + i) * q(t + i * t_stride, c, min_of(L, rows - i)));
      }
  }

  void put_gradient(Block<A>& b, T* y, int64_t first, int64_t end, int64_t rows) const {
    const bool streams = past_cache && reinterpret_cast<uintptr_t>(y) % kVector == 0;
    auto chunk = [&](auto size, int64_t c) PYDL_INLINE_LAMBDA {
      constexpr int kSize = decltype(size)::value;
      T* const to = y + c * y_class;
      const A* const tile = b.tile + (c - first) * block_rows;
      for (int64_t i = 0; i < rows; i += L) {
        const mask<A> target = b.target[i / L], counts = b.counts(i);
        const vec<A> softmax = k.needs_dot ? broadcast(A(1)) : load(b.softmax + i),
                     one_hot = load(b.one_hot + i);
        vec<A> g[kSize];
#pragma GCC unroll 4
        for (int j = 0; j < kSize; ++j) {
          g[j] = load(tile + j * block_rows + i) * softmax;
          g[j] -= target == static_cast<typename Rows::Index>(c - first + j) ? one_hot : vec<A>{};
          g[j] = counts ? g[j] : vec<A>{};  // whatever the logits of an ignored row hold
        }
        if (y_stride != 1 || rows - i < L)
          for (int j = 0; j < kSize; ++j)
            store_rows(to + j * y_class + i * y_stride, y_stride, g[j], min_of(L, rows - i));
        else if (streams)
#pragma GCC unroll 4
          for (int j = 0; j < kSize; ++j) stream(to + j * y_class + i, g[j]);
        else
#pragma GCC unroll 4
          for (int j = 0; j < kSize; ++j) store(to + j * y_class + i, g[j]);
      }
    };
    int64_t c = first;
    for (; c + kChunk <= end; c += kChunk) chunk(Size<kChunk>{}, c);
    for (; c < end; ++c) chunk(Size<1>{}, c);
  }

  // has_tile: whether the tile has the exponentials of all classes
  PYDL_OUT_OF_LINE void gradient(Block<A>& b, const RowCursor& at, const T* x, T* y, int64_t rows,
                                 bool has_tile) const {
    each_segment([&](int64_t first, int64_t end) {
      if (!has_tile) {
        this->set_targets(b, at, rows, first, end);
        load_classes(b, x, first, end, rows);  // the maximum stays
        this->template exponentiate<sizeof(T) == 2>(b, end - first, rows, ahead(x, end));
      }
      if (k.needs_dot) subtract_q(b, at.target, first, end, rows);
      put_gradient(b, y, first, end, rows);
    });
  }

  // body(at, rows, x) over blocks of neighbouring rows
  template <class F>
  void each_block(const Parallel& parallel, const F& body) const {
    const int64_t width = p.size[last], blocks = ceil_div(width, block_rows);
    const int64_t grain = ceil_div(kGrain, max_of(p.classes, 1) * min_of(width, block_rows));
    parallel(p.rows / width * blocks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % blocks * block_rows;
        const RowCursor at(p, i / blocks * width + first);
        body(at, min_of(block_rows, width - first), static_cast<const T*>(p.input) + at.input);
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
      call.sum_classes(b, at, x, rows);
      call.finish_sums(b, at, rows);
      call.set_weights(b, at, rows);
      if (call.k.needs_dot) call.sum_q(b, x, at.target, rows);
      call.put_losses(b, at, rows);
      if (p.grad_input) {
        call.set_terms(b, at, rows);
        call.gradient(b, at, x, static_cast<T*>(p.grad_input) + at.grad, rows, call.is_one_segment());
      }
    });
  });
}

void strided_backward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel) {
  with_call(p, [&](const auto& call, auto type) {
    using T = decltype(type);
    call.each_block(parallel, [&](const RowCursor& at, int64_t rows, const T* x) {
      Block<acc_t<T>> b;
      call.clear_sums(b);
      call.load_norms(b, at, rows);
      if (p.probabilities) call.sum_q(b, x, at.target, rows);
      call.set_weights(b, at, rows);
      call.set_terms(b, at, rows);
      call.gradient(b, at, x, static_cast<T*>(p.grad_input) + at.grad, rows, false);
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
      call.set_grad_output(b.grad_output, at, rows);
      for (int64_t c = 0; c < p.classes; ++c)
        for (int64_t i = 0; i < rows; i += lanes<A>) {
          const int64_t n = min_of(lanes<A>, rows - i);
          const vec<A> v = load_rows(x + c * call.x_class + i * call.x_stride, call.x_stride, n);
          vec<A> g = load(b.grad_output + i) * call.k.hit * ((load(b.max + i) - v) + load(b.log_sum + i));
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
