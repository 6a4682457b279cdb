// Dropout on the CPU. See kernels/dropout.h for the formula.
//
// Bound by memory once the generator keeps up: ten Philox rounds cost 8 vector instructions per 8 counters
// (AVX-512), about one cycle per element, which is what a copy through L2 costs too. The state is held as
// 64-bit lanes (c0 | c1 << 32) and (c2 | c3 << 32), so that one round is two widening multiplications, two
// shifts, two rotations and two xors with no shuffling; interleaving the two halves at the end gives the
// words in element order.
#include "kernels/dropout.h"

#include "kernels/cpu/simd.h"
#include "kernels/philox.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int kBlocks = lanes<double>;      // Philox counters per step
constexpr int kElements = 4 * kBlocks;      // elements per step: two vectors of words
constexpr int64_t kGrain = 4096;            // elements per task: about 2 µs, four times the cost of a fork
constexpr int64_t kStreamBytes = 16 << 20;  // half of a common L3: see stream() in simd.h

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

PYDL_INLINE bool keep(const DropoutParams& p, int64_t i) {
  return philox4x32_10(p.seed, static_cast<uint64_t>(i) / 4).word[i % 4] >= p.threshold;
}

template <class T>
PYDL_INLINE void scalar(const DropoutParams& p, const T* x, T* y, bool kept) {
  using A = acc_t<T>;
  if (kept)
    store_n(y, load_n(x, 1) * static_cast<A>(p.scale), 1);
  else
    store_n(y, vec<A>{}, 1);
}

// kElements elements from x to y; first is a multiple of 4 (a whole number of counters).
template <bool kStream, class T>
PYDL_INLINE void step(const DropoutParams& p, const T* x, T* y, int64_t first) {
  using A = acc_t<T>;
  const Words words = philox(p.seed, static_cast<uint64_t>(first) / 4);
  const u32v threshold = u32v{} + static_cast<uint32_t>(p.threshold);
  auto put = [&](T* q, vec<A> v) { kStream ? stream(q, v) : store(q, v); };
  auto apply = [&](const T* x, T* y, u32v word) {
    const i32v kept = word >= threshold;
    if constexpr (sizeof(A) == 4) {
      put(y, bit_cast<vec<A>>(kept & bit_cast<i32v>(load(x) * static_cast<A>(p.scale))));
    } else {  // twice as many vectors of doubles as of words
      typedef int32_t half_mask __attribute__((vector_size(kVectorBytes / 2)));
      half_mask parts[2];
      memcpy(parts, &kept, sizeof parts);
      for (int h = 0; h < 2; ++h) {
        const i64v wide = __builtin_convertvector(parts[h], i64v);
        put(y + h * lanes<A>, bit_cast<vec<A>>(wide & bit_cast<i64v>(load(x + h * lanes<A>) * p.scale)));
      }
    }
  };
  apply(x, y, words.low);
  apply(x + kElements / 2, y + kElements / 2, words.high);
}

// [begin, end) of a contiguous tensor; begin is a multiple of kElements.
template <bool kStream, class T>
void contiguous_range(const DropoutParams& p, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(p.input);
  T* y = static_cast<T*>(p.output);
  int64_t i = begin;
  for (; i + kElements <= end; i += kElements) step<kStream>(p, x + i, y + i, i);
  if (kStream) stream_fence();
  for (; i < end; ++i) scalar(p, x + i, y + i, keep(p, i));  // remainder of the last task only
}

// Whole channels of a contiguous tensor share one decision.
template <class T>
void shared_range(const DropoutParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  for (int64_t j = begin; j < end; ++j) {
    const T* x = static_cast<const T*>(p.input) + j * p.share;
    T* y = static_cast<T*>(p.output) + j * p.share;
    if (!keep(p, j)) {
      memset(y, 0, static_cast<size_t>(p.share) * sizeof(T));
      continue;
    }
    int64_t i = 0;
    for (; i + lanes<A> <= p.share; i += lanes<A>) store(y + i, load(x + i) * static_cast<A>(p.scale));
    if (i < p.share) store_n(y + i, load_n(x + i, p.share - i) * static_cast<A>(p.scale), p.share - i);
  }
}

// Any strides, one element at a time.
template <class T>
void strided_range(const DropoutParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    int64_t rest = i, from = 0, to = 0;
    for (int d = p.dims - 1; d >= 0; --d) {
      const int64_t k = rest % p.size[d];
      rest /= p.size[d];
      from += k * p.input_stride[d];
      to += k * p.output_stride[d];
    }
    scalar(p, static_cast<const T*>(p.input) + from, static_cast<T*>(p.output) + to, keep(p, i / p.share));
  }
}

}  // namespace

void dropout(const DropoutParams& p, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    const bool contiguous = p.dims == 1 && p.input_stride[0] == 1 && p.output_stride[0] == 1;
    if (p.threshold > UINT32_MAX && contiguous) {  // nothing is kept
      parallel(p.numel, kGrain, [&](int64_t begin, int64_t end) {
        memset(static_cast<T*>(p.output) + begin, 0, static_cast<size_t>(end - begin) * sizeof(T));
      });
    } else if (contiguous && p.share == 1) {
      const bool aligned = reinterpret_cast<uintptr_t>(p.output) % kVectorBytes == 0;
      const bool past_cache = aligned && p.numel * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
      // tasks start at a multiple of kElements, so that every counter lies in one task
      parallel(ceil_div(p.numel, kElements), kGrain / kElements, [&](int64_t begin, int64_t end) {
        const int64_t last = min_of(end * kElements, p.numel);
        past_cache ? contiguous_range<true, T>(p, begin * kElements, last)
                   : contiguous_range<false, T>(p, begin * kElements, last);
      });
    } else if (contiguous) {
      parallel(p.numel / p.share, ceil_div(kGrain, p.share),
               [&](int64_t begin, int64_t end) { shared_range<T>(p, begin, end); });
    } else {
      parallel(p.numel, kGrain / 8, [&](int64_t begin, int64_t end) { strided_range<T>(p, begin, end); });
    }
  });
}

}  // namespace pydl::cpu::PYDL_ISA
