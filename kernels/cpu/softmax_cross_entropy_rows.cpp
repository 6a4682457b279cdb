// Softmax cross entropy where the classes of a row lie side by side: (N, C), channels_last, rows of a wider
// tensor.
//
// Bound by memory: a row is read once for its sum, in chunks whose maximum is taken in registers before they
// are exponentiated (an online softmax with a maximum per lane, whose rescaling costs one exp per chunk), so
// that the arithmetic overlaps with the loads. The gradient reads the row again and writes past the caches
// when it is large. Nothing of the softmax is stored.
//
// A row is cut into blocks of kClassBlock classes, whose sums are combined in order; with few long rows the
// blocks are what the threads share.
#include "kernels/cpu/softmax_cross_entropy_blocks.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// A row and the next one stay in a level-2 cache of 512 KB.
constexpr int64_t kPrefetchBytes = 192 << 10;

// One call: its constants, and the functions of a block with the options of the call filled in.
template <class T, class S>
struct RowsCall {
  using A = acc_t<T>;
  const SoftmaxCrossEntropyParams& p;
  const CallConstants<A> k;
  const double shared;
  const int64_t blocks;
  const bool past_cache;

  explicit RowsCall(const SoftmaxCrossEntropyParams& params)
      : p(params),
        k(params),
        shared(p.grad_input ? shared_gradient(p) : 0),
        blocks(max_of(ceil_div(p.classes, kClassBlock), 1)),
        past_cache(p.rows * p.classes * static_cast<int64_t>(sizeof(T)) >= kStreamBytes) {}

  const T* input(const RowCursor& at) const { return static_cast<const T*>(p.input) + at.input; }
  const S* probabilities(const RowCursor& at) const {
    return p.probabilities ? static_cast<const S*>(p.target) + at.target : nullptr;
  }
  T* grad(const RowCursor& at) const { return static_cast<T*>(p.grad_input) + at.grad; }
  int64_t target(const RowCursor& at) const {
    return p.probabilities ? -1 : static_cast<const int64_t*>(p.target)[at.target];
  }
  bool ignored(const RowCursor& at) const { return !p.probabilities && target(at) == p.ignore_index; }
  A target_weight(int64_t t) const { return k.weight ? k.weight[t] : A(1); }
  int64_t block_size(int64_t block) const { return min_of(kClassBlock, p.classes - block * kClassBlock); }

  RowSum<A> sum(const RowCursor& at, int64_t block) const {
    return sum_block(input(at) + block * kClassBlock, block_size(block));
  }
  QSum<A> q_sum(const RowCursor& at, const RowNorm<A>& norm, int64_t block) const {
    const T* x = input(at);
    const S* q = probabilities(at);
    const int64_t c0 = block * kClassBlock, n = block_size(block);
    if (p.probabilities)
      return k.weight ? q_block<true, true>(k, x, q, norm, c0, n)
                      : q_block<true, false>(k, x, q, norm, c0, n);
    return k.weight ? q_block<false, true>(k, x, q, norm, c0, n)
                    : q_block<false, false>(k, x, q, norm, c0, n);
  }
  void gradient(const RowCursor& at, const RowNorm<A>& norm, const GradientTerms<A>& terms, int64_t block,
                int64_t ahead = 0) const {
    auto run = [&](auto probabilities_, auto weighted, auto streamed) {
      gradient_block<decltype(probabilities_)::value, decltype(weighted)::value, decltype(streamed)::value>(
          k, input(at), probabilities(at), grad(at), norm, terms, target(at), block * kClassBlock,
          block_size(block), ahead);
    };
    auto with_stream = [&](auto probabilities_, auto weighted) {
      past_cache ? run(probabilities_, weighted, True{}) : run(probabilities_, weighted, False{});
    };
    const bool weighted = k.weight && k.needs_dot;
    if (p.probabilities)
      weighted ? with_stream(True{}, True{}) : with_stream(True{}, False{});
    else
      weighted ? with_stream(False{}, True{}) : with_stream(False{}, False{});
  }
  void zero_gradient(const RowCursor& at, int64_t block) const {
    memset(grad(at) + block * kClassBlock, 0, static_cast<size_t>(block_size(block)) * sizeof(T));
  }

