// Batch normalisation as torch ops: the fused batch_norm_forward and batch_norm_backward, and their halves
// (stats, apply, backward_reduce, backward_apply), between which a synchronised version reduces over
// processes.
//
// mean, var and the sums of the gradient are float64 tensors of shape (channels) for every dtype. An absent
// result (a gradient that nobody needs) is an empty tensor.
#include <cmath>
#include <tuple>

#include "csrc/batch_norm_call.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

using Call = BatchNormCall;

Activation activation_of(const char* name, int64_t activation) {
  PYDL_CHECK_VALUE(activation >= 0 && activation <= 2, name,
                   ": expected activation to be 0 (none), 1 (relu) or 2 (sigmoid), got ", activation);
  return static_cast<Activation>(activation);
}

std::tuple<Tensor, Tensor> batch_norm_stats(const Tensor& input) {
  const Verbose line("batch_norm_stats", input);
  Call call("batch_norm_stats", input);
  BatchNormParams& p = call.params;
  Tensor mean = call.new_statistic(input, p.mean), var = call.new_statistic(input, p.var);
  if (call.empty()) {  // as torch's mean and var of nothing
    torch::stable::fill_(mean, NAN);
    torch::stable::fill_(var, NAN);
    return {std::move(mean), std::move(var)};
  }
  p.input = call.read("input", input);
  call.run(input, PYDL_CPU_CALL(batch_norm_stats), &cuda::Library::batch_norm_stats);
  return {std::move(mean), std::move(var)};
}

Tensor batch_norm_apply(const Tensor& input, const Tensor& mean, const Tensor& var,
                        const OptionalTensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& residual, double eps, int64_t activation) {
  const Verbose line("batch_norm_apply", input);
  Call call("batch_norm_apply", input);
  BatchNormParams& p = call.params;
  call.read_statistics(mean, var, weight, bias, eps);
  p.activation = activation_of(call.name, activation);
  Tensor output = call.allocate(input, p.output);
  if (residual.has_value()) p.residual = call.read("residual", *residual);
  if (call.empty()) return output;
  p.input = call.read("input", input);
  call.run(input, PYDL_CPU_CALL(batch_norm_apply), &cuda::Library::batch_norm_apply);
  return output;
}

