// The node of conv2d: the formula and the memory formats of src/pydl/ops/conv2d.py.
#include "csrc/autograd/activation.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/layout.h"

namespace pydl::autograd {
namespace {

// stride 2, padding 4 (top, bottom, left, right), dilation 2, groups
struct Window {
  Integers stride, padding, dilation;
  int64_t groups;
};

Tensor conv2d_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Window& w,
                      int64_t activation, bool channels_last) {
  static const auto call =
      op<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, at::IntArrayRef, at::IntArrayRef,
                at::IntArrayRef, int64_t, c10::string_view, bool)>("pydl::conv2d_forward");
  return call.call(input, weight, bias, w.stride, w.padding, w.dilation, w.groups,
                   activation_names[activation], channels_last);
}
using Backward = Tensor(const Tensor&, const Tensor&, c10::SymIntArrayRef, at::IntArrayRef, at::IntArrayRef,
                        at::IntArrayRef, int64_t, bool);
Tensor conv2d_backward_input(const Tensor& grad, const Tensor& weight, at::IntArrayRef size, const Window& w,
                             bool channels_last) {
  static const auto call = op<Backward>("pydl::conv2d_backward_input");
  return call.call(grad, weight, c10::fromIntArrayRefSlow(size), w.stride, w.padding, w.dilation, w.groups,
                   channels_last);
}
Tensor conv2d_backward_weight(const Tensor& grad, const Tensor& input, at::IntArrayRef size, const Window& w,
                              bool channels_last) {
  static const auto call = op<Backward>("pydl::conv2d_backward_weight");
  return call.call(grad, input, c10::fromIntArrayRefSlow(size), w.stride, w.padding, w.dilation, w.groups,
                   channels_last);
}
Tensor conv2d_backward_bias(const Tensor& grad) {
  static const auto call = op<Tensor(const Tensor&)>("pydl::conv2d_backward_bias");
  return call.call(grad);
}

struct Conv2dOptions {
  Window window;
  Activation activation;
  bool has_bias, channels_last, weight_channels_last;

  Integers kept(const Tensor& input, const Tensor& weight) const {
    Integers all = {window.groups, activation, has_bias, channels_last, weight_channels_last};
    for (at::IntArrayRef part : {at::IntArrayRef(window.stride), at::IntArrayRef(window.padding),
                                 at::IntArrayRef(window.dilation), input.sizes(), weight.sizes()}) {
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }
};

struct Conv2d : torch::autograd::Function<Conv2d> {
  static Tensor forward(AutogradContext* context, const Tensor& input, const Tensor& weight,
                        const OptionalTensor& bias, const Conv2dOptions& options) {
    BelowAutograd guard;
    Tensor output =
        conv2d_forward(input, weight, bias, options.window, options.activation, options.channels_last);
    context->saved_data["options"] = options.kept(input, weight);
    context->save_for_backward({weight.requires_grad() ? input : Tensor(),
                                input.requires_grad() ? weight : Tensor(),
                                options.activation ? output : Tensor()});
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    InBackward guard("conv2d", grads[0]);
    const variable_list saved = context->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &output = saved[2];
    const Integers kept = context->saved_data["options"].toIntVector();
    const int64_t groups = kept[0], activation = kept[1];
    const bool has_bias = kept[2], channels_last = kept[3], weight_channels_last = kept[4];
    const at::IntArrayRef rest = at::IntArrayRef(kept).slice(5);
    const Window window{rest.slice(0, 2).vec(), rest.slice(2, 4).vec(), rest.slice(6, 2).vec(), groups};
    const at::IntArrayRef input_size = rest.slice(8, 4), weight_size = rest.slice(12, 4);
    const Tensor grad = through_activation(grads[0], output, activation);
    Wanted wanted(context);
    Tensor grad_input, grad_weight, grad_bias;
    if (wanted.next()) grad_input = conv2d_backward_input(grad, weight, input_size, window, channels_last);
    if (wanted.next())
      grad_weight = conv2d_backward_weight(grad, input, weight_size, window, weight_channels_last);
    if (wanted.next(has_bias)) grad_bias = conv2d_backward_bias(grad);
    return {grad_input, grad_weight, grad_bias, Tensor()};
  }
};

// The memory format of the weight's gradient: as the whole call, unless a row-major weight is both (1x1).
bool gradient_format(const Tensor& weight, bool channels_last) {
  if (!channels_last || !weight.is_contiguous(at::MemoryFormat::ChannelsLast)) return channels_last;
  return !weight.is_contiguous() || !is_row_major(weight);
}

}  // namespace

// conv2d(input, weight, bias, stride, padding, dilation, groups, activation): bias and activation may be None.
PyObject* conv2d(PyObject*, PyObject* const* objects, Py_ssize_t given) {
  return answer<8>(objects, given, [](const Arguments& arguments) {
    const Tensor &input = arguments.tensor(0), &weight = arguments.tensor(1);
    const OptionalTensor bias = arguments.optional_tensor(2);
    // unbatched inputs and padding by name are Python's
    if (input.dim() != 4 || weight.dim() != 4 || input.size(1) == 0) throw NotPlain();
    const Integers padding = arguments.pair(4);
    Conv2dOptions options{{arguments.pair(3),
                           {padding[0], padding[0], padding[1], padding[1]},
                           arguments.pair(5),
                           arguments.integer(6)},
                          activation(arguments, 7),
                          bias.has_value(),
                          (is_channels_last(input) || is_channels_last(weight)) && input.numel() != 0,
                          false};
    options.weight_channels_last = gradient_format(weight, options.channels_last);
    return unlocked([&] { return Conv2d::apply(input, weight, bias, options); });
  });
}

}  // namespace pydl::autograd