  // loss of a row whose sums are known
  void finish(const RowCursor& at, const RowNorm<A>& norm, const QSum<A>& q) const {
    A loss = z_term(k, norm.lse());
    if (p.probabilities) {
      loss += q.loss;
    } else {
      const int64_t t = target(at);
      const A x = load_n(input(at) + t, 1)[0];
      loss += k.hit * target_weight(t) * (norm.log_sum + (norm.max - x));
      if (k.needs_dot) loss += q.loss;
    }
    put_norm<A>(p, at.row, norm);
    put_loss<A>(p, at.row, loss);
  }
  void ignore(const RowCursor& at) const {
    put_norm<A>(p, at.row, {0, 0});
    put_loss<A>(p, at.row, A(0));
  }
  GradientTerms<A> terms(const RowCursor& at, const RowNorm<A>& norm, A q_total) const {
    const A g = row_gradient<A>(p, shared, at.grad_output);
    return p.probabilities ? probability_terms<A>(k, q_total, norm.lse(), g)
                           : class_terms<A>(k, target_weight(target(at)), norm.lse(), g);
  }

  struct True {
    static constexpr bool value = true;
  };
  struct False {
    static constexpr bool value = false;
  };
};

// next: the row that this thread reads after this one, or null
template <class T, class S>
void forward_row(const RowsCall<T, S>& call, const RowCursor& at, const T* next) {
  using A = acc_t<T>;
  if (call.ignored(at)) {
    call.ignore(at);
    if (call.p.grad_input)
      for (int64_t b = 0; b < call.blocks; ++b) call.zero_gradient(at, b);
    return;
  }
  RowSum<A> sum = call.sum(at, 0);
  for (int64_t b = 1; b < call.blocks; ++b) sum.add(call.sum(at, b));
  const RowNorm<A> norm = sum.norm();
  QSum<A> q;
  if (call.k.needs_dot)
    for (int64_t b = 0; b < call.blocks; ++b) q.add(call.q_sum(at, norm, b));
  call.finish(at, norm, q);
  if (call.p.grad_input) {
    const GradientTerms<A> terms = call.terms(at, norm, q.total);
    // While this row's gradient is made from the cache, the next row comes into it.
    const bool both_fit = call.p.classes * static_cast<int64_t>(sizeof(T)) <= kPrefetchBytes;
    const int64_t ahead = next && both_fit ? next - call.input(at) : 0;
    for (int64_t b = 0; b < call.blocks; ++b) call.gradient(at, norm, terms, b, ahead);
  }
}

template <class T, class S>
void backward_row(const RowsCall<T, S>& call, const RowCursor& at, const T*) {
  using A = acc_t<T>;
  if (call.ignored(at)) {
    for (int64_t b = 0; b < call.blocks; ++b) call.zero_gradient(at, b);
    return;
  }
  const RowNorm<A> norm = read_norm<A>(call.p, at.row);
  QSum<A> q;
  if (call.p.probabilities)
    for (int64_t b = 0; b < call.blocks; ++b) q.add(call.q_sum(at, norm, b));
  const GradientTerms<A> terms = call.terms(at, norm, q.total);
  for (int64_t b = 0; b < call.blocks; ++b) call.gradient(at, norm, terms, b);
}

// Whether threads share blocks rather than rows. The sums are the same either way.
bool split_rows(const SoftmaxCrossEntropyParams& p, int64_t threads) {
  return threads > 1 && p.rows < 4 * threads && p.classes >= 2 * kClassBlock;
}

