// What the pooling ops share of torch's side: checks, the size of the output, tensors of a memory format.
#pragma once

#include "csrc/convert.h"
#include "csrc/torch.h"
#include "kernels/pool2d.h"

namespace pydl {

using PoolSizes = std::vector<int64_t>;

struct PoolOptions {
  const PoolSizes &kernel, &stride, &padding, &dilation;
  bool ceil_mode;
};

// Windows along one dimension, as torch counts them: with ceil_mode the last may hang over the end, but has
// to begin in the image or in the padding before it.
inline int64_t count_windows(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation,
                             bool ceil_mode) {
  const int64_t room = in + 2 * pad - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0);
  if (room < 0) return 0;
  const int64_t count = room / stride + 1;
  return ceil_mode && (count - 1) * stride >= in + pad ? count - 1 : count;
}

// Checks options of so many dimensions.
inline void check_pool_options(const char* op, const PoolOptions& o, size_t dims) {
  for (const auto& [name, numbers] : {std::pair<const char*, const PoolSizes&>{"kernel_size", o.kernel},
                                      {"stride", o.stride},
                                      {"padding", o.padding},
                                      {"dilation", o.dilation}}) {
    PYDL_CHECK(numbers.size() == dims, op, ": expected ", name, " to be ", dims, " numbers, got ",
               shape_of(numbers));
    const int64_t least = std::strcmp(name, "padding") == 0 ? 0 : 1;
    PYDL_CHECK(*std::min_element(numbers.begin(), numbers.end()) >= least, op, ": expected ", name,
               " to be at least ", least, ", got ", shape_of(numbers));
  }
  for (size_t d = 0; d < dims; ++d)
    PYDL_CHECK(o.padding[d] <= (o.dilation[d] * (o.kernel[d] - 1) + 1) / 2, op,
               ": expected padding to be at most half of the kernel's reach, got padding ",
               shape_of(o.padding), " for kernel_size ", shape_of(o.kernel), " and dilation ",
               shape_of(o.dilation));
}

// Checks sizes and options, and fills in all but pointers, strides, dtype and layout. input: sizes (N, C, H,
// W).
inline void describe_pool(const char* op, const PoolSizes& input, const PoolOptions& o, Pool2dParams& p) {
  check_pool_options(op, o, 2);
  PYDL_CHECK(
      input.size() == 4 && input[1] > 0 && input[2] > 0 && input[3] > 0, op,
      ": expected input to be 3-D (unbatched) or 4-D (batched) and empty in its batch alone, got shape ",
      shape_of(input));
  p.batch = input[0];
  p.channels = input[1];
  p.in_height = input[2];
  p.in_width = input[3];
  p.kernel_height = o.kernel[0];
  p.kernel_width = o.kernel[1];
  p.stride_height = o.stride[0];
  p.stride_width = o.stride[1];
  p.pad_top = o.padding[0];
  p.pad_left = o.padding[1];
  p.dilation_height = o.dilation[0];
  p.dilation_width = o.dilation[1];
  p.out_height = count_windows(input[2], o.kernel[0], o.stride[0], o.padding[0], o.dilation[0], o.ceil_mode);
  p.out_width = count_windows(input[3], o.kernel[1], o.stride[1], o.padding[1], o.dilation[1], o.ceil_mode);
  PYDL_CHECK(p.out_height > 0 && p.out_width > 0, op,
             ": expected the kernel to be no larger than the padded input (", input[2] + 2 * o.padding[0],
             " x ", input[3] + 2 * o.padding[1], "), got kernel_size ", shape_of(o.kernel), " with dilation ",
             shape_of(o.dilation));
}

inline PoolSizes output_sizes(const Pool2dParams& p) {
  return {p.batch, p.channels, p.out_height, p.out_width};
}

inline void check_sizes(const char* op, const char* what, const Tensor& t, const PoolSizes& sizes) {
  PYDL_CHECK(sizes_of(t) == sizes, op, ": expected ", what, " to be of shape ", shape_of(sizes), ", got ",
             shape_of(t));
}

inline Tensor empty_in_format(const Tensor& like, ScalarType type, const PoolSizes& sizes,
                              bool channels_last) {
  return channels_last ? empty_strided(like, type, sizes, channels_last_strides(sizes))
                       : empty(like, type, sizes);
}

// The gradient of an output as autograd hands it over, or a copy of it whose channels or columns lie side by side, as the
// kernels read them fast: behind a flattened output it comes in NCHW, whatever the output was.
inline Tensor dense_gradient(const Tensor& grad_output, bool channels_last) {
  const int64_t d = channels_last ? 1 : 3;
  if (grad_output.size(d) == 1 || grad_output.stride(d) == 1) return grad_output;
  Tensor copy = empty_in_format(grad_output, grad_output.scalar_type(), sizes_of(grad_output), channels_last);
  torch::stable::copy_(copy, grad_output);
  return copy;
}

// From which tensor to which.
inline void set_sides(Pool2dParams& p, const Tensor& from, const Tensor& to, bool channels_last) {
  p.from = from.const_data_ptr();
  p.to = to.mutable_data_ptr();
  p.channels_last = channels_last;
  for (int64_t d = 0; d < 4; ++d) p.from_stride[d] = from.stride(d);
}

// Windows of one row that cut dense rows into parts are planes, which the kernels read without a look at where windows end:
// (N, C, H, W) is (N, C * H * W', 1, kernel width) then. read: the sizes of what p.from is. Returns whether they are; places
// are then dense as the output.
inline bool cut_into_planes(Pool2dParams& p, const PoolSizes& read) {
  constexpr int64_t kFewestColumns = 48;
  const bool cuts = p.kernel_height == 1 && p.stride_height == 1 && p.pad_top == 0 && p.pad_left == 0 &&
                    p.dilation_width == 1 && p.stride_width == p.kernel_width &&
                    p.in_width == p.out_width * p.kernel_width && p.out_width > 1;
  if (!cuts || p.channels_last || p.kernel_width < kFewestColumns) return false;
  int64_t stride = 1;
  for (size_t d = 3; d > 0; stride *= read[d--])
    if (p.from_stride[d] != stride && read[d] != 1) return false;
  p.channels *= p.in_height * p.out_width;
  p.in_height = p.out_height = p.out_width = 1;
  p.in_width = p.kernel_width;
  p.from_stride[1] = p.from_stride[2] = stride / p.channels;
  p.from_stride[3] = 1;
  return true;
}

}  // namespace pydl
