#include "csrc/autograd/node.h"

#include "csrc/autograd/lowered.h"

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <cctype>

namespace pydl::autograd {

c10::IValue boxed(const Tensor& tensor) { return tensor.defined() ? c10::IValue(tensor) : c10::IValue(); }
c10::IValue boxed(bool value) { return value; }
c10::IValue boxed(int64_t value) { return value; }
c10::IValue boxed(double value) { return value; }
c10::IValue boxed(at::IntArrayRef values) { return values; }
c10::IValue boxed(const Integers& values) { return at::IntArrayRef(values); }
c10::IValue boxed(const char* text) { return text; }

Op::Op(const char* name) : handle_(c10::Dispatcher::singleton().findSchemaOrThrow(name, "")) {}

Tensor Op::result(torch::jit::Stack&& stack) const {
  handle_.callBoxed(stack);
  return std::move(stack[0]).toTensor();
}

variable_list Op::results(torch::jit::Stack&& stack) const {
  handle_.callBoxed(stack);
  variable_list tensors;
  tensors.reserve(stack.size());
  for (c10::IValue& value : stack) tensors.push_back(std::move(value).toTensor());
  return tensors;
}

bool under_transform() {
  return c10::impl::tls_local_dispatch_key_set().included_.has(
      c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

bool is_batched(const Tensor& grad) {
  return under_transform() || grad.key_set().has(c10::DispatchKey::Batched);
}

const Tensor& no_tensor() {
  static const Tensor none;
  return none;
}

void NodeOfMany::expect_no_tangent(const Tensor& grad) const {
  TORCH_CHECK_NOT_IMPLEMENTED(!grad._fw_grad(0).defined(), op_,
                              ": expected gradients in reverse mode, got a forward-mode tangent");
}

std::string NodeOfMany::name() const {
  std::string text = "pydl.";
  bool begins = true;  // a word
  for (const char* at = op_; *at != 0; ++at) {
    if (*at != '_') text += begins ? static_cast<char>(std::toupper(static_cast<unsigned char>(*at))) : *at;
    begins = *at == '_';
  }
  return text + "Backward";
}

variable_list NodeOfMany::apply(variable_list&& grads) {
  const std::lock_guard<std::mutex> lock(mutex_);
  bool came = false;
  for (const Tensor& grad : grads) {
    if (!grad.defined()) continue;
    expect_no_tangent(grad);
    came = true;
  }
  if (!came) return variable_list(num_outputs());  // nothing came back: nothing goes on
  variable_list saved = unpacked();
  if (!is_below_autograd()) {
    for (const CastInput& one : casts_) {
      if (one.saved < saved.size())
        saved[one.saved] = differentiable_cast(saved[one.saved], next_edge(one.input), one.given);
    }
    return as_given(gradients(grads, saved));
  }
  BelowAutograd guard;
  return as_given(gradients(grads, saved));
}

variable_list NodeOfMany::as_given(variable_list grads) const {
  Casts casts;
  for (const CastInput& one : casts_) {
    Tensor& grad = grads[one.input];
    if (grad.defined() && grad.scalar_type() != one.given) grad = casts.add_gradient(grad, one.given);
  }
  casts.run();
  return grads;
}

bool NodeOfMany::is_lowered_from(size_t input, c10::ScalarType given) const {
  return std::any_of(casts_.begin(), casts_.end(),
                     [&](const CastInput& one) { return one.input == input && one.given == given; });
}

variable_list NodeOfMany::only_wanted(variable_list grads) const {
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!wants(i)) grads[i] = Tensor();
  }
  return grads;
}

variable_list NodeOfMany::unpacked() {
  variable_list tensors;
  tensors.reserve(saved_.size());
  for (const auto& one : saved_) tensors.push_back(one.unpack(getptr()));
  return tensors;
}

void NodeOfMany::release_variables() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto& one : saved_) one.reset_data();
}

void NodeOfMany::compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, op_, ": expected the backward to run eagerly, got compiled autograd; PYDL_NODES=0 serves it");
}

bool records(std::initializer_list<const Tensor*> inputs) {
  if (!at::GradMode::is_enabled()) return false;
  for (const Tensor* input : inputs) {
    if (input->defined() && input->requires_grad()) return true;
  }
  return false;
}

namespace {

using Owner = decltype(torch::autograd::Edge::function);  // of a node: another class from version to version

template <class Pointer, class Made>
Pointer owned(Made* node) {
  if constexpr (requires { Pointer::unsafe_steal_from_new(node); }) {
    return Pointer::unsafe_steal_from_new(node);
  } else {
    return Pointer(node,
                   [](Made* done) { deleteNode(done); });  // torch's own, which frees long chains iteratively
  }
}

}  // namespace

torch::autograd::Edge edge_of(const Tensor& tensor) {
  return tensor.defined() ? torch::autograd::impl::gradient_edge(tensor) : torch::autograd::Edge();
}

void record(std::unique_ptr<NodeOfMany> node, at::ArrayRef<Tensor> outputs,
            std::initializer_list<const Tensor*> inputs, std::initializer_list<Tensor> saved) {
  torch::autograd::edge_list edges;
  edges.reserve(inputs.size());
  for (const Tensor* input : inputs) edges.push_back(edge_of(*input));
  record(std::move(node), outputs, std::move(edges), saved);
}

void record(std::unique_ptr<NodeOfMany> made, at::ArrayRef<Tensor> outputs,
            torch::autograd::edge_list&& edges, std::initializer_list<Tensor> saved) {
  NodeOfMany* const node = made.get();
  const Owner owner = owned<Owner>(static_cast<torch::autograd::Node*>(made.release()));
  node->set_next_edges(std::move(edges));
  for (const Tensor& output : outputs)
    torch::autograd::impl::set_gradient_edge(output, {owner, node->add_input_metadata(output)});
  node->saved_.reserve(saved.size());
  for (const Tensor& tensor : saved) {
    const bool is_output = std::any_of(outputs.begin(), outputs.end(),
                                       [&](const Tensor& output) { return tensor.is_same(output); });
    node->saved_.emplace_back(tensor, is_output);
  }
}

}  // namespace pydl::autograd
