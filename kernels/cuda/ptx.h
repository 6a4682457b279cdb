// All that is not portable C++: PTX and the intrinsics that stand for it, each beside what the host twin
// does.
#pragma once

#include <stdint.h>
#include <string.h>

#include "kernels/common.h"

#if defined(__CUDACC__)
#define PYDL_METHOD __device__ __forceinline__
#else
#define PYDL_METHOD inline __attribute__((always_inline))
#include <math.h>
#endif

namespace pydl::cuda::ptx {

#if defined(__CUDACC__)

static PYDL_METHOD uint32_t bits_of(float x) { return __float_as_uint(x); }
static PYDL_METHOD float float_of_bits(uint32_t x) { return __uint_as_float(x); }

// 16 bytes that this kernel does not write, read once: past the first-level cache
static PYDL_METHOD uint4 load16(const void* from) { return __ldcs(static_cast<const uint4*>(from)); }
static PYDL_METHOD void store16(void* to, uint4 x) { __stcs(static_cast<uint4*>(to), x); }
// the same for data that is soon read again
static PYDL_METHOD uint4 load16_cached(const void* from) { return *static_cast<const uint4*>(from); }
static PYDL_METHOD void store16_cached(void* to, uint4 x) { *static_cast<uint4*>(to) = x; }

static PYDL_METHOD float float_of_f16(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
static PYDL_METHOD uint16_t f16_of_float(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

// 2^x for x <= 0, below 2 units in the last place of a float; results below 2^-126 are 0
static PYDL_METHOD float exp2_quick(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- asynchronous copies: they take effect at wait_copies, of the groups that commit_copies closed

static PYDL_METHOD uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
// 16 bytes, or zeros without a read where not `valid`
static PYDL_METHOD void copy16(void* shared, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
#endif
}
static PYDL_METHOD void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" : : : "memory");
#endif
}
// waits for all groups but the last kLeft
template <int kLeft>
static PYDL_METHOD void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" : : "n"(kLeft) : "memory");
#endif
}

// ---- tensor cores

// Four 8 x 8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8, and gets of
// each matrix elements 2 (i % 4) and the next of row i / 4 (of column i / 4, transposed).
template <bool kTranspose>
static PYDL_METHOD void load_matrices(uint32_t (&to)[4], const void* shared) {
  if constexpr (kTranspose)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(shared))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(shared))
                 : "memory");
}

// sum += a b for a of 16 x 16 and b of 16 x 8, spread over the warp as the instruction wants them
static PYDL_METHOD void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();  // never launched there
#endif
}
static PYDL_METHOD void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
      "%1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();  // never launched there
#endif
}

#else

static inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
static inline float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
static inline uint4 load16(const void* from) { return load_uint4(from); }
static inline void store16(void* to, uint4 x) { store_uint4(to, x); }
static inline uint4 load16_cached(const void* from) { return load_uint4(from); }
static inline void store16_cached(void* to, uint4 x) { store_uint4(to, x); }
static inline float float_of_f16(uint16_t bits) {
  _Float16 x;
  memcpy(&x, &bits, 2);
  return static_cast<float>(x);
}
static inline uint16_t f16_of_float(float x) {
  const _Float16 rounded = static_cast<_Float16>(x);
  uint16_t bits;
  memcpy(&bits, &rounded, 2);
  return bits;
}
static inline float exp2_quick(float x) {
  if (::twin::listener) ::twin::listener->special();
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}

static inline void copy16(void* shared, const void* from, bool valid) { ::twin::copy16(shared, from, valid); }
static inline void commit_copies() { ::twin::commit_copies(); }
template <int kLeft>
static inline void wait_copies() {
  ::twin::wait_copies(kLeft);
}

template <bool kTranspose>
static inline void load_matrices(uint32_t (&to)[4], const void* shared, int line = __builtin_LINE()) {
  ::twin::load_matrices(to, shared, kTranspose, line);
}

template <class T>
static inline void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T,
                            int line = __builtin_LINE()) {
  if (::twin::listener) ::twin::listener->multiply();
  uint32_t all[6][32];  // registers of all lanes
  for (int pair = 0; pair < 3; ++pair) {
    const uint32_t low = pair < 2 ? a[2 * pair] : b[0], high = pair < 2 ? a[2 * pair + 1] : b[1];
    const uint64_t* values = ::twin::meet_warp(static_cast<uint64_t>(high) << 32 | low, line + pair);
    for (int i = 0; i < 32; ++i) {
      all[2 * pair][i] = static_cast<uint32_t>(values[i]);
      all[2 * pair + 1][i] = static_cast<uint32_t>(values[i] >> 32);
    }
  }
  const auto half = [&](int reg, int lane, int h) {
    const uint16_t bits = static_cast<uint16_t>(all[reg][lane] >> (16 * h));
    return __is_same(T, bf16) ? float_of_bits(static_cast<uint32_t>(bits) << 16) : float_of_f16(bits);
  };
  const int lane = ::twin::lane();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    float dot = 0;
    for (int k = 0; k < 16; ++k)
      dot += half(row / 8 + k / 8 * 2, row % 8 * 4 + k % 8 / 2, k % 2) *
             half(4 + k / 8, column * 4 + k % 8 / 2, k % 2);
    sum[i] += dot;
  }
}

#endif

static PYDL_METHOD float float_of_bf16(uint16_t bits) {
  return float_of_bits(static_cast<uint32_t>(bits) << 16);
}

static PYDL_METHOD uint16_t bf16_of_float(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFF;  // nan, as the instruction gives it
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
#endif
}

}  // namespace pydl::cuda::ptx
