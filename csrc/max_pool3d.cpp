// pydl::max_pool3d, max_pool3d_backward, max_pool3d_gather
//
// kernel_size, stride, padding, dilation: (z, y, x). plane_places, (N, C, D, H', W'): the tap of each maximum within
// its plane; depth_places, (N, C, D', H', W'): which plane of its window it is from. As max_pool2d keeps them. All
// results are row-major.
#include <tuple>

#include "csrc/max_pool2d_call.h"
#include "csrc/pool3d_call.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

struct Maximum3d : Pool3d<MaxPool2dParams> {
  using Pool3d::Pool3d;

  void set_places(const Tensor& plane_places, const Tensor& depth_places, bool channels_last) {
    set(planes, plane_places, channels_last);
    set(depths, depth_places, channels_last);
  }
  void check_places(const Tensor& plane_places, const Tensor& depth_places) const {
    check_sizes("max_pool3d", "plane_places", plane_places, between);
    check_sizes("max_pool3d", "depth_places", depth_places, output);
    PYDL_CHECK(
        plane_places.scalar_type() == place_type(planes) && depth_places.scalar_type() == place_type(depths),
        "max_pool3d: expected places to be of the dtypes that the forward gives for this kernel_size, got ",
        dtype_name(plane_places.scalar_type()), " and ", dtype_name(depth_places.scalar_type()));
  }

 private:
  static void set(MaxPool2dParams& p, const Tensor& places, bool channels_last) {
    p.places = const_cast<void*>(places.const_data_ptr());
    p.byte_places = places.scalar_type() == ScalarType::Byte;
    set_dense_strides(p.places_stride, output_sizes(p), channels_last);
  }
};

// Places that nobody asks for are empty tensors.
std::tuple<Tensor, Tensor, Tensor> max_pool3d(const Tensor& input, const PoolSizes& kernel_size,
                                              const PoolSizes& stride, const PoolSizes& padding,
                                              const PoolSizes& dilation, bool ceil_mode, bool wants_places) {
  if (widens(input)) {
    auto [output, plane_places, depth_places] =
        max_pool3d(widened(input), kernel_size, stride, padding, dilation, ceil_mode, wants_places);
    return {rounded(output, input.scalar_type()), plane_places, depth_places};
  }
  const Verbose line("max_pool3d", input);
  PYDL_CHECK(input.dim() == 5, "max_pool3d: expected input to be 5-D, got shape ", shape_of(sizes_of(input)));
  const Volume volume = volume_of(input, false);
  const bool last = volume.channels_last;
  Maximum3d p("max_pool3d", dtype_of("max_pool3d", input), sizes_of(input),
              {kernel_size, stride, padding, dilation, ceil_mode}, last);
  Tensor output = empty_in_format(input, input.scalar_type(), p.output, last);
  const auto places = [&](const PoolSizes& sizes, ScalarType type) {
    return wants_places ? empty_in_format(input, type, sizes, last) : empty(input, type, {0});
  };
  const Tensor plane_places = places(p.between, place_type(p.planes)),
               depth_places = places(p.output, place_type(p.depths));
  if (output.numel() > 0) {
    p.go_forward(volume.data, p.scratch(), output.mutable_data_ptr(), last);
    if (wants_places) p.set_places(plane_places, depth_places, last);
    PYDL_CPU_CALL(max_pool2d)(p.planes, torch_threads());
    PYDL_CPU_CALL(max_pool2d)(p.depths, torch_threads());
  }
  const bool copies = last && wants_places;
  return {row_major(output, last), row_major(plane_places, copies), row_major(depth_places, copies)};
}

Tensor max_pool3d_backward(const Tensor& grad_output, const Tensor& plane_places, const Tensor& depth_places,
                           const PoolSizes& input_size, const PoolSizes& kernel_size, const PoolSizes& stride,
                           const PoolSizes& padding, const PoolSizes& dilation, bool ceil_mode) {
  if (widens(grad_output))
    return rounded(max_pool3d_backward(widened(grad_output), plane_places, depth_places, input_size,
                                       kernel_size, stride, padding, dilation, ceil_mode),
                   grad_output.scalar_type());
  const Verbose line("max_pool3d_backward", grad_output);
  Maximum3d p("max_pool3d", dtype_of("max_pool3d", grad_output), input_size,
              {kernel_size, stride, padding, dilation, ceil_mode}, false);
  check_sizes("max_pool3d", "grad_output", grad_output, p.output);
  p.check_places(plane_places, depth_places);
  Tensor grad_input = empty(grad_output, grad_output.scalar_type(), input_size);
  if (grad_input.numel() > 0) {
    const Tensor rows = dense(grad_output), in_plane = dense(plane_places), in_depth = dense(depth_places);
    p.go_back(rows.const_data_ptr(), p.scratch(), grad_input.mutable_data_ptr());
    p.set_places(in_plane, in_depth, false);
    PYDL_CPU_CALL(max_pool2d_backward)(p.depths, torch_threads());
    PYDL_CPU_CALL(max_pool2d_backward)(p.planes, torch_threads());
  }
  return grad_input;
}

Tensor max_pool3d_gather(const Tensor& input, const Tensor& plane_places, const Tensor& depth_places,
                         const PoolSizes& kernel_size, const PoolSizes& stride, const PoolSizes& padding,
                         const PoolSizes& dilation, bool ceil_mode) {
  const Verbose line("max_pool3d_gather", input);
  Maximum3d p("max_pool3d", dtype_of("max_pool3d", input), sizes_of(input),
              {kernel_size, stride, padding, dilation, ceil_mode}, false);
  p.check_places(plane_places, depth_places);
  Tensor output = empty(input, input.scalar_type(), p.output);
  if (output.numel() > 0) {
    const Tensor rows = dense(input), in_plane = dense(plane_places), in_depth = dense(depth_places);
    p.go_forward(rows.const_data_ptr(), p.scratch(), output.mutable_data_ptr(), false);
    p.set_places(in_plane, in_depth, false);
    PYDL_CPU_CALL(max_pool2d_gather)(p.planes, torch_threads());
    PYDL_CPU_CALL(max_pool2d_gather)(p.depths, torch_threads());
  }
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("max_pool3d", TORCH_BOX(&max_pool3d));
  m.impl("max_pool3d_backward", TORCH_BOX(&max_pool3d_backward));
  m.impl("max_pool3d_gather", TORCH_BOX(&max_pool3d_gather));
}

}  // namespace pydl
