// Attention's forward: a block of queries at a time, whose scores with all keys stay in the second cache.
//
// The keys are transposed once a task, so that scores are a product whose lanes are keys; weights stay unnormalised, at
// most 1, and the sums divide the finished rows of output. There is no running maximum: a block's scores are there as a
// whole. Never stored: scores or weights of more than a block, and whether dropout keeps them.
#include "kernels/cpu/attention/attention.h"
#include "kernels/cpu/gemm/few_rows.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

using namespace attention;

// What one worker has to itself.
template <class E>
struct Workspace {
  using A = acc_of<E>;
  E *keys, *values, *queries;
  A *scores, *output, *factors;
  uint8_t* bits;
  int64_t bytes;

  static Workspace of(const AttentionParams& p, char* scratch) {
    Pieces pieces{scratch};
    Workspace space{};
    space.keys = pieces.take<E>(padded<E>(p.keys) * elements<E>(p.width));
    space.values = pieces.take<E>(elements<E>(p.keys) * padded<E>(p.value_width));
    space.scores = pieces.take<A>(kQueries * score_pitch<E>(p.keys));
    space.queries = pieces.take<E>(kQueries * padded<E>(elements<E>(p.width)));
    space.output = pieces.take<A>(kQueries * padded<E>(p.value_width));
    space.factors = pieces.take<A>(kQueries);
    space.bits = pieces.take<uint8_t>(Kept::bytes(p, p.keys));
    space.bytes = pieces.next - scratch;
    return space;
  }
};

// Of kRows rows from `row` on: scores become exp(score - max), with 0 where dropout drops, for the block's keys;
// sums[r] is their sum with nothing dropped, lse[r] the maximum. For pairs each row is rounded, and begins where its
// scores do.
template <class E, int kRows, class A>
void weigh(const Block& block, int64_t row, const Kept& kept, A* scores, int64_t pitch, A* sums, A* lse) {
  using Weight = pick_t<per_element<E> == 1, A, bf16_fast>;
  constexpr A kLowest = -__builtin_inf();
  const auto weights = [&](int r)
                           PYDL_INLINE_LAMBDA { return reinterpret_cast<Weight*>(scores + r * pitch); };
  const int64_t* sees = block.sees + row;
  int64_t least = sees[0], most = sees[0];
  for (int r = 1; r < kRows; ++r) {
    least = min_of(least, sees[r]);
    most = max_of(most, sees[r]);
  }
  // the scores of vector j, -inf where a row has ended
  const auto seen = [&](int64_t j, vec<A>(&x)[kRows]) PYDL_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) x[r] = load(scores + r * pitch + j);
    if (j + lanes<A> > least) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) x[r] = fill_outside<A>(x[r], 0, sees[r] - j, kLowest);
    }
  };
  vec<A> highest[kRows], sum[kRows] = {}, x[kRows];
  for (int r = 0; r < kRows; ++r) highest[r] = broadcast(kLowest);
  for (int64_t j = 0; j < most; j += lanes<A>) {
    seen(j, x);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
      highest[r] = max(x[r], highest[r]);  // a nan is passed over, and spoils the sum
  }
  A top[kRows];
  for (int r = 0; r < kRows; ++r) {
    top[r] = maximum_of(highest[r]);
    if (top[r] == kLowest) top[r] = 0;
  }
  int64_t j = 0;
  for (; j < most; j += lanes<A>) {
    seen(j, x);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) x[r] -= top[r];
    exp_nonpositive_group<false, A>(x);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      sum[r] += x[r];
      if (kept.bits) x[r] = where_lane(x[r], kept.of(row + r, j));
      store(weights(r) + j, x[r]);
    }
  }
  for (; j < block.keys; j += lanes<A>)
    for (int r = 0; r < kRows; ++r) store(weights(r) + j, vec<A>{});
  A total[kRows];
  reduce_add_each(sum, total);
  for (int r = 0; r < kRows; ++r) {
    sums[r] = total[r];
    lse[r] = top[r];
  }
}

// What weigh() has left of `rows` rows: sums become keep_scale / sum, and their maxima lse = max + log(sum).
template <class A>
void finish(const AttentionParams& p, int64_t rows, A* factors, A* lse) {
  const A keep_scale = static_cast<A>(p.keep_scale);
  along<A>(0, rows, [&](int64_t r, auto part) PYDL_INLINE_LAMBDA {
    const vec<A> sum = load_part(factors + r, part), top = load_part(lse + r, part);
    const auto none = sum == vec<A>{};
    store_part(factors + r, none ? vec<A>{} : keep_scale / sum, part);
    store_part(lse + r, none ? broadcast<A>(__builtin_inf()) : top + log(sum), part);
  });
}

bool few_queries(const AttentionParams& p) {
  return p.queries <= kFewQueries && p.key.column == 1 && p.value.column == 1;
}

