// pydl::max_pool2d, max_pool2d_backward, max_pool2d_gather
//
// kernel_size, stride, padding, dilation: (y, x). channels_last: the memory format of the result, which
// Python decides once for the kernel and for tracing. places: bytes, or int32 for kernels of more than 256
// taps.
#include "csrc/max_pool2d_call.h"

#include <tuple>

#include "csrc/verbose.h"

namespace pydl {
namespace {

void set_places(MaxPool2dParams& p, const Tensor& places, bool are_planes) {
  p.places = const_cast<void*>(places.const_data_ptr());
  p.byte_places = place_type(p) == ScalarType::Byte;
  for (int64_t d = 0; d < 4; ++d) p.places_stride[d] = are_planes && d > 0 ? 1 : places.stride(d);
}

void check_places(const MaxPool2dParams& p, const Tensor& places) {
  check_sizes("max_pool2d", "places", places, output_sizes(p));
  PYDL_CHECK(
      places.scalar_type() == place_type(p),
      "max_pool2d: expected places to be of the dtype that the forward gives for this kernel_size, got ",
      dtype_name(places.scalar_type()));
}

// Places that nobody asks for are an empty tensor.
std::tuple<Tensor, Tensor> forward(const Tensor& input, const PoolSizes& kernel_size, const PoolSizes& stride,
                                   const PoolSizes& padding, const PoolSizes& dilation, bool ceil_mode,
                                   bool channels_last, bool wants_places) {
  if (widens(input)) {
    auto [output, places] = forward(widened(input), kernel_size, stride, padding, dilation, ceil_mode,
                                    channels_last, wants_places);
    return {rounded(output, input.scalar_type()), places};
  }
  const Verbose line("max_pool2d", input);
  MaxPool2dParams p{};
  describe_pool("max_pool2d", sizes_of(input), {kernel_size, stride, padding, dilation, ceil_mode}, p);
  p.dtype = dtype_of("max_pool2d", input);
  Tensor output = empty_in_format(input, input.scalar_type(), output_sizes(p), channels_last);
  Tensor places = wants_places ? empty_in_format(input, place_type(p), output_sizes(p), channels_last)
                               : empty(input, place_type(p), {0});
  if (output.numel() > 0) {
    set_sides(p, input, output, channels_last);
    const bool are_planes = cut_into_planes(p, sizes_of(input));
    if (wants_places) set_places(p, places, are_planes);
    PYDL_CPU_CALL(max_pool2d)(p, torch_threads());
  }
  return {output, places};
}

// The windows along each dimension are those of `output`, which says whether ceil_mode was on.
void describe_like(const char* what, const Tensor& output, const PoolSizes& input_size, PoolOptions options,
                   MaxPool2dParams& p) {
  for (const bool ceil_mode : {false, true}) {
    options.ceil_mode = ceil_mode;
    describe_pool("max_pool2d", input_size, options, p);
    if (sizes_of(output) == output_sizes(p)) return;
  }
  check_sizes("max_pool2d", what, output, output_sizes(p));
}

Tensor backward(const Tensor& grad_output, const Tensor& places, const PoolSizes& input_size,
                const PoolSizes& kernel_size, const PoolSizes& stride, const PoolSizes& padding,
                const PoolSizes& dilation, bool channels_last) {
  if (widens(grad_output))
    return rounded(backward(widened(grad_output), places, input_size, kernel_size, stride, padding, dilation,
                            channels_last),
                   grad_output.scalar_type());
  const Verbose line("max_pool2d_backward", grad_output);
  MaxPool2dParams p{};
  describe_like("grad_output", grad_output, input_size, {kernel_size, stride, padding, dilation, false}, p);
  check_places(p, places);
  p.dtype = dtype_of("max_pool2d", grad_output);
  Tensor grad_input = empty_in_format(grad_output, grad_output.scalar_type(), input_size, channels_last);
  if (grad_input.numel() > 0) {
    const Tensor dense = dense_gradient(grad_output, channels_last);
    set_sides(p, dense, grad_input, channels_last);
    set_places(p, places, places.is_contiguous() && cut_into_planes(p, sizes_of(dense)));
    PYDL_CPU_CALL(max_pool2d_backward)(p, torch_threads());
  }
  return grad_input;
}

Tensor gather(const Tensor& input, const Tensor& places, const PoolSizes& kernel_size,
              const PoolSizes& stride, const PoolSizes& padding, const PoolSizes& dilation,
              bool channels_last) {
  const Verbose line("max_pool2d_gather", input);
  MaxPool2dParams p{};
  describe_like("places", places, sizes_of(input), {kernel_size, stride, padding, dilation, false}, p);
  check_places(p, places);
  p.dtype = dtype_of("max_pool2d", input);
  Tensor output = empty_in_format(input, input.scalar_type(), output_sizes(p), channels_last);
  if (output.numel() > 0) {
    set_sides(p, input, output, channels_last);
    set_places(p, places, places.is_contiguous() && cut_into_planes(p, sizes_of(input)));
    PYDL_CPU_CALL(max_pool2d_gather)(p, torch_threads());
  }
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&forward));
  m.impl("max_pool2d_backward", TORCH_BOX(&backward));
  m.impl("max_pool2d_gather", TORCH_BOX(&gather));
}

}  // namespace pydl