// Each phase over all (row, block) at once, and what needs the whole row in between.
template <class T, class S>
void run_split(const RowsCall<T, S>& call, bool forward, const Parallel& parallel) {
  using A = acc_t<T>;
  const SoftmaxCrossEntropyParams& p = call.p;
  char* partials = static_cast<char*>(p.scratch) + ScratchLayout(p, 0).partials;
  Partial<A>* partial = reinterpret_cast<Partial<A>*>(partials);
  auto each_block = [&](auto&& body) {
    parallel(p.rows * call.blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        body(RowCursor(p, i / call.blocks), i / call.blocks, i % call.blocks, partial[i]);
      if (call.past_cache) stream_fence();
    });
  };
  auto row_sum = [&](int64_t position) {
    RowSum<A> sum = partial[position * call.blocks].row;
    for (int64_t b = 1; b < call.blocks; ++b) sum.add(partial[position * call.blocks + b].row);
    return sum;
  };
  auto row_q = [&](int64_t position) {
    QSum<A> q;
    for (int64_t b = 0; b < call.blocks; ++b) q.add(partial[position * call.blocks + b].q);
    return q;
  };
  auto each_row = [&](auto&& body) {
    for (int64_t position = 0; position < p.rows; ++position) body(RowCursor(p, position), position);
  };

  if (forward) {
    each_block(
        [&](const RowCursor& at, int64_t, int64_t b, Partial<A>& out) { out = {call.sum(at, b), {}}; });
    each_row(
        [&](const RowCursor& at, int64_t position) { put_norm<A>(p, at.row, row_sum(position).norm()); });
  }
  if (forward ? call.k.needs_dot : p.probabilities)
    each_block([&](const RowCursor& at, int64_t, int64_t b, Partial<A>& out) {
      out.q = call.q_sum(at, read_norm<A>(p, at.row), b);
    });
  if (forward)
    each_row([&](const RowCursor& at, int64_t position) {
      if (call.ignored(at)) return call.ignore(at);
      call.finish(at, read_norm<A>(p, at.row), call.k.needs_dot ? row_q(position) : QSum<A>{});
    });
  if (p.grad_input)
    each_block([&](const RowCursor& at, int64_t position, int64_t b, Partial<A>&) {
      if (call.ignored(at)) return call.zero_gradient(at, b);
      const RowNorm<A> norm = read_norm<A>(p, at.row);
      const A total = p.probabilities ? row_q(position).total : A(0);
      call.gradient(at, norm, call.terms(at, norm, total), b);
    });
}

template <class F>
void run(const SoftmaxCrossEntropyParams& p, bool forward, const Parallel& parallel, F&& one_row) {
  dispatch_types(p, [&](auto type, auto target_type) {
    using T = decltype(type);
    using S = decltype(target_type);
    const RowsCall<T, S> call(p);
    if (split_rows(p, parallel.threads)) return run_split(call, forward, parallel);
    parallel(p.rows, ceil_div(kGrain, p.classes + 64), [&](int64_t begin, int64_t end) {
      RowCursor at(p, begin);
      for (int64_t i = begin; i < end; ++i) {
        const RowCursor row = at;
        at.next();
        one_row(call, row, i + 1 < end ? call.input(at) : nullptr);
      }
      if (call.past_cache) stream_fence();
    });
  });
}

}  // namespace

int64_t rows_partial_bytes(const SoftmaxCrossEntropyParams& p, int64_t threads) {
  return split_rows(p, threads)
             ? p.rows * ceil_div(p.classes, kClassBlock) * static_cast<int64_t>(sizeof(Partial<double>))
             : 0;
}

void rows_forward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel) {
  run(p, true, parallel,
      [](const auto& call, const RowCursor& at, const auto* next) { forward_row(call, at, next); });
}

void rows_backward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel) {
  run(p, false, parallel,
      [](const auto& call, const RowCursor& at, const auto* next) { backward_row(call, at, next); });
}

}  // namespace pydl::cpu::PYDL_ISA
