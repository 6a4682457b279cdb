// What the nodes share: the ops of pydl, called through torch's dispatcher below the layer that records gradients.
//
// A node does in eager mode what the autograd.Function of its op does (src/pydl/ops/<op>.py), without Python: the
// arithmetic is in the same ops. It needs torch's whole C++ interface, whose ABI is that of one version, so that this is
// a module of its own, loaded only beside the torch that it was built with (src/pydl/ops/_nodes.py). Nothing depends on
// it: without it the autograd.Functions serve.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <string>
#include <vector>

namespace pydl::autograd {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;
using Integers = std::vector<int64_t>;

// The op `name`, which Python has declared. To be kept in a static variable, since it is looked up by name.
template <class Signature>
c10::TypedOperatorHandle<Signature> op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// In a forward ops record nothing; in a backward they do where it is to be differentiated itself: each op has a formula
// in Python for that. A tangent that came with the gradient, after a forward without one, is refused: it would be lost.
using BelowAutograd = at::AutoDispatchBelowAutograd;
class InBackward {
  std::optional<BelowAutograd> guard_;

 public:
  InBackward(const char* op, const Tensor& grad) {
    TORCH_CHECK_NOT_IMPLEMENTED(!grad._fw_grad(0).defined(), op,
                                ": expected gradients in reverse mode, got a forward-mode tangent");
    if (!at::GradMode::is_enabled()) guard_.emplace();
  }
};

// Whether a transform of torch.func is at work.
inline bool under_transform() {
  return c10::impl::tls_local_dispatch_key_set().included_.has(
      c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

inline OptionalTensor if_defined(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// Which gradients the running backward wants: of the tensor arguments that were given, counted without the absent ones.
class Wanted {
  AutogradContext* context_;
  size_t edge_ = 0;

 public:
  explicit Wanted(AutogradContext* context) : context_(context) {}
  bool next(bool given = true) { return given && context_->needs_input_grad(edge_++); }
};

}  // namespace pydl::autograd
