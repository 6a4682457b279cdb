// bf16 in memory that is written by the conversion instruction of AVX512-BF16, which AVX-512 alone does not
// promise.
//
// simd.h narrows to bf16 with eight integer instructions for a vector; the instruction takes two vectors at
// once. It writes 0 for what would be a subnormal, and is for results where that is no loss: gradients,
// normalised values.
#pragma once

#include "kernels/cpu/base/simd.h"
#include "kernels/isa.h"

namespace pydl::cpu::PYDL_ISA {

struct bf16_fast {
  uint16_t bits;
};
#if defined(PYDL_BF16_DOT)
PYDL_INLINE u16h narrow_bf16_fast(vec<float> x) { return bit_cast<u16h>(_mm512_cvtneps_pbh((__m512)x)); }
PYDL_INLINE u32v narrow_bf16_fast(vec<float> a, vec<float> b) {
  return bit_cast<u32v>(_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
}
// The first or the last 16 of 32 numbers of a, each beside that of b: pairs of both.
typedef uint16_t u16v __attribute__((vector_size(64)));
PYDL_INLINE u32v first_side_by_side(u32v a, u32v b) {
  return bit_cast<u32v>(__builtin_shufflevector(bit_cast<u16v>(a), bit_cast<u16v>(b), 0, 32, 1, 33, 2, 34, 3,
                                                35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43,
                                                12, 44, 13, 45, 14, 46, 15, 47));
}
PYDL_INLINE u32v last_side_by_side(u32v a, u32v b) {
  return bit_cast<u32v>(__builtin_shufflevector(bit_cast<u16v>(a), bit_cast<u16v>(b), 16, 48, 17, 49, 18, 50,
                                                19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26,
                                                58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63));
}
// Both halves of v, likewise.
PYDL_INLINE u32v halves_side_by_side(u32v v) {
  return bit_cast<u32v>(__builtin_shufflevector(bit_cast<u16v>(v), bit_cast<u16v>(v), 0, 16, 1, 17, 2, 18, 3,
                                                19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27,
                                                12, 28, 13, 29, 14, 30, 15, 31));
}
#else
PYDL_INLINE u16h narrow_bf16_fast(vec<float> x) { return narrow_bf16(x); }
#endif

// body(type), or body(bf16_fast{}) for bf16 where the CPU has the instruction.
template <class T, class F>
PYDL_INLINE void dispatch_storage_of(T type, const F& body) {
  body(type);
}
template <class F>
PYDL_INLINE void dispatch_storage_of(bf16 type, const F& body) {
#if defined(PYDL_BF16_DOT)
  if (cpu_has_bf16_dot()) return body(bf16_fast{});
#endif
  body(type);
}
template <class F>
PYDL_INLINE void dispatch_storage(DType dtype, const F& body) {
  dispatch_dtype(dtype, [&](auto type) { dispatch_storage_of(type, body); });
}

PYDL_INLINE vec<float> load(const bf16_fast* p) {
  u16h v;
  memcpy(&v, p, sizeof v);
  return widen_bf16(v);
}
PYDL_INLINE vec<float> load_n(const bf16_fast* p, int64_t n) { return widen_bf16(load_bits_n(p, n)); }
PYDL_INLINE void store(bf16_fast* p, vec<float> v) {
  const u16h h = narrow_bf16_fast(v);
  memcpy(p, &h, sizeof h);
}
PYDL_INLINE void store_n(bf16_fast* p, vec<float> v, int64_t n) { store_bits_n(p, narrow_bf16_fast(v), n); }
PYDL_INLINE void stream(bf16_fast* p, vec<float> v) { stream_half_bytes(p, narrow_bf16_fast(v)); }

}  // namespace pydl::cpu::PYDL_ISA
