// Volumes (N, C, D, H, W) in memory, and copies of them whose planes of neighbouring depths a 2-D convolution can take for
// more channels, or for more images (csrc/conv3d.cpp).
#pragma once

#include <cstring>

#include "csrc/torch.h"

namespace pydl {

// Runs of elements copied one after another to `to`; sizes and strides (in elements) of what is looped over, outermost
// first. order: where it is not empty, the loop over dimension `ordered` takes these places instead of 0, 1, 2, ...
struct Runs {
  int64_t sizes[4], strides[4], run;
  size_t ordered;
  const std::vector<int64_t>& order;
};
void copy_runs(char* to, const char* from, int64_t element, const Runs& runs, const Parallel& parallel);

// Where the planes of each depth lie in a copy that puts depths `step` apart side by side: all those of 0, step, 2 step,
// ... first, then those of 1, 1 + step, ...
class DepthOrder {
 public:
  DepthOrder(int64_t depth, int64_t step);
  int64_t place(int64_t depth) const { return begin_[static_cast<size_t>(depth % step_)] + depth / step_; }
  const std::vector<int64_t>& depths() const { return depths_; }  // by place
  int64_t step() const { return step_; }

 private:
  int64_t step_;
  std::vector<int64_t> begin_, depths_;
};

// Some channels of a tensor, dense as contiguous or channels_last_3d, or a copy of them.
struct Volume {
  char* data;
  int64_t sizes[5];
  int64_t n, c, d, h, w;  // strides in elements
  bool channels_last;
  std::optional<Tensor> keeps;  // what `data` points into

  int64_t plane() const { return sizes[3] * sizes[4]; }
};

// t as it is, or a copy where it is not dense in one of the two formats.
Volume volume_of(const Tensor& t, bool channels_last);

// Channels [first, first + count) of v.
Volume channels_of(const Volume& v, int64_t first, int64_t count, int64_t element);

// A copy with all channels of a depth beside those of the next in `order`: place * channels + channel is a channel. Copies
// lie in scratch until the next one.
Volume deep_channels(const Volume& v, const DepthOrder& order, int64_t element, const Parallel& parallel);

// A copy with the images of a depth beside those of the next in `order`: place * N + image is an image.
// Two of them, `which`, can be alive.
Volume deep_images(const Volume& v, const DepthOrder& order, int64_t element, size_t which,
                   const Parallel& parallel);

// Zeros in the depth `at` of v, or the number of each channel.
void fill_depth(const Volume& v, int64_t at, const char* numbers, int64_t element, const Parallel& parallel);

}  // namespace pydl
