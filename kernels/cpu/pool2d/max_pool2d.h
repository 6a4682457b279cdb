// What the files of maximum pooling share: where a place is kept, and the rows' way.
#pragma once

#include "kernels/cpu/pool2d/pool2d.h"
#include "kernels/max_pool2d.h"

namespace pydl::cpu::PYDL_ISA {

// Output rows [begin, end), counted over all planes, of an NCHW output; the input's rows are dense, and the
// windows one or two pixels apart.
template <class T>
void max_pool2d_rows(const MaxPool2dParams& p, int64_t begin, int64_t end);

// The same for any distance of windows.
template <class T>
void max_pool2d_direct(const MaxPool2dParams& p, int64_t begin, int64_t end);

// The same for windows that tile an image of dense rows (are_tiles), and their gradient, of input rows [begin, end); of
// bytes as places, or none. For types that kTrains.
template <class T>
void max_pool2d_tiles(const MaxPool2dParams& p, int64_t begin, int64_t end);
template <class T>
void max_pool2d_tiles_backward(const MaxPool2dParams& p, int64_t begin, int64_t end);

// The same for small planes and a window for each pixel, and their gradient; whether that serves.
bool max_pool2d_planes(const MaxPool2dParams& p, const Parallel& parallel);
bool max_pool2d_planes_backward(const MaxPool2dParams& p, const Parallel& parallel);

namespace {

// Windows of 2x2 that lie side by side from the image's corner, and in it.
PYDL_INLINE bool are_tiles(const MaxPool2dParams& p) {
  return p.kernel_height == 2 && p.kernel_width == 2 && p.stride_height == 2 && p.stride_width == 2 &&
         p.pad_top == 0 && p.pad_left == 0 && p.dilation_height == 1 && p.dilation_width == 1 &&
         2 * p.out_height <= p.in_height && 2 * p.out_width <= p.in_width;
}

PYDL_INLINE int64_t place_at(const MaxPool2dParams& p, int64_t i) {
  return p.byte_places ? static_cast<const uint8_t*>(p.places)[i] : static_cast<const int32_t*>(p.places)[i];
}
PYDL_INLINE void put_place(const MaxPool2dParams& p, int64_t i, int64_t place) {
  if (p.byte_places)
    static_cast<uint8_t*>(p.places)[i] = static_cast<uint8_t>(place);
  else
    static_cast<int32_t*>(p.places)[i] = static_cast<int32_t>(place);
}
// The first n lanes of k.
template <class M>
PYDL_INLINE void put_places(const MaxPool2dParams& p, int64_t i, M k, int64_t n) {
  if (p.byte_places)
    store_integers(static_cast<uint8_t*>(p.places) + i, k, n);
  else
    store_integers(static_cast<int32_t*>(p.places) + i, k, n);
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
