// The node of linear: the formula and the layouts of src/pydl/ops/linear.py.
#include "csrc/autograd/activation.h"
#include "csrc/autograd/functions.h"

namespace pydl::autograd {
namespace {

struct LinearOptions {
  Activation activation;
  bool input_in_columns, weight_in_columns;
};

class Linear : public Node {
  const LinearOptions options_;

 public:
  explicit Linear(const LinearOptions& options) : Node("linear"), options_(options) {}

  variable_list backward(const Tensor& output_grad, const variable_list& saved) override {
    static const Op to_input("pydl::linear_backward_input"), to_weight("pydl::linear_backward_weight"),
        to_bias("pydl::linear_backward_bias");
    const Tensor &input = saved[0], &weight = saved[1];
    const Tensor grad = through_activation(output_grad, saved[2], options_.activation);
    variable_list grads(3);
    if (wants(0)) grads[0] = to_input(grad, weight, options_.input_in_columns);
    const bool in_float32 = is_lowered_from(1, at::kFloat) && is_below_autograd() && !is_batched(grad);
    if (wants(1)) grads[1] = to_weight(grad, input, options_.weight_in_columns, in_float32);
    if (wants(2)) grads[2] = to_bias(grad);
    return grads;
  }
};

Tensor linear_call(Lowered& input, Lowered& weight, Lowered& bias, const LinearOptions& options) {
  static const Op forward("pydl::linear_forward");
  BelowAutograd guard;
  cast({&input, &weight, &bias});
  Tensor output = forward(input.read(), weight.read(), bias.read(), activation_names[options.activation]);
  if (records({&input, &weight, &bias})) {
    record(
        std::make_unique<Linear>(options), output, {&input, &weight, &bias},
        {weight.given().requires_grad() ? input.read() : Tensor(),
         input.given().requires_grad() ? weight.read() : Tensor(), options.activation ? output : Tensor()});
  }
  return output;
}

}  // namespace

// linear(input, weight, bias, activation): the last two may be None.
PYDL_PYTHON_FUNCTION(linear) {
  return answer<4>(objects, given, [](const Arguments& arguments) {
    Lowered read_input = arguments.lowered(0), read_weight = arguments.lowered(1),
            read_bias = arguments.optional_lowered(2);
    const Tensor &input = read_input.given(), &weight = read_weight.given(), &bias = read_bias.given();
    // More dimensions that may lie in columns, and what is refused, are Python's.
    const bool is_matrix = input.dim() == 2;
    if (weight.dim() != 2 || !(is_matrix || (input.dim() > 2 && input.stride(-1) == 1))) throw NotPlain();
    if (bias.defined() &&
        (bias.dim() != 1 || bias.size(0) != weight.size(0) || read_bias.dtype() != read_input.dtype())) {
      throw NotPlain();
    }
    const bool in_columns = is_matrix && input.stride(0) == 1 && input.stride(1) == input.size(0);
    const LinearOptions options{activation(arguments, 3), in_columns,
                                weight.stride(0) != weight.size(1) || weight.stride(1) != 1};
    return unlocked([&] { return linear_call(read_input, read_weight, read_bias, options); });
  });
}

}  // namespace pydl::autograd
