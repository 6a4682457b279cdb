// Batch lanes: a vector holds the same pixel of as many images as it has lanes.
//
// With few channels (LeNet's 1 -> 6 and 6 -> 16) neither channels nor rows fill a vector, and a matrix
// product spends its time packing. Images of a batch always do: after one transposition every load is
// aligned, no lane is wasted at any width or stride, padding is a border of zeros, and the weight gradient
// needs no sum across lanes until the end.
//
// A block is `lanes` images as [channel][row][column][lane]. Here: transposing tensors into blocks. pairs.h has the
// blocks of pairs of bfloat16.
#pragma once

#include "kernels/cpu/conv2d/direct/direct.h"
#include "kernels/cpu/conv2d/lanes.h"

namespace pydl::cpu::PYDL_ISA::direct {

// Vectors from one plane of a block to the next: an odd number, so that the planes of a pixel are in different sets of
// the cache.
PYDL_INLINE int64_t plane_vectors(int64_t rows, int64_t width) { return (rows * width) | 1; }

// block[channel >> pairs][row - first][column][lane]
template <class E>
struct Block {
  E* data;
  int64_t first, rows, width;
  int pairs = 0;  // 1: two channels are a plane of pairs

  PYDL_INLINE E* at(int64_t channel, int64_t y, int64_t x) const {
    return data + ((channel >> pairs) * plane_vectors(rows, width) + (y - first) * width + x) * lanes<float>;
  }
};

// Rows [first, last) of a copy that lie on the image, as rows of the copy.
struct RowRange {
  int64_t first, last;
};
template <class T>
static PYDL_INLINE RowRange rows_of_image(const Planes<T>& p, int64_t first, int64_t last) {
  return {max_of(first, p.pad_y), max_of(min_of(last, p.pad_y + p.height), max_of(first, p.pad_y))};
}

// Zeros where a block is outside of the image.
template <class E, class T>
static PYDL_INLINE void clear_border(const Planes<T>& p, const Block<E>& block) {
  const int64_t right = p.pad_x + p.used();
  for (int64_t y = block.first; y < block.first + block.rows; ++y) {
    auto clear = [&](int64_t c, int64_t begin, int64_t end) {
      for (E *to = block.at(c, y, begin), *stop = block.at(c, y, end); to < stop; to += lanes<float>)
        memset(static_cast<void*>(to), 0, kVectorBytes);
    };
    const bool outside = y < p.pad_y || y >= p.pad_y + p.height;
    for (int64_t c = 0; c < p.channels; c += 1 << block.pairs) {
      clear(c, 0, outside ? block.width : p.pad_x);
      if (!outside) clear(c, right, block.width);
    }
  }
}

// The pixels of a plane's rows to a block, each to place(its address there); R reads them from rows of images. Squares cross
// the ends of rows that follow one another in memory, so that narrow images fill them.
template <class E, class T, class R, class F, class G = Nothing>
static PYDL_INLINE void gather_plane(const Planes<T>& p, const RowRange& range, const Block<E>& block,
                                     int64_t channel, const R& rows, const F& place, const G& stored = {}) {
  const int64_t used = p.used(), count = range.last - range.first, next = (block.width - used) * lanes<float>;
  const bool follows = p.stride[2] == p.width && used == p.width;
  for (int64_t y = 0; y < count; y += follows ? count : 1) {
    E* to = block.at(channel, range.first + y, p.pad_x);
    int64_t x = 0;
    gather_squares(
        rows.moved(y * p.stride[2]), used * (follows ? count : 1),
        [&](int64_t) {
          E* at = place(to);
          to += lanes<float>;
          if (++x == used) {
            x = 0;
            to += next;
          }
          return at;
        },
        stored);
  }
}

// Row y of all channels where these are not planes of rows, each pixel to place(its address in the block, c, x).
template <class E, class T, class R, class F, class G = Nothing>
static PYDL_INLINE void gather_row(const Planes<T>& p, int64_t y, const Block<E>& block, const R& rows,
                                   const F& place, const G& stored = {}) {
  // one stretch of (column, channel), or each of these one for itself
  const bool one = p.stride[1] == 1 && p.stride[3] == p.channels;
  const int64_t row = p.used() * p.channels, length = one ? row : 1;
  int64_t c = 0, x = 0;
  for (int64_t q = 0; q < row; q += length)
    gather_squares(
        rows.moved((y - p.pad_y) * p.stride[2] + c * p.stride[1] + x * p.stride[3]), length,
        [&](int64_t) {
          E* at = place(block.at(c, y, p.pad_x + x), c, x);
          if (++c == p.channels) {
            c = 0;
            ++x;
          }
          return at;
        },
        stored);
}

// The pixels of all channels that a block has room for. `rows` reads the images, which follow one another. stored(c, y,
// rows) follows what has just been stored of a channel.
template <class T, class E, class R, class G>
static PYDL_INLINE void gather_image(const Planes<T>& p, const Block<E>& block, const R& rows,
                                     const G& stored) {
  const RowRange range = rows_of_image(p, block.first, block.first + block.rows);
  const int64_t count = range.last - range.first;
  if (p.stride[3] != 1) {
    for (int64_t y = range.first; y < range.last; ++y) {
      gather_row(p, y, block, rows, [](E* to, int64_t, int64_t) { return to; });
      for (int64_t c = 0; c < p.channels; ++c) stored(c, y, 1);
    }
    return;
  }
  const bool run = p.stride[2] == p.width && block.width == p.width;
  for (int64_t c = 0; c < p.channels; ++c) {
    const R plane = rows.moved((range.first - p.pad_y) * p.stride[2] + c * p.stride[1]);
    if (run)
      gather_run(plane, count * p.width, block.at(c, range.first, 0));
    else
      gather_plane(p, range, block, c, plane, [](E* to) { return to; });
    stored(c, range.first, count);
  }
}

// Rows [first, last) of every plane of images [image, image + images) to a block.
template <class R, class T, class E>
[[maybe_unused]] __attribute__((noinline)) static void pack_block(const Planes<T>& p, int64_t image,
                                                                  int64_t images, int64_t first, int64_t last,
                                                                  E* data) {
  const Block<E> block = {data, first, last - first, p.padded_width};
  clear_border(p, block);
  gather_image(p, block, R{p.data + image * p.stride[0], p.stride[0], images},
               [](int64_t, int64_t, int64_t) {});
}

}  // namespace pydl::cpu::PYDL_ISA::direct
