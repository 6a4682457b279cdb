// Maximum pooling over windows of 2x2 that tile the image from its corner, in rows of pixels: the forward and its
// gradient. Lanes are outputs of a row.
//
// No pixel is in two windows and none lies in the padding, so each is read or written once, in the order of memory, and
// what bounds both is memory: lines are asked for ahead, and a gradient that leaves the caches is stored past them.
// Taps are taken in their order, so that the first of equals wins, and the last nan.
#include "kernels/cpu/pool2d/max_pool2d.h"
#include "kernels/cpu/rows/walk.h"
#include "kernels/machine.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// The first n of two vectors side by side; n may exceed them.
template <class T>
PYDL_INLINE void load_two(const T* q, int64_t n, vec<acc_t<T>>& low, vec<acc_t<T>>& high) {
  constexpr int64_t all = lanes<acc_t<T>>;
  if (n >= 2 * all) {
    low = load(q);
    high = load(q + all);
  } else {
    low = load_n(q, min_of(n, all));
    high = n > all ? load_n(q + all, n - all) : vec<acc_t<T>>{};
  }
}
template <class T>
PYDL_INLINE void store_two(T* q, int64_t n, vec<acc_t<T>> low, vec<acc_t<T>> high, bool past_cache) {
  constexpr int64_t all = lanes<acc_t<T>>;
  if (n >= 2 * all) {
    past_cache ? stream_pair(q, low, high) : store_pair(q, low, high);
  } else {
    store_n(q, low, min_of(n, all));
    if (n > all) store_n(q + all, high, n - all);
  }
}

}  // namespace

template <class T>
void max_pool2d_tiles(const MaxPool2dParams& params, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>, ahead = kFarAheadBytes / static_cast<int64_t>(sizeof(T));
  const MaxPool2dParams p = params;  // a copy: bytes are stored below, which may alias anything
  const int64_t down = p.from_stride[2];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t plane = row / p.out_height, oy = row - plane * p.out_height;
    const T* const upper = plane_read<T>(p, plane) + 2 * oy * down;
    T* const output = static_cast<T*>(p.to) + row * p.out_width;
    for (int64_t ox = 0; ox < p.out_width; ox += all) {
      const int64_t n = p.out_width - ox;
      const T* const q = upper + 2 * ox;
      for (int64_t line = 0; line < 2 * all; line += 64 / static_cast<int64_t>(sizeof(T))) {
        prefetch_far_ahead(q + line, ahead);
        prefetch_far_ahead(q + line + down, ahead);
      }
      vec<A> low, high;
      load_two(q, 2 * n, low, high);
      vec<A> best = even_lanes(low, high);
      mask<A> place{};
      take_greater<A>(best, place, odd_lanes(low, high), splat_integer<A>(1));
      load_two(q + down, 2 * n, low, high);
      take_greater<A>(best, place, even_lanes(low, high), splat_integer<A>(2));
      take_greater<A>(best, place, odd_lanes(low, high), splat_integer<A>(3));
      n >= all ? store(output + ox, best) : store_n(output + ox, best, n);
      if (p.places != nullptr) put_places(p, row * p.out_width + ox, place, n);
    }
  }
}

template <class T>
void max_pool2d_tiles_backward(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>, size = sizeof(T);
  const int64_t* const g = p.from_stride;
  const int64_t* const k = p.places_stride;
  // whole vectors of every row begin where stores past the caches may
  const bool past_cache = reinterpret_cast<uintptr_t>(p.to) % kVectorBytes == 0 &&
                          p.in_width * size % kVectorBytes == 0 &&
                          p.batch * p.channels * p.in_height * p.in_width * size >= least_streamed_bytes();
  each_plane(p.in_height, begin, end, [&](int64_t plane, int64_t first, int64_t last) PYDL_INLINE_LAMBDA {
    const int64_t image = plane / p.channels, channel = plane % p.channels;
    const T* const grads = static_cast<const T*>(p.from) + image * g[0] + channel * g[1];
    const uint8_t* const places = static_cast<const uint8_t*>(p.places) + image * k[0] + channel * k[1];
    T* const to = static_cast<T*>(p.to) + plane * p.in_height * p.in_width;
    for (int64_t i = first; i < last;) {
      const int64_t oy = i / 2, r = i % 2;
      const int64_t rows = oy < p.out_height && r == 0 && i + 1 < last ? 2 : 1;
      T* const row = to + i * p.in_width;
      for (int64_t ox = 0; 2 * ox < p.in_width; ox += all) {
        const int64_t n = oy < p.out_height ? min_of(all, p.out_width - ox) : 0;
        vec<A> grad{};
        mask<A> place = splat_integer<A>(-1);
        if (n > 0) {
          const T* const from = grads + oy * g[2] + ox;
          const uint8_t* const its = places + oy * k[2] + ox;
          grad = n == all ? load(from) : load_n(from, n);
          place = load_integers<A>(its, 0, n);
        }
        for (int64_t s = 0; s < rows; ++s) {
          const int64_t tap = 2 * (r + s);
          const vec<A> even = add_where_equal<A>(vec<A>{}, grad, place, splat_integer<A>(tap));
          const vec<A> odd = add_where_equal<A>(vec<A>{}, grad, place, splat_integer<A>(tap + 1));
          store_two(row + s * p.in_width + 2 * ox, p.in_width - 2 * ox, interleave_lanes_low(even, odd),
                    interleave_lanes_high(even, odd), past_cache);
        }
      }
      i += rows;
    }
  });
  if (past_cache) stream_fence();
}

template void max_pool2d_tiles<float>(const MaxPool2dParams&, int64_t, int64_t);
template void max_pool2d_tiles<bf16>(const MaxPool2dParams&, int64_t, int64_t);
template void max_pool2d_tiles_backward<float>(const MaxPool2dParams&, int64_t, int64_t);
template void max_pool2d_tiles_backward<bf16>(const MaxPool2dParams&, int64_t, int64_t);

}  // namespace pydl::cpu::PYDL_ISA
