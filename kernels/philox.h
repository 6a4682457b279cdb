// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011), scalar.
//
// The one definition of dropout's random words for CPU tails and CUDA: key = (seed low, seed high), counter =
// (block low, block high, 0, 0), and element i takes word i mod 4 of block i / 4.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define PYDL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PYDL_HOST_DEVICE inline
#endif

namespace pydl {

struct PhiloxConstants {
  static constexpr uint32_t multiplier0 = 0xD2511F53u, multiplier1 = 0xCD9E8D57u;
  static constexpr uint32_t weyl0 = 0x9E3779B9u, weyl1 = 0xBB67AE85u;  // golden ratio, sqrt(3) - 1
  static constexpr int rounds = 10;
};

struct PhiloxWords {
  uint32_t word[4];
};

static PYDL_HOST_DEVICE PhiloxWords philox4x32_10(uint64_t seed, uint64_t block) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < PhiloxConstants::rounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(PhiloxConstants::multiplier0) * c0;
    const uint64_t p1 = static_cast<uint64_t>(PhiloxConstants::multiplier1) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += PhiloxConstants::weyl0;
    k1 += PhiloxConstants::weyl1;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace pydl
