// Batch lanes: a vector holds the same pixel of as many images as it has lanes.
//
// With few channels (LeNet's 1 -> 6 and 6 -> 16) neither channels nor rows fill a vector, and a matrix
// product spends its time packing. Images of a batch always do: after one transposition every load is
// aligned, no lane is wasted at any width or stride, padding is a border of zeros, and the weight gradient
// needs no sum across lanes until the end.
//
// A block is `lanes` images as [channel][row][column][lane]. Here: transposing tensors into blocks and rows
// back.
#pragma once

#include "kernels/cpu/conv2d/direct/direct.h"
#include "kernels/cpu/conv2d/lanes.h"

namespace pydl::cpu::PYDL_ISA::direct {

// Rows [first, last) of every plane of images [image, image + images) to block[channel][row -
// first][column][lane].
template <class T, class A>
static void pack_block(const Planes<T>& p, int64_t image, int64_t images, int64_t first, int64_t last,
                       A* block) {
  constexpr int64_t all = lanes<A>;
  const int64_t rows = last - first, width = p.padded_width;
  const int64_t used = min_of(p.width, width - p.pad_x);  // columns of the image that the block has room for
  const T* base = p.data + image * p.stride[0];
  auto at = [&](int64_t c, int64_t y, int64_t x) {
    return block + ((c * rows + (y - first)) * width + x) * all;
  };
  for (int64_t y = first; y < last; ++y) {
    const int64_t row = y - p.pad_y;
    if (row < 0 || row >= p.height) {
      for (int64_t c = 0; c < p.channels; ++c)
        memset(at(c, y, 0), 0, static_cast<size_t>(width * all) * sizeof(A));
      continue;
    }
    for (int64_t c = 0; c < p.channels; ++c) {  // the border left and right
      for (int64_t x = 0; x < p.pad_x; ++x) store(at(c, y, x), vec<A>{});
      for (int64_t x = p.pad_x + used; x < width; ++x) store(at(c, y, x), vec<A>{});
    }
    const T* line = base + row * p.stride[2];
    if (p.stride[3] == 1) {
      for (int64_t c = 0; c < p.channels; ++c) {
        A* to = at(c, y, p.pad_x);
        gather_lanes(line + c * p.stride[1], p.stride[0], images, used,
                     [&](int64_t x, vec<A> v) { store(to + x * all, v); });
      }
    } else if (p.stride[1] == 1 && p.stride[3] == p.channels) {  // a row is one stretch of (column, channel)
      int64_t x = 0, c = 0;
      gather_lanes(line, p.stride[0], images, used * p.channels, [&](int64_t, vec<A> v) {
        store(at(c, y, p.pad_x + x), v);
        if (++c == p.channels) {
          c = 0;
          ++x;
        }
      });
    } else {
      for (int64_t c = 0; c < p.channels; ++c)
        for (int64_t x = 0; x < used; ++x) {
          vec<A> v{};
          for (int64_t i = 0; i < images; ++i)
            v[i] = load_n(line + i * p.stride[0] + c * p.stride[1] + x * p.stride[3], 1)[0];
          store(at(c, y, p.pad_x + x), v);
        }
    }
  }
}

}  // namespace pydl::cpu::PYDL_ISA::direct
