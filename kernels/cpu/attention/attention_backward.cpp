// Attention's backward (derivation: NOTES.md): scores and weights are made again, a tile of queries and keys at a time.
//
//   dropped_weight[i][j] = keep(exp(score[i][j] - lse[i]))
//   grad_value[j]   += sum_i dropped_weight[i][j] * grad_output[i]
//   grad_score[i][j] = weight[i][j] * (keep(sum_c grad_output[i][c] * value[j][c]) - sum_c grad_output[i][c] * output[i][c])
//   grad_query[i]   += scale * sum_j grad_score[i][j] * key[j]
//   grad_key[j]     += scale * sum_i grad_score[i][j] * query[i]
//
// Five products; the tiles are read as they lie, in rows for grad_query and in columns for the other two. Where there are
// key heads enough, a task is one of them and sums its gradients over all queries. Else tasks of some keys make the
// gradients of keys and values, and others, of some queries, those of queries: two products more, and the same sums in
// the same order.
//
//   grad_mask[.][.] += sum grad_score[i][j]    over the samples, heads, rows and keys that the mask broadcasts
//
// is a pass of its own, of two products: a task owns a part of the mask and goes through what it broadcasts in order, so
// that nothing but the mask's own gradient is as large as the scores.
#include "kernels/cpu/attention/tiles.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

using namespace attention;

constexpr int64_t kMaskKeys = 256;  // of a task of the mask's gradient: whole tiles

template <class E>
struct Workspace {
  using A = acc_of<E>;
  E *keys, *values, *key_rows;  // of the task's keys
  E *queries, *grad_output;     // of a block
  E *right_queries, *right_grad_output,
      *score_rows;             // and for pairs, of which each side of a product has its own
  A *grad_keys, *grad_values;  // of the task's keys
  A *grad_queries, *along, *weights, *grad_scores;  // of a block
  uint8_t* bits;
  int64_t bytes;

  static Workspace of(const AttentionParams& p, int64_t span, char* scratch) {
    constexpr bool kPairs = per_element<E> == 2;
    Pieces pieces{scratch};
    Workspace space{};
    const int64_t width = padded<E>(p.width), value_width = padded<E>(p.value_width);
    space.keys = pieces.take<E>(padded<E>(span) * elements<E>(p.width));
    space.values = pieces.take<E>(padded<E>(span) * elements<E>(p.value_width));
    space.key_rows = pieces.take<E>(elements<E>(span) * width);
    space.queries = pieces.take<E>(kQueries * padded<E>(elements<E>(p.width)));
    space.grad_output = pieces.take<E>(kQueries * padded<E>(elements<E>(p.value_width)));
    space.right_queries = pieces.take<E>(kPairs ? elements<E>(kQueries) * width : 0);
    space.right_grad_output = pieces.take<E>(kPairs ? elements<E>(kQueries) * value_width : 0);
    space.score_rows = pieces.take<E>(kPairs ? kQueries * kTilePitch<A> : 0);
    space.grad_keys = pieces.take<A>(span * width);
    space.grad_values = pieces.take<A>(span * value_width);
    space.grad_queries = pieces.take<A>(kQueries * width);
    space.along = pieces.take<A>(kQueries);
    space.weights = pieces.take<A>(kQueries * kTilePitch<A>);
    space.grad_scores = pieces.take<A>(kQueries * kTilePitch<A>);
    space.bits = pieces.take<uint8_t>(Kept::bytes(p, span));
    space.bytes = pieces.next - scratch;
    return space;
  }
};

// What a task makes: the gradients of keys [first, last) and of their values, or of queries, or of all.
struct Task {
  int64_t batch, key_head;
  int64_t first, last;
  bool queries, keys, values, mask;
  bool whole;  // key heads one after the other
};

// Of a block and `count` keys from `key` on. A tile is summed before it is added where the mask broadcasts: a sum over
// all rows of all samples is one of tiles.
template <class A>
void add_to_mask(const AttentionParams& p, const Block& block, int64_t key, int64_t count,
                 const A* grad_scores) {
  const bool of_rows = p.grad_mask.row != 0, of_keys = p.grad_mask.column != 0;
  A* to = at<A>(p.grad_mask, block.batch, block.head, block.first) + key * p.grad_mask.column;
  if (of_keys && of_rows) {
    for (int64_t r = 0; r < block.rows; ++r, to += p.grad_mask.row, grad_scores += kTilePitch<A>)
      along<A>(0, count, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA {
        store_part(to + j, load_part(to + j, part) + load(grad_scores + j), part);
      });
  } else if (of_keys) {
    along<A>(0, count, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA {
      vec<A> sum{};
      for (int64_t r = 0; r < block.rows; ++r) sum += load(grad_scores + r * kTilePitch<A> + j);
      store_part(to + j, load_part(to + j, part) + sum, part);
    });
  } else {
    A total = 0;
    for (int64_t r = 0; r < block.rows; ++r, grad_scores += kTilePitch<A>) {
      vec<A> sum{};
      for (int64_t j = 0; j < count; j += lanes<A>) sum += load(grad_scores + j);  // 0 beyond the last key
      if (of_rows)
        to[r * p.grad_mask.row] += reduce_add(sum);
      else
        total += reduce_add(sum);
    }
    if (!of_rows) *to += total;
  }
}

