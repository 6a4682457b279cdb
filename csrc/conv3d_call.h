// A 3-D convolution in numbers, and what its passes share (csrc/conv3d.cpp).
#pragma once

#include "csrc/conv2d_call.h"
#include "csrc/volumes.h"

namespace pydl {

using Sizes = std::vector<int64_t>;

// One dimension of depth, height and width.
struct Axis {
  int64_t in, out, kernel, stride, pad, dilation;

  // Taps whose pixels lie in the input, of the window at `out`: [first, last).
  void taps_of(int64_t at, int64_t& first, int64_t& last) const {
    const int64_t begin = at * stride - pad;
    first = begin < 0 ? min_of(ceil_div(-begin, dilation), kernel) : 0;
    last = begin >= in ? first : max_of(first, min_of(kernel, (in - 1 - begin) / dilation + 1));
  }
  // Windows whose tap lies in the input: [first, last).
  void windows_of(int64_t tap, int64_t& first, int64_t& last) const {
    const int64_t begin = tap * dilation - pad;
    first = begin < 0 ? min_of(ceil_div(-begin, stride), out) : 0;
    last = begin >= in ? first : max_of(first, min_of(out, (in - 1 - begin) / stride + 1));
  }
};

struct Geometry {
  Axis z, y, x;
  int64_t batch, groups, in_channels, out_channels;  // channels of one group
  DType dtype;
  int64_t element;

  Sizes input_size() const { return {batch, groups * in_channels, z.in, y.in, x.in}; }
  Sizes output_size() const { return {batch, groups * out_channels, z.out, y.out, x.out}; }
  Sizes weight_size() const { return {groups * out_channels, in_channels, z.kernel, y.kernel, x.kernel}; }
  int64_t taps() const { return y.kernel * x.kernel; }                 // of a plane
  int64_t weights() const { return in_channels * z.kernel * taps(); }  // of an output channel
};

// The 2-D convolution of one plane with one, without pointers, strides of depth and what a caller has more of.
Conv2dParams plane_of(const Geometry& g, const Volume& input, const Volume& output);
void set_weight_strides(Conv2dParams& p, int64_t out, int64_t in, int64_t row, int64_t column);

inline Tensor empty_format(const Tensor& like, const Sizes& sizes, bool channels_last) {
  return channels_last ? empty_strided(like, like.scalar_type(), sizes, channels_last_strides(sizes))
                       : empty(like, like.scalar_type(), sizes);
}

// A kernel of one pixel a plane, over whole planes: depth is the height of images whose rows are planes.
bool is_of_rows(const Geometry& g);
const char* run_rows(const Geometry& g, const Volume& input, const Volume& output, const Tensor& weight,
                     const void* bias, Conv2dPass pass);

// The weight gradient (conv3d_weight.cpp), of tensors whose dtypes and sizes were checked; not of float16.
Tensor conv3d_weight(const Geometry& g, const Tensor& grad_output, const Tensor& input, bool channels_last);

}  // namespace pydl
