// The node of linear_cross_entropy without weights of classes: the formula of src/pydl/ops/linear_cross_entropy.py, whose
// forward makes the gradients while a block's logits are in the cache.
#include "csrc/autograd/functions.h"
#include "csrc/autograd/losses.h"
#include "csrc/autograd/node.h"

#include <torch/csrc/utils/pybind.h>

#include <cmath>
#include <utility>

namespace pydl::autograd {
namespace {

struct OutputLayer {
  Lowered input, weight, bias;  // the last may be undefined
};

class LinearCrossEntropy : public Node {
  const LossOptions options_;
  const bool input_in_columns_, weight_in_columns_;  // as torch has the gradients
  const c10::ScalarType dtype_;
  variable_list made_;  // gradients for an upstream gradient of 1, in the dtype of the sums; or none

  variable_list laid_out(variable_list grads) const {
    if (grads[0].defined() && input_in_columns_) grads[0] = grads[0].t().contiguous().t();
    if (grads[1].defined() && weight_in_columns_) grads[1] = grads[1].t().contiguous().t();
    return grads;
  }

  // The same in torch's own functions, which can be differentiated or batched further: Python's formula.
  variable_list differentiable(const Tensor& grad, const variable_list& saved) const {
    pybind11::gil_scoped_acquire lock;
    static PyObject* const function =
        pybind11::object(
            pybind11::module_::import("pydl.ops._linear_cross_entropy_autograd").attr("gradients"))
            .release()
            .ptr();
    const LossOptions& o = options_;
    const auto found = pybind11::handle(function)(
        grad, saved[0], saved[1], saved[2], pybind11::cast(saved[3]), o.reduction, o.ignore_index,
        o.label_smoothing, o.z_loss, pybind11::make_tuple(input_in_columns_, weight_in_columns_),
        pybind11::make_tuple(wants(0), wants(1), wants(2)));
    variable_list gradients;
    for (const pybind11::handle one : found)
      gradients.push_back(one.is_none() ? Tensor() : one.cast<Tensor>());
    return gradients;
  }

 public:
  LinearCrossEntropy(const LossOptions& options, const OutputLayer& layer, variable_list&& made)
      : Node("linear_cross_entropy"),
        options_(options),
        input_in_columns_(layer.input.given().dim() == 2 && layer.input.given().stride(0) == 1 &&
                          layer.input.given().stride(1) == layer.input.given().size(0)),
        weight_in_columns_(layer.weight.given().stride(0) != layer.weight.given().size(1) ||
                           layer.weight.given().stride(1) != 1),
        dtype_(layer.input.dtype()),
        made_(std::move(made)) {}

  // The gradients are handed out once, scaled in the dtype of the sums: to make the logits again would take a third more.
  // What is written to the tensors in between changes nothing then. An upstream gradient that is not finite, which must
  // leave ignored rows alone, makes them again.
  variable_list apply(variable_list&& grads) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const Tensor& grad = grads[0];
      if (!grad.defined()) return variable_list(num_outputs());
      expect_no_tangent(grad);
      variable_list made = std::exchange(made_, {});
      if (!made.empty() && !at::GradMode::is_enabled() && !is_batched(grad)) {
        BelowAutograd guard;
        const double scale = grad.item().toDouble();
        if (std::isfinite(scale)) {
          for (size_t i = 0; i < made.size(); ++i) {
            if (!wants(i))
              made[i] = Tensor();
            else
              made[i] = (scale == 1.0 ? made[i] : made[i].mul_(scale)).to(dtype_);
          }
          return as_given(laid_out(std::move(made)));
        }
      }
    }
    return Node::apply(std::move(grads));
  }

  void release_variables() override {
    Node::release_variables();
    const std::lock_guard<std::mutex> lock(mutex_);
    made_.clear();
  }

 protected:
  variable_list backward(const Tensor& grad, const variable_list& saved) override {
    static const Op op("pydl::linear_cross_entropy_backward");
    if (at::GradMode::is_enabled() || under_transform()) return differentiable(grad, saved);
    const LossOptions& o = options_;
    return laid_out(only_wanted(op.all(grad, saved[0], saved[1], saved[2], saved[3], no_tensor(), saved[4],
                                       saved[5], o.reduction, o.ignore_index, o.label_smoothing, o.z_loss,
                                       wants(0), wants(1), wants(2))));
  }
};

// The loss, and where `counts` says so how many rows have their largest logit at the target.
// float_output: the loss of half types in float32.
variable_list linear_cross_entropy_call(OutputLayer& layer, const Tensor& target, const LossOptions& o,
                                        bool counts, bool float_output) {
  static const Op forward("pydl::linear_cross_entropy_forward"),
      forward_backward("pydl::linear_cross_entropy_forward_backward");
  auto& [input, weight, bias] = layer;
  BelowAutograd guard;
  cast({&input, &weight, &bias});
  const bool is_recorded = records({&input, &weight, &bias});
  variable_list made =
      is_recorded && o.reduction != 0
          ? forward_backward.all(input.read(), weight.read(), target, bias.read(), no_tensor(), o.reduction,
                                 o.ignore_index, o.label_smoothing, o.z_loss, float_output, counts,
                                 input.given().requires_grad(), weight.given().requires_grad(),
                                 bias.defined() && bias.given().requires_grad())
          : forward.all(input.read(), weight.read(), target, bias.read(), no_tensor(), o.reduction,
                        o.ignore_index, o.label_smoothing, o.z_loss, float_output, counts);
  if (is_recorded) {
    record(std::make_unique<LinearCrossEntropy>(o, layer, variable_list(made.begin() + 4, made.end())),
           made[0], {&input, &weight, &bias},
           {input.read(), weight.read(), target, bias.read(), made[1], made[2]});
  }
  if (counts) return {made[0], made[3]};
  return {made[0]};
}

}  // namespace

// linear_cross_entropy(input, linear_weight, target, linear_bias, reduction, ignore_index, label_smoothing, z_loss,
// return_correct): of class indices; linear_bias and ignore_index may be None. (loss,) or (loss, correct)
PYDL_PYTHON_FUNCTION(linear_cross_entropy) {
  return answer<9>(objects, given, [](const Arguments& arguments) {
    OutputLayer layer{arguments.lowered(0), arguments.lowered(1), arguments.optional_lowered(3)};
    const Tensor& target = arguments.indices(2);
    const int64_t dims = layer.input.given().dim();
    if (layer.weight.given().dim() != 2 || dims < 1 || dims > 2) throw NotPlain();
    const LossOptions options{reduction(arguments.text(4)),
                              arguments.is_none(5) ? -100 : arguments.integer(5), arguments.real(6),
                              arguments.real(7)};
    const bool counts = arguments.truth(8);
    return unlocked([&] { return linear_cross_entropy_call(layer, target, options, counts, is_autocast()); });
  });
}

}  // namespace pydl::autograd
