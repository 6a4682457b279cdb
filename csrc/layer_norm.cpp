// pydl::layer_norm_forward, layer_norm_backward, rms_norm_forward, rms_norm_backward: on the CPU alone
//
// dims: how many of the last dimensions are normalised together. stats: float64, (2, rows), mean and 1 / deviation of
// each row; (1, rows) for RMS norm, the latter.
#include "kernels/layer_norm.h"

#include "csrc/convert.h"
#include "csrc/scratch.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

using Sizes = std::vector<int64_t>;
using Optional = std::optional<Tensor>;

const void* data_of(const Optional& t) { return t ? t->const_data_ptr() : nullptr; }

void check_parameter(const char* op, const char* name, const Tensor& input, const Tensor& t, int64_t dims) {
  const Sizes sizes = sizes_of(input), own = sizes_of(t);
  const Sizes expected(sizes.end() - dims, sizes.end());
  PYDL_CHECK(own == expected, op, ": expected ", name, " to be of shape ", shape_of(expected), ", got ",
             shape_of(own));
  const bool is_half = bytes_per_element(input.scalar_type()) == 2;
  PYDL_CHECK(t.scalar_type() == input.scalar_type() || (is_half && t.scalar_type() == ScalarType::Float), op,
             ": expected ", name, " to be of the dtype of input", is_half ? ", or float32" : "", ", got ",
             dtype_name(t.scalar_type()), " and ", dtype_name(input.scalar_type()));
}

// All but pointers. The parameters are of `parameter`'s dtype, or of input's.
LayerNormParams params_of(const char* op, const Tensor& input, const Optional& parameter, int64_t dims,
                          bool centered) {
  PYDL_CHECK(dims >= 1 && dims <= input.dim(), op, ": expected input to be at least ", dims, "-D, got shape ",
             shape_of(input));
  LayerNormParams p{};
  p.dtype = dtype_of(op, input);
  p.parameter = parameter ? dtype_of(op, *parameter) : p.dtype;
  p.centered = centered;
  p.width = 1;
  for (int64_t d = input.dim() - dims; d < input.dim(); ++d) p.width *= input.size(d);
  p.rows = 1;
  for (int64_t d = 0; d < input.dim() - dims; ++d) p.rows *= input.size(d);
  return p;
}

void set_stats(LayerNormParams& p, double* stats) {
  p.mean = p.centered ? stats : nullptr;
  p.scale = p.centered ? stats + p.rows : stats;
}

std::tuple<Tensor, Tensor> forward(const char* op, const char* line_name, const Tensor& input,
                                   const Optional& weight, const Optional& bias, int64_t dims, double eps,
                                   bool centered) {
  LayerNormParams p = params_of(op, input, weight ? weight : bias, dims, centered);
  if (weight) check_parameter(op, "weight", input, *weight, dims);
  if (bias) {
    check_parameter(op, "bias", input, *bias, dims);
    check_same_dtype(op, "bias", *bias, weight ? "weight" : "input", weight ? *weight : input);
  }
  if (widens(p.dtype)) {
    auto [output, stats] = forward(op, line_name, widened(input), widened_where_needed(weight),
                                   widened_where_needed(bias), dims, eps, centered);
    return {rounded(output, input.scalar_type()), stats};
  }
  const Tensor x = dense(input);
  Tensor output = empty(x, x.scalar_type(), sizes_of(x));
  Tensor stats = empty(x, ScalarType::Double, {centered ? 2 : 1, p.rows});
  if (x.numel() == 0) return {output, stats};
  const Verbose line(line_name, input);
  const Optional w = dense(weight), b = dense(bias);
  p.eps = eps;
  p.input = x.const_data_ptr();
  p.weight = data_of(w);
  p.bias = data_of(b);
  p.output = output.mutable_data_ptr();
  set_stats(p, static_cast<double*>(stats.mutable_data_ptr()));
  p.scratch = Scratch::of_at_least(PYDL_CPU_CALL(layer_norm_scratch)(p, false));
  PYDL_CPU_CALL(layer_norm_forward)(p, torch_threads());
  return {output, stats};
}

