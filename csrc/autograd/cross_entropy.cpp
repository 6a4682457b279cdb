// The node of softmax_cross_entropy for class indices: the formula of src/pydl/ops/softmax_cross_entropy.py, and its
// gradient made in the forward, while the row is in the cache.
//
// That gradient is handed out once, and only if the upstream gradient is 1; it is never scaled, since rounding to half
// types comes last. Otherwise it is made from the logits again. Whether the next forward makes it goes by the last
// backward: a loop that scales its loss pays once. The bits are the same either way.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/node.h"

#include <ATen/ops/mul.h>
#include <torch/csrc/utils/pybind.h>

#include <atomic>
#include <cstring>

namespace pydl::autograd {
namespace {

std::atomic<bool> early{true};  // the last upstream gradient was 1

struct LossOptions {
  int64_t reduction, ignore_index;
  double label_smoothing, z_loss;
};

using Forward = std::tuple<Tensor, Tensor, Tensor>;
Forward loss_forward(const Tensor& input, const Tensor& target, const LossOptions& o) {
  static const auto call = op<Forward(const Tensor&, const Tensor&, const OptionalTensor&, int64_t, int64_t,
                                      double, double, bool)>("pydl::softmax_cross_entropy_forward");
  return call.call(input, target, std::nullopt, o.reduction, o.ignore_index, o.label_smoothing, o.z_loss,
                   false);
}
using ForwardBackward = std::tuple<Tensor, Tensor, Tensor, Tensor>;
ForwardBackward loss_forward_backward(const Tensor& input, const Tensor& target, const LossOptions& o) {
  static const auto call =
      op<ForwardBackward(const Tensor&, const Tensor&, const OptionalTensor&, int64_t, int64_t, double,
                         double, bool)>("pydl::softmax_cross_entropy_forward_backward");
  return call.call(input, target, std::nullopt, o.reduction, o.ignore_index, o.label_smoothing, o.z_loss,
                   false);
}
Tensor loss_backward(const Tensor& grad, const Tensor& input, const Tensor& target, const Tensor& norm,
                     const Tensor& denominator, const LossOptions& o) {
  static const auto call =
      op<Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&,
                const Tensor&, int64_t, int64_t, double, double)>("pydl::softmax_cross_entropy_backward");
  return call.call(grad, input, target, std::nullopt, norm, denominator, o.reduction, o.ignore_index,
                   o.label_smoothing, o.z_loss);
}

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

// Whether logits or target were written to since the forward, as torch's own loss allows for the logits.
bool is_written(AutogradContext* context) {
  try {
    context->get_saved_variables();
  } catch (const c10::Error&) {
    return true;
  }
  return false;
}

struct CrossEntropy : torch::autograd::Function<CrossEntropy> {
  static Tensor forward(AutogradContext* context, const Tensor& input, const Tensor& target,
                        const LossOptions& options) {
    BelowAutograd guard;
    Tensor output, norm, denominator, grad_input;
    if (options.reduction != 0 && early && input.requires_grad()) {
      std::tie(output, norm, denominator, grad_input) = loss_forward_backward(input, target, options);
    } else {
      std::tie(output, norm, denominator) = loss_forward(input, target, options);
    }
    context->saved_data["grad_input"] = grad_input;
    context->saved_data["integers"] = Integers{options.reduction, options.ignore_index};
    context->saved_data["reals"] = std::vector<double>{options.label_smoothing, options.z_loss};
    context->save_for_backward({input, target, norm, denominator});
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const Tensor& grad = grads[0];
    TORCH_CHECK_NOT_IMPLEMENTED(
        !grad._fw_grad(0).defined(),
        "cross_entropy: expected gradients in reverse mode, got a forward-mode tangent");
    Tensor grad_input = context->saved_data["grad_input"].toTensor();
    context->saved_data["grad_input"] = Tensor();
    const Integers integers = context->saved_data["integers"].toIntVector();
    const std::vector<double> reals = context->saved_data["reals"].toDoubleVector();
    const LossOptions options{integers[0], integers[1], reals[0], reals[1]};
    const bool again = at::GradMode::is_enabled() || under_transform();
    if (options.reduction != 0 && !again &&
        !grad.key_set().has(c10::DispatchKey::Batched)) {  // is_grads_batched
      early = is_one(grad);
      if (grad_input.defined() && (early || is_written(context))) {
        return {early ? grad_input : at::mul(grad_input, grad).to(grad_input.scalar_type()), Tensor(),
                Tensor()};
      }
    }
    const variable_list saved = context->get_saved_variables();
    if (again) return {differentiable_backward(grad, saved[0], saved[1], options), Tensor(), Tensor()};
    BelowAutograd guard;
    return {loss_backward(grad, saved[0], saved[1], saved[2], saved[3], options), Tensor(), Tensor()};
  }
};

int64_t reduction(const char* name) {
  constexpr const char* names[] = {"none", "mean", "sum"};
  for (int64_t i = 0; i < 3; ++i) {
    if (std::strcmp(name, names[i]) == 0) return i;
  }
  throw NotPlain();
}

}  // namespace

// cross_entropy(input, target, ignore_index, reduction, label_smoothing, z_loss), of class indices without weights
PyObject* cross_entropy(PyObject*, PyObject* const* objects, Py_ssize_t given) {
  return answer<6>(objects, given, [](const Arguments& arguments) {
    const Tensor &input = arguments.tensor(0), &target = arguments.indices(1);
    const LossOptions options{reduction(arguments.text(3)), arguments.integer(2), arguments.real(4),
                              arguments.real(5)};
    return unlocked([&] { return CrossEntropy::apply(input, target, options); });
  });
}

}  // namespace pydl::autograd
