// How images are cut into tiles.
//
// A tile reads 6 x 6 inputs and covers 4 x 4 outputs of 3 x 3 taps or 2 x 2 outputs of 5 x 5
// (schemes.h has stride 2, where what is cut is positions); the last row and column of tiles
// of an image cover what is left. Tiles are numbered by kind, so that the tiles that have a frequency are one
// range of numbers:
//
//   group            0                 1                 2                 3
//   rows x columns   all x last        all x all         last x all        last x last
//
//   a row frequency that the last row lacks: groups 0, 1; a column frequency that the last column lacks:
//   groups 1, 2; both: group 1; neither: all.
//
// Within a group: image, then row, then column.
#pragma once

#include "kernels/conv2d.h"
#include "kernels/cpu/conv2d/winograd/schemes.h"

namespace pydl::cpu::PYDL_ISA::winograd {

struct Image {
  void* data;
  int64_t batch, channel, row, column;  // strides in elements
  int64_t channels, height, width;
};

inline Image input_of(const Conv2dParams& p) {
  const int64_t* s = p.input_stride;
  return {p.input, s[0], s[1], s[2], s[3], p.in_channels, p.in_height, p.in_width};
}
inline Image output_of(const Conv2dParams& p) {  // or its gradient
  const int64_t* s = p.output_stride;
  return {p.output, s[0], s[1], s[2], s[3], p.out_channels, p.out_height, p.out_width};
}

struct Tile {
  int64_t n, y, x;    // image, and its first position
  int rows, columns;  // positions, 1 to a whole tile's each
  int64_t run;        // how many tiles from this one on are adjacent in a row of the image and alike
};

struct Tiles {
  const Scheme& scheme;
  int64_t full_rows, full_columns, rows, columns;  // of tiles per image: those with all positions, and all
  int last_row, last_column;                       // positions of the last
  int64_t start[5];                                // first tile of each group, and the number of tiles

  Tiles(const Scheme& scheme, int64_t batch, int64_t height, int64_t width) : scheme(scheme) {
    const int side = scheme.side;
    rows = ceil_div(height, side);
    columns = ceil_div(width, side);
    last_row = static_cast<int>(height - (rows - 1) * side);
    last_column = static_cast<int>(width - (columns - 1) * side);
    full_rows = rows - (last_row < side);
    full_columns = columns - (last_column < side);
    start[0] = 0;
    start[1] = batch * full_rows * (columns - full_columns);
    start[2] = start[1] + batch * full_rows * full_columns;
    start[3] = start[2] + batch * (rows - full_rows) * full_columns;
    start[4] = start[3] + batch * (rows - full_rows) * (columns - full_columns);
  }

  int64_t count() const { return start[4]; }

  Tile operator[](int64_t index) const {
    int group = 0;
    while (index >= start[group + 1]) ++group;
    const bool last_rows = group >= 2, last_columns = group == 0 || group == 3;
    const int64_t width = last_columns ? columns - full_columns : full_columns;
    const int64_t height = last_rows ? rows - full_rows : full_rows;
    const int64_t within = index - start[group], x = within % width, y = within / width % height;
    return {within / width / height,
            (last_rows ? full_rows + y : y) * scheme.side,
            (last_columns ? full_columns + x : x) * scheme.side,
            last_rows ? last_row : scheme.side,
            last_columns ? last_column : scheme.side,
            width - x};
  }

  // The tiles of [begin, end) that have frequency (i, j), counted from begin.
  void range(int i, int j, int64_t begin, int64_t end, int64_t& first, int64_t& last) const {
    const bool all_rows = scheme.has[i][last_row], all_columns = scheme.has[j][last_column];
    first = max_of(all_columns ? 0 : start[1], begin) - begin;
    last = min_of(all_columns ? (all_rows ? start[4] : start[2]) : (all_rows ? start[3] : start[2]), end) -
           begin;
  }
};

// What any Winograd scheme serves.
static inline bool is_winograd(const Conv2dParams& p, Conv2dPass pass) {
  if (p.dtype == DType::f64) return false;
  const bool square = p.kernel_height == p.kernel_width && p.stride_height == p.stride_width;
  if (!square || p.dilation_height != 1 || p.dilation_width != 1 || p.groups != 1 || p.in_channels == 0)
    return false;
  if (p.stride_height == 1) return p.kernel_height == 3 || p.kernel_height == 5;
  const bool of_4 = p.kernel_height == 4 && p.dtype == DType::f32;  // bf16 was not measured
  if (p.stride_height != 2 || !(p.kernel_height == 3 || of_4)) return false;
  return pass != Conv2dPass::backward_input || (p.pad_top % 2 == 1 && p.pad_left % 2 == 1);
}

static inline const Scheme& scheme_of(const Conv2dParams& p, Conv2dPass pass) {
  const bool four = p.kernel_height == 4, transposed = pass == Conv2dPass::backward_input;
  Kind kind = p.kernel_height == 3 ? Kind::dense_3 : Kind::dense_5;
  if (p.stride_height == 2)
    kind = transposed ? (four ? Kind::transposed_of_4 : Kind::transposed)
                      : (four ? Kind::strided_of_4 : Kind::strided);
  return kSchemes[static_cast<int>(kind)];
}

}  // namespace pydl::cpu::PYDL_ISA::winograd