// A gradient that is not needed comes back as an empty tensor.
std::tuple<Tensor, Tensor, Tensor> backward(const char* op, const char* line_name, const Tensor& grad_output,
                                            const Tensor& input, const Tensor& stats, const Optional& weight,
                                            int64_t dims, bool centered, bool need_input, bool need_weight,
                                            bool need_bias) {
  LayerNormParams p = params_of(op, input, weight, dims, centered);
  PYDL_CHECK(sizes_of(grad_output) == sizes_of(input), op, ": expected grad_output to be of shape ",
             shape_of(input), ", got ", shape_of(grad_output));
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  PYDL_CHECK(stats.scalar_type() == ScalarType::Double && stats.is_contiguous() &&
                 stats.numel() == (centered ? 2 : 1) * p.rows,
             op, ": expected stats to be those of the forward, got shape ", shape_of(stats));
  if (weight) check_parameter(op, "weight", input, *weight, dims);
  if (widens(p.dtype)) {
    auto [grad_input, grad_weight, grad_bias] =
        backward(op, line_name, widened(grad_output), widened(input), stats, widened_where_needed(weight),
                 dims, centered, need_input, need_weight, need_bias);
    const ScalarType parameter = scalar_type_of(p.parameter);
    return {rounded(grad_input, input.scalar_type()), rounded(grad_weight, parameter),
            rounded(grad_bias, parameter)};
  }
  const Tensor g = dense(grad_output);
  const ScalarType type = input.scalar_type(), parameter = scalar_type_of(p.parameter);
  const Sizes sizes = sizes_of(input), normalised(sizes.end() - dims, sizes.end()), none{0};
  Tensor grad_input = empty(g, type, need_input ? sizes : none);
  Tensor grad_weight = empty(g, parameter, need_weight ? normalised : none);
  Tensor grad_bias = empty(g, parameter, need_bias ? normalised : none);
  if (p.width == 0) return {grad_input, grad_weight, grad_bias};
  const Verbose line(line_name, grad_output);
  const Tensor x = dense(input);
  const Optional w = dense(weight);
  p.input = x.const_data_ptr();
  p.weight = data_of(w);
  set_stats(p, static_cast<double*>(const_cast<void*>(stats.const_data_ptr())));
  p.grad_output = g.const_data_ptr();
  p.grad_input = need_input ? grad_input.mutable_data_ptr() : nullptr;
  p.grad_weight = need_weight ? grad_weight.mutable_data_ptr() : nullptr;
  p.grad_bias = need_bias ? grad_bias.mutable_data_ptr() : nullptr;
  p.scratch = Scratch::of_at_least(PYDL_CPU_CALL(layer_norm_scratch)(p, true));
  PYDL_CPU_CALL(layer_norm_backward)(p, torch_threads());
  return {grad_input, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor> layer_norm_forward(const Tensor& input, const Optional& weight,
                                              const Optional& bias, int64_t dims, double eps) {
  return forward("layer_norm", "layer_norm_forward", input, weight, bias, dims, eps, true);
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& grad_output, const Tensor& input,
                                                       const Tensor& stats, const Optional& weight,
                                                       int64_t dims, double /* of the derivative */,
                                                       bool need_input, bool need_weight, bool need_bias) {
  return backward("layer_norm", "layer_norm_backward", grad_output, input, stats, weight, dims, true,
                  need_input, need_weight, need_bias);
}

std::tuple<Tensor, Tensor> rms_norm_forward(const Tensor& input, const Optional& weight, int64_t dims,
                                            double eps) {
  return forward("rms_norm", "rms_norm_forward", input, weight, std::nullopt, dims, eps, false);
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad_output, const Tensor& input,
                                             const Tensor& stats, const Optional& weight, int64_t dims,
                                             double /* of the derivative */, bool need_input,
                                             bool need_weight) {
  auto [grad_input, grad_weight, none] = backward("rms_norm", "rms_norm_backward", grad_output, input, stats,
                                                  weight, dims, false, need_input, need_weight, false);
  return {grad_input, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("layer_norm_forward", TORCH_BOX(&layer_norm_forward));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
  m.impl("rms_norm_forward", TORCH_BOX(&rms_norm_forward));
  m.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
}

}  // namespace pydl
