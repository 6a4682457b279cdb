// The nodes of conv2d and its transpose: the formulas and the memory formats of src/pydl/ops/conv2d.py and
// conv_transpose2d.py.
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
    variable_list grads(3);
    // one pass over the gradient for both parameters, and through the activation too where nothing else reads that
    const bool together =
        wants(1) && wants(2) && output_grad.is_cpu() && is_below_autograd() && !is_batched(output_grad);
    const bool alone = together && !wants(0);
    const Tensor grad = alone ? output_grad : through_activation(output_grad, saved[2], o.activation);
    if (wants(0))
      grads[0] =
          to_input(grad, weight, input_size_, o.stride, o.padding, o.dilation, o.groups, o.channels_last);
    if (together) {
      static const Op to_parameters("pydl::conv2d_backward_parameters");
      variable_list made =
          to_parameters.all(grad, input, alone ? saved[2] : no_tensor(), weight_size_, o.stride, o.padding,
                            o.dilation, o.groups, activation_names[o.activation], o.weight_channels_last);
      grads[1] = std::move(made[0]);
      grads[2] = std::move(made[1]);
      return grads;
    }
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

// The transposed convolution: the input gradient of one whose passes are its gradients.
class ConvTranspose2d : public Node {
  const Conv2dOptions options_;
  const Integers weight_size_;

 public:
  ConvTranspose2d(Conv2dOptions&& options, const Tensor& weight)
      : Node("conv_transpose2d"), options_(std::move(options)), weight_size_(weight.sizes().vec()) {}

  variable_list backward(const Tensor& output_grad, const variable_list& saved) override {
    static const Op forward("pydl::conv2d_forward"), to_weight("pydl::conv2d_backward_weight"),
        to_bias("pydl::conv2d_backward_bias");
    const Tensor &input = saved[0], &weight = saved[1];
    const Conv2dOptions& o = options_;
    const Tensor grad = through_activation(output_grad, saved[2], o.activation);
    variable_list grads(3);
    if (wants(0))
      grads[0] = forward(grad, weight, no_tensor(), o.stride, o.padding, o.dilation, o.groups,
                         activation_names[none], o.channels_last);
    if (wants(1))
      grads[1] = to_weight(input, grad, weight_size_, o.stride, o.padding, o.dilation, o.groups,
                           o.weight_channels_last);
    if (wants(2)) grads[2] = to_bias(grad);
    return grads;
  }
};

Tensor conv_transpose2d_call(Lowered& input, Lowered& weight, Lowered& bias, const Integers& size,
                             Conv2dOptions&& o) {
  static const Op transposed("pydl::conv_transpose2d");
  BelowAutograd guard;
  cast({&input, &weight, &bias});
  Tensor output = transposed(input.read(), weight.read(), bias.read(), size, o.stride, o.padding, o.dilation,
                             o.groups, activation_names[o.activation], o.channels_last);
  if (records({&input, &weight, &bias})) {
    const bool keeps_output = o.activation;
    record(std::make_unique<ConvTranspose2d>(std::move(o), weight.given()), output, {&input, &weight, &bias},
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

// conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation, activation): bias and activation
// may be None.
PYDL_PYTHON_FUNCTION(conv_transpose2d) {
  return answer<9>(objects, given, [](const Arguments& arguments) {
    Lowered read_input = arguments.lowered(0), read_weight = arguments.lowered(1),
            read_bias = arguments.optional_lowered(2);
    const Tensor &input = read_input.given(), &weight = read_weight.given();
    const Integers stride = arguments.pair(3), near = arguments.pair(4), more = arguments.pair(5),
                   dilation = arguments.pair(7);
    const int64_t groups = arguments.integer(6);
    // unbatched inputs, rows of nothing but the bias, and what is refused, are Python's
    if (input.dim() != 4 || weight.dim() != 4 || input.numel() == 0 || weight.numel() == 0 || groups < 1 ||
        input.size(1) != weight.size(0) || input.size(1) % groups != 0)
      throw NotPlain();
    const int64_t features = weight.size(1) * groups;
    if (read_weight.dtype() != read_input.dtype()) throw NotPlain();
    if (read_bias.defined() && (read_bias.dtype() != read_input.dtype() || read_bias.given().dim() != 1 ||
                                read_bias.given().size(0) != features))
      throw NotPlain();
    Integers size{input.size(0), features}, padding;
    for (size_t d = 0; d < 2; ++d) {
      if (stride[d] < 1 || dilation[d] < 1 || more[d] < 0 || more[d] > near[d] ||
          more[d] >= std::max(stride[d], dilation[d]))
        throw NotPlain();
      const int64_t axis = 2 + static_cast<int64_t>(d), far = near[d] - more[d];
      size.push_back((input.size(axis) - 1) * stride[d] - near[d] - far +
                     dilation[d] * (weight.size(axis) - 1) + 1);
      if (size.back() < 1) throw NotPlain();
      padding.push_back(near[d]);
      padding.push_back(far);
    }
    Conv2dOptions options{stride,
                          padding,
                          dilation,
                          groups,
                          activation(arguments, 8),
                          is_channels_last(input) || is_channels_last(weight),
                          false};
    options.weight_channels_last = gradient_format(weight, options.channels_last);
    return unlocked(
        [&] { return conv_transpose2d_call(read_input, read_weight, read_bias, size, std::move(options)); });
  });
}

}  // namespace pydl::autograd
