// Rows of some channels of any strides, to lanes and back (lanes.h), for depthwise convolution of
// planes.
#pragma once

#include "kernels/cpu/conv2d/lanes.h"

namespace pydl::cpu::PYDL_ISA::depthwise {

// Rows of up to `lanes` channels that lie `lane` elements apart.
template <class T>
struct Slab {
  T* data;
  int64_t lane, row, pixel;  // strides
  int64_t channels, width;
};

template <class T, class A>
static void pack_rows(const Slab<const T>& s, int64_t rows, A* to) {
  constexpr int64_t all = lanes<A>;
  if (s.pixel == 1 && s.lane != 1) {
    const bool flat = s.row == s.width;
    const int64_t runs = flat ? 1 : rows, length = flat ? rows * s.width : s.width;
    for (int64_t i = 0; i < runs; ++i) {
      A* at = to + i * s.width * all;
      gather_run(PlaneRows<T>{s.data + i * s.row, s.lane, s.channels}, length, at);
    }
    return;
  }
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t x = 0; x < s.width; ++x, to += all) {
      const T* from = s.data + y * s.row + x * s.pixel;
      if (s.lane == 1) {
        store(to, load_n(from, s.channels));
      } else {
        vec<A> v{};
        for (int64_t i = 0; i < s.channels; ++i) v[i] = load_n(from + i * s.lane, 1)[0];
        store(to, v);
      }
    }
}

template <class T, class A>
static void unpack_rows(const A* from, int64_t rows, const Slab<T>& s) {
  constexpr int64_t all = lanes<A>;
  if (s.pixel == 1 && s.lane != 1) {
    const bool flat = s.row == s.width;
    const int64_t runs = flat ? 1 : rows, length = flat ? rows * s.width : s.width;
    for (int64_t i = 0; i < runs; ++i) {
      const A* at = from + i * s.width * all;
      scatter_lanes([&](int64_t q) { return load(at + q * all); }, s.data + i * s.row, s.lane, s.channels,
                    length);
    }
    return;
  }
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t x = 0; x < s.width; ++x, from += all) {
      T* to = s.data + y * s.row + x * s.pixel;
      if (s.lane == 1) {
        store_n(to, load(from), s.channels);
      } else {
        const vec<A> v = load(from);
        for (int64_t i = 0; i < s.channels; ++i) store_n(to + i * s.lane, splat(v[i]), 1);
      }
    }
}

}  // namespace pydl::cpu::PYDL_ISA::depthwise
