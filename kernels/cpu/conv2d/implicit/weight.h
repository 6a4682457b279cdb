// What both files of the weight gradient by matrix products share: partial sums, and their way into the
// weights.
#pragma once

#include "kernels/cpu/base/simd_transpose.h"
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/conv2d/im2col.h"
#include "kernels/cpu/gemm/panel.h"

namespace pydl::cpu::PYDL_ISA::implicit {
using namespace gemm;

namespace {

// The sums of a task are those of a block of input channels and of a block of output channels over one of
// `splits` parts of the pixels: sums[tile of output channels][tap][input channel][output channel].
// Tasks are numbered (group, block of input channels, block of output channels, split).
template <class A>
struct WeightSums {
  int64_t channels, columns, taps;  // of one group
  int64_t block_channels, block_tiles, splits;
  bool swapped;  // `channels` are those of the output and `columns` those of the input

  int64_t blocks() const { return ceil_div(channels, block_channels); }
  int64_t tiles() const { return ceil_div(columns, kNr<A>); }
  int64_t column_blocks() const { return ceil_div(tiles(), block_tiles); }
  int64_t per_group() const { return blocks() * column_blocks() * splits; }
  int64_t partial() const { return block_tiles * taps * block_channels * kNr<A>; }  // elements
};

// Adds the splits in order and puts the sums where the weights are: squares of channels by output channels,
// transposed, all taps of a square in succession, so that (O, I, H, W) weights are written a few cache lines
// at a time.
template <class T, class A>
void write_weights(const Conv2dParams& p, const WeightSums<A>& sums, const A* partials,
                   const Parallel& parallel) {
  constexpr int64_t all = lanes<A>;
  const int64_t squares = ceil_div(sums.block_channels, all);  // per block of channels
  const int64_t channel_squares = sums.blocks() * squares, out_squares = ceil_div(sums.columns, all);
  const int64_t row_stride = p.weight_stride[sums.swapped ? 0 : 1],
                lane_stride = p.weight_stride[sums.swapped ? 1 : 0];
  parallel(
      p.groups * out_squares * channel_squares, ceil_div(64, sums.taps * sums.splits),
      [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          const int64_t block = item % channel_squares / squares, c0 = item % squares * all;
          const int64_t o0 = item / channel_squares % out_squares * all;
          const int64_t group = item / channel_squares / out_squares;
          const int64_t channels = min_of(sums.block_channels, sums.channels - block * sums.block_channels);
          const int64_t some = min_of(all, channels - c0), outs = min_of(all, sums.columns - o0);
          if (some <= 0) continue;
          const int64_t tile = o0 / kNr<A>, column_block = tile / sums.block_tiles;
          const int64_t task = (group * sums.blocks() + block) * sums.column_blocks() + column_block;
          const A* first = partials + task * sums.splits * sums.partial();
          for (int64_t tap = 0; tap < sums.taps; ++tap) {
            vec<A> square[all];
            for (int64_t i = 0; i < all; ++i) {
              square[i] = vec<A>{};
              if (i >= some) continue;
              const int64_t row = (tile % sums.block_tiles * sums.taps + tap) * channels + c0 + i;
              const A* from = first + row * kNr<A> + o0 % kNr<A>;
              for (int64_t s = 0; s < sums.splits; ++s) square[i] += load(from + s * sums.partial());
            }
            T* to = static_cast<T*>(p.weight) + group * (p.out_channels / p.groups) * p.weight_stride[0] +
                    o0 * lane_stride + (block * sums.block_channels + c0) * row_stride +
                    tap / p.kernel_width * p.weight_stride[2] + tap % p.kernel_width * p.weight_stride[3];
            if (lane_stride == 1) {
              for (int64_t i = 0; i < some; ++i, to += row_stride) store_n(to, square[i], outs);
              continue;
            }
            transpose(square);
            for (int64_t j = 0; j < outs; ++j, to += lane_stride) {
              if (row_stride == 1) {
                some == all ? store(to, square[j]) : store_n(to, square[j], some);
              } else {
                T numbers[all];
                store(numbers, square[j]);
                for (int64_t i = 0; i < some; ++i) to[i * row_stride] = numbers[i];
              }
            }
          }
        }
      });
}

}  // namespace

}  // namespace pydl::cpu::PYDL_ISA::implicit
