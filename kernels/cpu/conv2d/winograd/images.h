// Between images and transformed tiles.
//
// Images are read and written where they are, in either memory format: lanes are channels, loaded directly
// when channels are adjacent (channels_last); otherwise a strip of rows is transposed through the L1 cache on
// the way in and out. Padding is never stored: what lies outside is zero.
#pragma once

#include "kernels/cpu/conv2d/winograd/tiles.h"

namespace pydl::cpu::PYDL_ISA::winograd {

// Widest strip: 6 x 58 pixels of a vector of channels, 22 KB; 9 x 58 with stride 2.
constexpr int kStripColumns = 58;
// Tiles of a strip, of either side.
template <class S>
constexpr int kStripTiles = (kStripColumns - S::inputs(S::kSide) + S::kSide * S::kStep) /
                            (S::kSide * (S::kStep > S::kOutputStep ? S::kStep : S::kOutputStep));
// Whether tiles of adjacent channels are read and written where they are; of bf16 and two phases, which are
// used where the CPU has no instruction for bf16, not: less to compile.
template <class S, class T>
constexpr bool kInPlace = S::kAlong == kPoints || __is_same(T, float);
template <class S>
constexpr int kStripFloats = S::inputs(S::kSide) * kStripColumns * lanes<float>;

// Transforms tiles [begin, end), all channels, into to[tile - begin][frequency][channel]. kGradient: the
// tile's own pixels by G (weight gradient) instead of its inputs by B^T. Frequencies are S::kAlong to a row.
// In images.cpp for all that there are, which the passes share.
template <class S, class T, bool kGradient>
void transform_tiles(const Image& image, const Tiles<S>& tiles, int64_t begin, int64_t end, int64_t pad_y,
                     int64_t pad_x, float* to, int64_t tile_stride, int64_t frequency_stride);

// Of two functions, one for each type of image, that of a dtype: what touches images is chosen here, and all that walks
// over tiles exists once.
template <class Function>
PYDL_INLINE Function* of_dtype(DType dtype, Function* f32, Function* bf16) {
  return dtype == DType::bf16 ? bf16 : f32;
}
template <class S, bool kGradient>
auto* transform_tiles_of(DType dtype) {
  return of_dtype(dtype, &transform_tiles<S, float, kGradient>,
                  &transform_tiles<S, typename HalfOf<S>::type, kGradient>);
}

}  // namespace pydl::cpu::PYDL_ISA::winograd