// Sums of the keys [first, last) that none has been added to.
template <class E>
void clear_rows(const AttentionParams& p, const Task& task, int64_t first, int64_t last,
                const Workspace<E>& space) {
  const auto clear = [&](acc_of<E>* sums, int64_t numbers) {
    const int64_t pitch = padded<E>(numbers);
    memset(sums + first * pitch, 0, static_cast<size_t>((last - first) * pitch) * sizeof(acc_of<E>));
  };
  if (first >= last) return;
  if (task.keys) clear(space.grad_keys, p.width);
  if (task.values) clear(space.grad_values, p.value_width);
}

template <class T, class E>
void backward_block(const AttentionParams& p, const Task& task, const Block& block, const RoundKeys& keys,
                    const Rows<E>& key_rows, int64_t& begun, Ahead ahead, const Workspace<E>& space) {
  using A = acc_of<E>;
  constexpr int64_t per = per_element<E>;
  const int64_t rows = block.rows, last = min_of(task.last, block.keys);
  const A scale = static_cast<A>(p.scale);
  const BothSides<E> queries = both_sides_of<T>(p.query, block.batch, block.head, block.first, rows, p.width,
                                                task.keys, space.queries, space.right_queries);
  const BothSides<E> grad =
      both_sides_of<T>(p.grad_output, block.batch, block.head, block.first, rows, p.value_width, task.values,
                       space.grad_output, space.right_grad_output);
  const A* lse =
      static_cast<const A*>(p.lse) + (block.batch * p.heads + block.head) * p.queries + block.first;
  for (int64_t r = 0; r < rows; ++r) {
    const T* output = at<T>(p.output, block.batch, block.head, block.first + r);
    const auto* gradient =
        reinterpret_cast<const pick_t<per == 1, A, T>*>(grad.left.data + r * grad.left.pitch);
    vec<A> sum{};
    along<A>(0, p.value_width, [&](int64_t c, auto part) PYDL_INLINE_LAMBDA {
      sum += load_part(gradient + c, part) * load_part(output + c, part);
    });
    space.along[r] = reduce_add(sum);
  }
  Kept kept;
  kept.fill(p, keys, block, task.first, last, space.bits);
  const Tiles<E> tiles{space.weights, space.grad_scores, space.score_rows};
  const Rows<E> weights{reinterpret_cast<const E*>(space.weights), kTilePitch<A>},
      grad_scores{reinterpret_cast<const E*>(space.grad_scores), kTilePitch<A>},
      score_rows = per == 1 ? grad_scores : Rows<E>{space.score_rows, kTilePitch<A>};
  for (int64_t key = task.first; key < last; key += kKeys) {
    const int64_t count = min_of(kKeys, last - key), local = key - task.first;
    multiply_transposed(rows, p.width, queries.left, space.keys, local, local + count, scale, space.weights,
                        kTilePitch<A>, ahead);
    multiply_transposed(rows, p.value_width, grad.left, space.values, local, local + count, A(1),
                        space.grad_scores, kTilePitch<A>, ahead);
    apply_mask<T>(p, block, key, key + count, space.weights, kTilePitch<A>);
    int64_t r = 0;
    if constexpr (kGroup<A> > 1)
      for (; r + kGroup<A> <= rows; r += kGroup<A>)
        differentiate<kGroup<A>>(p, block, r, key, count, kept, lse, space.along, tiles);
    for (; r < rows; ++r) differentiate<1>(p, block, r, key, count, kept, lse, space.along, tiles);
    if constexpr (per == 1)
      if (task.mask) add_to_mask(p, block, key, count, space.grad_scores);
    const bool add = local < begun;  // else the first that these keys see
    if (add && local + count > begun) clear_rows(p, task, begun, local + count, space);
    begun = max_of(begun, local + count);
    if (task.values)
      multiply_rows_of(count, elements<E>(rows), weights, true, grad.right, p.value_width, A(1), add,
                       space.grad_values + local * padded<E>(p.value_width), ahead);
    if (task.keys)
      multiply_rows_of(count, elements<E>(rows), grad_scores, true, queries.right, p.width, scale, add,
                       space.grad_keys + local * padded<E>(p.width), ahead);
    if (task.queries)
      multiply_rows_of(rows, elements<E>(count), score_rows, false,
                       {key_rows.data + local / per * key_rows.pitch, key_rows.pitch}, p.width, scale,
                       key > 0, space.grad_queries, ahead);
  }
  if (!task.queries) return;
  if (last == 0) memset(space.grad_queries, 0, static_cast<size_t>(rows * padded<E>(p.width)) * sizeof(A));
  write_rows<stored_t<T, E>, A>(space.grad_queries, nullptr, rows, p.width,
                                at<stored_t<T, E>>(p.grad_query, block.batch, block.head, block.first),
                                p.grad_query.row);
}

