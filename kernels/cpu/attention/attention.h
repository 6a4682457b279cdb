// What both passes of attention are made of: blocks of queries and what their rows see, masks, and the bits of dropout;
// products are in operands.h. See kernels/attention.h for the formulas.
#pragma once

#include "kernels/cpu/attention/operands.h"
#include "kernels/cpu/base/math.h"
#include "kernels/cpu/base/philox_simd.h"
#include "kernels/cpu/base/scratch.h"
#include "kernels/cpu/base/simd_reduce.h"
#include "kernels/cpu/base/tasks.h"

namespace pydl::cpu::PYDL_ISA::attention {
namespace {

constexpr int64_t kQueries = 64;           // of a block
constexpr int64_t kCausalQueries = 32;     // of few keys, so that blocks above the diagonal are left out
constexpr int64_t kFewKeys = 128;          // where that pays
constexpr int64_t kFewQueries = 4;         // so few that keys and values are read once, as they lie
constexpr double kWorthAThread = 1 << 17;  // multiply-adds that outweigh waking a thread
// Rows in step, as many chains of exponentials; float64 and SSE2, which few train in, do without the text.
template <class A>
constexpr int kGroup = kVectorBytes == 16 || sizeof(A) == 8 ? 1 : 4;

inline int64_t block_rows(const AttentionParams& p) {
  return p.causal && p.keys <= kFewKeys ? kCausalQueries : kQueries;
}
inline int64_t blocks_of(const AttentionParams& p) { return ceil_div(p.queries, block_rows(p)); }

inline int64_t workers_of(const AttentionParams& p, int64_t tasks, int64_t threads) {
  const double work = static_cast<double>(p.batch * p.heads * p.queries) *
                      static_cast<double>(p.keys * (p.width + p.value_width));
  const int64_t worth = 1 + static_cast<int64_t>(work / kWorthAThread);
  return workers_for({nullptr, min_of(threads, worth)}, tasks);
}

// The tensors' type and what products multiply: body(type, element). Elements are the type that sums have, or of bf16 pairs
// where the CPU multiplies them and that pays.
template <class F>
void dispatch_elements(const AttentionParams& p, const F& body) {
#if defined(PYDL_BF16_DOT)
  if (p.dtype == DType::bf16 && p.queries > kFewQueries && cpu_has_bf16_dot())
    return body(bf16{}, bf16_pair{});
#endif
  dispatch_rows(p.dtype, [&](auto type) { body(type, acc_t<decltype(type)>{}); });
}

// ---- what rows see

// The block of a sample's query head that begins at row `first`.
struct Block {
  int64_t batch, head, first, rows;
  int64_t sees[kQueries];  // keys that each row sees: the first so many
  int64_t keys;            // the most of them
};

[[maybe_unused]] __attribute__((noinline)) Block block_of(const AttentionParams& p, int64_t batch,
                                                          int64_t head, int64_t index) {
  Block block;
  block.batch = batch;
  block.head = head;
  block.first = index * block_rows(p);
  block.rows = min_of(block_rows(p), p.queries - block.first);
  block.keys = 0;
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t i = block.first + r;
    int64_t sees = p.causal ? min_of(i + 1, p.keys) : p.keys;
    if (p.lengths) sees = min_of(sees, max_of(p.lengths[batch * p.lengths_batch + i * p.lengths_row], 0));
    block.sees[r] = sees;
    block.keys = max_of(block.keys, sees);
  }
  return block;
}

// scores[j] += mask[j], or -inf, for `count` keys from `key` on, M being the mask's type.
template <class M, class A>
void add_mask(const M* mask, int64_t stride, int64_t count, A* scores) {
  if (stride == 1) {
    along<A>(0, count, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA {
      store_part(scores + j, load_part(scores + j, part) + load_part(mask + j, part), part);
    });
  } else {
    for (int64_t j = 0; j < count; ++j) scores[j] += load_n(mask + j * stride, 1)[0];
  }
}
template <class A>
void hide(const uint8_t* mask, int64_t stride, int64_t count, A* scores) {
  constexpr A kLowest = -__builtin_inf();
  int64_t j = 0;
  if (stride == 1)
    for (; j + lanes<A> <= count; j += lanes<A>) {
      const auto seen = load_integers<A>(mask + j, 0, lanes<A>) != 0;
      store(scores + j, seen ? load(scores + j) : broadcast(kLowest));
    }
  for (; j < count; ++j)
    if (mask[j * stride] == 0) scores[j] = kLowest;
}

// The mask of a block's rows, on scores of the keys [first, last).
template <class T, class A>
void apply_mask(const AttentionParams& p, const Block& block, int64_t first, int64_t last, A* scores,
                int64_t pitch) {
  if (p.masked == AttentionMask::none) return;
  for (int64_t r = 0; r < block.rows; ++r, scores += pitch) {
    const int64_t i = block.first + r, count = min_of(last, block.sees[r]) - first,
                  offset = first * p.mask.column;
    if (count <= 0) continue;
    if (p.masked == AttentionMask::boolean)
      hide(at<uint8_t>(p.mask, block.batch, block.head, i) + offset, p.mask.column, count, scores);
    else if (p.masked == AttentionMask::additive)
      add_mask(at<T>(p.mask, block.batch, block.head, i) + offset, p.mask.column, count, scores);
    else if constexpr (sizeof(A) == 4)
      add_mask(at<float>(p.mask, block.batch, block.head, i) + offset, p.mask.column, count, scores);
  }
}

// ---- what comes next

constexpr int64_t kKeysAhead = 256;

// Behind block `item` of those before `last` of a key head: the rows of the next block, or, where there is none, of the
// next key head's first and its keys and values, if that is likely to be the same worker's. Spread over the register
// blocks that the block's rows and so many panels have between them: on AVX-512 those of 64 tokens are few.
template <class T>
Ahead ahead_of(const AttentionParams& p, int64_t batch, int64_t key_head, int64_t item, int64_t last,
               bool next_head, int64_t panels) {
  Ahead ahead;
  const auto add = [&](const Heads& t, int64_t head, int64_t row, int64_t count, int64_t numbers) {
    constexpr int64_t size = sizeof(T);
    if (t.data && t.column == 1) ahead.add(at<T>(t, batch, head, row), t.row * size, numbers * size, count);
  };
  const int64_t shared = p.heads / p.key_heads, blocks = blocks_of(p);
  int64_t head = key_head * shared + ++item / blocks, first = item % blocks * block_rows(p);
  if (item == last) {
    if (!next_head) return ahead;
    if (++key_head == p.key_heads) {
      key_head = 0;
      if (++batch == p.batch) return ahead;
    }
    head = key_head * shared;
    first = 0;
    add(p.key, key_head, 0, min_of(p.keys, kKeysAhead), p.width);
    add(p.value, key_head, 0, min_of(p.keys, kKeysAhead), p.value_width);
  }
  const int64_t rows = min_of(block_rows(p), p.queries - first);
  add(p.query, head, first, rows, p.width);
  add(p.grad_output, head, first, rows, p.value_width);
  add(p.output, head, first, rows, p.value_width);
  if (rows > kMr) ahead.spread_over(panels * ceil_div(rows, kMr));  // fewer hide too little
  return ahead;
}

// ---- dropout

constexpr int kChains = 4;  // steps of the generator side by side
constexpr int64_t kStep = kChains * kElements;

// Which keys of a block's rows dropout keeps, a bit each.
struct Kept {
  uint8_t* bits;         // null: nothing is dropped
  int64_t at[kQueries];  // the bit of each row's first key

