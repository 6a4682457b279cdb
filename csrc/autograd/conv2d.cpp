// The node of conv2d: the formula and the memory formats of src/pydl/ops/conv2d.py.
#include "csrc/autograd/activation.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/layout.h"

namespace pydl::autograd {
namespace {

struct Conv2dOptions {
  Integers stride, padding, dilation;  // padding: top, bottom, left, right
  int64_t groups;
  Activation activation;
  bool channels_last, weight_channels_last;
};

class Conv2d : public Node {
  const Conv2dOptions options_;
  const Integers input_size_, weight_size_;

 public:
  Conv2d(Conv2dOptions&& options, const Tensor& input, const Tensor& weight)
      : Node("conv2d"),
        options_(std::move(options)),
        input_size_(input.sizes().vec()),
        weight_size_(weight.sizes().vec()) {}

  variable_list backward(const Tensor& output_grad, const variable_list& saved) override {
    static const Op to_input("pydl::conv2d_backward_input"), to_weight("pydl::conv2d_backward_weight"),
        to_bias("pydl::conv2d_backward_bias");
    const Tensor &input = saved[0], &weight = saved[1];
    const Conv2dOptions& o = options_;
    const Tensor grad = through_activation(output_grad, saved[2], o.activation);
    variable_list grads(3);
    if (wants(0))
      grads[0] =
          to_input(grad, weight, input_size_, o.stride, o.padding, o.dilation, o.groups, o.channels_last);
    if (wants(1))
      grads[1] = to_weight(grad, input, weight_size_, o.stride, o.padding, o.dilation, o.groups,
                           o.weight_channels_last);
    if (wants(2)) grads[2] = to_bias(grad);
    return grads;
  }
};

Tensor conv2d_call(Lowered& input, Lowered& weight, Lowered& bias, Conv2dOptions&& o) {
  static const Op forward("pydl::conv2d_forward");
  BelowAutograd guard;
  cast({&input, &weight, &bias});
  Tensor output = forward(input.read(), weight.read(), bias.read(), o.stride, o.padding, o.dilation, o.groups,
                          activation_names[o.activation], o.channels_last);
  if (records({&input, &weight, &bias})) {
    const bool keeps_output = o.activation;
    record(std::make_unique<Conv2d>(std::move(o), input.given(), weight.given()), output,
           {&input, &weight, &bias},
           {weight.given().requires_grad() ? input.read() : Tensor(),
            input.given().requires_grad() ? weight.read() : Tensor(), keeps_output ? output : Tensor()});
  }
  return output;
}

// The memory format of the weight's gradient: as the whole call, unless a row-major weight is both (1x1).
bool gradient_format(const Tensor& weight, bool channels_last) {
  if (!channels_last || !weight.is_contiguous(at::MemoryFormat::ChannelsLast)) return channels_last;
  return !weight.is_contiguous() || !is_row_major(weight);
}

}  // namespace

// conv2d(input, weight, bias, stride, padding, dilation, groups, activation): bias and activation may be None.
PYDL_PYTHON_FUNCTION(conv2d) {
  return answer<8>(objects, given, [](const Arguments& arguments) {
    Lowered read_input = arguments.lowered(0), read_weight = arguments.lowered(1),
            read_bias = arguments.optional_lowered(2);
    const Tensor &input = read_input.given(), &weight = read_weight.given();
    // unbatched inputs and padding by name are Python's
    if (input.dim() != 4 || weight.dim() != 4 || input.size(1) == 0) throw NotPlain();
    const Integers padding = arguments.pair(4);
    Conv2dOptions options{arguments.pair(3),
                          {padding[0], padding[0], padding[1], padding[1]},
                          arguments.pair(5),
                          arguments.integer(6),
                          activation(arguments, 7),
                          (is_channels_last(input) || is_channels_last(weight)) && input.numel() != 0,
                          false};
    options.weight_channels_last = gradient_format(weight, options.channels_last);
    return unlocked([&] { return conv2d_call(read_input, read_weight, read_bias, std::move(options)); });
  });
}

}  // namespace pydl::autograd
