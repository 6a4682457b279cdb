// The node of batch_norm: the formula, and what it keeps, are those of src/pydl/ops/batch_norm.py.
#include "csrc/autograd/activation.h"
#include "csrc/autograd/functions.h"

#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/variable.h>

#include <optional>

namespace pydl::autograd {
namespace {

struct BatchNormOptions {
  bool training;
  double momentum, eps;
  Activation activation;
};

struct BatchNormTensors {
  const Tensor &input, &running_mean, &running_var, &weight, &bias, &residual, &num_batches_tracked;

  bool updates(bool training) const { return training && running_mean.defined(); }
};

class BatchNorm : public Node {
  const BatchNormOptions options_;
  const std::optional<at::ScalarType> bias_dtype_;

 public:
  BatchNorm(const BatchNormOptions& options, const Tensor& bias)
      : Node("batch_norm"),
        options_(options),
        bias_dtype_(bias.defined() ? std::optional(bias.scalar_type()) : std::nullopt) {}

  variable_list backward(const Tensor& grad, const variable_list& saved) override {
    static const Op op("pydl::batch_norm_backward");
    const auto& [training, momentum, eps, activation] = options_;
    const Tensor &input = saved[0], &weight = saved[3];
    const bool needs[] = {wants(0), wants(1), wants(2), wants(3)};
    const bool through = needs[3] && activation;
    Tensor bias = saved[4];
    if (!bias.defined() && !weight.defined() && needs[2]) {  // says the dtype of the gradient
      bias = at::zeros({input.size(1)}, input.options().dtype(*bias_dtype_));
    }
    variable_list grads(4);
    if (needs[0] || needs[1] || needs[2] || through) {
      grads = op.all(grad, input, saved[1], saved[2], weight, bias, saved[5], training, eps,
                     int64_t(activation), needs[0], needs[1], needs[2], through);
    }
    if (!through) grads[3] = grad;
    return only_wanted(std::move(grads));
  }
};

variable_list batch_norm_forward(const BatchNormTensors& t, const BatchNormOptions& o) {
  if (t.updates(o.training)) {
    static const Op train("pydl::batch_norm_train");
    return train.all(t.input, t.running_mean, t.running_var, t.weight, t.bias, t.residual,
                     t.num_batches_tracked, o.momentum, o.eps, int64_t(o.activation));
  }
  static const Op forward("pydl::batch_norm_forward");
  return forward.all(t.input, t.running_mean, t.running_var, t.weight, t.bias, t.residual, o.training, o.eps,
                     int64_t(o.activation));
}

Tensor batch_norm_call(const BatchNormTensors& t, const BatchNormOptions& o) {
  BelowAutograd guard;
  const variable_list made = batch_norm_forward(t, o);
  if (records({&t.input, &t.weight, &t.bias, &t.residual})) {
    // Without activation the input alone; for a ReLU over a residual and for a sigmoid the output; for a ReLU the bias,
    // by which the mask is made again: a copy, since torch lets one write to the bias before the backward.
    const bool keeps_output = o.activation == sigmoid || (o.activation == relu && t.residual.defined());
    const bool keeps_bias = o.activation && !keeps_output && t.bias.defined();
    record(std::make_unique<BatchNorm>(o, t.bias), made[0], {&t.input, &t.weight, &t.bias, &t.residual},
           {t.input, made[1], made[2], t.weight, keeps_bias ? t.bias.detach().clone() : Tensor(),
            keeps_output ? made[0] : Tensor()});
  }
  if (t.updates(o.training)) {  // what was written to below autograd
    for (const Tensor* written : {&t.running_mean, &t.running_var, &t.num_batches_tracked}) {
      if (written->defined() && !written->is_inference()) torch::autograd::impl::bump_version(*written);
    }
  }
  return made[0];
}

}  // namespace

// batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps, residual, activation,
// num_batches_tracked, ranks): all tensors but the first, and activation, may be None. Bit n of ranks: whether an input of
// n dimensions is let through.
PYDL_PYTHON_FUNCTION(batch_norm) {
  return answer<12>(objects, given, [](const Arguments& arguments) {
    const Tensor &input = arguments.tensor(0), &mean = arguments.optional_tensor(1),
                 &var = arguments.optional_tensor(2), &weight = arguments.optional_tensor(3),
                 &bias = arguments.optional_tensor(4), &residual = arguments.optional_tensor(8);
    const BatchNormOptions options{arguments.truth(5), arguments.real(6), arguments.real(7),
                                   activation(arguments, 9)};
    // what is refused, or torch's, is Python's
    if (!(arguments.integer(11) >> input.dim() & 1)) throw NotPlain();
    if (input.dim() < 2 || input.numel() == 0 || mean.defined() != var.defined()) throw NotPlain();
    if (options.training ? input.numel() == input.size(1) || options.eps <= 0 : options.eps < 0)
      throw NotPlain();
    if (mean.defined() && (mean.requires_grad() || var.requires_grad())) throw NotPlain();
    if ((weight.defined() && weight.dim() != 1) || (bias.defined() && bias.dim() != 1)) throw NotPlain();
    const bool counts = options.training && !arguments.is_none(10);
    if (counts && !mean.defined()) throw NotPlain();
    const BatchNormTensors tensors{
        input, mean, var, weight, bias, residual, counts ? arguments.indices(10) : no_tensor()};
    return unlocked([&] { return batch_norm_call(tensors, options); });
  });
}

}  // namespace pydl::autograd
