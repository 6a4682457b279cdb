// The node of dropout, whose formula is in src/pydl/ops/dropout.py.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/layout.h"
#include "csrc/autograd/node.h"
#include "csrc/autograd/seed.h"

#include <ATen/ops/randint.h>
#include <torch/csrc/utils/pybind.h>

#include <limits>

namespace pydl::autograd {
namespace {

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

const Op& dropout_op() {
  static const Op op("pydl::dropout");
  return op;
}

class Dropout : public Node {
  const double p_;
  const Integers strides_;

 public:
  Dropout(double p, const Tensor& input) : Node("dropout"), p_(p), strides_(input.strides().vec()) {}

  variable_list backward(const Tensor& grad, const variable_list& saved) override {
    Tensor grad_input = dropout_op()(grad, p_, saved[0], int64_t(0));
    if (!at::GradMode::is_enabled() && !lies_as_product(grad, strides_)) {
      grad_input = laid_out(grad_input, grad, strides_);
    }
    return {grad_input};
  }
};

Tensor dropout_call(const Tensor& input, double p) {
  BelowAutograd guard;
  const Tensor seed = dropout_seed();
  Tensor output = dropout_op()(input, p, seed, int64_t(0));
  if (records({&input})) record(std::make_unique<Dropout>(p, input), output, {&input}, {seed});
  return output;
}

}  // namespace

Tensor dropout_seed() {
  constexpr int64_t low = std::numeric_limits<int64_t>::min(), high = std::numeric_limits<int64_t>::max();
  return at::randint(low, high, {1}, at::TensorOptions(at::kLong));
}

// dropout(input, p, training): a mask by a seed of torch's generator; p between 0 and 1
PYDL_PYTHON_FUNCTION(dropout) {
  return answer<3>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = arguments.tensor(0);
    const double p = arguments.real(1);
    if (!arguments.truth(2) || !(p > 0.0 && p < 1.0) || input.numel() == 0) throw NotPlain();
    if (!lies_as_product(input, input.strides())) throw NotPlain();
    return unlocked([&] { return dropout_call(input, p); });
  });
}

}  // namespace pydl::autograd
