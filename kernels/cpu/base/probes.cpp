// The machine's ceilings on the CPU. See kernels/cpu/base/probes.h.
#include "kernels/cpu/base/probes.h"

#include "kernels/cpu/base/simd.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kLanes = lanes<float>;
constexpr int64_t kMaxThreads = 256;
constexpr int kChains = 12;  // two multiply-add units of four cycles' latency want at least eight in flight

}  // namespace

// numel is a multiple of 64, and both pointers are aligned to 64 bytes.
void probe_copy(const float* input, float* output, int64_t numel, const Parallel& parallel) {
  parallel(numel / 64, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * 64; i < end * 64; i += kLanes) stream(output + i, load(input + i));
    stream_fence();
  });
}

// numel is a multiple of 64.
float probe_read(const float* input, int64_t numel, const Parallel& parallel) {
  const int64_t parts = min_of(parallel.threads, kMaxThreads);
  float sums[kMaxThreads] = {};
  parallel(parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      vec<float> sum[4] = {};
      const int64_t first = numel / 64 * part / parts * 64, last = numel / 64 * (part + 1) / parts * 64;
      for (int64_t i = first; i < last; i += 4 * kLanes)
        for (int k = 0; k < 4; ++k) sum[k] += load(input + i + k * kLanes);
      sums[part] = reduce_add(sum[0] + sum[1] + sum[2] + sum[3]);
    }
  });
  float sum = 0;
  for (int64_t part = 0; part < parts; ++part) sum += sums[part];
  return sum;
}

double probe_fma(int64_t rounds, float* result, const Parallel& parallel) {
  const int64_t parts = min_of(parallel.threads, kMaxThreads);
  float sums[kMaxThreads] = {};
  parallel(parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const vec<float> a = broadcast(0.999f), b = broadcast(0.001f);
      vec<float> acc[kChains];
      for (int k = 0; k < kChains; ++k)
        acc[k] = broadcast(static_cast<float>(k));  // no two alike: none is left out
      for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 12
        for (int k = 0; k < kChains; ++k) acc[k] = acc[k] * a + b;
      vec<float> sum{};
      for (int k = 0; k < kChains; ++k) sum += acc[k];
      sums[part] = reduce_add(sum);
    }
  });
  *result = 0;
  for (int64_t part = 0; part < parts; ++part) *result += sums[part];
  return 2.0 * static_cast<double>(rounds) * kChains * kLanes * static_cast<double>(parts);
}

int64_t probe_round_trip(int64_t rounds, const Parallel& parallel) {
  if (parallel.threads < 2) return 0;
  constexpr int64_t kPatience = 1 << 25;  // where one thread does both parts after all, nobody answers
  struct alignas(128) {                   // the line's neighbour is fetched with it
    int64_t turn = 0, given_up = 0;
  } line;
  int64_t made = 0;
  auto wait_for = [&](int64_t turn) {
    for (int64_t i = 0; i < kPatience; ++i) {
      if (__atomic_load_n(&line.turn, __ATOMIC_ACQUIRE) == turn) return true;
      if (__atomic_load_n(&line.given_up, __ATOMIC_RELAXED)) return false;
    }
    __atomic_store_n(&line.given_up, 1, __ATOMIC_RELAXED);
    return false;
  };
  parallel(2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t side = begin; side < end; ++side)
      for (int64_t i = 0; i < rounds; ++i) {
        if (side == 1 && !wait_for(2 * i + 1)) break;
        __atomic_store_n(&line.turn, 2 * i + side + 1, __ATOMIC_RELEASE);
        if (side == 1) continue;
        if (!wait_for(2 * i + 2)) break;
        made = i + 1;
      }
  });
  return made;
}

}  // namespace pydl::cpu::PYDL_ISA
