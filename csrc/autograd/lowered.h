// What autocast makes of the arguments of an op of lower precision: the rules of src/pydl/ops/_autocast.py.
//
// The casts belong to the op's own node: its gradients go on in the dtype of what the call was given, and a node for a
// cast is made only where a backward is itself to be differentiated.
#pragma once

#include "csrc/autograd/kernels.h"
#include "csrc/autograd/node.h"

namespace pydl::autograd {

// The dtype that autocast asks of such ops on the CPU now.
c10::ScalarType autocast_dtype();

// A tensor, and the dtype that the op is to read it in; or one that is not defined.
class Lowered {
  Tensor given_, read_;
  c10::ScalarType dtype_ = c10::ScalarType::Undefined;

 public:
  Lowered() = default;
  Lowered(const Tensor& given, c10::ScalarType dtype) : given_(given), dtype_(dtype) {}

  bool defined() const { return given_.defined(); }
  bool is_cast() const { return defined() && given_.scalar_type() != dtype_; }
  c10::ScalarType dtype() const { return dtype_; }
  const Tensor& given() const { return given_; }  // whose sizes and strides are those of read() too
  const Tensor& read() const { return is_cast() ? read_ : given_; }
  friend void cast(std::initializer_list<Lowered*> tensors);
};

// Makes what is to be read, below autograd.
void cast(std::initializer_list<Lowered*> tensors);

// Casts of tensors together, laid out as torch's casts.
class Casts {
  std::vector<CastTensor> tensors_;
  variable_list read_;

 public:
  Tensor add(const Tensor& tensor, c10::ScalarType dtype);  // whose numbers are there after run()
  Tensor add_gradient(const Tensor& grad,
                      c10::ScalarType dtype);  // torch's, where it may be differentiated or batched
  void run();
};

// A cast that was saved, as a result of a node whose gradient goes to `edge` in the dtype `given`.
Tensor differentiable_cast(const Tensor& saved, const torch::autograd::Edge& edge, c10::ScalarType given);

bool records(std::initializer_list<const Lowered*> inputs);

// As record() of node.h; what is saved of a cast is what the op read.
void record(std::unique_ptr<NodeOfMany> node, at::ArrayRef<Tensor> outputs,
            std::initializer_list<const Lowered*> inputs, std::initializer_list<Tensor> saved);

}  // namespace pydl::autograd
