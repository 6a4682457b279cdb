// The node of embedding, whose formula is in src/pydl/ops/embedding.py: torch's forward and our gradient.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/node.h"

#include <ATen/ops/embedding.h>

namespace pydl::autograd {
namespace {

class Embedding : public Node {
  const int64_t rows_, padding_idx_;
  const bool scaled_;

 public:
  Embedding(int64_t rows, int64_t padding_idx, bool scaled)
      : Node("embedding"), rows_(rows), padding_idx_(padding_idx), scaled_(scaled) {}

  variable_list backward(const Tensor& grad, const variable_list& saved) override {
    static const Op op("pydl::embedding_backward");
    return {op(grad, saved[0], rows_, padding_idx_, scaled_)};
  }
};

Tensor embedding_call(const Tensor& ids, const Tensor& weight, int64_t padding_idx, bool scaled) {
  BelowAutograd guard;
  Tensor output = at::embedding(weight, ids, padding_idx);
  record(std::make_unique<Embedding>(weight.size(0), padding_idx, scaled), output, {&weight}, {ids});
  return output;
}

}  // namespace

// embedding(weight, ids, padding_idx, scale_grad_by_freq, least): padding_idx may be None. Not plain: ids of fewer than
// `least` numbers of the result, and what needs no gradient.
PYDL_PYTHON_FUNCTION(embedding) {
  return answer<5>(objects, given, [](const Arguments& arguments) {
    const Tensor &weight = arguments.tensor(0), &ids = arguments.indices(1);
    const bool scaled = arguments.truth(3);
    if (weight.dim() != 2 || !records({&weight})) throw NotPlain();
    const int64_t rows = weight.size(0);
    if (ids.numel() * weight.size(1) < arguments.integer(4)) throw NotPlain();
    int64_t padding_idx = -1;
    if (!arguments.is_none(2)) {
      padding_idx = arguments.integer(2);
      if (padding_idx < -rows || padding_idx >= rows) throw NotPlain();
      if (padding_idx < 0) padding_idx += rows;
    }
    return unlocked([&] { return embedding_call(ids, weight, padding_idx, scaled); });
  });
}

}  // namespace pydl::autograd
