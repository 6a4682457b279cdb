#include "csrc/autograd/lowered.h"

#include "csrc/autograd/losses.h"

// ATen/autocast_mode.h, which declares it, includes the declarations of all of torch's functions.
namespace at::autocast {
TORCH_API at::ScalarType get_autocast_dtype(at::DeviceType device_type);
}

namespace pydl::autograd {

c10::ScalarType autocast_dtype() { return at::autocast::get_autocast_dtype(at::kCPU); }

static const char* name_of(c10::ScalarType dtype) {
  return dtype == at::kFloat ? "float32" : dtype == at::kBFloat16 ? "bfloat16" : "float16";
}

Tensor cast(const Tensor& tensor, c10::ScalarType dtype) {
  static const Op op("pydl::cast");
  if (at::GradMode::is_enabled() || is_batched(tensor)) return tensor.to(dtype);
  return op(tensor, name_of(dtype));
}

void Lowered::cast() {
  static const Op op("pydl::cast");
  if (is_cast()) read_ = op(given_, name_of(dtype_));
}

void cast(std::initializer_list<Lowered*> tensors) {
  for (Lowered* one : tensors) one->cast();
}

namespace {

class Cast : public Node {
  const c10::ScalarType given_;

 public:
  explicit Cast(c10::ScalarType given) : Node("cast"), given_(given) {}

  variable_list backward(const Tensor& grad, const variable_list&) override { return {cast(grad, given_)}; }
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
