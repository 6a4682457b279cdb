// pydl::avg_pool2d, avg_pool2d_backward
//
// kernel_size, stride, padding: (y, x). divisor: what sums are divided by, or 0 for the number of pixels.
// channels_last, grad_channels_last: the memory formats of the output and of the input's gradient, which Python decides
// once for the kernel and for tracing.
#include "kernels/avg_pool2d.h"

#include "csrc/pool2d_call.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

const PoolSizes kNoDilation = {1, 1};

// 1 / (number of pixels in window o along one dimension), for every o: those of the image, or those of the
// padded image too.
std::vector<double> scales(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
                           bool count_include_pad) {
  std::vector<double> scale(static_cast<size_t>(out));
  for (int64_t o = 0; o < out; ++o) {
    const int64_t begin = o * stride - pad, end = min_of(begin + kernel, in + pad);
    const int64_t count = count_include_pad ? end - begin : min_of(end, in) - max_of(begin, 0);
    scale[static_cast<size_t>(o)] = count > 0 ? 1.0 / static_cast<double>(count) : 0.0;
  }
  return scale;
}

bool all_equal(const std::vector<double>& v) {
  for (double a : v)
    if (a != v[0]) return false;
  return true;
}

// The scales of one call, in the type that the kernel accumulates in.
class Scales {
 public:
  Scales(AvgPool2dParams& p, bool count_include_pad, int64_t divisor) {
    if (divisor != 0) {
      p.scale = 1.0 / static_cast<double>(divisor);
      return;
    }
    const auto rows =
        scales(p.in_height, p.out_height, p.kernel_height, p.stride_height, p.pad_top, count_include_pad);
    const auto columns =
        scales(p.in_width, p.out_width, p.kernel_width, p.stride_width, p.pad_left, count_include_pad);
    if (all_equal(rows) && all_equal(columns)) {
      p.scale = rows[0] * columns[0];
    } else if (p.dtype == DType::f64) {
      p.row_scale = (doubles_[0] = rows).data();
      p.column_scale = (doubles_[1] = columns).data();
    } else {
      floats_[0].assign(rows.begin(), rows.end());
      floats_[1].assign(columns.begin(), columns.end());
      p.row_scale = floats_[0].data();
      p.column_scale = floats_[1].data();
    }
  }

 private:
  std::vector<double> doubles_[2];
  std::vector<float> floats_[2];
};

Tensor forward(const Tensor& input, const PoolSizes& kernel_size, const PoolSizes& stride,
               const PoolSizes& padding, bool ceil_mode, bool count_include_pad, int64_t divisor,
               bool channels_last, bool /*grad_channels_last*/) {
  const Verbose line("avg_pool2d", input);
  AvgPool2dParams p{};
  describe_pool("avg_pool2d", sizes_of(input), {kernel_size, stride, padding, kNoDilation, ceil_mode}, p);
  p.dtype = dtype_of("avg_pool2d", input);
  Tensor output = empty_in_format(input, input.scalar_type(), output_sizes(p), channels_last);
  if (output.numel() > 0) {
    set_sides(p, input, output, channels_last);
    const Scales scales(p, count_include_pad, divisor);
    PYDL_CPU_CALL(avg_pool2d)(p, torch_threads());
  }
  return output;
}

Tensor backward(const Tensor& grad_output, const PoolSizes& input_size, const PoolSizes& kernel_size,
                const PoolSizes& stride, const PoolSizes& padding, bool ceil_mode, bool count_include_pad,
                int64_t divisor, bool /*channels_last*/, bool grad_channels_last) {
  const Verbose line("avg_pool2d_backward", grad_output);
  AvgPool2dParams p{};
  describe_pool("avg_pool2d", input_size, {kernel_size, stride, padding, kNoDilation, ceil_mode}, p);
  check_sizes("avg_pool2d", "grad_output", grad_output, output_sizes(p));
  p.dtype = dtype_of("avg_pool2d", grad_output);
  Tensor grad_input = empty_in_format(grad_output, grad_output.scalar_type(), input_size, grad_channels_last);
  if (grad_input.numel() > 0) {
    const Tensor dense = dense_gradient(grad_output, grad_channels_last);
    set_sides(p, dense, grad_input, grad_channels_last);
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
