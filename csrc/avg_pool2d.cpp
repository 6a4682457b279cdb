// pydl::avg_pool2d, avg_pool2d_backward
//
// kernel_size, stride, padding: (y, x). divisor: what sums are divided by, or 0 for the number of pixels.
// channels_last, grad_channels_last: the memory formats of the output and of the input's gradient, which Python decides
// once for the kernel and for tracing.
#include "csrc/avg_pool2d_call.h"
#include "csrc/pool2d_call.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

const PoolSizes kNoDilation = {1, 1};

Tensor forward(const Tensor& input, const PoolSizes& kernel_size, const PoolSizes& stride,
               const PoolSizes& padding, bool ceil_mode, bool count_include_pad, int64_t divisor,
               bool channels_last, bool /*grad_channels_last*/) {
  if (widens(input))
    return rounded(forward(widened(input), kernel_size, stride, padding, ceil_mode, count_include_pad,
                           divisor, channels_last, channels_last),
                   input.scalar_type());
  const Verbose line("avg_pool2d", input);
  AvgPool2dParams p{};
  describe_pool("avg_pool2d", sizes_of(input), {kernel_size, stride, padding, kNoDilation, ceil_mode}, p);
  p.dtype = dtype_of("avg_pool2d", input);
  Tensor output = empty_in_format(input, input.scalar_type(), output_sizes(p), channels_last);
  if (output.numel() > 0) {
    set_sides(p, input, output, channels_last);
    cut_into_planes(p, sizes_of(input));
    const Scales scales(p, count_include_pad, divisor);
    PYDL_CPU_CALL(avg_pool2d)(p, torch_threads());
  }
  return output;
}

Tensor backward(const Tensor& grad_output, const PoolSizes& input_size, const PoolSizes& kernel_size,
                const PoolSizes& stride, const PoolSizes& padding, bool ceil_mode, bool count_include_pad,
                int64_t divisor, bool /*channels_last*/, bool grad_channels_last) {
  if (widens(grad_output))
    return rounded(backward(widened(grad_output), input_size, kernel_size, stride, padding, ceil_mode,
                            count_include_pad, divisor, grad_channels_last, grad_channels_last),
                   grad_output.scalar_type());
  const Verbose line("avg_pool2d_backward", grad_output);
  AvgPool2dParams p{};
  describe_pool("avg_pool2d", input_size, {kernel_size, stride, padding, kNoDilation, ceil_mode}, p);
  check_sizes("avg_pool2d", "grad_output", grad_output, output_sizes(p));
  p.dtype = dtype_of("avg_pool2d", grad_output);
  Tensor grad_input = empty_in_format(grad_output, grad_output.scalar_type(), input_size, grad_channels_last);
  if (grad_input.numel() > 0) {
    const Tensor dense = dense_gradient(grad_output, grad_channels_last);
    set_sides(p, dense, grad_input, grad_channels_last);
    cut_into_planes(p, sizes_of(dense));
    const Scales scales(p, count_include_pad, divisor);
    PYDL_CPU_CALL(avg_pool2d_backward)(p, torch_threads());
  }
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("avg_pool2d", TORCH_BOX(&forward));
  m.impl("avg_pool2d_backward", TORCH_BOX(&backward));
}

}  // namespace pydl
