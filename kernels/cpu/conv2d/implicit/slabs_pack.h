// The packed weights of implicit GEMM over slabs (slabs.cpp).
#pragma once

#include "kernels/cpu/conv2d/implicit/slabs.h"

namespace pydl::cpu::PYDL_ISA::implicit {
namespace {

// weights[row][m], kNr apart: the weights of output channels [m, m + lanes) for one tap and channel.
template <class E>
PYDL_INLINE void put_weights(E* tile, int64_t row, int64_t channel, int64_t m, vec<acc_of<E>> x) {
  using A = acc_of<E>;
  if constexpr (__is_same(E, bf16_pair)) {  // into its half of the pairs; they were zero
    A* to = reinterpret_cast<A*>(tile + (row + channel / 2) * kNr<A> + m);
    const u32v bits = bit_cast<u32v>(x);
    store(to, bit_cast<vec<A>>(bit_cast<u32v>(load(to)) | (channel % 2 ? bits : bits >> 16)));
  } else {
    store(tile + (row + channel) * kNr<A> + m, x);
  }
}

template <class T, class E>
void pack_weight_tile(const SlabPlan<T, E>& plan, const int64_t* rows_of_taps, const T* from, int64_t count,
                      E* tile) {
  using A = acc_of<E>;
  constexpr int64_t all = lanes<A>;
  const WindowProduct<T>& g = plan.product;
  const int64_t across = plan.p.kernel_width, taps = plan.taps(), channels = g.windows.channels;
  if constexpr (per_element<E> == 2) zero_elements(tile, plan.tile_elements);
  // a number per stretch of memory that one output channel's weights fill, and what lies in it
  const bool taps_run = (across == 1 || g.weight_x == 1) && (taps == across || g.weight_y == across);
  const bool channels_run = g.weight_channel == 1 && (across == 1 || g.weight_x == channels) &&
                            (taps == across || g.weight_y == across * channels);
  // What the next channels read lies pages apart, which the hardware does not follow (an input gradient's weights).
  const auto fetch_ahead = [&](const T* run, int64_t length) PYDL_INLINE_LAMBDA {
    constexpr int64_t kChannels = 8, kLine = 64 / sizeof(T);
    for (int64_t q = 0; q < length + kLine; q += kLine) prefetch(run + kChannels * g.weight_channel + q);
  };
  for (int64_t m = 0; m < count; m += all) {
    const int64_t some = min_of(all, count - m);
    const T* base = from + m * g.weight_m;
    auto squares = [&](const T* run, int64_t length, const auto& place) {
      for (int64_t q = 0; q < length; q += all) {
        const int64_t n = min_of(all, length - q);
        vec<A> square[all];
        if (n == all && some == all) {
#pragma GCC unroll 16
          for (int64_t i = 0; i < all; ++i) square[i] = load(run + i * g.weight_m + q);
        } else {
          for (int64_t i = 0; i < all; ++i)
            square[i] = i < some ? load_n(run + i * g.weight_m + q, n) : vec<A>{};
        }
        transpose(square);
        for (int64_t j = 0; j < n; ++j) place(q + j, square[j]);
      }
    };
    if (g.weight_m != 1 && channels_run) {
      squares(base, taps * channels, [&](int64_t q, vec<A> x) {
        put_weights(tile, rows_of_taps[q / channels], q % channels + plan.half(q / channels), m, x);
      });
    } else if (g.weight_m != 1 && taps_run && (g.weight_channel == taps || channels == 1)) {
      squares(base, taps * channels, [&](int64_t q, vec<A> x) {
        put_weights(tile, rows_of_taps[q % taps], q / taps + plan.half(q % taps), m, x);
      });
    } else if (g.weight_m != 1 && taps_run && taps > 1) {
      for (int64_t c = 0; c < channels; ++c) {
        const T* run = base + c * g.weight_channel;
        fetch_ahead(run, (some - 1) * g.weight_m + taps);
        squares(run, taps, [&](int64_t tap, vec<A> x) {
          put_weights(tile, rows_of_taps[tap], c + plan.half(tap), m, x);
        });
      }
    } else {
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t c = 0; c < channels; ++c) {
          const T* at = base + tap / across * g.weight_y + tap % across * g.weight_x + c * g.weight_channel;
          vec<A> x;
          if (g.weight_m == 1) {
            fetch_ahead(at, some);
            x = load_n(at, some);
          } else {
            T numbers[all];
            for (int64_t i = 0; i < some; ++i) numbers[i] = at[i * g.weight_m];
            x = load_n(numbers, some);
          }
          put_weights(tile, rows_of_taps[tap], c + plan.half(tap), m, x);
        }
    }
  }
}

// packed[group][tile][row][m], and the bias of each tile, zeros where there is none.
template <class T, class E>
void pack_weights(const SlabPlan<T, E>& plan, const int64_t* rows_of_taps, E* packed, acc_of<E>* bias,
                  const Parallel& parallel) {
  using A = acc_of<E>;
  const WindowProduct<T>& g = plan.product;
  parallel(g.groups * plan.tiles, ceil_div(4096, plan.tile_elements), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t group = i / plan.tiles, m0 = i % plan.tiles * kNr<A>,
                    count = plan.channels_of(i % plan.tiles);
      pack_weight_tile(plan, rows_of_taps, g.weight + group * g.weight_group + m0 * g.weight_m, count,
                       packed + i * plan.tile_elements);
      for (int64_t m = 0; m < kNr<A>; m += lanes<A>) {
        const int64_t some = max_of(0, min_of(lanes<A>, count - m));
        store(bias + i * kNr<A> + m,
              g.bias && some ? load_n(g.bias + group * g.channels + m0 + m, some) : vec<A>{});
      }
    }
  });
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::implicit
