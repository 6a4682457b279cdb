// Between planes and lanes: a vector that holds the same pixel of as many planes as it has lanes.
//
// The planes are a channel of several images (direct/batch.h) or several channels of one image
// (depthwise/depthwise.h). A stretch of pixels of `lanes` planes is a square of registers, transposed. Pixels
// are numbered over the stretch; `put` and `get` say where number q lives on the side of the lanes, so that
// short rows need not be padded to squares.
#pragma once

#include "kernels/cpu/conv2d/im2col.h"

namespace pydl::cpu::PYDL_ISA {

// How a square is read: elements q and the next of plane i, as many as a vector has lanes, or the first n of them.
template <class T>
struct PlaneRows {
  const T* from;
  int64_t plane, planes;

  static constexpr int64_t kImages = lanes<acc_t<T>>;  // where planes are a channel of images
  using Lane = acc_t<T>;
  PYDL_INLINE PlaneRows moved(int64_t by) const { return {from + by, plane, planes}; }
  PYDL_INLINE bool full() const { return planes == lanes<Lane>; }
  PYDL_INLINE vec<Lane> at(int64_t i, int64_t q) const { return load(from + i * plane + q); }
  PYDL_INLINE vec<Lane> at(int64_t i, int64_t q, int64_t n) const {
    return i < planes ? load_between(from + i * plane + q, 0, n) : vec<Lane>{};
  }
};

// Calls put(q, vector) for q < length in order, where lane i of the vector is element q of row i of `rows`.
template <class R, class F>
static PYDL_INLINE void gather_squares(const R& rows, int64_t length, const F& put) {
  using A = typename R::Lane;
  constexpr int64_t all = lanes<A>;
  int64_t q = 0;
  if (rows.full())
    for (; q + all <= length; q += all) {
      vec<A> square[all];
#pragma GCC unroll 16
      for (int64_t i = 0; i < all; ++i) square[i] = rows.at(i, q);
      transpose(square);
#pragma GCC unroll 16
      for (int64_t j = 0; j < all; ++j) put(q + j, square[j]);
    }
  for (; q < length; q += all) {
    const int64_t n = min_of(all, length - q);
    vec<A> square[all];
#pragma GCC unroll 16
    for (int64_t i = 0; i < all; ++i) square[i] = rows.at(i, q, n);
    transpose(square);
#pragma GCC unroll 16
    for (int64_t j = 0; j < all; ++j) {
      if (j >= n) break;
      put(q + j, square[j]);
    }
  }
}

// Calls put(q, vector) for q < length in order, where lane i of the vector is from[i * plane + q]; planes
// beyond `planes` read as 0.
template <class T, class F>
static PYDL_INLINE void gather_lanes(const T* from, int64_t plane, int64_t planes, int64_t length,
                                     const F& put) {
  gather_squares(PlaneRows<T>{from, plane, planes}, length, put);
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
