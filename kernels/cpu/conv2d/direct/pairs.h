// Batch lanes for the dot product of pairs of bfloat16: a lane holds two numbers that are summed over.
//
// In a convolution that is two channels, or, where an odd number of channels would leave a half empty, two
// neighbouring pixels of a row: the block holds (x, x + 1) at every x, and a row of five taps is three steps. In the
// weight gradient, whose sums run over images, it is two images. Rounding to bfloat16 writes 0 for what would be
// subnormal, as the dot product reads it.
#pragma once

#include "kernels/cpu/base/simd_bf16.h"
#include "kernels/cpu/conv2d/direct/batch.h"
#include "kernels/isa.h"

namespace pydl::cpu::PYDL_ISA::direct {

#if defined(PYDL_BF16_DOT)
constexpr int64_t kPairLanes = lanes<float>;

PYDL_INLINE u16h load_bits(const bf16* p) {
  u16h v;
  memcpy(&v, p, sizeof v);
  return v;
}
PYDL_INLINE vec<float> pair_lanes(u16h low, u16h high) {
  return bit_cast<vec<float>>(side_by_side(low, high));
}

// What gather_squares() reads: image i beside image i + 16;
struct ImagePairs {
  const bf16* from;
  int64_t image, images;

  static constexpr int64_t kImages = 2 * kPairLanes;
  using Lane = float;
  PYDL_INLINE ImagePairs moved(int64_t by) const { return {from + by, image, images}; }
  PYDL_INLINE bool full() const { return images == kImages; }
  PYDL_INLINE vec<float> at(int64_t i, int64_t q) const {
    const bf16* p = from + i * image + q;
    ask_ahead(p);
    ask_ahead(p + kPairLanes * image);
    return pair_lanes(load_bits(p), load_bits(p + kPairLanes * image));
  }
  PYDL_INLINE vec<float> at(int64_t i, int64_t q, int64_t n) const {
    const bf16* p = from + i * image + q;
    const u16h low = i < images ? load_bits_n(p, n) : u16h{};
    return pair_lanes(low, i + kPairLanes < images ? load_bits_n(p + kPairLanes * image, n) : u16h{});
  }
};
// a channel beside the next, whose planes are apart, or beside zeros;
struct ChannelPairs {
  const bf16* from;
  int64_t image, images, channel;  // channel: 0 where there is no second

  using Lane = float;
  PYDL_INLINE ChannelPairs moved(int64_t by) const { return {from + by, image, images, channel}; }
  PYDL_INLINE bool full() const { return images == kPairLanes; }
  PYDL_INLINE vec<float> at(int64_t i, int64_t q) const {
    const bf16* p = from + i * image + q;
    ask_ahead(p);
    return pair_lanes(load_bits(p), channel ? load_bits(p + channel) : u16h{});
  }
  PYDL_INLINE vec<float> at(int64_t i, int64_t q, int64_t n) const {
    if (i >= images) return vec<float>{};
    const bf16* p = from + i * image + q;
    return pair_lanes(load_bits_n(p, n), channel ? load_bits_n(p + channel, n) : u16h{});
  }
};
// and pairs as they lie in memory.
struct AdjacentPairs {
  const bf16* from;
  int64_t image, images;

