// Between planes and lanes: a vector that holds the same pixel of as many planes as it has lanes.
//
// The planes are a channel of several images (direct/batch.h) or several channels of one image
// (depthwise/depthwise.h). A stretch of pixels of `lanes` planes is a square of registers, transposed. Pixels
// are numbered over the stretch; `place` and `get` say where number q lives on the side of the lanes, so that
// short rows need not be padded to squares.
#pragma once

#include "kernels/cpu/conv2d/im2col.h"

namespace pydl::cpu::PYDL_ISA {

// Asks for what a row of a square holds some squares further on: 16 streams and more are too many for the CPU to follow by
// itself (8 of them it does: asking takes longer then).
static PYDL_INLINE void ask_ahead(const void* row) {
  if (kVectorBytes == 64) __builtin_prefetch(static_cast<const char*>(row) + 256);
}

// How a square is read: elements q and the next of plane i, as many as a vector has lanes, or the first n of them.
template <class T>
struct PlaneRows {
  const T* from;
  int64_t plane, planes;

  static constexpr int64_t kImages = lanes<acc_t<T>>;  // where planes are a channel of images
  using Lane = acc_t<T>;
  PYDL_INLINE PlaneRows moved(int64_t by) const { return {from + by, plane, planes}; }
  PYDL_INLINE bool full() const { return planes == lanes<Lane>; }
  PYDL_INLINE vec<Lane> at(int64_t i, int64_t q) const {
    const T* p = from + i * plane + q;
    ask_ahead(p);
    return load(p);
  }
  PYDL_INLINE vec<Lane> at(int64_t i, int64_t q, int64_t n) const {
    return i < planes ? load_between(from + i * plane + q, 0, n) : vec<Lane>{};
  }
};

// Elements [q, q + n) of every row, transposed: number q + j to `to` + offsets[j] bytes. One copy for all who read so: they
// differ in where pixels go.
template <class R>
[[maybe_unused]] __attribute__((noinline)) static void store_square(const R& rows, int64_t q, int64_t n,
                                                                    char* to, const int64_t* offsets) {
  using A = typename R::Lane;
  constexpr int64_t all = lanes<A>;
  vec<A> square[all];
  if (n == all && rows.full()) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < all; ++i) square[i] = rows.at(i, q);
  } else {
    vec<A> part[all];
    for (int64_t i = 0; i < all; ++i) part[i] = rows.at(i, q, n);
#pragma GCC unroll 16
    for (int64_t i = 0; i < all; ++i) square[i] = part[i];
  }
  transpose(square);
#pragma GCC unroll 16
  for (int64_t j = 0; j < all; ++j) {
    if (j >= n) break;
    memcpy(to + offsets[j], &square[j], sizeof square[j]);
  }
}

struct Nothing {
  PYDL_INLINE void operator()(int64_t) const {}
};

// Lane i of the vector at place(q) becomes element q of row i of `rows`, for q < length in order; stored(n) after each n.
template <class R, class F, class G = Nothing>
static PYDL_INLINE void gather_squares(const R& rows, int64_t length, const F& place, const G& stored = {}) {
  constexpr int64_t all = lanes<typename R::Lane>;
  int64_t offsets[all];
  for (int64_t q = 0; q < length; q += all) {
    const int64_t n = min_of(all, length - q);
    char* to = reinterpret_cast<char*>(place(q));
    offsets[0] = 0;
    for (int64_t j = 1; j < n; ++j) offsets[j] = reinterpret_cast<char*>(place(q + j)) - to;
    store_square(rows, q, n, to, offsets);
    stored(n);
  }
}

// The same where vectors follow one another.
template <class R>
static PYDL_INLINE void gather_run(const R& rows, int64_t length, void* to) {
  constexpr int64_t all = lanes<typename R::Lane>;
  int64_t offsets[all];
  for (int64_t j = 0; j < all; ++j) offsets[j] = j * kVectorBytes;
  for (int64_t q = 0; q < length; q += all)
    store_square(rows, q, min_of(all, length - q), static_cast<char*>(to) + q * kVectorBytes, offsets);
}

// to[i * plane + q] = lane i of get(q), for i < planes, q < length, which is asked for in order.
template <class T, class F>
static PYDL_INLINE void scatter_lanes(const F& get, T* to, int64_t plane, int64_t planes, int64_t length) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  int64_t q = 0;
  if (planes == all)
    for (; q + all <= length; q += all) {
      vec<A> square[all];
#pragma GCC unroll 16
      for (int64_t j = 0; j < all; ++j) square[j] = get(q + j);
      transpose(square);
#pragma GCC unroll 16
      for (int64_t i = 0; i < all; ++i) store(to + i * plane + q, square[i]);
    }
  for (; q < length; q += all) {
    const int64_t n = min_of(all, length - q);
    vec<A> square[all];
    for (int64_t j = 0; j < all; ++j) square[j] = j < n ? get(q + j) : vec<A>{};
    transpose(square);
    for (int64_t i = 0; i < planes; ++i)
      n == all ? store(to + i * plane + q, square[i]) : store_n(to + i * plane + q, square[i], n);
  }
}

}  // namespace pydl::cpu::PYDL_ISA
