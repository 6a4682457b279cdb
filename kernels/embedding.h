// The gradient of a table of vectors of which rows were looked up (d2l "Word Embedding"), one by one or in bags that
// are summed up.
//
//   grad_weight[r] = sum of factor[i] * grad_output[bag[i]] over the i with ids[i] = r, in their order; over their number
//                    if scaled
//
// and 0 for the row padding_idx. Sums are kept in float32 (float64 for float64) and rounded once.
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

struct EmbeddingParams {
  DType dtype;  // not f16, which arrives as f32
  int64_t rows, width, count;
  int64_t padding_idx;      // -1: none
  bool scaled;              // by how often the row was looked up
  const int64_t* ids;       // count, each in [0, rows)
  const int64_t* bags;      // count: the row of grad_output of each; null: one each
  const void* factors;      // count, float32 (float64 for float64); null: 1
  const void* grad_output;  // (count, or as many as there are bags; width)
  void* grad_weight;        // (rows, width)
  int64_t* scratch;         // rows + count
};

namespace cpu {
PYDL_CPU_ENTRY(void embedding_backward(const EmbeddingParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
