// The node of batch_norm: the formula, and what it keeps, are those of src/pydl/ops/batch_norm.py.
#include "csrc/autograd/activation.h"
#include "csrc/autograd/functions.h"

#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/variable.h>

namespace pydl::autograd {
namespace {

struct BatchNormOptions {
  bool training;
  double momentum, eps;
  Activation activation;
};

struct Running {
  OptionalTensor mean, var, num_batches_tracked;
};

using Result = std::tuple<Tensor, Tensor, Tensor>;  // output, mean, var

Result batch_norm_forward(const Tensor& input, const Running& running, const OptionalTensor& weight,
                          const OptionalTensor& bias, const OptionalTensor& residual,
                          const BatchNormOptions& options) {
  if (options.training && running.mean) {
    static const auto call =
        op<Result(const Tensor&, at::Tensor&, at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                  const OptionalTensor&, const OptionalTensor&, double, double, int64_t)>(
            "pydl::batch_norm_train");
    Tensor mean = *running.mean, var = *running.var;
    return call.call(input, mean, var, weight, bias, residual, running.num_batches_tracked, options.momentum,
                     options.eps, options.activation);
  }
  static const auto call =
      op<Result(const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                const OptionalTensor&, const OptionalTensor&, bool, double, int64_t)>(
          "pydl::batch_norm_forward");
  return call.call(input, running.mean, running.var, weight, bias, residual, options.training, options.eps,
                   options.activation);
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // of input, weight, bias, residual
Gradients batch_norm_backward(const Tensor& grad, const variable_list& saved, const OptionalTensor& bias,
                              bool training, double eps, int64_t activation, bool needs_input,
                              bool needs_weight, bool needs_bias, bool needs_residual) {
  static const auto call =
      op<Gradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                   const OptionalTensor&, const OptionalTensor&, bool, double, int64_t, bool, bool, bool,
                   bool)>("pydl::batch_norm_backward");
  return call.call(grad, saved[0], saved[1], saved[2], if_defined(saved[3]), bias, if_defined(saved[5]),
                   training, eps, activation, needs_input, needs_weight, needs_bias, needs_residual);
}

struct BatchNorm : torch::autograd::Function<BatchNorm> {
  static Tensor forward(AutogradContext* context, const Tensor& input, const OptionalTensor& weight,
                        const OptionalTensor& bias, const OptionalTensor& residual, const Running& running,
                        const BatchNormOptions& options) {
    BelowAutograd guard;
    auto [output, mean, var] = batch_norm_forward(input, running, weight, bias, residual, options);
    context->saved_data["eps"] = options.eps;
    context->saved_data["options"] = Integers{options.training, options.activation,
                                              bias ? int64_t(bias->scalar_type()) : -1, residual.has_value()};
    // Without activation the input alone; for a ReLU over a residual and for a sigmoid the output; for a ReLU the bias,
    // by which the mask is made again: a copy, since torch lets one write to the bias before the backward.
    const bool keeps_output = options.activation == sigmoid || (options.activation == relu && residual);
    const bool keeps_bias = options.activation && !keeps_output && bias;
    context->save_for_backward({input, mean, var, weight.value_or(Tensor()),
                                keeps_bias ? bias->detach().clone() : Tensor(),
                                keeps_output ? output : Tensor()});
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    InBackward guard("batch_norm", grads[0]);
    const variable_list saved = context->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[3];
    const Integers options = context->saved_data["options"].toIntVector();
    const auto [training, activation, bias_dtype, has_residual] =
        std::array<int64_t, 4>{options[0], options[1], options[2], options[3]};
    Wanted wanted(context);
    const bool needs_input = wanted.next(), needs_weight = wanted.next(weight.defined()),
               needs_bias = wanted.next(bias_dtype >= 0), needs_residual = wanted.next(has_residual);
    const bool through = needs_residual && activation;
    OptionalTensor bias = if_defined(saved[4]);
    if (!bias && !weight.defined() && needs_bias) {  // says the dtype of the gradient
      bias = at::zeros({input.size(1)}, input.options().dtype(at::ScalarType(bias_dtype)));
    }
    Tensor grad_input, grad_weight, grad_bias, grad_residual;
    if (needs_input || needs_weight || needs_bias || through) {
      std::tie(grad_input, grad_weight, grad_bias, grad_residual) =
          batch_norm_backward(grads[0], saved, bias, training, context->saved_data["eps"].toDouble(),
                              activation, needs_input, needs_weight, needs_bias, through);
    }
    if (needs_residual && !through) grad_residual = grads[0];
    return {needs_input ? grad_input : Tensor(),
            needs_weight ? grad_weight : Tensor(),
            needs_bias ? grad_bias : Tensor(),
            needs_residual ? grad_residual : Tensor(),
            Tensor(),
            Tensor()};
  }
};

}  // namespace

// batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps, residual, activation,
// num_batches_tracked, ranks): all tensors but the first, and activation, may be None. Bit n of ranks: whether an input of
// n dimensions is let through.
PyObject* batch_norm(PyObject*, PyObject* const* objects, Py_ssize_t given) {
  return answer<12>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = arguments.tensor(0);
    Running running{arguments.optional_tensor(1), arguments.optional_tensor(2), std::nullopt};
    const OptionalTensor weight = arguments.optional_tensor(3), bias = arguments.optional_tensor(4),
                         residual = arguments.optional_tensor(8);
    const BatchNormOptions options{arguments.truth(5), arguments.real(6), arguments.real(7),
                                   activation(arguments, 9)};
    // what is refused, or torch's, is Python's
    if (!(arguments.integer(11) >> input.dim() & 1)) throw NotPlain();
    if (input.dim() < 2 || input.numel() == 0 || running.mean.has_value() != running.var.has_value())
      throw NotPlain();
    if (options.training ? input.numel() == input.size(1) || options.eps <= 0 : options.eps < 0)
      throw NotPlain();
    if (running.mean && (running.mean->requires_grad() || running.var->requires_grad())) throw NotPlain();
    if ((weight && weight->dim() != 1) || (bias && bias->dim() != 1)) throw NotPlain();
    const bool updates = options.training && running.mean;
    if (options.training && !arguments.is_none(10)) {
      if (!updates) throw NotPlain();
      running.num_batches_tracked = arguments.indices(10);
    }
    return unlocked([&] {
      Tensor output = BatchNorm::apply(input, weight, bias, residual, running, options);
      if (updates) {  // what was written to below autograd
        for (const OptionalTensor& t : {running.mean, running.var, running.num_batches_tracked}) {
          if (t) torch::autograd::impl::bump_version(*t);
        }
      }
      return output;
    });
  });
}

}  // namespace pydl::autograd
