// pydl::softmax_forward, softmax_backward, log_softmax_forward, log_softmax_backward: along a dimension, on the CPU alone
//
// dim: counted from the last, -1.
// lengths: int64, for each of as many of the first dimensions as it has; null: all of a row counts. With dim -1 alone.
#include "kernels/softmax.h"

#include "csrc/convert.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

using Optional = std::optional<Tensor>;

SoftmaxParams params_of(const Tensor& t, int64_t dim, const Optional& lengths, bool logarithm) {
  PYDL_CHECK(dim < 0 && dim >= -t.dim(), "softmax: expected dim to be one of ", -t.dim(), " to -1, got ",
             dim);
  SoftmaxParams p{};
  p.dtype = dtype_of("softmax", t);
  p.logarithm = logarithm;
  p.width = t.size(t.dim() + dim);
  p.inner = 1;
  for (int64_t d = t.dim() + dim + 1; d < t.dim(); ++d) p.inner *= t.size(d);
  p.rows = p.width == 0 ? 0 : t.numel() / p.width;
  if (lengths) {
    PYDL_CHECK(dim == -1, "softmax: expected dim to be the last one where lengths are given, got ", dim);
    PYDL_CHECK(lengths->scalar_type() == ScalarType::Long, "softmax: expected lengths to be int64, got ",
               dtype_name(lengths->scalar_type()));
    bool fits = lengths->dim() < t.dim();
    for (int64_t d = 0; fits && d < lengths->dim(); ++d) fits = lengths->size(d) == t.size(d);
    PYDL_CHECK(fits, "softmax: expected lengths to have the first dimensions of input, ", shape_of(t),
               ", got ", shape_of(*lengths));
    p.rows_of_length = p.rows / max_of(lengths->numel(), 1);
  }
  return p;
}

Tensor forward(const Tensor& input, int64_t dim, const Optional& lengths, bool logarithm) {
  const char* name = logarithm ? "log_softmax_forward" : "softmax_forward";
  PYDL_CHECK(input.dim() >= 1, "softmax: expected input to be at least 1-D, got shape ()");
  SoftmaxParams p = params_of(input, dim, lengths, logarithm);
  if (widens(p.dtype)) return rounded(forward(widened(input), dim, lengths, logarithm), input.scalar_type());
  Tensor output = empty(input, input.scalar_type(), sizes_of(input));
  if (p.rows == 0) return output;
  const Verbose line(name, input);
  const Tensor x = dense(input);
  const Optional n = lengths ? Optional(dense(*lengths)) : lengths;
  p.lengths = n ? n->const_data_ptr<int64_t>() : nullptr;
  p.input = x.const_data_ptr();
  p.output = output.mutable_data_ptr();
  PYDL_CPU_CALL(softmax_forward)(p, torch_threads());
  return output;
}

Tensor backward(const Tensor& grad_output, const Tensor& output, int64_t dim, const Optional& lengths,
                bool logarithm) {
  PYDL_CHECK(sizes_of(grad_output) == sizes_of(output) && output.dim() >= 1,
             "softmax: expected grad_output to be of shape ", shape_of(output), ", got ",
             shape_of(grad_output));
  check_same_dtype("softmax", "grad_output", grad_output, "output", output);
  SoftmaxParams p = params_of(output, dim, lengths, logarithm);
  if (widens(p.dtype))
    return rounded(backward(widened(grad_output), widened(output), dim, lengths, logarithm),
                   output.scalar_type());
  Tensor grad_input = empty(output, output.scalar_type(), sizes_of(output));
  if (p.rows == 0) return grad_input;
  const Verbose line(logarithm ? "log_softmax_backward" : "softmax_backward", grad_output);
  const Tensor y = dense(output), g = dense(grad_output);
  const Optional n = lengths ? Optional(dense(*lengths)) : lengths;
  p.lengths = n ? n->const_data_ptr<int64_t>() : nullptr;
  p.input = y.const_data_ptr();
  p.grad_output = g.const_data_ptr();
  p.output = grad_input.mutable_data_ptr();
  PYDL_CPU_CALL(softmax_backward)(p, torch_threads());
  return grad_input;
}

Tensor softmax_forward(const Tensor& input, int64_t dim, const Optional& lengths) {
  return forward(input, dim, lengths, false);
}
Tensor softmax_backward(const Tensor& grad_output, const Tensor& output, int64_t dim,
                        const Optional& lengths) {
  return backward(grad_output, output, dim, lengths, false);
}
Tensor log_softmax_forward(const Tensor& input, int64_t dim) {
  return forward(input, dim, std::nullopt, true);
}
Tensor log_softmax_backward(const Tensor& grad_output, const Tensor& output, int64_t dim) {
  return backward(grad_output, output, dim, std::nullopt, true);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("softmax_forward", TORCH_BOX(&softmax_forward));
  m.impl("softmax_backward", TORCH_BOX(&softmax_backward));
  m.impl("log_softmax_forward", TORCH_BOX(&log_softmax_forward));
  m.impl("log_softmax_backward", TORCH_BOX(&log_softmax_backward));
}

}  // namespace pydl
