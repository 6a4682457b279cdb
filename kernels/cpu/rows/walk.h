// Walks through memory: how far ahead lines are prefetched, stores of two vectors at once, copies past the
// caches.
#pragma once

#include "kernels/cpu/base/simd_bf16.h"

namespace pydl::cpu::PYDL_ISA {

// float64 is for checks more than for speed: of walks that exist once for each activation, or with stores past the caches
// and without, it has one, which asks at every vector. (float16 was 1.1 to 1.9 times as slow that way.)
template <class T>
static constexpr bool kOneWalk = kPlain || __is_same(T, double);

// How far ahead of a walk through memory its lines are prefetched. A loop of thirty instructions for a line
// has a dozen lines in flight on its own, which is a quarter of what memory delivers where no hardware
// prefetcher helps (it stops at each page, and some virtual machines run without one). Prefetches beyond the
// end of a tensor do nothing.
static constexpr int64_t kAheadBytes = 2048;

// Prefetches the line kAheadBytes beyond p. Counted in integers: it may lie outside of p's tensor.
template <class T>
PYDL_INLINE void prefetch_ahead(const T* p) {
  prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + kAheadBytes));
}

// The same for walks that only read, or read several tensors, which say themselves how far: into the second
// level, where lines on their way do not take the few places that the first level has for its misses
// (kernels/cpu/norm/NOTES.md, "On a Zen 4").
static constexpr int64_t kFarAheadBytes = 4096;
template <class T>
PYDL_INLINE void prefetch_far_ahead(const T* p, int64_t elements) {
  prefetch_l2(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) +
                                            static_cast<uintptr_t>(elements) * sizeof(T)));
}

// Two vectors side by side: for half types the bytes of one, which is a whole line with AVX-512. stream_pair
// wants p aligned to them.
template <class T, class V>
PYDL_INLINE void store_pair(T* p, V a, V b) {
  store(p, a);
  store(p + lanes<acc_t<T>>, b);
}
template <class T, class V>
PYDL_INLINE void stream_pair(T* p, V a, V b) {
  stream(p, a);
  stream(p + lanes<acc_t<T>>, b);
}
#if defined(PYDL_AVX512)
PYDL_INLINE u32v join_halves(u16h a, u16h b) {
  return (u32v)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)a), (__m256i)b, 1);
}
PYDL_INLINE u32v narrow_pair(const bf16*, vec<float> a, vec<float> b) {
  return join_halves(narrow_bf16(a), narrow_bf16(b));
}
PYDL_INLINE u32v narrow_pair(const f16*, vec<float> a, vec<float> b) {
  return join_halves(narrow_f16(a), narrow_f16(b));
}
PYDL_INLINE u32v narrow_pair(const bf16_fast*, vec<float> a, vec<float> b) {
#if defined(PYDL_BF16_DOT)
  return narrow_bf16_fast(a, b);
#else
  return join_halves(narrow_bf16(a), narrow_bf16(b));
#endif
}
template <class T>
PYDL_INLINE void stream_half_pair(T* p, vec<float> a, vec<float> b) {
  stream_bytes(p, narrow_pair(p, a, b));
}
PYDL_INLINE void stream_pair(bf16* p, vec<float> a, vec<float> b) { stream_half_pair(p, a, b); }
PYDL_INLINE void stream_pair(bf16_fast* p, vec<float> a, vec<float> b) { stream_half_pair(p, a, b); }
PYDL_INLINE void stream_pair(f16* p, vec<float> a, vec<float> b) { stream_half_pair(p, a, b); }
#endif

// Copies past the caches, whatever the alignment.
PYDL_INLINE void stream_copy(void* to, const void* from, int64_t bytes) {
  char* y = static_cast<char*>(to);
  const char* x = static_cast<const char*>(from);
  const int64_t odd = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(y) % kVectorBytes);
  int64_t i = min_of(odd, bytes);
  memcpy(y, x, static_cast<size_t>(i));
  for (; i + kVectorBytes <= bytes; i += kVectorBytes) {
    u32v v;
    memcpy(&v, x + i, sizeof v);
    stream_bytes(y + i, v);
  }
  memcpy(y + i, x + i, static_cast<size_t>(bytes - i));
}

}  // namespace pydl::cpu::PYDL_ISA
