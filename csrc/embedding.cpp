// pydl::embedding_backward(Tensor grad_output, Tensor ids, int num_weights, int padding_idx, bool scale_grad_by_freq)
// -> Tensor, on the CPU alone
//
// grad_output: (*ids.shape, D). ids: int64. padding_idx: -1 for none. The result: (num_weights, D).
#include "kernels/embedding.h"

#include "csrc/convert.h"
#include "csrc/scratch.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

Tensor embedding_backward(const Tensor& grad_output, const Tensor& ids, int64_t num_weights,
                          int64_t padding_idx, bool scale_grad_by_freq) {
  EmbeddingParams p{};
  p.dtype = dtype_of("embedding", grad_output);
  PYDL_CHECK(ids.scalar_type() == ScalarType::Long, "embedding: expected ids to be int64, got ",
             dtype_name(ids.scalar_type()));
  bool fits = grad_output.dim() == ids.dim() + 1;
  for (int64_t d = 0; fits && d < ids.dim(); ++d) fits = grad_output.size(d) == ids.size(d);
  PYDL_CHECK(fits, "embedding: expected grad_output to be of the shape of ids and one dimension more, got ",
             shape_of(grad_output), " and ", shape_of(ids));
  PYDL_CHECK(num_weights >= 0, "embedding: expected num_weights to be at least 0, got ", num_weights);
  if (widens(p.dtype))
    return rounded(
        embedding_backward(widened(grad_output), ids, num_weights, padding_idx, scale_grad_by_freq),
        grad_output.scalar_type());
  p.rows = num_weights;
  p.width = grad_output.size(grad_output.dim() - 1);
  p.count = ids.numel();
  p.padding_idx = padding_idx;
  p.scaled = scale_grad_by_freq;
  Tensor grad_weight = empty(grad_output, grad_output.scalar_type(), {p.rows, p.width});
  const Verbose line("embedding_backward", grad_output, &ids);
  const Tensor g = dense(grad_output), places = dense(ids);
  p.ids = places.const_data_ptr<int64_t>();
  bool inside = true;
  for (int64_t i = 0; i < p.count; ++i)
    inside &= static_cast<uint64_t>(p.ids[i]) < static_cast<uint64_t>(p.rows);
  PYDL_CHECK_INDEX(inside, "embedding: expected ids to be in [0, ", p.rows, "), got one that is not");
  if (grad_weight.numel() == 0) return grad_weight;
  p.grad_output = g.const_data_ptr();
  p.grad_weight = grad_weight.mutable_data_ptr();
  p.scratch = static_cast<int64_t*>(Scratch::of_at_least((p.rows + p.count) * 8));
  PYDL_CPU_CALL(embedding_backward)(p, torch_threads());
  return grad_weight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) { m.impl("embedding_backward", TORCH_BOX(&embedding_backward)); }

}  // namespace pydl
