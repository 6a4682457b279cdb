#include "csrc/conv3d_call.h"

namespace pydl {

Conv2dParams plane_of(const Geometry& g, const Volume& input, const Volume& output) {
  Conv2dParams p{};
  p.dtype = g.dtype;
  p.batch = g.batch;
  p.groups = 1;
  p.in_channels = g.in_channels;
  p.out_channels = g.out_channels;
  p.in_height = g.y.in;
  p.in_width = g.x.in;
  p.out_height = g.y.out;
  p.out_width = g.x.out;
  p.kernel_height = g.y.kernel;
  p.kernel_width = g.x.kernel;
  p.stride_height = g.y.stride;
  p.stride_width = g.x.stride;
  p.pad_top = g.y.pad;
  p.pad_left = g.x.pad;
  p.dilation_height = g.y.dilation;
  p.dilation_width = g.x.dilation;
  const auto take = [](const Volume& v, int64_t* strides) {
    strides[0] = v.n;
    strides[1] = v.c;
    strides[2] = v.h;
    strides[3] = v.w;
  };
  take(input, p.input_stride);
  take(output, p.output_stride);
  return p;
}

void set_weight_strides(Conv2dParams& p, int64_t out, int64_t in, int64_t row, int64_t column) {
  p.weight_stride[0] = out;
  p.weight_stride[1] = in;
  p.weight_stride[2] = row;
  p.weight_stride[3] = column;
}

bool is_of_rows(const Geometry& g) {
  const auto whole = [](const Axis& a) {
    return a.kernel == 1 && a.stride == 1 && a.pad == 0 && a.in == a.out;
  };
  return whole(g.y) && whole(g.x);
}

const char* run_rows(const Geometry& g, const Volume& input, const Volume& output, const Tensor& weight,
                     const void* bias, Conv2dPass pass) {
  Conv2dParams p = plane_of(g, input, output);
  p.groups = g.groups;
  p.in_channels *= g.groups;
  p.out_channels *= g.groups;
  p.in_height = g.z.in;
  p.out_height = g.z.out;
  p.in_width = p.out_width = g.y.in * g.x.in;
  p.kernel_height = g.z.kernel;
  p.kernel_width = 1;
  p.stride_height = g.z.stride;
  p.stride_width = 1;
  p.pad_top = g.z.pad;
  p.pad_left = 0;
  p.dilation_height = g.z.dilation;
  p.dilation_width = 1;
  p.input_stride[2] = input.d;
  p.output_stride[2] = output.d;
  set_weight_strides(p, g.weights(), g.z.kernel, 1, 1);
  p.input = input.data;
  p.output = output.data;
  p.weight = const_cast<void*>(weight.const_data_ptr());
  p.bias = bias;
  return conv2d_on_cpu(p, pass);
}

}  // namespace pydl
