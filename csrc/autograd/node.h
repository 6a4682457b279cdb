// What the nodes share: the ops of pydl, called through torch's dispatcher below the layer that records gradients.
//
// A node does in eager mode what the autograd.Function of its op does (src/pydl/ops/<op>.py), without Python: the
// arithmetic is in the same ops. It needs torch's whole C++ interface, whose ABI is that of one version, so that this is
// a module of its own, loaded only beside the torch that it was built with (src/pydl/ops/_nodes.py). Nothing depends on
// it: without it the autograd.Functions serve.
//
// Nodes derive from torch's own, as its generated ones do, rather than from its Function template, which is ten times
// the code for each op and looks its saved data up by name. An undefined tensor is one that was not given.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/function.h>

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

namespace pydl::autograd {

using at::Tensor;
using torch::autograd::variable_list;
using Integers = std::vector<int64_t>;

// What arguments of an op become: the kernels take them boxed (torch's stable ABI), so that all share one call.
c10::IValue boxed(const Tensor& tensor);  // None where it is not defined
c10::IValue boxed(bool value);
c10::IValue boxed(int64_t value);
c10::IValue boxed(double value);
c10::IValue boxed(at::IntArrayRef values);
c10::IValue boxed(const Integers& values);
c10::IValue boxed(const char* text);

// An op, which Python has declared. To be kept in a static variable, since it is looked up by name.
class Op {
  c10::OperatorHandle handle_;
  variable_list results(torch::jit::Stack&& stack) const;
  Tensor result(torch::jit::Stack&& stack) const;

  template <class... Arguments>
  static torch::jit::Stack stack(const Arguments&... arguments) {
    torch::jit::Stack made;
    made.reserve(sizeof...(arguments));
    (made.push_back(boxed(arguments)), ...);
    return made;
  }

 public:
  explicit Op(const char* name);

  template <class... Arguments>
  Tensor operator()(const Arguments&... arguments) const {
    return result(stack(arguments...));
  }
  template <class... Arguments>
  variable_list all(const Arguments&... arguments) const {
    return results(stack(arguments...));
  }
};

// In a forward ops record nothing; in a backward they do where it is to be differentiated itself: each op has a formula
// in Python for that.
using BelowAutograd = at::AutoDispatchBelowAutograd;

// Whether a transform of torch.func is at work.
bool under_transform();
// Whether a vmap over the gradient is at work: of torch.func, or torch's older one, of is_grads_batched.
bool is_batched(const Tensor& grad);

// A tensor that is not defined, for one that was not given.
const Tensor& no_tensor();

// A node with several outputs.
class NodeOfMany : public torch::autograd::Node {
  const char* op_;
  std::vector<torch::autograd::SavedVariable> saved_;
  // An input that the op read in another dtype (lowered.h).
  struct CastInput {
    size_t input, saved;  // its number, and that of what was read among what is saved; or beyond that
    c10::ScalarType given;
  };
  std::vector<CastInput> casts_;
  friend void record(std::unique_ptr<NodeOfMany> node, at::ArrayRef<Tensor> outputs,
                     torch::autograd::edge_list&& edges, std::initializer_list<Tensor> saved);

 public:
  explicit NodeOfMany(const char* op) : op_(op) {}

  void add_cast(const CastInput& cast) { casts_.push_back(cast); }

  std::string name() const override;  // as torch names its own, and whose it is: pydl.LinearBackward
  variable_list apply(variable_list&& grads) override;
  void release_variables() override;
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const override;

 protected:
  // The gradients of the inputs, in their order; undefined where they are not wanted. Of `grads`, those of the outputs,
  // one at least is defined.
  virtual variable_list gradients(const variable_list& grads, const variable_list& saved) = 0;

  // Whether the running backward calls ops below the layer that records gradients: not where it is to be differentiated
  // itself.
  virtual bool is_below_autograd() const { return !at::GradMode::is_enabled(); }
  // Whether the running backward wants the gradient of this input.
  bool wants(size_t input) const { return task_should_compute_output(input); }
  // Whether the op read this input in another dtype than this, which its gradient is to be of.
  bool is_lowered_from(size_t input, c10::ScalarType given) const;
  // Without those that are not: an op returns empty tensors in their place.
  variable_list only_wanted(variable_list grads) const;
  // In the dtypes of what the call was given.
  variable_list as_given(variable_list grads) const;
  variable_list unpacked();
  // A tangent that came with the gradient, after a forward without one, is refused: it would be lost.
  void expect_no_tangent(const Tensor& grad) const;
};

// A node with one output.
class Node : public NodeOfMany {
  variable_list gradients(const variable_list& grads, const variable_list& saved) final {
    return backward(grads[0], saved);
  }

 protected:
  using NodeOfMany::NodeOfMany;
  virtual variable_list backward(const Tensor& grad, const variable_list& saved) = 0;
};

// Whether a result of these is to have a node. Without one nothing is kept.
bool records(std::initializer_list<const Tensor*> inputs);

// Where the gradient of this tensor goes, which may be undefined.
torch::autograd::Edge edge_of(const Tensor& tensor);

// Makes `outputs` the results of `node`: its gradients go along `edges`, or to `inputs`, and it is given `saved` again.
void record(std::unique_ptr<NodeOfMany> node, at::ArrayRef<Tensor> outputs,
            torch::autograd::edge_list&& edges, std::initializer_list<Tensor> saved);
void record(std::unique_ptr<NodeOfMany> node, at::ArrayRef<Tensor> outputs,
            std::initializer_list<const Tensor*> inputs, std::initializer_list<Tensor> saved);

}  // namespace pydl::autograd
