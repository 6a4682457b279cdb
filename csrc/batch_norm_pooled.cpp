// pydl::batch_norm_pooled_train, batch_norm_pooled_backward: batch normalisation in training, its activation and the mean
// over 2x2 pixels, for images in NCHW that trained() (src/pydl/ops/convolution_batch_norm.py) lets through.
#include "csrc/batch_norm_call.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

struct PooledCall : BatchNormCall {
  PooledCall(const char* op, const Tensor& input, int64_t activation) : BatchNormCall(op, input) {
    PYDL_CHECK(!cuda && sizes.size() == 4 && input.is_contiguous() && input.numel() > 0, name,
               ": expected input to be an image in NCHW on the CPU, got shape ", shape_of(input));
    PYDL_CHECK(params.dtype == DType::f32 || params.dtype == DType::bf16, name,
               ": expected input to be float32 or bfloat16, got ", dtype_name(input.scalar_type()));
    PYDL_CHECK(sizes[2] > 1 && sizes[3] > 1 && params.spatial <= kMaxPooledPlane, name,
               ": expected planes of 2x2 to ", kMaxPooledPlane, " pixels, got shape ", shape_of(input));
    PYDL_CHECK_VALUE(activation == 1 || activation == 2, name,
                     ": expected activation to be 1 (relu) or 2 (sigmoid), got ", activation);
    params.activation = static_cast<Activation>(activation);
    params.channels_last = false;
    params.training = true;
    params.pooled_width = sizes[3];
  }

  std::vector<int64_t> pooled_sizes() const { return {sizes[0], sizes[1], sizes[2] / 2, sizes[3] / 2}; }

  BatchNormView pooled(const Tensor& dense) const {
    const int64_t windows = sizes[2] / 2 * (sizes[3] / 2);
    return {const_cast<void*>(dense.const_data_ptr()), params.channels * windows, windows};
  }
};

std::tuple<Tensor, Tensor, Tensor> batch_norm_pooled_train(const Tensor& input, Tensor running_mean,
                                                           Tensor running_var, const OptionalTensor& weight,
                                                           const OptionalTensor& bias,
                                                           const OptionalTensor& num_batches_tracked,
                                                           double momentum, double eps, int64_t activation) {
  const Verbose line("batch_norm_pooled_train", input);
  PooledCall call("batch_norm_pooled_train", input, activation);
  BatchNormParams& p = call.params;
  PYDL_CHECK(running_mean.is_contiguous() && running_var.is_contiguous(), call.name,
             ": expected contiguous running statistics");
  bool first = true;
  p.weight = call.param("weight", weight, first);
  p.bias = call.param("bias", bias, first);
  p.running_mean = call.param("running_mean", running_mean, first);
  p.running_var = call.param("running_var", running_var, first);
  p.momentum = momentum;
  p.eps = eps;
  Tensor output = empty(input, input.scalar_type(), call.pooled_sizes());
  p.output = call.pooled(output);
  Tensor mean = call.new_statistic(input, p.mean), var = call.new_statistic(input, p.var);
  p.input = call.read("input", input);
  count_batch(num_batches_tracked);  // nothing above has refused
  call.run(input, PYDL_CPU_CALL(batch_norm_forward), &cuda::Library::batch_norm_forward);
  return {std::move(output), std::move(mean), std::move(var)};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_pooled_backward(const Tensor& grad_output, const Tensor& input,
                                                              const Tensor& mean, const Tensor& var,
                                                              const OptionalTensor& weight,
                                                              const OptionalTensor& bias, double eps,
                                                              int64_t activation, bool need_input,
                                                              bool need_weight, bool need_bias) {
  const Verbose line("batch_norm_pooled_backward", input);
  PooledCall call("batch_norm_pooled_backward", input, activation);
  BatchNormParams& p = call.params;
  PYDL_CHECK(sizes_of(grad_output) == call.pooled_sizes() &&
                 grad_output.scalar_type() == input.scalar_type() && grad_output.is_cpu(),
             call.name, ": expected grad_output to be of shape ", shape_of(call.pooled_sizes()),
             " and of input's dtype and device, got shape ", shape_of(grad_output));
  call.read_statistics(mean, var, weight, bias, eps);
  const Tensor grad = dense(grad_output);
  p.grad_output = call.pooled(grad);
  p.input = call.read("input", input);
  const ScalarType type = scalar_type_of(p.param_dtype);
  Tensor grad_input =
      need_input ? call.allocate(input, p.grad_input) : empty(input, input.scalar_type(), {0});
  Tensor grad_weight = empty(input, type, {need_weight ? p.channels : 0});
  Tensor grad_bias = empty(input, type, {need_bias ? p.channels : 0});
  if (need_weight) p.grad_weight = grad_weight.mutable_data_ptr();
  if (need_bias) p.grad_bias = grad_bias.mutable_data_ptr();
  std::vector<double> sums(static_cast<size_t>(2 * p.channels));
  p.sum_grad = sums.data();
  p.sum_grad_xhat = p.sum_grad + p.channels;
  call.run(input, PYDL_CPU_CALL(batch_norm_backward), &cuda::Library::batch_norm_backward);
  return {std::move(grad_input), std::move(grad_weight), std::move(grad_bias)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("batch_norm_pooled_train", TORCH_BOX(&batch_norm_pooled_train));
  m.impl("batch_norm_pooled_backward", TORCH_BOX(&batch_norm_pooled_backward));
}

}  // namespace pydl
