// The node of softmax_cross_entropy for class indices: the formula of src/pydl/ops/softmax_cross_entropy.py, and its
// gradient made in the forward, while the row is in the cache.
//
// That gradient is handed out once, and only if the upstream gradient is 1; it is never scaled, since rounding to half
// types comes last. Otherwise it is made from the logits again. Whether the next forward makes it goes by the last
// backward: a loop that scales its loss pays once. The bits are the same either way.
#include "csrc/autograd/functions.h"
#include "csrc/autograd/losses.h"

#include <ATen/ops/mul.h>
#include <torch/csrc/utils/pybind.h>

#include <atomic>
#include <utility>

namespace pydl::autograd {
namespace {

std::atomic<bool> early{true};  // the last upstream gradient was 1

// The same in torch's own functions, which can be differentiated or batched further: Python's formula.
Tensor differentiable_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                               const LossOptions& o) {
  pybind11::gil_scoped_acquire lock;
  static PyObject* const function =
      pybind11::object(
          pybind11::module_::import("pydl.ops._softmax_cross_entropy_autograd").attr("input_gradient"))
          .release()
          .ptr();
  return pybind11::handle(function)(grad, input, target, o.reduction, o.ignore_index, o.label_smoothing,
                                    o.z_loss)
      .cast<Tensor>();
}

bool is_one(const Tensor& grad) { return grad.item().toDouble() == 1.0; }

class CrossEntropy : public Node {
  const LossOptions options_;
  Tensor grad_input_;  // for an upstream gradient of 1

  // Whether logits or target were written to since the forward, as torch's own loss allows for the logits.
  bool is_written() {
    try {
      unpacked();
    } catch (const c10::Error&) {
      return true;
    }
    return false;
  }

 public:
  CrossEntropy(const LossOptions& options, const Tensor& grad_input)
      : Node("cross_entropy"), options_(options), grad_input_(grad_input) {}

  variable_list apply(variable_list&& grads) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const Tensor& grad = grads[0];
      if (!grad.defined()) return variable_list(1);
      expect_no_tangent(grad);
      const Tensor grad_input = std::exchange(grad_input_, Tensor());
      if (at::GradMode::is_enabled() || under_transform()) {
        const variable_list saved = unpacked();
        return {differentiable_backward(grad, saved[0], saved[1], options_)};
      }
      if (options_.reduction != 0 && !grad.key_set().has(c10::DispatchKey::Batched)) {  // is_grads_batched
        early = is_one(grad);
        if (grad_input.defined() && (early || is_written())) {
          return {early ? grad_input : at::mul(grad_input, grad).to(grad_input.scalar_type())};
        }
      }
    }
    return Node::apply(std::move(grads));
  }

  variable_list backward(const Tensor& grad, const variable_list& saved) override {
    static const Op op("pydl::softmax_cross_entropy_backward");
    const LossOptions& o = options_;
    return {op(grad, saved[0], saved[1], no_tensor(), saved[2], saved[3], o.reduction, o.ignore_index,
               o.label_smoothing, o.z_loss)};
  }
};

// float_output: the loss of half types in float32.
Tensor cross_entropy_call(const Tensor& input, const Tensor& target, const LossOptions& o,
                          bool float_output) {
  static const Op forward("pydl::softmax_cross_entropy_forward"),
      forward_backward("pydl::softmax_cross_entropy_forward_backward");
  BelowAutograd guard;
  const bool is_recorded = records({&input});
  const Op& op = is_recorded && o.reduction != 0 && early ? forward_backward : forward;
  const variable_list made = op.all(input, target, no_tensor(), o.reduction, o.ignore_index,
                                    o.label_smoothing, o.z_loss, float_output);
  if (is_recorded) {
    record(std::make_unique<CrossEntropy>(o, made.size() > 3 ? made[3] : Tensor()), made[0], {&input},
           {input, target, made[1], made[2]});
  }
  return made[0];
}

}  // namespace

// cross_entropy(input, target, ignore_index, reduction, label_smoothing, z_loss), of class indices without weights
PYDL_PYTHON_FUNCTION(cross_entropy) {
  return answer<6>(objects, given, [](const Arguments& arguments) {
    const Tensor &input = arguments.tensor(0), &target = arguments.indices(1);
    const LossOptions options{reduction(arguments.text(3)), arguments.integer(2), arguments.real(4),
                              arguments.real(5)};
    return unlocked([&] { return cross_entropy_call(input, target, options, is_autocast()); });
  });
}

}  // namespace pydl::autograd
