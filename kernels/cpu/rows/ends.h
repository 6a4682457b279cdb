// Loops along a row whose end is a whole vector too, over numbers that the one before has seen: no part of a vector is
// read or written, which costs several whole ones.
#pragma once

#include "kernels/cpu/rows/along.h"

namespace pydl::cpu::PYDL_ISA {

// The last vector of a row, whose lanes below `low` were in the one before.
struct LastVector {
  int64_t low;
};
template <class T>
PYDL_INLINE vec<acc_t<T>> load_part(const T* p, LastVector) {
  return load(p);
}
template <class A>
PYDL_INLINE vec<A> inside_part(vec<A> v, LastVector last, A fill) {
  return fill_outside<A>(v, last.low, lanes<A>, fill);
}

// at(j, part) for what is left of a row from j to end: less than a vector.
template <class A, class F>
PYDL_INLINE void at_the_end(int64_t j, int64_t end, const F& at) {
  if (j >= end) return;
  if (end < lanes<A>) return at(j, end - j);
  at(end - lanes<A>, LastVector{j - (end - lanes<A>)});
}

// at(j, part) for each vector of n numbers, some of which it may see twice.
template <class A, class F>
PYDL_INLINE void along_twice(int64_t n, const F& at) {
  if (n < lanes<A>) return at(0, n);
  int64_t j = 0;
  for (; j + lanes<A> <= n; j += lanes<A>) at(j, WholeVector{});
  if (j < n) at(n - lanes<A>, WholeVector{});
}

}  // namespace pydl::cpu::PYDL_ISA