  using Lane = float;
  PYDL_INLINE AdjacentPairs moved(int64_t by) const { return {from + by, image, images}; }
  PYDL_INLINE bool full() const { return images == kPairLanes; }
  PYDL_INLINE vec<float> at(int64_t i, int64_t q) const {
    vec<float> v;
    memcpy(&v, from + i * image + 2 * q, sizeof v);
    return v;
  }
  PYDL_INLINE vec<float> at(int64_t i, int64_t q, int64_t n) const {
    return i < images ? bit_cast<vec<float>>(load_pairs_n(from + i * image + 2 * q, 2 * n)) : vec<float>{};
  }
};

// Rows of the planes that lie on the image to block[plane][row][column][lane] of pairs.
static inline void pack_pairs(const Planes<bf16>& p, Pairs pairs, int64_t image, int64_t images,
                              bf16_pair* data) {
  const bool by_channel = pairs == Pairs::channels, by_row = p.stride[3] == 1;
  const Block<bf16_pair> block = {data, p.pad_y, p.image_rows(), p.padded_width, by_channel};
  const RowRange range = {p.pad_y, p.pad_y + p.image_rows()};
  clear_border(p, block);
  const bf16* from = p.data + image * p.stride[0];
  if (by_channel && by_row) {
    for (int64_t c = 0; c < p.channels; c += 2) {
      const int64_t next = c + 1 < p.channels ? p.stride[1] : 0;
      gather_plane(p, range, block, c, ChannelPairs{from + c * p.stride[1], p.stride[0], images, next},
                   [](bf16_pair* to) { return to; });
    }
    return;
  }
  if (by_channel && p.stride[1] == 1 && p.stride[3] == p.channels && p.channels % 2 == 0) {
    for (int64_t y = range.first; y < range.last;
         ++y, from += p.stride[2]) {  // a row is one stretch of pairs
      int64_t x = p.pad_x, c = 0;
      gather_squares(AdjacentPairs{from, p.stride[0], images}, p.used() * p.channels / 2, [&](int64_t) {
        bf16_pair* to = block.at(c, y, x);
        if ((c += 2) == p.channels) {
          c = 0;
          ++x;
        }
        return to;
      });
    }
    return;
  }
  // one by one, each the upper half of a widened number, out of a square beside the block
  alignas(kVectorBytes) bf16_pair square[kPairLanes * kPairLanes];
  int64_t next = 0;
  auto place = [&] { return square + next++ * kPairLanes; };
  auto put = [](bf16_pair* to, u32v v) { memcpy(static_cast<void*>(to), &v, sizeof v); };
  auto add = [&](bf16_pair* to, u32v v) { put(to, load_elements(to) | v); };
  const PlaneRows<bf16> rows = {from, p.stride[0], images};
  const int64_t used = p.used();
  if (by_row) {
    for (int64_t c = 0; c < p.channels; ++c) {
      bf16_pair* to = block.at(c, range.first, p.pad_x);
      int64_t x = 0;
      u32v before{};
      gather_plane(
          p, range, block, c, rows.moved(c * p.stride[1]), [&](bf16_pair*) { return place(); },
          [&](int64_t n) {
            next = 0;
            for (int64_t j = 0; j < n; ++j, to += kPairLanes) {
              const u32v high = load_elements(square + j * kPairLanes);
              if (x + p.pad_x > 0) put(to - kPairLanes, before | high);
              before = high >> 16;
              if (++x < used) continue;
              put(to, before);
              x = 0;
              to += (block.width - used) * kPairLanes;
              before = u32v{};
            }
          });
    }
    return;
  }
  struct {
    bf16_pair* to;
    int64_t c, x;
  } places[kPairLanes];
  for (int64_t y = range.first; y < range.last; ++y)
    gather_row(
        p, y, block, rows,
        [&](bf16_pair* to, int64_t c, int64_t x) {
          places[next] = {to, c, x};
          return place();
        },
        [&](int64_t n) {
          next = 0;
          for (int64_t j = 0; j < n; ++j) {
            const auto [to, c, x] = places[j];
            const u32v high = load_elements(square + j * kPairLanes), low = high >> 16;
            if (by_channel) {
              c % 2 ? add(to, high) : put(to, low);
            } else {
              put(to, low);
              if (x + p.pad_x > 0) add(to - kPairLanes, high);
            }
          }
        });
}

// to[i * plane + q] = lane i of get(q), rounded, for i < planes, q < length.
template <class F>
static PYDL_INLINE void scatter_rounded(const F& get, bf16* to, int64_t plane, int64_t planes,
                                        int64_t length) {
  constexpr int64_t all = 2 * kPairLanes;
  for (int64_t q = 0; q < length; q += all) {
    const int64_t n = min_of(all, length - q);
    vec<float> square[kPairLanes];
#pragma GCC unroll 16
    for (int64_t j = 0; j < kPairLanes; ++j) {
      const vec<float> low = 2 * j < n ? get(q + 2 * j) : vec<float>{};
      const vec<float> high = 2 * j + 1 < n ? get(q + 2 * j + 1) : vec<float>{};
      square[j] = bit_cast<vec<float>>(halves_side_by_side(narrow_bf16_fast(low, high)));
    }
    transpose(square);
    if (n == all && planes == kPairLanes) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < kPairLanes; ++i) memcpy(to + i * plane + q, &square[i], sizeof square[i]);
    } else {
      for (int64_t i = 0; i < planes; ++i) store_pairs_n(to + i * plane + q, bit_cast<u32v>(square[i]), n);
    }
  }
}
#endif

// body(number, element of blocks): bfloat16 is widened where the CPU has no dot product of pairs.
template <class F>
static inline void dispatch_elements(DType dtype, const F& body) {
  dispatch_trained(dtype, [&](auto type) {
#if defined(PYDL_BF16_DOT)
    if constexpr (__is_same(decltype(type), bf16))
      if (cpu_has_bf16_dot()) return body(type, bf16_pair{});
#endif
    body(type, float{});
  });
}

}  // namespace pydl::cpu::PYDL_ISA::direct