template <class T, class E>
void forward_block(const AttentionParams& p, const Block& block, const RoundKeys& keys, const Rows<E>& values,
                   Ahead ahead, const Workspace<E>& space) {
  using A = acc_of<E>;
  const int64_t pitch = score_pitch<E>(p.keys), key_head = block.head / (p.heads / p.key_heads);
  const bool few = per_element<E> == 1 && few_queries(p);  // never of pairs
  const Rows<E> queries =
      rows_of<T>(p.query, block.batch, block.head, block.first, block.rows, p.width, false, space.queries);
  if (few)
    for (int64_t r = 0; r < block.rows; ++r)
      row_times_transposed(reinterpret_cast<const A*>(queries.data) + r * queries.pitch,
                           at<T>(p.key, block.batch, key_head, 0), p.key.row, block.sees[r], p.width,
                           static_cast<A>(p.scale), space.scores + r * pitch);
  else
    multiply_transposed(block.rows, p.width, queries, space.keys, 0, block.keys, static_cast<A>(p.scale),
                        space.scores, pitch, ahead);
  apply_mask<T>(p, block, 0, block.keys, space.scores, pitch);
  Kept kept;
  kept.fill(p, keys, block, 0, block.keys, space.bits);
  A* lse = static_cast<A*>(p.lse) + (block.batch * p.heads + block.head) * p.queries + block.first;
  int64_t r = 0;
  if constexpr (kGroup<A> > 1)
    for (; r + kGroup<A> <= block.rows; r += kGroup<A>)
      weigh<E, kGroup<A>>(block, r, kept, space.scores + r * pitch, pitch, space.factors + r, lse + r);
  for (; r < block.rows; ++r)
    weigh<E, 1>(block, r, kept, space.scores + r * pitch, pitch, space.factors + r, lse + r);
  finish(p, block.rows, space.factors, lse);
  if (few)
    for (r = 0; r < block.rows; ++r)
      row_times(space.scores + r * pitch, at<T>(p.value, block.batch, key_head, 0), p.value.row,
                block.sees[r], p.value_width, space.output + r * padded<E>(p.value_width));
  else if (block.keys > 0)
    multiply_rows_of(block.rows, elements<E>(block.keys), {reinterpret_cast<const E*>(space.scores), pitch},
                     false, values, p.value_width, A(1), false, space.output, ahead);
  else
    memset(space.output, 0, static_cast<size_t>(block.rows * padded<E>(p.value_width)) * sizeof(A));
  write_rows(space.output, space.factors, block.rows, p.value_width,
             at<stored_t<T, E>>(p.output, block.batch, block.head, block.first), p.output.row);
}

template <class T, class E>
void run(const AttentionPlan& plan, const AttentionParams& p, const Parallel& parallel) {
  const int64_t shared = p.heads / p.key_heads, blocks = blocks_of(p), items = shared * blocks;
  run_tasks(
      {parallel.run, plan.workers}, p.batch * p.key_heads * plan.query_parts,
      [&](int64_t task, int64_t worker) {
        const int64_t part = task % plan.query_parts, batch = task / plan.query_parts / p.key_heads,
                      head = task / plan.query_parts % p.key_heads;
        const Workspace<E> space =
            Workspace<E>::of(p, static_cast<char*>(p.scratch) + worker * plan.worker_bytes);
        const int64_t first = items * part / plan.query_parts, last = items * (part + 1) / plan.query_parts;
        const auto block_at = [&](int64_t item) {
          return block_of(p, batch, head * shared + item / blocks, item % blocks);
        };
        Rows<E> values{};
        if (!few_queries(p)) {
          int64_t keys = 0;  // that any row of the task sees
          for (int64_t item = first; item < last; ++item) keys = max_of(keys, block_at(item).keys);
          pack_transposed<T>(p.key, batch, head, 0, keys, p.width, space.keys);
          values = right_rows<T>(p.value, batch, head, 0, keys, p.value_width, space.values);
        }
        const RoundKeys round = round_keys(p.seed);
        for (int64_t item = first; item < last; ++item) {
          const Block block = block_at(item);
          constexpr int64_t wide = kNr<acc_of<E>>;
          const int64_t panels = ceil_div(block.keys, wide) + ceil_div(p.value_width, wide);
          forward_block<T>(p, block, round, values,
                           ahead_of<T>(p, batch, head, item, last, plan.query_parts == 1, panels), space);
        }
      });
}

}  // namespace

AttentionPlan attention_forward_plan(const AttentionParams& p, int64_t threads) {
  AttentionPlan plan{};
  const int64_t heads = p.batch * p.key_heads, items = p.heads / p.key_heads * blocks_of(p);
  plan.query_parts = heads >= 2 * threads ? 1 : min_of(items, ceil_div(4 * threads, heads));
  plan.key_parts = 1;
  plan.span = p.keys;
  plan.workers = workers_of(p, heads * plan.query_parts, threads);
  dispatch_elements(
      p, [&](auto, auto element) { plan.worker_bytes = Workspace<decltype(element)>::of(p, nullptr).bytes; });
  plan.worker_bytes += kApart;
  plan.scratch = plan.workers * plan.worker_bytes;
  return plan;
}

void attention_forward(const AttentionPlan& plan, const AttentionParams& p, const Parallel& parallel) {
  dispatch_elements(
      p, [&](auto type, auto element) { run<decltype(type), decltype(element)>(plan, p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
