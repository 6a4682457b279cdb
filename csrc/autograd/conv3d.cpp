// The node of conv3d, whose formula, memory formats and choice of what is torch's are in src/pydl/ops/conv3d.py.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"

namespace pydl::autograd {
namespace {

struct Conv3dOptions {
  Integers stride, padding, dilation;  // padding: front, back, top, bottom, left, right
  int64_t groups;
  bool channels_last;
};

class Conv3d : public Node {
  const Conv3dOptions options_;
  const Integers input_size_, weight_size_;

 public:
  Conv3d(Conv3dOptions&& options, const Tensor& input, const Tensor& weight)
      : Node("conv3d"),
        options_(std::move(options)),
        input_size_(input.sizes().vec()),
        weight_size_(weight.sizes().vec()) {}

  variable_list backward(const Tensor& grad, const variable_list& saved) override {
    static const Op to_input("pydl::conv3d_backward_input"), to_weight("pydl::conv3d_backward_weight"),
        to_bias("pydl::conv2d_backward_bias");
    const Tensor &input = saved[0], &weight = saved[1];
    const Conv3dOptions& o = options_;
    variable_list grads(3);
    if (wants(0))
      grads[0] =
          to_input(grad, weight, input_size_, o.stride, o.padding, o.dilation, o.groups, o.channels_last);
    if (wants(1))
      grads[1] =
          to_weight(grad, input, weight_size_, o.stride, o.padding, o.dilation, o.groups, o.channels_last);
    if (wants(2)) grads[2] = to_bias(grad.flatten(3));
    return grads;
  }
};

Tensor conv3d_call(const Tensor& input, const Tensor& weight, const Tensor& bias, Conv3dOptions&& o) {
  static const Op forward("pydl::conv3d_forward");
  BelowAutograd guard;
  Tensor output = forward(input, weight, bias, o.stride, o.padding, o.dilation, o.groups, o.channels_last);
  if (records({&input, &weight, &bias}))
    record(std::make_unique<Conv3d>(std::move(o), input, weight), output, {&input, &weight, &bias},
           {weight.requires_grad() ? input : Tensor(), input.requires_grad() ? weight : Tensor()});
  return output;
}

}  // namespace

// conv3d(input, weight, bias, stride, padding, dilation, groups, channels_last): bias may be None. All is as the ops
// take it: padding of both sides, the memory format of the result, and tensors in the dtype of autocast.
PYDL_PYTHON_FUNCTION(conv3d) {
  return answer<8>(objects, given, [](const Arguments& arguments) {
    const Tensor &input = arguments.tensor(0), &weight = arguments.tensor(1),
                 &bias = arguments.optional_tensor(2);
    Conv3dOptions options{arguments.triple(3), arguments.of_each(4, 6), arguments.triple(5),
                          arguments.integer(6), arguments.truth(7)};
    return unlocked([&] { return conv3d_call(input, weight, bias, std::move(options)); });
  });
}

}  // namespace pydl::autograd
