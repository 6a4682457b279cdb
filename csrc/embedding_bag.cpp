// pydl::embedding_bag_backward(Tensor grad_output, Tensor ids, Tensor offsets, Tensor? per_sample_weights, int num_weights,
// int padding_idx, bool mean, bool include_last_offset) -> Tensor, on the CPU alone
//
// grad_output: (bags, D). ids: int64 (n). offsets: int64, where each bag begins, and one more, the end of the last, with
// include_last_offset. per_sample_weights: (n), of the dtype of grad_output. padding_idx: -1 for none. The result:
// (num_weights, D).
#include "kernels/embedding.h"

#include "csrc/convert.h"
#include "csrc/scratch.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

using Optional = std::optional<Tensor>;

// bags[i]: the bag of place i; one that no offset precedes is refused.
void find_bags(const int64_t* offsets, int64_t count, int64_t places, int64_t* bags) {
  for (int64_t i = 0; i < places; ++i) bags[i] = 0;
  for (int64_t b = 0; b < count; ++b) {
    PYDL_CHECK(offsets[b] >= 0 && offsets[b] <= places && (b > 0 || offsets[b] == 0),
               "embedding_bag: expected offsets to begin with 0 and to be in [0, ", places, "], got ",
               offsets[b]);
    if (offsets[b] < places) ++bags[offsets[b]];
  }
  for (int64_t i = 0, bag = -1; i < places; ++i) bags[i] = bag += bags[i];
}

// factors[i]: 1 over how many places its bag has beside the padding.
template <class A>
void find_shares(const EmbeddingParams& p, int64_t bags, A* factors) {
  std::vector<int64_t> sizes(static_cast<size_t>(bags), 0);
  for (int64_t i = 0; i < p.count; ++i) sizes[static_cast<size_t>(p.bags[i])] += p.ids[i] != p.padding_idx;
  for (int64_t i = 0; i < p.count; ++i)
    factors[i] = A(1) / static_cast<A>(max_of(sizes[static_cast<size_t>(p.bags[i])], 1));
}

Tensor embedding_bag_backward(const Tensor& grad_output, const Tensor& ids, const Tensor& offsets,
                              const Optional& per_sample_weights, int64_t num_weights, int64_t padding_idx,
                              bool mean, bool include_last_offset) {
  EmbeddingParams p{};
  p.dtype = dtype_of("embedding_bag", grad_output);
  for (const Tensor* t : {&ids, &offsets})
    PYDL_CHECK(t->scalar_type() == ScalarType::Long && t->dim() == 1,
               "embedding_bag: expected ids and offsets to be int64 and 1-D, got ",
               dtype_name(t->scalar_type()), " of shape ", shape_of(*t));
  const int64_t bags = offsets.numel() - (include_last_offset ? 1 : 0);
  PYDL_CHECK(grad_output.dim() == 2 && grad_output.size(0) == bags && (bags > 0 || ids.numel() == 0),
             "embedding_bag: expected grad_output to have a row for each of ", bags, " bags, got shape ",
             shape_of(grad_output));
  PYDL_CHECK(num_weights >= 0, "embedding_bag: expected num_weights to be at least 0, got ", num_weights);
  if (per_sample_weights) {
    PYDL_CHECK(sizes_of(*per_sample_weights) == sizes_of(ids),
               "embedding_bag: expected per_sample_weights to be of the shape of ids, got ",
               shape_of(*per_sample_weights), " and ", shape_of(ids));
    check_same_dtype("embedding_bag", "per_sample_weights", *per_sample_weights, "grad_output", grad_output);
  }
  if (widens(p.dtype))
    return rounded(
        embedding_bag_backward(widened(grad_output), ids, offsets, widened_where_needed(per_sample_weights),
                               num_weights, padding_idx, mean, include_last_offset),
        grad_output.scalar_type());
  p.rows = num_weights;
  p.width = grad_output.size(1);
  p.count = ids.numel();
  p.padding_idx = padding_idx;
  Tensor grad_weight = empty(grad_output, grad_output.scalar_type(), {p.rows, p.width});
  const Verbose line("embedding_bag_backward", grad_output, &ids);
  const Tensor g = dense(grad_output), places = dense(ids), starts = dense(offsets);
  p.ids = places.const_data_ptr<int64_t>();
  bool inside = true;
  for (int64_t i = 0; i < p.count; ++i)
    inside &= static_cast<uint64_t>(p.ids[i]) < static_cast<uint64_t>(p.rows);
  PYDL_CHECK_INDEX(inside, "embedding_bag: expected ids to be in [0, ", p.rows, "), got one that is not");
  if (grad_weight.numel() == 0) return grad_weight;
  const ScalarType sums = accumulate_type(grad_output.scalar_type());
  Optional factors;
  if (per_sample_weights) {
    factors = dense(per_sample_weights->scalar_type() == sums ? *per_sample_weights
                                                              : converted(*per_sample_weights, sums));
  } else if (mean) {
    factors = empty(grad_output, sums, {p.count});
  }
  int64_t* bag_of = static_cast<int64_t*>(Scratch::of_at_least((p.rows + 2 * p.count) * 8));
  find_bags(starts.const_data_ptr<int64_t>(), bags, p.count, bag_of);
  p.bags = bag_of;
  if (mean && !per_sample_weights) {
    if (sums == ScalarType::Double)
      find_shares(p, bags, static_cast<double*>(factors->mutable_data_ptr()));
    else
      find_shares(p, bags, static_cast<float*>(factors->mutable_data_ptr()));
  }
  p.factors = factors ? factors->const_data_ptr() : nullptr;
  p.grad_output = g.const_data_ptr();
  p.grad_weight = grad_weight.mutable_data_ptr();
  p.scratch = bag_of + p.count;
  PYDL_CPU_CALL(embedding_backward)(p, torch_threads());
  return grad_weight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("embedding_bag_backward", TORCH_BOX(&embedding_bag_backward));
}

}  // namespace pydl