// The blocks [first, last) of those of all the query heads that share the task's key head.
template <class T, class E>
void run_task(const AttentionParams& p, const Task& task, int64_t first, int64_t last,
              const Workspace<E>& space) {
  using A = acc_of<E>;
  const int64_t shared = p.heads / p.key_heads, blocks = blocks_of(p), span = task.last - task.first;
  const auto block_at = [&](int64_t item) {
    return block_of(p, task.batch, task.key_head * shared + item / blocks, item % blocks);
  };
  int64_t seen = 0;  // keys of the task that any of its rows sees
  for (int64_t item = first; item < last; ++item) seen = max_of(seen, block_at(item).keys - task.first);
  seen = min_of(seen, span);
  pack_transposed<T>(p.key, task.batch, task.key_head, task.first, seen, p.width, space.keys);
  pack_transposed<T>(p.value, task.batch, task.key_head, task.first, seen, p.value_width, space.values);
  Rows<E> key_rows{};
  if (task.queries)
    key_rows = right_rows<T>(p.key, task.batch, task.key_head, task.first, seen, p.width, space.key_rows);
  const RoundKeys round = round_keys(p.seed);
  int64_t begun = 0;  // keys whose sums have begun
  for (int64_t item = first; item < last; ++item) {
    const Block block = block_at(item);
    constexpr int64_t wide = kNr<A>;
    const int64_t keys = min_of(span, max_of(block.keys - task.first, 0));
    const int64_t panels = 2 * ceil_div(keys, wide) + ceil_div(keys, kKeys) * (2 * ceil_div(p.width, wide) +
                                                                               ceil_div(p.value_width, wide));
    backward_block<T>(p, task, block, round, key_rows, begun,
                      ahead_of<T>(p, task.batch, task.key_head, item, last, task.whole, panels), space);
  }
  clear_rows(p, task, begun, span, space);
  using Stored = stored_t<T, E>;
  if (task.keys) {
    Stored* to = at<Stored>(p.grad_key, task.batch, task.key_head, task.first);
    if (p.grad_key.column == 1)
      write_rows<Stored, A>(space.grad_keys, nullptr, span, p.width, to, p.grad_key.row);
    else
      write_columns(space.grad_keys, span, p.width, to, p.grad_key.column);
  }
  if (task.values)
    write_rows<Stored, A>(space.grad_values, nullptr, span, p.value_width,
                          at<Stored>(p.grad_value, task.batch, task.key_head, task.first), p.grad_value.row);
}

template <class T, class E>
void run(const AttentionPlan& plan, const AttentionParams& p, const Parallel& parallel) {
  const bool queries = p.grad_query.data != nullptr, keys = p.grad_key.data != nullptr,
             values = p.grad_value.data != nullptr;
  const bool together = plan.query_parts == 1 && plan.key_parts == 1;
  const int64_t items = p.heads / p.key_heads * blocks_of(p), tiles = ceil_div(p.keys, kKeys);
  const int64_t of_queries = together || !queries ? 0 : plan.query_parts,
                of_keys = together || keys || values ? plan.key_parts : 0, parts = of_queries + of_keys;
  run_tasks({parallel.run, plan.workers}, p.batch * p.key_heads * parts, [&](int64_t index, int64_t worker) {
    const int64_t part = index % parts - of_queries, head = index / parts;
    char* scratch = static_cast<char*>(p.scratch) + worker * plan.worker_bytes;
    const Workspace<E> space = Workspace<E>::of(p, plan.span, scratch);
    Task task{head / p.key_heads, head % p.key_heads, 0,     p.keys,  queries,
              keys && together,   values && together, false, together};
    if (part < 0) {
      const int64_t query_part = part + of_queries;
      return run_task<T>(p, task, items * query_part / plan.query_parts,
                         items * (query_part + 1) / plan.query_parts, space);
    }
    task.first = tiles * part / plan.key_parts * kKeys;
    task.last = min_of(tiles * (part + 1) / plan.key_parts * kKeys, p.keys);
    task.queries = queries && together;
    task.keys = keys;
    task.values = values;
    run_task<T>(p, task, 0, items, space);
  });
}