// update: write the running statistics of a training call, which must be contiguous.
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& input, const OptionalTensor& running_mean,
                                           const OptionalTensor& running_var, const OptionalTensor& weight,
                                           const OptionalTensor& bias, const OptionalTensor& residual,
                                           bool training, bool update, double momentum, double eps,
                                           int64_t activation) {
  // torch's own kinds of error for too few dimensions
  PYDL_CHECK_INDEX(input.dim() >= 2 || !training || running_mean.has_value(),
                   "batch_norm: expected input to have at least 2 dimensions (N, C, ...), got shape ",
                   shape_of(input));
  Call call("batch_norm", input);
  BatchNormParams& p = call.params;
  bool first = true;
  p.weight = call.param("weight", weight, first);
  p.bias = call.param("bias", bias, first);
  void* given_mean = call.param("running_mean", running_mean, first);
  void* given_var = call.param("running_var", running_var, first);
  if (!training) {
    PYDL_CHECK(running_mean.has_value(),
               "batch_norm: expected running_mean to be given in evaluation mode, got None");
    PYDL_CHECK(running_var.has_value(),
               "batch_norm: expected running_var to be given in evaluation mode, got None");
  }
  if (update || !training) {
    p.running_mean = given_mean;
    p.running_var = given_var;
  }
  p.training = training;
  p.momentum = momentum;
  p.eps = eps;
  p.activation = activation_of(call.name, activation);
  Tensor output = call.allocate(input, p.output);
  Tensor mean = call.new_statistic(input, p.mean), var = call.new_statistic(input, p.var);
  if (residual.has_value()) p.residual = call.read("residual", *residual);
  if (call.empty()) {
    torch::stable::fill_(mean, 0);
    torch::stable::fill_(var, 0);
    return {std::move(output), std::move(mean), std::move(var)};
  }
  p.input = call.read("input", input);
  call.run(input, PYDL_CPU_CALL(batch_norm_forward), &cuda::Library::batch_norm_forward);
  return {std::move(output), std::move(mean), std::move(var)};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_forward(const Tensor& input, const OptionalTensor& running_mean,
                                                      const OptionalTensor& running_var,
                                                      const OptionalTensor& weight,
                                                      const OptionalTensor& bias,
                                                      const OptionalTensor& residual, bool training,
                                                      double eps, int64_t activation) {
  const Verbose line("batch_norm_forward", input);
  return forward(input, running_mean, running_var, weight, bias, residual, training, false, 0, eps,
                 activation);
}

// running = (1 - momentum) * running + momentum * batch; the variance unbiased, from count values.
template <class T>
void update(Tensor& running, const double* batch, double momentum, double factor) {
  T* data = static_cast<T*>(running.mutable_data_ptr());
  const int64_t stride = running.dim() ? running.stride(running.dim() - 1) : 1;
  for (int64_t c = 0; c < running.numel(); ++c) {
    const double old = static_cast<double>(data[c * stride]);
    data[c * stride] = static_cast<T>((1 - momentum) * old + momentum * factor * batch[c]);
  }
}

void batch_norm_update_stats(Tensor running_mean, Tensor running_var, const Tensor& mean, const Tensor& var,
                             int64_t count, double momentum) {
  const char* name = "batch_norm_update_stats";
  const double* values[] = {static_cast<const double*>(mean.const_data_ptr()),
                            static_cast<const double*>(var.const_data_ptr())};
  const double unbiased = static_cast<double>(count) / static_cast<double>(count - 1);
  Tensor* running[] = {&running_mean, &running_var};
  BatchNormUpdate u{};
  u.channels = mean.numel();
  u.momentum = momentum;
  for (int i = 0; i < 2; ++i) {
    PYDL_CHECK(running[i]->numel() == mean.numel() && running[i]->numel() == var.numel(), name,
               ": expected the running statistics to have ", mean.numel(), " elements, got shape ",
               shape_of(*running[i]));
    const double factor = i ? unbiased : 1.0;
    if (on_cuda(mean)) {
      u.running[i] = running[i]->mutable_data_ptr();
      u.dtype[i] = dtype_of(name, *running[i]);
      u.stride[i] = running[i]->dim() ? running[i]->stride(running[i]->dim() - 1) : 1;
      u.batch[i] = values[i];
      u.factor[i] = factor;
      continue;
    }
    switch (dtype_of(name, *running[i])) {
      case DType::f32:
        update<float>(*running[i], values[i], momentum, factor);
        break;
      case DType::f64:
        update<double>(*running[i], values[i], momentum, factor);
        break;
      case DType::bf16:
        update<c10::BFloat16>(*running[i], values[i], momentum, factor);
        break;
      case DType::f16:
        update<c10::Half>(*running[i], values[i], momentum, factor);
        break;
    }
  }
  if (const CudaCall launch{name, mean}) launch.run(launch->batch_norm_update, u);
}

// batch_norm_forward in training and batch_norm_update_stats, in one call.
std::tuple<Tensor, Tensor, Tensor> batch_norm_train(const Tensor& input, Tensor running_mean,
                                                    Tensor running_var, const OptionalTensor& weight,
                                                    const OptionalTensor& bias,
                                                    const OptionalTensor& residual,
                                                    const OptionalTensor& num_batches_tracked,
                                                    double momentum, double eps, int64_t activation) {
  const Verbose line("batch_norm_train", input);
  count_batch(num_batches_tracked);
  const bool direct = running_mean.is_contiguous() && running_var.is_contiguous();
  auto results = forward(input, running_mean, running_var, weight, bias, residual, true, direct, momentum,
                         eps, activation);
  if (!direct && input.numel() > 0)
    batch_norm_update_stats(running_mean, running_var, std::get<1>(results), std::get<2>(results),
                            input.numel() / input.size(1), momentum);
  return results;
}

// What both backward ops read.
void gradient_inputs(Call& call, const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                     const Tensor& var, const OptionalTensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& output, double eps, int64_t activation) {
  BatchNormParams& p = call.params;
  call.read_statistics(mean, var, weight, bias, eps);
  p.activation = activation_of(call.name, activation);
  PYDL_CHECK(p.activation != Activation::sigmoid || output.has_value(), call.name,
             ": expected output to be given for the gradient of sigmoid, got None");
  p.gradient = p.activation == Activation::none      ? BatchNormGradient::linear
               : p.activation == Activation::sigmoid ? BatchNormGradient::sigmoid_output
               : output.has_value()                  ? BatchNormGradient::relu_output
                                                     : BatchNormGradient::relu_input;
  p.grad_output = call.read("grad_output", grad_output);
  p.input = call.read("input", input);
  if (reads_output(p.gradient)) p.output = call.read("output", *output);
}

std::tuple<Tensor, Tensor> batch_norm_backward_reduce(const Tensor& grad_output, const Tensor& input,
                                                      const Tensor& mean, const Tensor& var,
                                                      const OptionalTensor& weight,
                                                      const OptionalTensor& bias,
                                                      const OptionalTensor& output, double eps,
                                                      int64_t activation) {
  const Verbose line("batch_norm_backward_reduce", input);
  Call call("batch_norm_backward_reduce", input);
  BatchNormParams& p = call.params;
  gradient_inputs(call, grad_output, input, mean, var, weight, bias, output, eps, activation);
  Tensor sum_grad = call.new_statistic(input, p.sum_grad);
  Tensor sum_grad_xhat = call.new_statistic(input, p.sum_grad_xhat);
  if (call.empty()) {
    torch::stable::fill_(sum_grad, 0);
    torch::stable::fill_(sum_grad_xhat, 0);
  } else {
    call.run(input, PYDL_CPU_CALL(batch_norm_backward_reduce), &cuda::Library::batch_norm_backward_reduce);
  }
  return {std::move(sum_grad), std::move(sum_grad_xhat)};
}

Tensor absent(const Tensor& like) { return empty(like, like.scalar_type(), {0}); }

std::tuple<Tensor, Tensor> batch_norm_backward_apply(const Tensor& grad_output, const Tensor& input,
                                                     const Tensor& mean, const Tensor& var,
                                                     const OptionalTensor& weight, const OptionalTensor& bias,
                                                     const OptionalTensor& output, const Tensor& sum_grad,
                                                     const Tensor& sum_grad_xhat, double count, double eps,
                                                     int64_t activation, bool with_residual) {
  const Verbose line("batch_norm_backward_apply", input);
  Call call("batch_norm_backward_apply", input, &grad_output);
  BatchNormParams& p = call.params;
  gradient_inputs(call, grad_output, input, mean, var, weight, bias, output, eps, activation);
  p.sum_grad = call.statistic("sum_grad", sum_grad);
  p.sum_grad_xhat = call.statistic("sum_grad_xhat", sum_grad_xhat);
  p.count = count;
  p.training = true;
  Tensor grad_input = call.allocate(input, p.grad_input);
  Tensor grad_residual = with_residual ? call.allocate(input, p.grad_residual) : absent(input);
  if (!call.empty()) {
    call.run(input, PYDL_CPU_CALL(batch_norm_backward_apply), &cuda::Library::batch_norm_backward_apply);
  }
  return {std::move(grad_input), std::move(grad_residual)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& var,
    const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& output, bool training,
    double eps, int64_t activation, bool need_input, bool need_weight, bool need_bias, bool need_residual) {
  const Verbose line("batch_norm_backward", input);
  Call call("batch_norm_backward", input, &grad_output);
  BatchNormParams& p = call.params;
  gradient_inputs(call, grad_output, input, mean, var, weight, bias, output, eps, activation);
  p.training = training;
  Tensor grad_input = need_input ? call.allocate(input, p.grad_input) : absent(input);
  Tensor grad_residual = need_residual ? call.allocate(input, p.grad_residual) : absent(input);
  const ScalarType param_type = scalar_type_of(p.param_dtype);
  Tensor grad_weight = empty(input, param_type, {need_weight ? p.channels : 0});
  Tensor grad_bias = empty(input, param_type, {need_bias ? p.channels : 0});
  if (need_weight) p.grad_weight = grad_weight.mutable_data_ptr();
  if (need_bias) p.grad_bias = grad_bias.mutable_data_ptr();
  if (call.empty()) {
    if (need_weight) torch::stable::zero_(grad_weight);
    if (need_bias) torch::stable::zero_(grad_bias);
  } else {
    std::vector<double> sums;
    std::optional<Tensor> device_sums;
    if (call.cuda) {
      device_sums = call.new_statistics(input, 2, p.sum_grad);
    } else {
      sums.resize(static_cast<size_t>(2 * p.channels));
      p.sum_grad = sums.data();
    }
    p.sum_grad_xhat = p.sum_grad + p.channels;
    call.run(input, PYDL_CPU_CALL(batch_norm_backward), &cuda::Library::batch_norm_backward);
  }
  return {std::move(grad_input), std::move(grad_weight), std::move(grad_bias), std::move(grad_residual)};
}

}  // namespace

#define PYDL_REGISTER(m)                                                        \
  m.impl("batch_norm_stats", TORCH_BOX(&batch_norm_stats));                     \
  m.impl("batch_norm_apply", TORCH_BOX(&batch_norm_apply));                     \
  m.impl("batch_norm_forward", TORCH_BOX(&batch_norm_forward));                 \
  m.impl("batch_norm_train", TORCH_BOX(&batch_norm_train));                     \
  m.impl("batch_norm_update_stats", TORCH_BOX(&batch_norm_update_stats));       \
  m.impl("batch_norm_backward_reduce", TORCH_BOX(&batch_norm_backward_reduce)); \
  m.impl("batch_norm_backward_apply", TORCH_BOX(&batch_norm_backward_apply));   \
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));

// clang-format off: it takes the two for one
STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) { PYDL_REGISTER(m) }
STABLE_TORCH_LIBRARY_IMPL(pydl, CUDA, m) { PYDL_REGISTER(m) }
// clang-format on

}  // namespace pydl
