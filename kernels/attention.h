// Scaled dot-product attention (Vaswani et al., "Attention Is All You Need", NeurIPS 2017; d2l chapter "Attention
// Mechanisms and Transformers"), of each sample and each head:
//
//   score[i][j]   = scale * sum_c query[i][c] * key[j][c]  (+ mask[i][j], or -inf where the mask is false)
//   weight[i][j]  = exp(score[i][j] - lse[i])              of the keys that row i sees, 0 of the others
//   dropped       = dropout(weight)                        of the whole tensor (batch, heads, queries, keys)
//   output[i][c]  = sum_j dropped[i][j] * value[j][c]
//
// Row i sees the first lengths[i] keys, and of those the first i + 1 where `causal`. A row that sees none, or whose scores
// are all -inf, gives zeros, and its lse is +inf, which makes its weights 0 in the backward too.
//
// Neither scores nor weights are stored: the backward makes them again from lse. So does attention_backward_mask, the
// gradient of an additive mask: those of the scores (kernels/cpu/attention/NOTES.md), summed over what the mask broadcasts.
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

// (batch, heads, rows, columns) of any strides, in elements.
struct Heads {
  void* data;
  int64_t batch, head, row, column;
};

enum class AttentionMask : int32_t { none, boolean, additive, additive_f32 };

struct AttentionParams {
  DType dtype;  // not f16, which arrives as f32
  int64_t batch, heads, key_heads, queries, keys, width, value_width;
  Heads query, key,
      value;     // key and value: of key_heads heads, each for heads / key_heads neighbours of query
  Heads output;  // columns side by side
  Heads grad_output;
  // Columns side by side, or of keys their rows; null: not wanted.
  Heads grad_query, grad_key, grad_value;
  void* lse;  // (batch, heads, queries), contiguous; float, double for f64
  AttentionMask masked;
  Heads mask;       // strides of 0 where it broadcasts; bool, the dtype, or float
  Heads grad_mask;  // accumulate type, laid out like mask and 0 on entry: attention_backward_mask alone
  const int64_t* lengths;              // null: all keys
  int64_t lengths_batch, lengths_row;  // strides
  bool causal;
  double scale;
  uint64_t seed, threshold;  // of dropout: round(p * 2^32), and 0 where nothing is dropped
  double keep_scale;         // 1 / (1 - p), and 0 where all is dropped
  void* scratch;             // AttentionPlan::scratch bytes, 64-byte aligned
};

// How a pass is cut: a task is a part of the rows of queries, or of the keys, of one sample's key head.
struct AttentionPlan {
  int64_t query_parts, key_parts;
  int64_t span;  // keys of a task at most
  int64_t workers, worker_bytes, scratch;
};

namespace cpu {
PYDL_CPU_ENTRY(AttentionPlan attention_forward_plan(const AttentionParams& params, int64_t threads))
PYDL_CPU_ENTRY(AttentionPlan attention_backward_plan(const AttentionParams& params, int64_t threads))
PYDL_CPU_ENTRY(AttentionPlan attention_backward_mask_plan(const AttentionParams& params, int64_t threads))
PYDL_CPU_ENTRY(void attention_forward(const AttentionPlan& plan, const AttentionParams& params,
                                      const Parallel& parallel))
PYDL_CPU_ENTRY(void attention_backward(const AttentionPlan& plan, const AttentionParams& params,
                                       const Parallel& parallel))
PYDL_CPU_ENTRY(void attention_backward_mask(const AttentionPlan& plan, const AttentionParams& params,
                                            const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
