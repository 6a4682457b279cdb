// What the weight gradient over slabs (weight_slabs.cpp) packs: rows of the gradient, and for pairs of
// bf16 slabs whose elements hold neighbouring pixels.
#pragma once

#include "kernels/cpu/conv2d/implicit/slab.h"
#include "kernels/cpu/gemm/pack.h"

namespace pydl::cpu::PYDL_ISA::implicit {
using namespace gemm;

namespace {

// A row of the gradient whose channels lie side by side: panel[o / kNr][element][o % kNr], tiles `tile` apart. An
// element is a pixel, or two neighbours (the second zero beyond the end). Each pixel is read whole: half of its lines at
// a time, tile by tile, came from memory at half the rate.
template <class T, class E>
void pack_gradient_channels(const T* from, int64_t stride, int64_t pixels, int64_t channels, E* panel,
                            int64_t tile) {
  using A = acc_of<E>;
  constexpr int64_t all = lanes<A>, kAhead = (8 << 10) / static_cast<int64_t>(sizeof(T));
  for (int64_t j = 0; j < pixels; j += per_element<E>, from += per_element<E> * stride, panel += kNr<A>) {
    const bool both = j + 1 < pixels;
    E* to = panel;
    for (int64_t c = 0; c < channels; c += kNr<A>, to += tile)
      for (int64_t d = c; d < min_of(c + kNr<A>, channels); d += all) {
        prefetch(from + d + kAhead);
        store_step(to + d - c, load_step<E>(from + d, stride, both, min_of(all, channels - d)));
      }
  }
}

// The same in any other order, one tile: panel[element][o], kNr apart.
template <class T, class E>
void pack_gradient_row(const T* from, const int64_t* stride, int64_t pixels, int64_t channels, E* panel) {
  using A = acc_of<E>;
  constexpr int64_t all = lanes<A>;
  const int64_t elements = ceil_div(pixels, per_element<E>);
  A* to = reinterpret_cast<A*>(panel);  // pairs move as the 32 bits they are
  if (stride[3] == 1) {
    if constexpr (__is_same(E, float)) {
      for (int64_t c = 0; c < channels; c += all)
        transpose_in(from + c * stride[1], stride[1], min_of(all, channels - c), pixels, to + c, kNr<A>,
                     from + (c + all < channels ? c + all : 0) * stride[1]);
      return;
    }
#if defined(PYDL_BF16_DOT)
    if constexpr (__is_same(E, bf16_pair)) {
      for (int64_t c = 0; c < channels; c += all)
        transpose_pairs_in(from + c * stride[1], stride[1], min_of(all, channels - c), pixels, panel + c,
                           kNr<A>);
      return;
    }
#endif
  }
  for (int64_t c = 0; c < channels; c += all)
    for (int64_t j = 0; j < elements; j += all) {
      const int64_t n = min_of(all, elements - j), some = min_of(all, channels - c);
      vec<A> square[all];
      for (int64_t i = 0; i < all; ++i) {
        square[i] = vec<A>{};
        if (i >= some) continue;
        const T* at = from + (c + i) * stride[1] + j * per_element<E> * stride[3];
        T numbers[all * per_element<E>] = {};
        for (int64_t q = 0; q < min_of(n * per_element<E>, pixels - j * per_element<E>); ++q)
          numbers[q] = at[q * stride[3]];
        if constexpr (__is_same(E, bf16_pair))
          memcpy(&square[i], numbers, sizeof square[i]);
        else
          square[i] = load(numbers);
      }
      transpose(square);
      for (int64_t r = 0; r < n; ++r) store(to + (j + r) * kNr<A> + c, square[r]);
    }
}

#if defined(PYDL_BF16_DOT)
// Each element becomes the pixel and its next one in the output, `step` further in the image.
template <class T>
PYDL_INLINE vec<float> with_neighbours(const T* at, int64_t step, int64_t before, int64_t after) {
  return bit_cast<vec<float>>(side_by_side(load_bits_between(at, before, after),
                                           load_bits_between(at + step, before - step, after - step)));
}

// As copy_slab, for elements that hold a pixel and its next one in the output.
template <class T>
void copy_slab_of_neighbours(const Windows<T>& w, const Region& region, const Reach& y, const Reach& x,
                             bf16_pair* slab, int64_t pitch) {
  constexpr int64_t all = lanes<float>;
  const int64_t* stride = w.stride;
  const int64_t step = x.step;
  each_line(
      w, region, y, x, slab, pitch, [&](const T* from, int64_t pixels, bf16_pair* line, int64_t outside) {
        float* to = reinterpret_cast<float*>(line);
        const int64_t begin = -min_of(step, outside);  // pixels outside whose next one is inside
        for (int64_t c = 0; c < w.channels; c += all) {
          const int64_t some = min_of(all, w.channels - c);
          if (stride[1] == 1) {
            for (int64_t j = begin; j < pixels; ++j) {
              const T* at = from + j * stride[3] + c;
              const u16h here = j >= 0 ? load_bits_n(at, some) : u16h{};
              const u16h next =
                  j + step < pixels && j + step >= 0 ? load_bits_n(at + step * stride[3], some) : u16h{};
              store_n(to + j * pitch + c, bit_cast<vec<float>>(side_by_side(here, next)), some);
            }
            continue;
          }
          for (int64_t j = begin; j < pixels; j += all) {
            vec<float> square[all];
            for (int64_t i = 0; i < all; ++i) {
              square[i] = vec<float>{};
              if (i >= some) continue;
              const T* at = from + (c + i) * stride[1];
              if (stride[3] == 1) {
                square[i] = with_neighbours(at + j, step, -j, pixels - j);
                continue;
              }
              bf16_pair numbers[all] = {};
              for (int64_t q = 0; q < all; ++q) {
                if (j + q >= 0 && j + q < pixels) numbers[q].low = at[(j + q) * stride[3]];
                if (j + q + step >= 0 && j + q + step < pixels)
                  numbers[q].high = at[(j + q + step) * stride[3]];
              }
              memcpy(&square[i], numbers, sizeof square[i]);
            }
            transpose(square);
            for (int64_t r = 0; r < min_of(all, pixels - j); ++r)
              store_n(to + (j + r) * pitch + c, square[r], some);
          }
        }
      });
}
#endif

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::implicit
