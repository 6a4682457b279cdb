// The nodes of layer_norm and rms_norm, whose formulas are in src/pydl/ops/_layer_norm_autograd.py.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/layout.h"
#include "csrc/autograd/node.h"

#include <c10/util/accumulate.h>
#include <torch/csrc/utils/pybind.h>

#include <limits>

namespace pydl::autograd {
namespace {

class LayerNorm : public Node {
  const int64_t dims_;
  const double eps_;

 public:
  LayerNorm(int64_t dims, double eps) : Node("layer_norm"), dims_(dims), eps_(eps) {}

  variable_list backward(const Tensor& grad, const variable_list& saved) override {
    static const Op op("pydl::layer_norm_backward");
    const Tensor &input = saved[0], &weight = saved[1], &stats = saved[2];
    return only_wanted(op.all(grad, input, stats, weight, dims_, eps_, wants(0), wants(1), wants(2)));
  }
};

Tensor layer_norm_call(const Tensor& input, const Tensor& weight, const Tensor& bias, int64_t dims,
                       double eps) {
  static const Op forward("pydl::layer_norm_forward");
  BelowAutograd guard;
  const variable_list made = forward.all(input, weight, bias, dims, eps);
  if (records({&input, &weight, &bias})) {
    record(std::make_unique<LayerNorm>(dims, eps), made[0], {&input, &weight, &bias},
           {input, weight, made[1]});
  }
  return made[0];
}

class RmsNorm : public Node {
  const int64_t dims_;
  const double eps_;

 public:
  RmsNorm(int64_t dims, double eps) : Node("rms_norm"), dims_(dims), eps_(eps) {}

  variable_list backward(const Tensor& grad, const variable_list& saved) override {
    static const Op op("pydl::rms_norm_backward");
    variable_list grads = op.all(grad, saved[0], saved[2], saved[1], dims_, eps_, wants(0), wants(1));
    if (wants(0) && !is_common(grad)) grads[0] = as_product(grads[0], grad);
    return only_wanted(std::move(grads));
  }

 private:
  // Whether the op's result lies as torch's product of the gradient would.
  static bool is_common(const Tensor& grad) {
    const at::IntArrayRef sizes = grad.sizes();
    return grad.is_contiguous() && std::find(sizes.begin(), sizes.end(), 1) == sizes.end();
  }

  // The same in the strides of that product: Python's rules.
  static Tensor as_product(const Tensor& to_input, const Tensor& grad) {
    pybind11::gil_scoped_acquire lock;
    static PyObject* const function =
        pybind11::object(pybind11::module_::import("pydl.ops._layer_norm_autograd").attr("_as_product"))
            .release()
            .ptr();
    return pybind11::handle(function)(to_input, grad).cast<Tensor>();
  }
};

Tensor rms_norm_call(const Tensor& input, const Tensor& weight, int64_t dims, double eps) {
  static const Op forward("pydl::rms_norm_forward");
  BelowAutograd guard;
  const variable_list made = forward.all(input, weight, dims, eps);
  if (records({&input, &weight}))
    record(std::make_unique<RmsNorm>(dims, eps), made[0], {&input, &weight}, {input, weight, made[1]});
  return made[0];
}

// How many dimensions normalized_shape has: the last ones of the input.
int64_t normalized_dims(const Tensor& input, const Integers& shape) {
  const int64_t dims = shape.size();
  if (dims == 0 || dims > input.dim() || input.sizes().slice(input.dim() - dims) != shape) throw NotPlain();
  return dims;
}

}  // namespace

// layer_norm(input, normalized_shape, weight, bias, eps): weight and bias may be None.
PYDL_PYTHON_FUNCTION(layer_norm) {
  return answer<5>(objects, given, [](const Arguments& arguments) {
    const Tensor &input = arguments.tensor(0), &weight = arguments.optional_tensor(2),
                 &bias = arguments.optional_tensor(3);
    if (!weight.defined() && bias.defined() && bias.scalar_type() != input.scalar_type()) throw NotPlain();
    const int64_t dims = normalized_dims(input, arguments.integers(1));
    const double eps = arguments.real(4);
    return unlocked([&] { return layer_norm_call(input, weight, bias, dims, eps); });
  });
}

// rms_norm(input, normalized_shape, weight, eps): the last two may be None.
PYDL_PYTHON_FUNCTION(rms_norm) {
  return answer<4>(objects, given, [](const Arguments& arguments) {
    const Tensor &input = arguments.tensor(0), &weight = arguments.optional_tensor(2);
    // Python says which results lie as only torch's do, or are torch's
    if (input.dim() > 3 || !is_row_major(input)) throw NotPlain();
    if (weight.defined() && weight.scalar_type() != input.scalar_type()) throw NotPlain();
    const Integers shape = arguments.integers(1);
    const int64_t dims = normalized_dims(input, shape);
    if (c10::multiply_integers(shape) == 1) throw NotPlain();
    const double smallest = input.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                               : std::numeric_limits<float>::epsilon();
    const double eps = arguments.is_none(3) ? smallest : arguments.real(3);
    return unlocked([&] { return rms_norm_call(input, weight, dims, eps); });
  });
}

}  // namespace pydl::autograd
