// pydl::group_norm_forward, group_norm_backward: on the CPU alone
//
// input: (N, C, ...), read and written in the memory format that `channels_last` names. stats: float64 (2, N, groups),
// mean and 1 / deviation. A gradient that is not needed comes back as an empty tensor.
#include "kernels/group_norm.h"

#include <tuple>

#include "csrc/convert.h"
#include "csrc/scratch.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

using Optional = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

const void* data_of(const Optional& t) { return t ? t->const_data_ptr() : nullptr; }

void check_parameter(const char* name, const Tensor& input, const Tensor& t) {
  PYDL_CHECK(t.dim() == 1 && t.size(0) == input.size(1), "group_norm: expected ", name, " to be of shape (",
             input.size(1), "), got ", shape_of(t));
  const bool is_half = bytes_per_element(input.scalar_type()) == 2;
  PYDL_CHECK(t.scalar_type() == input.scalar_type() || (is_half && t.scalar_type() == ScalarType::Float),
             "group_norm: expected ", name, " to be of the dtype of input", is_half ? ", or float32" : "",
             ", got ", dtype_name(t.scalar_type()), " and ", dtype_name(input.scalar_type()));
}

GroupNormParams params_of(const Tensor& input, const Optional& weight, const Optional& bias, int64_t groups,
                          bool channels_last) {
  PYDL_CHECK(input.dim() >= 2,
             "group_norm: expected input to have at least 2 dimensions (N, C, ...), got shape ",
             shape_of(input));
  GroupNormParams p{};
  p.dtype = dtype_of("group_norm", input);
  p.samples = input.size(0);
  p.channels = input.size(1);
  p.groups = groups;
  PYDL_CHECK(groups > 0 && p.channels % groups == 0,
             "group_norm: expected num_groups to divide the number of channels, ", p.channels, ", got ",
             groups);
  p.spatial = 1;
  for (int64_t d = 2; d < input.dim(); ++d) p.spatial *= input.size(d);
  p.channels_last = channels_last || p.spatial == 1;
  if (weight) check_parameter("weight", input, *weight);
  if (bias) {
    check_parameter("bias", input, *bias);
    check_same_dtype("group_norm", "bias", *bias, weight ? "weight" : "input", weight ? *weight : input);
  }
  p.parameter = weight ? dtype_of("group_norm", *weight) : p.dtype;
  return p;
}

Sizes strides_of(const Sizes& sizes, bool channels_last) {
  if (channels_last) return channels_last_strides(sizes);
  Sizes strides(sizes.size(), 1);
  for (size_t d = sizes.size() - 1; d-- > 0;) strides[d] = strides[d + 1] * max_of(sizes[d + 1], 1);
  return strides;
}

// t, or a copy of it in these strides.
Tensor laid_out(const Tensor& t, const Sizes& strides) {
  if (has_strides(t, strides)) return t;
  Tensor copy = empty_strided(t, t.scalar_type(), t.sizes(), strides);
  torch::stable::copy_(copy, t);
  return copy;
}

void run(GroupNormParams& p, const Tensor& stats, decltype(PYDL_CPU_CALL(group_norm_forward)) pass) {
  p.mean = static_cast<double*>(const_cast<void*>(stats.const_data_ptr()));
  p.scale = p.mean + p.samples * p.groups;
  const Parallel threads = torch_threads();
  p.scratch = Scratch::of_at_least(PYDL_CPU_CALL(group_norm_scratch)(p, threads.threads));
  pass(p, threads);
}

std::tuple<Tensor, Tensor> group_norm_forward(const Tensor& input, const Optional& weight,
                                              const Optional& bias, int64_t groups, double eps,
                                              bool channels_last) {
  GroupNormParams p = params_of(input, weight, bias, groups, channels_last);
  if (widens(p.dtype)) {
    auto [output, stats] = group_norm_forward(widened(input), widened_where_needed(weight),
                                              widened_where_needed(bias), groups, eps, channels_last);
    return {rounded(output, input.scalar_type()), stats};
  }
  const Sizes sizes = sizes_of(input), strides = strides_of(sizes, channels_last);
  Tensor output = empty_strided(input, input.scalar_type(), sizes, strides);
  Tensor stats = empty(input, ScalarType::Double, {2, p.samples, groups});
  if (input.numel() == 0) {
    torch::stable::fill_(stats, 0);
    return {output, stats};
  }
  const Verbose line("group_norm_forward", input);
  const Tensor x = laid_out(input, strides);
  const Optional w = dense(weight), b = dense(bias);
  p.eps = eps;
  p.input = x.const_data_ptr();
  p.weight = data_of(w);
  p.bias = data_of(b);
  p.output = output.mutable_data_ptr();
  run(p, stats, PYDL_CPU_CALL(group_norm_forward));
  return {output, stats};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_backward(const Tensor& grad_output, const Tensor& input,
                                                       const Tensor& stats, const Optional& weight,
                                                       int64_t groups, double eps, bool channels_last,
                                                       bool need_input, bool need_weight, bool need_bias) {
  GroupNormParams p = params_of(input, weight, std::nullopt, groups, channels_last);
  PYDL_CHECK(sizes_of(grad_output) == sizes_of(input), "group_norm: expected grad_output to be of shape ",
             shape_of(input), ", got ", shape_of(grad_output));
  check_same_dtype("group_norm", "grad_output", grad_output, "input", input);
  PYDL_CHECK(stats.scalar_type() == ScalarType::Double && stats.is_contiguous() &&
                 stats.numel() == 2 * p.samples * groups,
             "group_norm: expected stats to be those of the forward, got shape ", shape_of(stats));
  if (widens(p.dtype)) {
    auto [grad_input, grad_weight, grad_bias] =
        group_norm_backward(widened(grad_output), widened(input), stats, widened_where_needed(weight), groups,
                            eps, channels_last, need_input, need_weight, need_bias);
    const ScalarType parameter = scalar_type_of(p.parameter);
    return {rounded(grad_input, input.scalar_type()), rounded(grad_weight, parameter),
            rounded(grad_bias, parameter)};
  }
  const Sizes sizes = sizes_of(input), strides = strides_of(sizes, channels_last);
  const ScalarType type = input.scalar_type(), parameter = scalar_type_of(p.parameter);
  Tensor grad_input = need_input ? empty_strided(input, type, sizes, strides) : empty(input, type, {0});
  Tensor grad_weight = empty(input, parameter, {need_weight ? p.channels : 0});
  Tensor grad_bias = empty(input, parameter, {need_bias ? p.channels : 0});
  if (input.numel() == 0) {
    torch::stable::fill_(grad_weight, 0);
    torch::stable::fill_(grad_bias, 0);
    return {grad_input, grad_weight, grad_bias};
  }
  const Verbose line("group_norm_backward", input);
  const Tensor x = laid_out(input, strides), g = laid_out(grad_output, strides);
  const Optional w = dense(weight);
  p.eps = eps;
  p.input = x.const_data_ptr();
  p.weight = data_of(w);
  p.grad_output = g.const_data_ptr();
  p.grad_input = need_input ? grad_input.mutable_data_ptr() : nullptr;
  p.grad_weight = need_weight ? grad_weight.mutable_data_ptr() : nullptr;
  p.grad_bias = need_bias ? grad_bias.mutable_data_ptr() : nullptr;
  run(p, stats, PYDL_CPU_CALL(group_norm_backward));
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("group_norm_forward", TORCH_BOX(&group_norm_forward));
  m.impl("group_norm_backward", TORCH_BOX(&group_norm_backward));
}

}  // namespace pydl
