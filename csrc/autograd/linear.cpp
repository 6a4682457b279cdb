// The node of linear: the formula and the layouts of src/pydl/ops/linear.py.
#include "csrc/autograd/activation.h"
#include "csrc/autograd/functions.h"

namespace pydl::autograd {
namespace {

Tensor linear_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                      int64_t activation) {
  static const auto call = op<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, c10::string_view)>(
      "pydl::linear_forward");
  return call.call(input, weight, bias, activation_names[activation]);
}
Tensor linear_backward_input(const Tensor& grad, const Tensor& weight, bool column_major) {
  static const auto call = op<Tensor(const Tensor&, const Tensor&, bool)>("pydl::linear_backward_input");
  return call.call(grad, weight, column_major);
}
Tensor linear_backward_weight(const Tensor& grad, const Tensor& input, bool column_major) {
  static const auto call = op<Tensor(const Tensor&, const Tensor&, bool)>("pydl::linear_backward_weight");
  return call.call(grad, input, column_major);
}
Tensor linear_backward_bias(const Tensor& grad) {
  static const auto call = op<Tensor(const Tensor&)>("pydl::linear_backward_bias");
  return call.call(grad);
}

struct LinearOptions {
  Activation activation;
  bool has_bias, input_in_columns, weight_in_columns;

  Integers kept() const { return {activation, has_bias, input_in_columns, weight_in_columns}; }
};

struct Linear : torch::autograd::Function<Linear> {
  static Tensor forward(AutogradContext* context, const Tensor& input, const Tensor& weight,
                        const OptionalTensor& bias, const LinearOptions& options) {
    BelowAutograd guard;
    Tensor output = linear_forward(input, weight, bias, options.activation);
    context->saved_data["options"] = options.kept();
    context->save_for_backward({weight.requires_grad() ? input : Tensor(),
                                input.requires_grad() ? weight : Tensor(),
                                options.activation ? output : Tensor()});
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    InBackward guard("linear", grads[0]);
    const variable_list saved = context->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &output = saved[2];
    const Integers options = context->saved_data["options"].toIntVector();
    const auto [activation, has_bias, input_in_columns, weight_in_columns] =
        std::array<int64_t, 4>{options[0], options[1], options[2], options[3]};
    const Tensor grad = through_activation(grads[0], output, activation);
    Wanted wanted(context);
    Tensor grad_input, grad_weight, grad_bias;
    if (wanted.next()) grad_input = linear_backward_input(grad, weight, input_in_columns);
    if (wanted.next()) grad_weight = linear_backward_weight(grad, input, weight_in_columns);
    if (wanted.next(has_bias)) grad_bias = linear_backward_bias(grad);
    return {grad_input, grad_weight, grad_bias, Tensor()};
  }
};

}  // namespace

// linear(input, weight, bias, activation): the last two may be None.
PyObject* linear(PyObject*, PyObject* const* objects, Py_ssize_t given) {
  return answer<4>(objects, given, [](const Arguments& arguments) {
    const Tensor &input = arguments.tensor(0), &weight = arguments.tensor(1);
    const OptionalTensor bias = arguments.optional_tensor(2);
    // Layouts of more dimensions that are not contiguous, and what is refused, are Python's.
    const bool is_matrix = input.dim() == 2;
    if (weight.dim() != 2 ||
        !(is_matrix || (input.dim() > 2 && input.stride(-1) == 1 && input.is_contiguous())))
      throw NotPlain();
    if (bias &&
        (bias->dim() != 1 || bias->size(0) != weight.size(0) || bias->scalar_type() != input.scalar_type())) {
      throw NotPlain();
    }
    const bool in_columns = is_matrix && input.stride(0) == 1 && input.stride(1) == input.size(0);
    const LinearOptions options{activation(arguments, 3), bias.has_value(), in_columns,
                                weight.stride(0) != weight.size(1) || weight.stride(1) != 1};
    return unlocked([&] { return Linear::apply(input, weight, bias, options); });
  });
}

}  // namespace pydl::autograd
