// A tile of the backward: what the rows of a block and kKeys keys have between them.
#pragma once

#include "kernels/cpu/attention/attention.h"

namespace pydl::cpu::PYDL_ISA::attention {
namespace {

constexpr int64_t kKeys = 64;
template <class A>
constexpr int64_t kTilePitch = kKeys + 64 / static_cast<int64_t>(sizeof(A));

// Where the rows of a tile go that differentiate() has made, from `row` on: in place of what they were made from.
template <class E>
struct Tiles {
  using A = acc_of<E>;
  A *weights, *grad_scores;
  E* score_rows;

  // Numbers [j, j + lanes) of kRows rows.
  template <int kRows>
  PYDL_INLINE void put(int64_t row, int64_t j, const vec<A> (&weight)[kRows],
                       const vec<A> (&grad_score)[kRows]) const {
    constexpr int64_t pitch = kTilePitch<A>;
    if constexpr (per_element<E> == 1) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        store(weights + (row + r) * pitch + j, weight[r]);
        store(grad_scores + (row + r) * pitch + j, grad_score[r]);
      }
    } else {
#if defined(PYDL_BF16_DOT)
      // Pairs of rows, which are the depth of the gradients of keys and values: two rows become one, so that what is
      // written has been read. The gradients of scores once more in rows, for those of queries.
      bf16_fast* rows = reinterpret_cast<bf16_fast*>(score_rows + row * pitch);
      E *weight_pairs = reinterpret_cast<E*>(weights) + row / 2 * pitch + j,
        *score_pairs = reinterpret_cast<E*>(grad_scores) + row / 2 * pitch + j;
      if constexpr (kRows == 1) {  // half of a pair, the first with zero beside it
        u32v w = widen_bits(narrow_bf16_fast(weight[0])), g = widen_bits(narrow_bf16_fast(grad_score[0]));
        if (row % 2 == 1) {
          w = load_elements(weight_pairs) | w << 16;
          g = load_elements(score_pairs) | g << 16;
        }
        store_step(weight_pairs, bit_cast<vec<A>>(w));
        store_step(score_pairs, bit_cast<vec<A>>(g));
        store(rows + j, grad_score[0]);
      } else {
#pragma GCC unroll 4
        for (int r = 0; r < kRows; r += 2) {
          const u32v w = narrow_bf16_fast(weight[r], weight[r + 1]),
                     g = narrow_bf16_fast(grad_score[r], grad_score[r + 1]);
          store_step(weight_pairs + r / 2 * pitch, bit_cast<vec<A>>(halves_side_by_side(w)));
          store_step(score_pairs + r / 2 * pitch, bit_cast<vec<A>>(halves_side_by_side(g)));
          memcpy(rows + 2 * r * pitch + j, &g, sizeof g / 2);
          memcpy(rows + 2 * (r + 1) * pitch + j, reinterpret_cast<const char*>(&g) + sizeof g / 2,
                 sizeof g / 2);
        }
      }
#endif
    }
  }
};

// Of kRows rows from `row` on, of `count` keys from `key` on: scores become weights as dropout leaves them, and
// the gradients of weights become those of scores.
template <int kRows, class E, class A>
void differentiate(const AttentionParams& p, const Block& block, int64_t row, int64_t key, int64_t count,
                   const Kept& kept, const A* lse, const A* along, const Tiles<E>& tiles) {
  constexpr A kLowest = -__builtin_inf();
  const A keep_scale = static_cast<A>(p.keep_scale);
  int64_t least = block.sees[row];
  for (int r = 1; r < kRows; ++r) least = min_of(least, block.sees[row + r]);
  for (int64_t j = 0; j < count; j += lanes<A>) {
    vec<A> x[kRows], g[kRows];
    const bool whole = key + j + lanes<A> <= least;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      x[r] = load(tiles.weights + (row + r) * kTilePitch<A> + j) - lse[row + r];
      if (!whole) x[r] = fill_outside<A>(x[r], 0, block.sees[row + r] - key - j, kLowest);
    }
    exp_nonpositive_group<false, A>(x);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      vec<A> dropped = x[r];
      g[r] = load(tiles.grad_scores + (row + r) * kTilePitch<A> + j);
      if (kept.bits) {
        const uint32_t bits = kept.of(row + r, key + j);
        dropped = where_lane(dropped * keep_scale, bits);
        g[r] = where_lane(g[r] * keep_scale, bits);
      }
      g[r] = x[r] * (g[r] - along[row + r]);
      if (!whole) g[r] = fill_outside<A>(g[r], 0, block.sees[row + r] - key - j, A(0));
      x[r] = dropped;
    }
    tiles.put(row, j, x, g);
  }
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::attention
