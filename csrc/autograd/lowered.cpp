#include "csrc/autograd/lowered.h"

#include <ATen/EmptyTensor.h>

// ATen/autocast_mode.h, which declares it, includes the declarations of all of torch's functions.
namespace at::autocast {
TORCH_API at::ScalarType get_autocast_dtype(at::DeviceType device_type);
}

namespace pydl::autograd {

c10::ScalarType autocast_dtype() { return at::autocast::get_autocast_dtype(at::kCPU); }

static const char* name_of(c10::ScalarType dtype) {
  return dtype == at::kFloat ? "float32" : dtype == at::kBFloat16 ? "bfloat16" : "float16";
}

Tensor Casts::add(const Tensor& tensor, c10::ScalarType dtype) {
  static const Op op("pydl::cast");
  constexpr size_t kPooledBytes = 1 << 20;  // from there on results are in recycled memory (csrc/memory.h)
  const bool narrows = dtype == at::kBFloat16 && tensor.scalar_type() == at::kFloat;
  const bool is_ours = narrows || (dtype == at::kFloat && tensor.scalar_type() == at::kBFloat16);
  if (!is_ours || tensor.numel() * c10::elementSize(dtype) >= kPooledBytes ||
      !tensor.is_non_overlapping_and_dense()) {
    return op(tensor, name_of(dtype));
  }
  Tensor result = at::detail::empty_strided_cpu(tensor.sizes(), tensor.strides(), dtype);
  read_.push_back(tensor);
  tensors_.push_back({tensor.const_data_ptr(), result.mutable_data_ptr(), tensor.numel(), narrows});
  return result;
}

Tensor Casts::add_gradient(const Tensor& grad, c10::ScalarType dtype) {
  return at::GradMode::is_enabled() || is_batched(grad) ? grad.to(dtype) : add(grad, dtype);
}

void Casts::run() {
  if (!tensors_.empty()) kernels().cast({static_cast<int64_t>(tensors_.size()), tensors_.data()});
}

void cast(std::initializer_list<Lowered*> tensors) {
  Casts casts;
  for (Lowered* one : tensors) {
    if (one->is_cast()) one->read_ = casts.add(one->given_, one->dtype_);
  }
  casts.run();
}

namespace {

class Cast : public Node {
  const c10::ScalarType given_;

 public:
  explicit Cast(c10::ScalarType given) : Node("cast"), given_(given) {}

  variable_list backward(const Tensor& grad, const variable_list&) override {
    Casts casts;
    const Tensor result = casts.add_gradient(grad, given_);
    casts.run();
    return {result};
  }
};

}  // namespace

Tensor differentiable_cast(const Tensor& saved, const torch::autograd::Edge& edge, c10::ScalarType given) {
  if (!edge.is_valid()) return saved;
  Tensor result = saved.detach();
  record(std::make_unique<Cast>(given), result, {edge}, {});
  return result;
}

bool records(std::initializer_list<const Lowered*> inputs) {
  if (!at::GradMode::is_enabled()) return false;
  for (const Lowered* input : inputs) {
    if (input->defined() && input->given().requires_grad()) return true;
  }
  return false;
}

void record(std::unique_ptr<NodeOfMany> node, at::ArrayRef<Tensor> outputs,
            std::initializer_list<const Lowered*> inputs, std::initializer_list<Tensor> saved) {
  torch::autograd::edge_list edges;
  edges.reserve(inputs.size());
  for (const Lowered* input : inputs) {
    if (input->is_cast()) {
      const auto* const place = std::find_if(saved.begin(), saved.end(), [&](const Tensor& one) {
        return one.defined() && one.is_same(input->read());
      });
      node->add_cast(
          {edges.size(), static_cast<size_t>(place - saved.begin()), input->given().scalar_type()});
    }
    edges.push_back(edge_of(input->given()));
  }
  record(std::move(node), outputs, std::move(edges), saved);
}

}  // namespace pydl::autograd
