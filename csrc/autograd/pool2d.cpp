// The nodes of max_pool2d and avg_pool2d, whose formulas are in src/pydl/ops.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/layout.h"
#include "csrc/autograd/node.h"

namespace pydl::autograd {
namespace {

// What both keep: the sizes of the input, the numbers of the window two by two, and whether it is channels_last.
Integers kept(const Tensor& input, std::initializer_list<Integers> window,
              std::initializer_list<int64_t> rest) {
  Integers all = input.sizes().vec();
  for (const Integers& pair : window) all.insert(all.end(), pair.begin(), pair.end());
  all.insert(all.end(), rest);
  return all;
}

using Pair = at::IntArrayRef;

std::tuple<Tensor, Tensor> max_pool2d_forward(const Tensor& input, Pair kernel, Pair stride, Pair padding,
                                              Pair dilation, bool ceil_mode, bool channels_last,
                                              bool wants_places) {
  static const auto call =
      op<std::tuple<Tensor, Tensor>(const Tensor&, Pair, Pair, Pair, Pair, bool, bool, bool)>(
          "pydl::max_pool2d");
  return call.call(input, kernel, stride, padding, dilation, ceil_mode, channels_last, wants_places);
}
Tensor max_pool2d_backward(const Tensor& grad, const Tensor& places, Pair size, Pair kernel, Pair stride,
                           Pair padding, Pair dilation, bool channels_last) {
  static const auto call =
      op<Tensor(const Tensor&, const Tensor&, c10::SymIntArrayRef, Pair, Pair, Pair, Pair, bool)>(
          "pydl::max_pool2d_backward");
  return call.call(grad, places, c10::fromIntArrayRefSlow(size), kernel, stride, padding, dilation,
                   channels_last);
}

struct MaxPool2d : torch::autograd::Function<MaxPool2d> {
  static Tensor forward(AutogradContext* context, const Tensor& input, const Integers& kernel,
                        const Integers& stride, const Integers& padding, const Integers& dilation,
                        bool ceil_mode, bool channels_last, bool needs_grad) {
    BelowAutograd guard;
    auto [output, places] =
        max_pool2d_forward(input, kernel, stride, padding, dilation, ceil_mode, channels_last, needs_grad);
    if (needs_grad) {
      context->saved_data["options"] = kept(input, {kernel, stride, padding, dilation}, {channels_last});
      context->save_for_backward({places});
    }
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    InBackward guard("max_pool2d", grads[0]);
    const Tensor places = context->get_saved_variables()[0];
    const Integers options = context->saved_data["options"].toIntVector();
    const Pair all(options);
    return {max_pool2d_backward(grads[0], places, all.slice(0, 4), all.slice(4, 2), all.slice(6, 2),
                                all.slice(8, 2), all.slice(10, 2), all[12]),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

Tensor avg_pool2d_forward(const Tensor& input, Pair kernel, Pair stride, Pair padding, bool ceil_mode,
                          bool count_include_pad, int64_t divisor, bool channels_last) {
  static const auto call =
      op<Tensor(const Tensor&, Pair, Pair, Pair, bool, bool, int64_t, bool)>("pydl::avg_pool2d");
  return call.call(input, kernel, stride, padding, ceil_mode, count_include_pad, divisor, channels_last);
}
Tensor avg_pool2d_backward(const Tensor& grad, Pair size, Pair kernel, Pair stride, Pair padding,
                           bool ceil_mode, bool count_include_pad, int64_t divisor, bool channels_last) {
  static const auto call =
      op<Tensor(const Tensor&, c10::SymIntArrayRef, Pair, Pair, Pair, bool, bool, int64_t, bool)>(
          "pydl::avg_pool2d_backward");
  return call.call(grad, c10::fromIntArrayRefSlow(size), kernel, stride, padding, ceil_mode,
                   count_include_pad, divisor, channels_last);
}

struct AvgPool2d : torch::autograd::Function<AvgPool2d> {
  static Tensor forward(AutogradContext* context, const Tensor& input, const Integers& kernel,
                        const Integers& stride, const Integers& padding, bool ceil_mode,
                        bool count_include_pad, int64_t divisor, bool channels_last) {
    BelowAutograd guard;
    context->saved_data["options"] =
        kept(input, {kernel, stride, padding}, {ceil_mode, count_include_pad, divisor, channels_last});
    return avg_pool2d_forward(input, kernel, stride, padding, ceil_mode, count_include_pad, divisor,
                              channels_last);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    InBackward guard("avg_pool2d", grads[0]);
    const Integers options = context->saved_data["options"].toIntVector();
    const Pair all(options);
    return {avg_pool2d_backward(grads[0], all.slice(0, 4), all.slice(4, 2), all.slice(6, 2), all.slice(8, 2),
                                all[10], all[11], all[12], all[13]),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

const Tensor& image(const Arguments& arguments) {
  const Tensor& input = arguments.tensor(0);
  if (input.dim() != 4) throw NotPlain();  // unbatched images are Python's
  return input;
}

Integers stride_or(const Arguments& arguments, int i, const Integers& kernel) {
  return arguments.is_none(i) ? kernel : arguments.pair(i);
}

}  // namespace

// max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode): stride may be None.
PyObject* max_pool2d(PyObject*, PyObject* const* objects, Py_ssize_t given) {
  return answer<6>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = image(arguments);
    const Integers kernel = arguments.pair(1), stride = stride_or(arguments, 2, kernel),
                   padding = arguments.pair(3), dilation = arguments.pair(4);
    const bool ceil_mode = arguments.truth(5),
               needs_grad = at::GradMode::is_enabled() && input.requires_grad();
    return unlocked([&] {
      return MaxPool2d::apply(input, kernel, stride, padding, dilation, ceil_mode, is_channels_last(input),
                              needs_grad);
    });
  });
}

// avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override): stride and
// divisor_override may be None.
PyObject* avg_pool2d(PyObject*, PyObject* const* objects, Py_ssize_t given) {
  return answer<7>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = image(arguments);
    const Integers kernel = arguments.pair(1), stride = stride_or(arguments, 2, kernel),
                   padding = arguments.pair(3);
    const bool ceil_mode = arguments.truth(4), count_include_pad = arguments.truth(5);
    const int64_t divisor = arguments.is_none(6) ? 0 : arguments.integer(6);
    if (divisor == 0 && !arguments.is_none(6)) throw NotPlain();  // refused in Python
    return unlocked([&] {
      return AvgPool2d::apply(input, kernel, stride, padding, ceil_mode, count_include_pad, divisor,
                              is_channels_last(input));
    });
  });
}

}  // namespace pydl::autograd
