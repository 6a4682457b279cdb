// Philox4x32-10 in vectors: the words of kernels/philox.h, several counters at once, in element order.
//
// The state of a counter is two 64-bit lanes, (c0 | c1 << 32) and (c2 | c3 << 32). A product of the low
// halves has the next c1 in its low half and, once xored, the next c0 in its high half: a round is two
// widening multiplications, two xors of the high halves and two swaps of halves, six instructions with
// AVX-512 for 8 counters, 32 words. Interleaving the two lanes at the end gives the words in element order.
#pragma once

#include "kernels/cpu/simd.h"
#include "kernels/philox.h"

namespace pydl::cpu::PYDL_ISA {

static constexpr int kBlocks = lanes<double>;  // Philox counters per step
static constexpr int kElements = 4 * kBlocks;  // words per step: two vectors

struct Words {
  u32v low, high;  // words of elements [0, 2 * kBlocks) and [2 * kBlocks, 4 * kBlocks)
};

// Counter offsets such that interleaving 64-bit lanes within 16 bytes leaves the words in order.
PYDL_INLINE u64v counter_offsets() {
  u64v offsets;
  for (int i = 0; i < kBlocks; ++i) offsets[i] = static_cast<uint64_t>(i / 2 + (i % 2) * (kBlocks / 2));
  return offsets;
}

// The keys of the rounds, computed once per task so that the loop over counters has them in registers or
// memory operands.
struct RoundKeys {
  uint32_t key0[PhiloxConstants::rounds], key1[PhiloxConstants::rounds];
};

PYDL_INLINE RoundKeys round_keys(uint64_t seed) {
  RoundKeys keys;
  for (int round = 0; round < PhiloxConstants::rounds; ++round) {
    const uint32_t n = static_cast<uint32_t>(round);
    keys.key0[round] = static_cast<uint32_t>(seed) + n * PhiloxConstants::weyl0;
    keys.key1[round] = static_cast<uint32_t>(seed >> 32) + n * PhiloxConstants::weyl1;
  }
  return keys;
}

// kChains * kElements words from counter `block` on. The rounds of one counter depend on each other; several
// chains side by side give the scheduler something to do meanwhile (AVX-512, 1 M elements: 1 chain 275 µs, 2
// 248, 4 199).
template <int kChains>
PYDL_INLINE void philox(const RoundKeys& keys, uint64_t block, Words (&words)[kChains]) {
  u64v a[kChains], b[kChains];  // a = (c0, c1), b = (c2, c3), low half first
  for (int i = 0; i < kChains; ++i) {
    a[i] = counter_offsets() + (block + static_cast<uint64_t>(i * kBlocks));
    b[i] = u64v{};
  }
#pragma GCC unroll 10
  for (int round = 0; round < PhiloxConstants::rounds; ++round) {
#pragma GCC unroll 4
    for (int i = 0; i < kChains; ++i) {
      const u64v p0 = multiply_low_halves(a[i], PhiloxConstants::multiplier0);
      const u64v p1 = multiply_low_halves(b[i], PhiloxConstants::multiplier1);
      a[i] = swap_halves(xor_high_halves(p1, a[i], keys.key0[round]));
      b[i] = swap_halves(xor_high_halves(p0, b[i], keys.key1[round]));
    }
  }
  for (int i = 0; i < kChains; ++i)
    words[i] = {bit_cast<u32v>(interleave_low(a[i], b[i])), bit_cast<u32v>(interleave_high(a[i], b[i]))};
}

// Whether each of the kElements elements from `first` on (a multiple of 4) is kept, a bit each. threshold <
// 2^32.
PYDL_INLINE uint32_t kept_bits(const RoundKeys& keys, uint64_t first, uint32_t threshold) {
  Words words[1];
  philox(keys, first / 4, words);
  const u32v limit = u32v{} + threshold;
  return mask_bits(words[0].low >= limit) | mask_bits(words[0].high >= limit) << (kElements / 2);
}

}  // namespace pydl::cpu::PYDL_ISA
