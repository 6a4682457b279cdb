// Loops along a row, a vector at a time, the rest of the row as a part of one.
#pragma once

#include "kernels/cpu/base/simd_edges.h"

namespace pydl::cpu::PYDL_ISA {

// body(T{}) for the dtypes of ops to which float16 arrives as float32, and in the plain build bfloat16 (csrc/convert.h).
template <class F>
PYDL_INLINE void dispatch_rows(DType dtype, const F& body) {
  if (dtype == DType::f64) return body(double{});
  if constexpr (!kPlain)
    if (dtype == DType::bf16) return body(bf16{});
  return body(float{});
}

// How many lanes of a vector are the row's: all of them, known to the compiler, or the first n.
struct WholeVector {};

template <class T>
PYDL_INLINE vec<acc_t<T>> load_part(const T* p, WholeVector) {
  return load(p);
}
template <class T>
PYDL_INLINE vec<acc_t<T>> load_part(const T* p, int64_t n) {
  return load_n(p, n);
}
template <class T>
PYDL_INLINE void store_part(T* p, vec<acc_t<T>> v, WholeVector) {
  store(p, v);
}
template <class T>
PYDL_INLINE void store_part(T* p, vec<acc_t<T>> v, int64_t n) {
  store_n(p, v, n);
}
// v, with `fill` where the row has ended.
template <class A>
PYDL_INLINE vec<A> inside_part(vec<A> v, WholeVector, A) {
  return v;
}
template <class A>
PYDL_INLINE vec<A> inside_part(vec<A> v, int64_t n, A fill) {
  return fill_outside<A>(v, 0, n, fill);
}

// at(j, part) for each vector of [begin, end).
template <class A, class F>
PYDL_INLINE void along(int64_t begin, int64_t end, const F& at) {
  int64_t j = begin;
  for (; j + lanes<A> <= end; j += lanes<A>) at(j, WholeVector{});
  if (j < end) at(j, end - j);
}

}  // namespace pydl::cpu::PYDL_ISA