  // Those of a vector from `key` on, in the low bits.
  PYDL_INLINE uint32_t of(int64_t row, int64_t key) const {
    const uint64_t bit = static_cast<uint64_t>(at[row] + key);
    uint32_t word;
    memcpy(&word, bits + bit / 8, sizeof word);
    return word >> (bit % 8);
  }

  static constexpr int64_t kShortRows = 128;  // whole rows are generated in one run

  static int64_t row_bytes(int64_t keys) { return (ceil_div(keys + 3, kStep) * kStep) / 8; }
  // For rows of so many keys of all.
  static int64_t bytes(const AttentionParams& p, int64_t keys) {
    if (p.threshold == 0) return 0;
    return max_of(row_bytes(keys) * kQueries, p.keys <= kShortRows ? row_bytes(kQueries * p.keys) : 0) + 8;
  }

  // For the keys [first, last) alone.
  void fill(const AttentionParams& p, const RoundKeys& keys, const Block& block, int64_t first, int64_t last,
            uint8_t* to) {
    bits = p.threshold == 0 ? nullptr : to;
    if (bits == nullptr) return;
    const int64_t row = (block.batch * p.heads + block.head) * p.queries + block.first;
    if (p.keys <= kShortRows && first == 0) {
      const int64_t begin = row * p.keys;
      run(p, keys, begin, block.rows * p.keys, 0);
      for (int64_t r = 0; r < block.rows; ++r) at[r] = begin % 4 + r * p.keys;
      return;
    }
    const int64_t pitch = row_bytes(last - first);
    for (int64_t r = 0; r < block.rows; ++r) {
      const int64_t begin = (row + r) * p.keys + first, count = min_of(last, block.sees[r]) - first;
      run(p, keys, begin, max_of(count, 0), r * pitch);
      at[r] = r * pitch * 8 + begin % 4 - first;
    }
  }

 private:
  // The bits of `count` elements from `begin` on, behind those of up to three before it: words come in fours.
  void run(const AttentionParams& p, const RoundKeys& keys, int64_t begin, int64_t count, int64_t offset) {
    const int64_t start = begin / 4, numbers = count + begin % 4;
    uint8_t* to = bits + offset;
    if (p.threshold > UINT32_MAX) {
      memset(to, 0, static_cast<size_t>(ceil_div(numbers, 8)));
      return;
    }
    const u32v limit = u32v{} + static_cast<uint32_t>(p.threshold);
    for (int64_t i = 0; i < numbers; i += kStep) {
      Words words[kChains];
      philox<kChains, false>(keys, static_cast<uint64_t>(start + i / 4), words);
#pragma GCC unroll 4
      for (int c = 0; c < kChains; ++c, to += kElements / 8) {
        const uint32_t kept = mask_bits(words[c].low >= limit) | mask_bits(words[c].high >= limit)
                                                                     << (kElements / 2);
        memcpy(to, &kept, kElements / 8);
      }
    }
  }
};

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::attention
