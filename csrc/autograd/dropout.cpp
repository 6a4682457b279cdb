// The node of dropout, whose formula is in src/pydl/ops/dropout.py.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/layout.h"
#include "csrc/autograd/node.h"

#include <ATen/ops/randint.h>
#include <torch/csrc/utils/pybind.h>

#include <limits>

namespace pydl::autograd {
namespace {

Tensor dropout_op(const Tensor& input, double p, const Tensor& seed) {
  static const auto call = op<Tensor(const Tensor&, double, const Tensor&, int64_t)>("pydl::dropout");
  return call.call(input, p, seed, 0);
}

// Whether torch's product of `t` and factors that lie as `strides` say lies as the op's result does.
bool lies_as_product(const Tensor& t, at::IntArrayRef strides) {
  if (!t.is_non_overlapping_and_dense() || t.strides() != strides) return false;
  const at::IntArrayRef sizes = t.sizes();
  return std::find(sizes.begin(), sizes.end(), 1) == sizes.end() || is_row_major(t);
}

// `output` in the strides of torch's product: Python's rules, for the few that do not lie so already.
Tensor laid_out(const Tensor& output, const Tensor& like, const Integers& strides) {
  pybind11::gil_scoped_acquire lock;
  static PyObject* const function =
      pybind11::object(pybind11::module_::import("pydl.ops.dropout").attr("_laid_out")).release().ptr();
  return pybind11::handle(function)(output, like, pybind11::none(), pybind11::tuple(pybind11::cast(strides)))
      .cast<Tensor>();
}

struct Dropout : torch::autograd::Function<Dropout> {
  static Tensor forward(AutogradContext* context, const Tensor& input, double p, const Tensor& seed) {
    BelowAutograd guard;
    context->saved_data["p"] = p;
    context->saved_data["strides"] = input.strides();
    context->save_for_backward({seed});
    return dropout_op(input, p, seed);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    InBackward guard("dropout", grads[0]);
    const Tensor seed = context->get_saved_variables()[0];
    const Integers strides = context->saved_data["strides"].toIntVector();
    Tensor grad_input = dropout_op(grads[0], context->saved_data["p"].toDouble(), seed);
    if (!at::GradMode::is_enabled() && !lies_as_product(grads[0], strides)) {
      grad_input = laid_out(grad_input, grads[0], strides);
    }
    return {grad_input, Tensor(), Tensor()};
  }
};

}  // namespace

// dropout(input, p, training): a mask by a seed of torch's generator; p between 0 and 1
PyObject* dropout(PyObject*, PyObject* const* objects, Py_ssize_t given) {
  return answer<3>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = arguments.tensor(0);
    const double p = arguments.real(1);
    if (!arguments.truth(2) || !(p > 0.0 && p < 1.0) || input.numel() == 0) throw NotPlain();
    if (!lies_as_product(input, input.strides())) throw NotPlain();
    return unlocked([&] {
      constexpr int64_t low = std::numeric_limits<int64_t>::min(), high = std::numeric_limits<int64_t>::max();
      return Dropout::apply(input, p, at::randint(low, high, {1}, at::TensorOptions(at::kLong)));
    });
  });
}

}  // namespace pydl::autograd
