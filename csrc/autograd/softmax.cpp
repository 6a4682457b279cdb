// The nodes of softmax and log_softmax along the last dimension, whose formulas are in src/pydl/ops/softmax.py.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/node.h"

namespace pydl::autograd {
namespace {

Tensor softmax_forward(const Tensor& input) {
  static const auto call = op<Tensor(const Tensor&, const OptionalTensor&)>("pydl::softmax_forward");
  return call.call(input, std::nullopt);
}
Tensor softmax_backward(const Tensor& grad, const Tensor& output) {
  static const auto call =
      op<Tensor(const Tensor&, const Tensor&, const OptionalTensor&)>("pydl::softmax_backward");
  return call.call(grad, output, std::nullopt);
}
Tensor log_softmax_forward(const Tensor& input) {
  static const auto call = op<Tensor(const Tensor&)>("pydl::log_softmax_forward");
  return call.call(input);
}
Tensor log_softmax_backward(const Tensor& grad, const Tensor& output) {
  static const auto call = op<Tensor(const Tensor&, const Tensor&)>("pydl::log_softmax_backward");
  return call.call(grad, output);
}

struct Softmax : torch::autograd::Function<Softmax> {
  static Tensor forward(AutogradContext* context, const Tensor& input, bool logarithm) {
    BelowAutograd guard;
    Tensor output = logarithm ? log_softmax_forward(input) : softmax_forward(input);
    context->saved_data["logarithm"] = logarithm;
    context->save_for_backward({output});
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const bool logarithm = context->saved_data["logarithm"].toBool();
    InBackward guard(logarithm ? "log_softmax" : "softmax", grads[0]);
    const Tensor output = context->get_saved_variables()[0];
    return {logarithm ? log_softmax_backward(grads[0], output) : softmax_backward(grads[0], output),
            Tensor()};
  }
};

PyObject* along_the_last(PyObject* const* objects, Py_ssize_t given, bool logarithm) {
  return answer<2>(objects, given, [logarithm](const Arguments& arguments) {
    const Tensor& input = arguments.tensor(0);
    const int64_t dim = arguments.integer(1);
    if (input.dim() == 0 || (dim != -1 && dim != input.dim() - 1)) throw NotPlain();
    return unlocked([&] { return Softmax::apply(input, logarithm); });
  });
}

}  // namespace

// softmax(input, dim)
PyObject* softmax(PyObject*, PyObject* const* objects, Py_ssize_t given) {
  return along_the_last(objects, given, false);
}

// log_softmax(input, dim)
PyObject* log_softmax(PyObject*, PyObject* const* objects, Py_ssize_t given) {
  return along_the_last(objects, given, true);
}

}  // namespace pydl::autograd
