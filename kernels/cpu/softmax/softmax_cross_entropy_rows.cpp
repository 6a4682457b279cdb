// Softmax cross entropy where the classes of a row lie side by side: (N, C), channels_last, rows of a wider
// tensor.
//
// Bound by memory: a row is read once for its sum, in chunks whose maximum is taken in registers before they
// are exponentiated (an online softmax with a maximum per lane, whose rescaling costs one exp per chunk), so
// that the arithmetic overlaps with the loads. Where the gradient is made in the same call, the exponentials
// wait for the row's norm in the second-level cache (walk_block); a backward on its own
// reads the logits again and makes them again, in the same way, so that both give the same bits. Gradients go
// past the caches when they are large. Nothing of the softmax is stored.
//
// A row is cut into blocks of kClassBlock classes, whose sums are combined in order; with few long rows the
// blocks are what the threads share.
#include "kernels/cpu/softmax/softmax_cross_entropy_rows.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// Rows [begin, end). kept: room for what a row keeps, or null where that would leave the cache.
template <class T>
void forward_rows(const RowsCall<T>& call, int64_t begin, int64_t end, acc_t<T>* kept) {
  using A = acc_t<T>;
  const SoftmaxCrossEntropyParams& p = call.p;
  RowCursor at(p, begin);
  GradientWalk<T> waiting{};  // of the row before, made along with a sum; waiting.to is null where none is
  BlockQ<T> q_of(call);
  auto room = [&](int64_t b) { return kept ? kept_block(kept, p.classes, b) : KeptBlock<A>{}; };
  for (int64_t i = begin; i < end; ++i, at.next()) {
    if (call.ignored(at)) {
      call.ignore(at);
      if (p.grad_input)
        for (int64_t b = 0; b < call.blocks; ++b) call.zero_gradient(at, b);
      continue;
    }
    RowSum<A> sum = call.sum(at, 0, room(0), waiting);
    for (int64_t b = 1; b < call.blocks; ++b) sum.add(call.sum(at, b, room(b), waiting));
    waiting.to = nullptr;
    const RowNorm<A> norm = sum.norm();
    QSum<A> q;
    if (call.k.needs_dot)
      for (int64_t b = 0; b < call.blocks; ++b) q.add(call.q_sum(at, norm, b, q_of.of(at, b)));
    call.finish(at, norm, q);
    if (!p.grad_input) continue;
    const GradientTerms<A> terms = call.terms(at, norm, q.total);
    if (kKeeps && kept && call.writes_directly(at) && !call.varied()) {
      waiting = call.walk(at, norm, terms, 0, call.grad(at), call.past_cache, nullptr);
      continue;
    }
    for (int64_t b = 0; b < call.blocks; ++b) call.gradient(at, norm, terms, b, q_of.of(at, b), room(b));
  }
  if (kKeeps && waiting.to)
    for (int64_t b = 0; b < call.blocks; ++b) walk_block<T>(waiting, b, room(b), nullptr, call.block_size(b));
}

template <class T>
void backward_rows(const RowsCall<T>& call, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  RowCursor at(call.p, begin);
  BlockQ<T> q_of(call);
  for (int64_t i = begin; i < end; ++i, at.next()) {
    if (call.ignored(at)) {
      for (int64_t b = 0; b < call.blocks; ++b) call.zero_gradient(at, b);
      continue;
    }
    const RowNorm<A> norm = read_norm<A>(call.p, at.row);
    QSum<A> q;
    if (call.p.probabilities)
      for (int64_t b = 0; b < call.blocks; ++b) q.add(call.q_sum(at, norm, b, q_of.of(at, b)));
    const GradientTerms<A> terms = call.terms(at, norm, q.total);
    for (int64_t b = 0; b < call.blocks; ++b) call.gradient(at, norm, terms, b, q_of.of(at, b));
  }
}

// Whether threads share blocks rather than rows. The sums are the same either way.
bool split_rows(const SoftmaxCrossEntropyParams& p, int64_t threads) {
  return threads > 1 && p.rows < 4 * threads && p.classes >= 2 * kClassBlock;
}

// Each phase over all (row, block) at once, and what needs the whole row in between.
template <class T>
void run_split(const RowsCall<T>& call, bool forward, const Parallel& parallel) {
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
      BlockQ<T> q_of(call);
      out.q = call.q_sum(at, read_norm<A>(p, at.row), b, q_of.of(at, b));
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
      BlockQ<T> q_of(call);
      call.gradient(at, norm, call.terms(at, norm, total), b, q_of.of(at, b));
    });
}

// Bytes that a thread's rows keep, one after another; 0 where none are kept.
template <class A>
int64_t kept_bytes(const SoftmaxCrossEntropyParams& p) {
  if (!kKeeps || p.grad_input == nullptr || p.output == nullptr) return 0;
  const int64_t bytes = ceil_div(kept_row_size<A>(p.classes) * static_cast<int64_t>(sizeof(A)), 64) * 64;
  return bytes <= most_kept_bytes() ? bytes : 0;
}

template <class T>
void run(const SoftmaxCrossEntropyParams& p, bool forward, const Parallel& parallel) {
  using A = acc_t<T>;
  const RowsCall<T> call(p);
  if (split_rows(p, parallel.threads)) return run_split(call, forward, parallel);
  const int64_t kept = kept_bytes<A>(p), grain = ceil_div(kGrain, p.classes + 64);
  const int64_t tasks = max_of(min_of(parallel.threads, ceil_div(p.rows, grain)), 1);
  char* const partials = static_cast<char*>(p.scratch) + ScratchLayout(p, 0).partials;
  parallel(tasks, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      A* const keep = kept ? reinterpret_cast<A*>(partials + task * kept) : nullptr;
      const int64_t begin = p.rows * task / tasks, end = p.rows * (task + 1) / tasks;
      forward ? forward_rows(call, begin, end, keep) : backward_rows(call, begin, end);
    }
    if (call.past_cache) stream_fence();
  });
}

void run(const SoftmaxCrossEntropyParams& p, bool forward, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) { run<decltype(type)>(p, forward, parallel); });
}

}  // namespace

int64_t rows_partial_bytes(const SoftmaxCrossEntropyParams& p, int64_t threads) {
  if (split_rows(p, threads))
    return p.rows * ceil_div(p.classes, kClassBlock) * static_cast<int64_t>(sizeof(Partial<double>));
  return threads * (p.dtype == DType::f64 ? kept_bytes<double>(p) : kept_bytes<float>(p));
}

void rows_forward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel) { run(p, true, parallel); }

void rows_backward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel) { run(p, false, parallel); }

}  // namespace pydl::cpu::PYDL_ISA
