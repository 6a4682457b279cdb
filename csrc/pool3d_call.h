// A 3-D pooling as two of pool2d's: over the pixels of each plane, then over depth, for which a plane is a row of an
// image as high as the volume is deep. What max_pool3d.cpp and avg_pool3d.cpp share.
//
// Planes of a volume in NCDHW are images of C * D channels, (N, C * D, H, W); in NDHWC they are N * D images
// (N * D, C, H, W). What is between the two, (N, C, D, H' * W'), lies as the volume does. Results are row-major, whatever
// was read.
#pragma once

#include "csrc/pool2d_call.h"
#include "csrc/scratch.h"
#include "csrc/volumes.h"

namespace pydl {

// Both poolings, their sizes and windows made of options of (z, y, x).
template <class Params>
struct Pool3d {
  Params planes{}, depths{};
  PoolSizes between;  // sizes: (N, C, D, H', W')
  PoolSizes output;   // (N, C, D', H', W')

  Pool3d(const char* op, DType dtype, const PoolSizes& input, const PoolOptions& o, bool channels_last) {
    PYDL_CHECK(input.size() == 5, op, ": expected input to be 5-D, got shape ", shape_of(input));
    check_pool_options(op, o, 3);
    const int64_t batch = input[0], channels = input[1], depth = input[2];
    const auto of_plane = [](const PoolSizes& zyx) { return PoolSizes{zyx[1], zyx[2]}; };
    describe_pool(
        op,
        channels_last ? PoolSizes{batch * depth, channels, input[3], input[4]}
                      : PoolSizes{batch, channels * depth, input[3], input[4]},
        {of_plane(o.kernel), of_plane(o.stride), of_plane(o.padding), of_plane(o.dilation), o.ceil_mode},
        planes);
    between = {batch, channels, depth, planes.out_height, planes.out_width};
    describe_pool(op, {batch, channels, depth, planes.out_height * planes.out_width},
                  {{o.kernel[0], 1}, {o.stride[0], 1}, {o.padding[0], 0}, {o.dilation[0], 1}, o.ceil_mode},
                  depths);
    output = {batch, channels, depths.out_height, planes.out_height, planes.out_width};
    planes.dtype = depths.dtype = dtype;
  }

  // Memory for what is between, until the next call.
  void* scratch() const {
    int64_t bytes = bytes_per_element(scalar_type_of(planes.dtype));
    for (int64_t size : between) bytes *= size;
    return Scratch::of_copies(bytes, 0);
  }

  // Says where each of the two reads and writes; forward reads the volume, backward the output's gradient.
  void go_forward(const void* from, void* middle, void* to, bool channels_last) {
    connect(planes, from, middle, input_of(planes), channels_last);
    connect(depths, middle, to, input_of(depths), channels_last);
  }
  void go_back(const void* from, void* middle, void* to) {
    connect(depths, from, middle, output_sizes(depths), false);
    connect(planes, middle, to, output_sizes(planes), false);
  }

  static void set_dense_strides(int64_t* strides, const PoolSizes& sizes, bool channels_last) {
    const PoolSizes found = channels_last
                                ? channels_last_strides(sizes)
                                : PoolSizes{sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1};
    std::copy(found.begin(), found.end(), strides);
  }

 private:
  static PoolSizes input_of(const Params& p) { return {p.batch, p.channels, p.in_height, p.in_width}; }
  static void connect(Params& p, const void* from, void* to, const PoolSizes& read, bool channels_last) {
    p.from = from;
    p.to = to;
    p.channels_last = channels_last;
    set_dense_strides(p.from_stride, read, channels_last);
  }
};

// t, or a row-major copy of one that is channels_last: with the strides that Python tells a compiler, also where a
// dimension of one element would leave others free.
inline Tensor row_major(const Tensor& t, bool channels_last) {
  if (!channels_last) return t;
  Tensor copy = empty(t, t.scalar_type(), sizes_of(t));
  torch::stable::copy_(copy, t);
  return copy;
}

}  // namespace pydl
