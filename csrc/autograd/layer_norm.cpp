// The node of layer_norm, whose formula is in src/pydl/ops/_layer_norm_autograd.py.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/node.h"

namespace pydl::autograd {
namespace {

std::tuple<Tensor, Tensor> layer_norm_forward(const Tensor& input, const OptionalTensor& weight,
                                              const OptionalTensor& bias, int64_t dims, double eps) {
  static const auto call =
      op<std::tuple<Tensor, Tensor>(const Tensor&, const OptionalTensor&, const OptionalTensor&, int64_t,
                                    double)>("pydl::layer_norm_forward");
  return call.call(input, weight, bias, dims, eps);
}
std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& grad, const Tensor& input,
                                                       const Tensor& stats, const OptionalTensor& weight,
                                                       int64_t dims, double eps, bool needs_input,
                                                       bool needs_weight, bool needs_bias) {
  static const auto call = op<std::tuple<Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, int64_t, double, bool, bool, bool)>(
      "pydl::layer_norm_backward");
  return call.call(grad, input, stats, weight, dims, eps, needs_input, needs_weight, needs_bias);
}

struct LayerNorm : torch::autograd::Function<LayerNorm> {
  static Tensor forward(AutogradContext* context, const Tensor& input, const OptionalTensor& weight,
                        const OptionalTensor& bias, int64_t dims, double eps) {
    BelowAutograd guard;
    auto [output, stats] = layer_norm_forward(input, weight, bias, dims, eps);
    context->saved_data["dims"] = dims;
    context->saved_data["eps"] = eps;
    context->saved_data["has_bias"] = bias.has_value();
    context->save_for_backward({input, weight.value_or(Tensor()), stats});
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    InBackward guard("layer_norm", grads[0]);
    const variable_list saved = context->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &stats = saved[2];
    Wanted wanted(context);
    const bool needs_input = wanted.next(), needs_weight = wanted.next(weight.defined()),
               needs_bias = wanted.next(context->saved_data["has_bias"].toBool());
    auto [grad_input, grad_weight, grad_bias] =
        layer_norm_backward(grads[0], input, stats, if_defined(weight), context->saved_data["dims"].toInt(),
                            context->saved_data["eps"].toDouble(), needs_input, needs_weight, needs_bias);
    return {needs_input ? grad_input : Tensor(), needs_weight ? grad_weight : Tensor(),
            needs_bias ? grad_bias : Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

// layer_norm(input, normalized_shape, weight, bias, eps): weight and bias may be None.
PyObject* layer_norm(PyObject*, PyObject* const* objects, Py_ssize_t given) {
  return answer<5>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = arguments.tensor(0);
    const OptionalTensor weight = arguments.optional_tensor(2), bias = arguments.optional_tensor(3);
    if (!weight && bias && bias->scalar_type() != input.scalar_type()) throw NotPlain();
    const Integers shape = arguments.integers(1);
    const int64_t dims = shape.size();
    if (dims == 0 || dims > input.dim() || input.sizes().slice(input.dim() - dims) != shape) throw NotPlain();
    const double eps = arguments.real(4);
    return unlocked([&] { return LayerNorm::apply(input, weight, bias, dims, eps); });
  });
}

}  // namespace pydl::autograd