// What a task of attention_backward_mask owns: of each dimension of the mask one part, or all where it broadcasts.
struct MaskParts {
  int64_t batch, heads, blocks, keys;  // how many
  static MaskParts of(const AttentionParams& p) {
    const auto parts = [](int64_t stride, int64_t count) { return stride == 0 ? 1 : count; };
    return {parts(p.grad_mask.batch, p.batch), parts(p.grad_mask.head, p.heads),
            parts(p.grad_mask.row, blocks_of(p)), parts(p.grad_mask.column, ceil_div(p.keys, kMaskKeys))};
  }
  int64_t count() const { return batch * heads * blocks * keys; }
};

template <class T>
void run_mask(const AttentionPlan& plan, const AttentionParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  const MaskParts parts = MaskParts::of(p);
  const int64_t shared = p.heads / p.key_heads, blocks = blocks_of(p);
  const auto range = [](int64_t index, int64_t parts, int64_t count, int64_t (&of)[2]) {
    of[0] = count * index / parts;  // one, or all
    of[1] = count * (index + 1) / parts;
  };
  run_tasks({parallel.run, plan.workers}, parts.count(), [&](int64_t index, int64_t worker) {
    char* scratch = static_cast<char*>(p.scratch) + worker * plan.worker_bytes;
    const Workspace<A> space = Workspace<A>::of(p, plan.span, scratch);
    int64_t batch[2], heads[2], of_blocks[2];
    const int64_t key = index % parts.keys;
    range(index / parts.keys % parts.blocks, parts.blocks, blocks, of_blocks);
    range(index / parts.keys / parts.blocks % parts.heads, parts.heads, p.heads, heads);
    range(index / parts.keys / parts.blocks / parts.heads, parts.batch, p.batch, batch);
    Task task{0, 0, parts.keys == 1 ? 0 : key * kMaskKeys, 0, false, false, false, true, false};
    task.last = parts.keys == 1 ? p.keys : min_of(task.first + kMaskKeys, p.keys);
    for (task.batch = batch[0]; task.batch < batch[1]; ++task.batch)
      for (int64_t head = heads[0]; head < heads[1]; ++head) {
        task.key_head = head / shared;
        const int64_t first = head % shared * blocks;
        run_task<T>(p, task, first + of_blocks[0], first + of_blocks[1], space);
      }
  });
}

}  // namespace

AttentionPlan attention_backward_mask_plan(const AttentionParams& p, int64_t threads) {
  AttentionPlan plan{};
  const MaskParts parts = MaskParts::of(p);
  plan.span = parts.keys == 1 ? p.keys : min_of(p.keys, kMaskKeys);
  plan.workers = workers_of(p, parts.count(), threads);
  plan.worker_bytes = p.dtype == DType::f64 ? Workspace<double>::of(p, plan.span, nullptr).bytes
                                            : Workspace<float>::of(p, plan.span, nullptr).bytes;
  plan.worker_bytes += kApart;
  plan.scratch = plan.workers * plan.worker_bytes;
  return plan;
}

void attention_backward_mask(const AttentionPlan& plan, const AttentionParams& p, const Parallel& parallel) {
  dispatch_rows(p.dtype, [&](auto type) { run_mask<decltype(type)>(plan, p, parallel); });
}

AttentionPlan attention_backward_plan(const AttentionParams& p, int64_t threads) {
  AttentionPlan plan{};
  const int64_t heads = p.batch * p.key_heads, items = p.heads / p.key_heads * blocks_of(p);
  const int64_t parts = heads >= threads ? 1 : ceil_div(4 * threads, heads);
  plan.query_parts = min_of(parts, items);
  plan.key_parts = min_of(parts, ceil_div(p.keys, kKeys));
  const bool queries = p.grad_query.data != nullptr && (plan.query_parts > 1 || plan.key_parts > 1);
  plan.span = queries ? p.keys : min_of(p.keys, ceil_div(ceil_div(p.keys, kKeys), plan.key_parts) * kKeys);
  plan.workers = workers_of(p, heads * (plan.query_parts + plan.key_parts), threads);
  dispatch_elements(p, [&](auto, auto element) {
    plan.worker_bytes = Workspace<decltype(element)>::of(p, plan.span, nullptr).bytes;
  });
  plan.worker_bytes += kApart;
  plan.scratch = plan.workers * plan.worker_bytes;
  return plan;
}

void attention_backward(const AttentionPlan& plan, const AttentionParams& p, const Parallel& parallel) {
  dispatch_elements(
      p, [&](auto type, auto element) { run<decltype(type), decltype(element)>(plan, p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
