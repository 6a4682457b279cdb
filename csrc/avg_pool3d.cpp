// pydl::avg_pool3d, avg_pool3d_backward, of float32 and float64
//
// kernel_size, stride, padding: (z, y, x). divisor: what sums are divided by, or 0 for the number of pixels. Both
// results are row-major: the gradient of a volume in NDHWC as well, as torch's is.
#include "csrc/avg_pool2d_call.h"
#include "csrc/pool3d_call.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

DType averaged_dtype(const Tensor& t) {
  const DType dtype = dtype_of("avg_pool3d", t);
  PYDL_CHECK(dtype == DType::f32 || dtype == DType::f64, "avg_pool3d: expected float32 or float64, got ",
             dtype_name(t.scalar_type()));  // sums of sums would be rounded twice
  return dtype;
}

struct Average3d : Pool3d<AvgPool2dParams> {
  Scales of_planes, of_depths;  // a product of divisors is the number of pixels

  Average3d(DType dtype, const PoolSizes& input, const PoolOptions& o, bool count_include_pad,
            int64_t divisor, bool channels_last)
      : Pool3d("avg_pool3d", dtype, input, o, channels_last),
        of_planes(planes, count_include_pad, divisor ? 1 : 0),
        of_depths(depths, count_include_pad, divisor) {}
};

const PoolSizes kSideBySide = {1, 1, 1};

Tensor avg_pool3d(const Tensor& input, const PoolSizes& kernel_size, const PoolSizes& stride,
                  const PoolSizes& padding, bool ceil_mode, bool count_include_pad, int64_t divisor) {
  const Verbose line("avg_pool3d", input);
  const DType dtype = averaged_dtype(input);
  PYDL_CHECK(input.dim() == 5, "avg_pool3d: expected input to be 5-D, got shape ", shape_of(sizes_of(input)));
  const Volume volume = volume_of(input, false);
  const bool last = volume.channels_last;
  Average3d p(dtype, sizes_of(input), {kernel_size, stride, padding, kSideBySide, ceil_mode},
              count_include_pad, divisor, last);
  Tensor output = empty_in_format(input, input.scalar_type(), p.output, last);
  if (output.numel() > 0) {
    p.go_forward(volume.data, p.scratch(), output.mutable_data_ptr(), last);
    PYDL_CPU_CALL(avg_pool2d)(p.planes, torch_threads());
    PYDL_CPU_CALL(avg_pool2d)(p.depths, torch_threads());
  }
  return row_major(output, last);
}

Tensor avg_pool3d_backward(const Tensor& grad_output, const PoolSizes& input_size,
                           const PoolSizes& kernel_size, const PoolSizes& stride, const PoolSizes& padding,
                           bool ceil_mode, bool count_include_pad, int64_t divisor) {
  const Verbose line("avg_pool3d_backward", grad_output);
  Average3d p(averaged_dtype(grad_output), input_size, {kernel_size, stride, padding, kSideBySide, ceil_mode},
              count_include_pad, divisor, false);
  check_sizes("avg_pool3d", "grad_output", grad_output, p.output);
  Tensor grad_input = empty(grad_output, grad_output.scalar_type(), input_size);
  if (grad_input.numel() > 0) {
    const Tensor rows = dense(grad_output);
    p.go_back(rows.const_data_ptr(), p.scratch(), grad_input.mutable_data_ptr());
    PYDL_CPU_CALL(avg_pool2d_backward)(p.depths, torch_threads());
    PYDL_CPU_CALL(avg_pool2d_backward)(p.planes, torch_threads());
  }
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("avg_pool3d", TORCH_BOX(&avg_pool3d));
  m.impl("avg_pool3d_backward", TORCH_BOX(&avg_pool3d_backward));
}

}  // namespace pydl
