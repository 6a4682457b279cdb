// Philox4x32-10 in vectors: the words of kernels/philox.h, several counters at once, in element order.
//
// The state of a counter is two 64-bit lanes, (c0 | c1 << 32) and (c2 | c3 << 32). A product of the low
// halves has the next c1 in its low half and, once xored, the next c0 in its high half: a round is two
// widening multiplications, two xors of the high halves and two exchanges of halves, six instructions with
// AVX-512 for 8 counters, 32 words. The last exchange is part of the interleaving that puts the words in
// element order.
//
// c2 and c3 of every counter are 0, and counters that share c1 share half of the state for two rounds: of the
// first two rounds' twelve instructions, seven are left.
#pragma once

#include "kernels/cpu/base/simd.h"
#include "kernels/philox.h"

namespace pydl::cpu::PYDL_ISA {

// ---- the instructions

// The halves of each 64-bit lane change places: by a shuffle, which Zen 5 runs in four pipes; a rotation
// shares two with the multiplication.
PYDL_INLINE u64v exchange_halves(u64v a) {
#if defined(PYDL_AVX512)
  return (u64v)_mm512_shuffle_epi32((__m512i)a, _MM_PERM_CDAB);
#elif defined(PYDL_AVX2)
  return (u64v)_mm256_shuffle_epi32((__m256i)a, 0xB1);
#elif defined(__x86_64__)
  return (u64v)_mm_shuffle_epi32((__m128i)a, 0xB1);
#else
  return a << 32 | a >> 32;
#endif
}

// Within each 16 bytes: the low 64-bit lanes of a and b side by side, the halves of each exchanged; then the
// high ones.
PYDL_INLINE u64v interleave_low_swapped(u64v a, u64v b) {
#if defined(PYDL_AVX512)
  return (u64v)_mm512_shuffle_ps((__m512)a, (__m512)b, 0x11);
#elif defined(PYDL_AVX2)
  return (u64v)_mm256_shuffle_ps((__m256)a, (__m256)b, 0x11);
#else
  return exchange_halves(u64v{a[0], b[0]});
#endif
}
PYDL_INLINE u64v interleave_high_swapped(u64v a, u64v b) {
#if defined(PYDL_AVX512)
  return (u64v)_mm512_shuffle_ps((__m512)a, (__m512)b, 0xBB);
#elif defined(PYDL_AVX2)
  return (u64v)_mm256_shuffle_ps((__m256)a, (__m256)b, 0xBB);
#else
  return exchange_halves(u64v{a[1], b[1]});
#endif
}

// The low half of each 64-bit lane of a and zero above it, xored with b.
PYDL_INLINE u64v xor_low_half_of(u64v a, u64v b) {
#if defined(PYDL_AVX512)
  const __m512i low = _mm512_set1_epi64(0xffffffffll);
  return (u64v)_mm512_ternarylogic_epi64((__m512i)a, low, (__m512i)b, 0x6A);  // (a & low) ^ b
#else
  return (a & 0xffffffffull) ^ b;
#endif
}

// v * scale in the lanes where word >= limit, 0 in the others, whatever v is there.
PYDL_INLINE vec<float> scale_where_at_least(u32v word, u32v limit, vec<float> v, float scale) {
#if defined(PYDL_AVX512)
  const __mmask16 kept = _mm512_cmpge_epu32_mask((__m512i)word, (__m512i)limit);
  return (vec<float>)_mm512_maskz_mul_ps(kept, (__m512)v, _mm512_set1_ps(scale));
#else
  const i32v kept = word >= limit, bits = bit_cast<i32v>(v * scale);
  return bit_cast<vec<float>>(kept & bits);
#endif
}

// ---- the generator

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
// chains side by side give the scheduler something to do meanwhile. kAligned: block is a multiple of
// kChains * kBlocks, so that all counters share their high word.
template <int kChains, bool kAligned>
PYDL_INLINE void philox(const RoundKeys& keys, uint64_t block, Words (&words)[kChains]) {
  using C = PhiloxConstants;
  u64v a[kChains],
      b[kChains];  // a = (c0, c1), b = (c2, c3), low half first; after the rounds high half first
  constexpr int kFirst = kAligned ? 2 : 0;
  if constexpr (kAligned) {
    const uint32_t c0 = static_cast<uint32_t>(block >> 32) ^ keys.key0[0];  // of every counter after a round
    const uint64_t product = static_cast<uint64_t>(C::multiplier0) * c0;
    const uint64_t high = (product >> 32) ^ keys.key1[1];
    const u64v same = u64v{} + (product << 32 | high);  // what c0 leaves of the second round's (c2, c3)
    const u64v key1 = u64v{} + (static_cast<uint64_t>(keys.key1[0]) << 32);
    const u64v key0 = u64v{} + (static_cast<uint64_t>(keys.key0[1]) << 32);
#pragma GCC unroll 8
    for (int i = 0; i < kChains; ++i) {
      const u64v counter = counter_offsets() + (block + static_cast<uint64_t>(i * kBlocks));
      const u64v p0 = multiply_low_halves(counter, C::multiplier0);
      const u64v p1 = multiply_low_halves(exchange_halves(p0 ^ key1), C::multiplier1);
      a[i] = exchange_halves(p1 ^ key0);
      b[i] = xor_low_half_of(p0, same);
    }
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kChains; ++i) {
      a[i] = counter_offsets() + (block + static_cast<uint64_t>(i * kBlocks));
      b[i] = u64v{};
    }
  }
#pragma GCC unroll 10
  for (int round = kFirst; round < C::rounds; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < kChains; ++i) {
      const u64v p0 = multiply_low_halves(a[i], C::multiplier0);
      const u64v p1 = multiply_low_halves(b[i], C::multiplier1);
      a[i] = xor_high_halves(p1, a[i], keys.key0[round]);
      b[i] = xor_high_halves(p0, b[i], keys.key1[round]);
      if (round + 1 < C::rounds) {
        a[i] = exchange_halves(a[i]);
        b[i] = exchange_halves(b[i]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kChains; ++i)
    words[i] = {bit_cast<u32v>(interleave_low_swapped(a[i], b[i])),
                bit_cast<u32v>(interleave_high_swapped(a[i], b[i]))};
}

// Whether each of the kElements elements from `first` on (a multiple of 4) is kept, a bit each. threshold <
// 2^32.
PYDL_INLINE uint32_t kept_bits(const RoundKeys& keys, uint64_t first, uint32_t threshold) {
  Words words[1];
  philox<1, false>(keys, first / 4, words);
  const u32v limit = u32v{} + threshold;
  return mask_bits(words[0].low >= limit) | mask_bits(words[0].high >= limit) << (kElements / 2);
}

// Lane i of v where bit i of bits is set, else 0.
PYDL_INLINE vec<float> where_lane(vec<float> v, uint32_t bits) {
#if defined(PYDL_AVX512)
  return (vec<float>)_mm512_mask_mov_ps(__m512{}, static_cast<__mmask16>(bits), (__m512)v);
#else
  u32v lane;
  for (int i = 0; i < lanes<float>; ++i) lane[i] = 1u << i;
  return bit_cast<vec<float>>(((lane & bits) != 0) & bit_cast<i32v>(v));
#endif
}
PYDL_INLINE vec<double> where_lane(vec<double> v, uint32_t bits) {
  u64v lane;
  for (int i = 0; i < lanes<double>; ++i) lane[i] = 1u << i;
  return bit_cast<vec<double>>(((lane & static_cast<uint64_t>(bits)) != 0) & bit_cast<i64v>(v));
}

}  // namespace pydl::cpu::PYDL_ISA
