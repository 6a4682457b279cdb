// Philox4x32-10 in vectors: the words of kernels/philox.h, several counters at once, in element order.
//
// Ten rounds cost about 80 vector instructions for kElements words, a cycle per element and less with
// AVX-512, which is what a copy through L2 costs too. The state is held as 64-bit lanes (c0 | c1 << 32) and
// (c2 | c3 << 32), so that one round is two widening multiplications, two shifts, two rotations and four xors
// with no shuffling; interleaving the two halves at the end gives the words in element order.
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

PYDL_INLINE Words philox(uint64_t seed, uint64_t block) {
  u64v a = counter_offsets() + block, b = u64v{};  // a = (c0, c1), b = (c2, c3)
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < PhiloxConstants::rounds; ++round) {
    const u64v p0 = multiply_low_halves(a, PhiloxConstants::multiplier0);
    const u64v p1 = multiply_low_halves(b, PhiloxConstants::multiplier1);
    a = ((p1 << 32) | (p1 >> 32)) ^ (a >> 32) ^ (u64v{} + k0);
    b = ((p0 << 32) | (p0 >> 32)) ^ (b >> 32) ^ (u64v{} + k1);
    k0 += PhiloxConstants::weyl0;
    k1 += PhiloxConstants::weyl1;
  }
  return {bit_cast<u32v>(interleave_low(a, b)), bit_cast<u32v>(interleave_high(a, b))};
}

// Whether each of the kElements elements from `first` on (a multiple of 4) is kept, a bit each. threshold <
// 2^32.
PYDL_INLINE uint32_t kept_bits(uint64_t seed, uint64_t first, uint32_t threshold) {
  const Words words = philox(seed, first / 4);
  const u32v limit = u32v{} + threshold;
  return mask_bits(words.low >= limit) | mask_bits(words.high >= limit) << (kElements / 2);
}

}  // namespace pydl::cpu::PYDL_ISA
