// Between images and transformed tiles.
//
// Images are read and written where they are, in either memory format: lanes are channels, loaded directly
// when channels are adjacent (channels_last); otherwise a strip of rows is transposed through the L1 cache on
// the way in and out. Padding is never stored: what lies outside is zero.
#pragma once

#include "kernels/cpu/conv2d/winograd/tiles.h"

namespace pydl::cpu::PYDL_ISA::winograd {

// Widest strip: 6 x 58 pixels of a vector of channels, 22 KB; 9 or 10 x 58 with stride 2.
constexpr int kStripColumns = 58;
// Tiles of a strip, of either side.
static inline int64_t strip_tiles(const Scheme& scheme) {
  return (kStripColumns - scheme.inputs[scheme.side] + scheme.side * scheme.step) /
         (scheme.side * max_of(scheme.step, scheme.output_step));
}
// Whether tiles of adjacent channels are read and written where they are; of bf16 those of 3 x 3 alone, others come
// through a strip of floats: less to compile.
template <class S, class T>
constexpr bool kInPlace = __is_same(T, float) || S::kKind == Kind::dense_3;

// Transforms tiles [begin, end), all channels, into to[tile - begin][frequency][channel]; of_gradient: the
// tile's own pixels by G (weight gradient) instead of its inputs by B^T. Frequencies are along, or sums, to a row.
void transform_tiles(const Image& image, DType dtype, bool of_gradient, const Tiles& tiles, int64_t begin,
                     int64_t end, int64_t pad_y, int64_t pad_x, float* to, int64_t tile_stride,
                     int64_t frequency_stride);

}  // namespace pydl::cpu::PYDL_ISA::winograd
