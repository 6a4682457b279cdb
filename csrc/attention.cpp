// pydl::attention_forward, attention_backward, attention_backward_mask: on the CPU alone
//
// query (N, H, L, E), key (N, Hk, S, E), value (N, Hk, S, Ev), H a multiple of Hk; mask (N or 1, H or 1, L or 1, S or 1);
// lengths (N) or (N, L). layout: how torch lays out the output and the gradients, see Layout.
#include "kernels/attention.h"

#include <cmath>
#include <tuple>

#include "csrc/convert.h"
#include "csrc/scratch.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

using Optional = std::optional<Tensor>;

Heads heads_of(const Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

enum class Layout : int64_t {
  flash,  // torch's flash attention: the output as query, gradients with their heads side by side in memory
  contiguous,      // all of them
  transposed_key,  // the same, but for the gradient of key, whose columns are
};

struct Options {
  const Optional &mask, &lengths, &seed;
  double p;
  bool causal;
  double scale;
};

void check_shapes(const Tensor& query, const Tensor& key, const Tensor& value) {
  PYDL_CHECK(query.dim() == 4 && key.dim() == 4 && value.dim() == 4,
             "scaled_dot_product_attention: expected query, key and value to be 4-D, got shapes ",
             shape_of(query), ", ", shape_of(key), " and ", shape_of(value));
  check_same_dtype("scaled_dot_product_attention", "key", key, "query", query);
  check_same_dtype("scaled_dot_product_attention", "value", value, "query", query);
  const int64_t heads = key.size(1);
  PYDL_CHECK(
      key.size(0) == query.size(0) && key.size(3) == query.size(3) && value.size(0) == query.size(0) &&
          value.size(1) == heads && value.size(2) == key.size(2) &&
          (heads == 0 ? query.size(1) == 0 : query.size(1) % heads == 0),
      "scaled_dot_product_attention: expected query, key and value to be (N, H, L, E), (N, Hk, S, E) and "
      "(N, Hk, S, Ev), H a multiple of Hk, got shapes ",
      shape_of(query), ", ", shape_of(key), " and ", shape_of(value));
}

AttentionParams params_of(const Tensor& query, const Tensor& key, const Tensor& value,
                          const Options& options) {
  AttentionParams p{};
  p.dtype = dtype_of("scaled_dot_product_attention", query);
  p.batch = query.size(0);
  p.heads = query.size(1);
  p.key_heads = key.size(1);
  p.queries = query.size(2);
  p.keys = key.size(2);
  p.width = query.size(3);
  p.value_width = value.size(3);
  p.query = heads_of(query);
  p.key = heads_of(key);
  p.value = heads_of(value);
  p.causal = options.causal;
  p.scale = options.scale;
  if (options.mask) {
    const Tensor& mask = *options.mask;
    const ScalarType type = mask.scalar_type();
    const bool wide = type == ScalarType::Float && type != query.scalar_type() && p.dtype != DType::f64;
    PYDL_CHECK(
        type == ScalarType::Bool || type == query.scalar_type() || wide,
        "scaled_dot_product_attention: expected attn_mask to be bool, float32 or of the dtype of query, got ",
        dtype_name(type));
    p.masked = type == ScalarType::Bool ? AttentionMask::boolean
               : wide                   ? AttentionMask::additive_f32
                                        : AttentionMask::additive;
    const int64_t sizes[4] = {p.batch, p.heads, p.queries, p.keys};
    bool fits = mask.dim() == 4;
    for (int64_t d = 0; fits && d < 4; ++d) fits = mask.size(d) == sizes[d] || mask.size(d) == 1;
    PYDL_CHECK(fits, "scaled_dot_product_attention: expected attn_mask to broadcast to ",
               shape_of(std::vector<int64_t>(sizes, sizes + 4)), ", got ", shape_of(mask));
    const auto stride = [&](int64_t d) { return mask.size(d) == 1 ? 0 : mask.stride(d); };
    p.mask = {const_cast<void*>(mask.const_data_ptr()), stride(0), stride(1), stride(2), stride(3)};
  }
  if (options.lengths) {
    const Tensor& lengths = *options.lengths;
    PYDL_CHECK(lengths.scalar_type() == ScalarType::Long,
               "scaled_dot_product_attention: expected lengths to be int64, got ",
               dtype_name(lengths.scalar_type()));
    const bool rows = lengths.dim() == 2;
    PYDL_CHECK(
        (rows || lengths.dim() == 1) && lengths.size(0) == p.batch && (!rows || lengths.size(1) == p.queries),
        "scaled_dot_product_attention: expected lengths to be of shape (", p.batch, ") or (", p.batch, ", ",
        p.queries, "), got ", shape_of(lengths));
    p.lengths = lengths.const_data_ptr<int64_t>();
    p.lengths_batch = lengths.stride(0);
    p.lengths_row = rows ? lengths.stride(1) : 0;
  }
  p.keep_scale = 1;
  if (options.seed) {
    const Tensor& seed = *options.seed;
    PYDL_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
               "scaled_dot_product_attention: expected seed to be an int64 tensor of one element, got ",
               dtype_name(seed.scalar_type()), " and shape ", shape_of(seed));
    PYDL_CHECK_VALUE(options.p >= 0.0 && options.p <= 1.0,
                     "scaled_dot_product_attention: expected dropout_p to be a probability in [0, 1], got ",
                     options.p);
    p.seed = static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
    p.threshold = static_cast<uint64_t>(std::nearbyint(options.p * 4294967296.0));
    p.keep_scale = options.p == 1.0 ? 0.0 : 1.0 / (1.0 - options.p);
  }
  return p;
}

// (N, L, H, E) in memory, seen as (N, H, L, E).
Tensor empty_heads(const Tensor& like) {
  const int64_t heads = like.size(1), rows = like.size(2), width = like.size(3);
  const int64_t sizes[4] = {like.size(0), heads, rows, width}, row = max_of(heads * width, 1);
  const int64_t strides[4] = {max_of(rows, 1) * row, max_of(width, 1), row, 1};
  return empty_strided(like, like.scalar_type(), {sizes, 4}, {strides, 4});
}

// (N, H, E, L) in memory, seen as (N, H, L, E).
Tensor empty_columns(const Tensor& like) {
  const int64_t heads = like.size(1), rows = like.size(2), width = like.size(3);
  const int64_t sizes[4] = {like.size(0), heads, rows, width}, matrix = max_of(rows, 1) * max_of(width, 1);
  const int64_t strides[4] = {max_of(heads, 1) * matrix, matrix, 1, max_of(rows, 1)};
  return empty_strided(like, like.scalar_type(), {sizes, 4}, {strides, 4});
}

std::tuple<Tensor, Tensor> forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                   const Optional& mask, const Optional& lengths, const Optional& seed,
                                   double dropout_p, bool causal, double scale, int64_t layout) {
  check_shapes(query, key, value);
  if (widens(query)) {
    auto [output, lse] = forward(widened(query), widened(key), widened(value), widened_where_needed(mask),
                                 lengths, seed, dropout_p, causal, scale, layout);
    return {rounded(output, query.scalar_type()), lse};
  }
  AttentionParams p = params_of(query, key, value, {mask, lengths, seed, dropout_p, causal, scale});
  const std::vector<int64_t> sizes{p.batch, p.heads, p.queries, p.value_width};
  const bool like_query = Layout(layout) == Layout::flash;
  PYDL_CHECK(!like_query || p.width == p.value_width,
             "scaled_dot_product_attention: expected value's width to be query's for an output laid out as "
             "query, got ",
             p.value_width, " and ", p.width);
  Tensor output = like_query ? empty_as(query) : empty(query, query.scalar_type(), sizes);
  Tensor lse = empty(query, accumulate_type(query.scalar_type()), {p.batch, p.heads, p.queries});
  if (lse.numel() == 0) return {output, lse};
  if (p.keys == 0) {
    torch::stable::fill_(output, 0);
    torch::stable::fill_(lse, INFINITY);
    return {output, lse};
  }
  const Verbose line("attention_forward", query, &key);
  const bool in_rows = output.stride(3) == 1 || p.value_width <= 1;
  Tensor rows = in_rows ? output : empty(query, query.scalar_type(), sizes);
  p.output = heads_of(rows);
  p.lse = lse.mutable_data_ptr();
  const Parallel threads = torch_threads();
  const AttentionPlan plan = PYDL_CPU_CALL(attention_forward_plan)(p, threads.threads);
  p.scratch = Scratch::of_at_least(plan.scratch);
  PYDL_CPU_CALL(attention_forward)(plan, p, threads);
  if (!in_rows) torch::stable::copy_(output, rows);
  return {output, lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& query, const Tensor& key,
                                            const Tensor& value, const Tensor& output, const Tensor& lse,
                                            const Optional& mask, const Optional& lengths,
                                            const Optional& seed, double dropout_p, bool causal, double scale,
                                            int64_t layout, bool needs_query, bool needs_key,
                                            bool needs_value) {
  check_shapes(query, key, value);
  PYDL_CHECK(sizes_of(grad_output) == sizes_of(output),
             "scaled_dot_product_attention: expected grad_output to be of shape ", shape_of(output), ", got ",
             shape_of(grad_output));
  if (widens(query)) {
    auto [q, k, v] = backward(widened(grad_output), widened(query), widened(key), widened(value),
                              widened(output), lse, widened_where_needed(mask), lengths, seed, dropout_p,
                              causal, scale, layout, needs_query, needs_key, needs_value);
    const ScalarType type = query.scalar_type();
    return {rounded(q, type), rounded(k, type), rounded(v, type)};
  }
  check_same_dtype("scaled_dot_product_attention", "grad_output", grad_output, "query", query);
  const ScalarType type = query.scalar_type();
  const auto gradient = [&](const Tensor& of, bool needed) {
    if (!needed) return empty(of, type, {0});
    return Layout(layout) == Layout::flash ? empty_heads(of) : empty(of, type, sizes_of(of));
  };
  const bool in_columns = needs_key && Layout(layout) == Layout::transposed_key;
  Tensor grad_query = gradient(query, needs_query),
         grad_key = in_columns ? empty_columns(key) : gradient(key, needs_key),
         grad_value = gradient(value, needs_value);
  AttentionParams p = params_of(query, key, value, {mask, lengths, seed, dropout_p, causal, scale});
  if (p.batch * p.heads * p.queries * p.keys == 0) {
    for (Tensor* t : {&grad_query, &grad_key, &grad_value}) torch::stable::fill_(*t, 0);
    return {grad_query, grad_key, grad_value};
  }
  const Verbose line("attention_backward", grad_output, &key);
  const Tensor rows =
      output.stride(3) == 1 || p.value_width <= 1 ? output : torch::stable::contiguous(output);
  p.output = heads_of(rows);
  p.grad_output = heads_of(grad_output);
  p.lse = const_cast<void*>(lse.const_data_ptr());
  if (needs_query) p.grad_query = heads_of(grad_query);
  if (needs_key) p.grad_key = heads_of(grad_key);
  if (needs_value) p.grad_value = heads_of(grad_value);
  const Parallel threads = torch_threads();
  const AttentionPlan plan = PYDL_CPU_CALL(attention_backward_plan)(p, threads.threads);
  p.scratch = Scratch::of_at_least(plan.scratch);
  PYDL_CPU_CALL(attention_backward)(plan, p, threads);
  return {grad_query, grad_key, grad_value};
}

// Contiguous. Summed in the accumulate type, and rounded once.
Tensor backward_mask(const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value,
                     const Tensor& output, const Tensor& lse, const Tensor& mask, const Optional& lengths,
                     const Optional& seed, double dropout_p, bool causal, double scale) {
  check_shapes(query, key, value);
  PYDL_CHECK(sizes_of(grad_output) == sizes_of(output),
             "scaled_dot_product_attention: expected grad_output to be of shape ", shape_of(output), ", got ",
             shape_of(grad_output));
  PYDL_CHECK(mask.scalar_type() != ScalarType::Bool,
             "scaled_dot_product_attention: expected attn_mask to be additive for a gradient, got bool");
  if (widens(query)) {
    const Tensor found =
        backward_mask(widened(grad_output), widened(query), widened(key), widened(value), widened(output),
                      lse, *widened_where_needed(mask), lengths, seed, dropout_p, causal, scale);
    return rounded(found, mask.scalar_type());
  }
  check_same_dtype("scaled_dot_product_attention", "grad_output", grad_output, "query", query);
  AttentionParams p = params_of(query, key, value, {mask, lengths, seed, dropout_p, causal, scale});
  Tensor sums = empty(mask, accumulate_type(query.scalar_type()), sizes_of(mask));
  torch::stable::fill_(sums, 0);
  if (p.batch * p.heads * p.queries * p.keys > 0) {
    const Verbose line("attention_backward_mask", grad_output, &key);
    const Tensor rows =
        output.stride(3) == 1 || p.value_width <= 1 ? output : torch::stable::contiguous(output);
    p.output = heads_of(rows);
    p.grad_output = heads_of(grad_output);
    p.lse = const_cast<void*>(lse.const_data_ptr());
    const auto stride = [&](int64_t d) { return sums.size(d) == 1 ? 0 : sums.stride(d); };
    p.grad_mask = {sums.mutable_data_ptr(), stride(0), stride(1), stride(2), stride(3)};
    const Parallel threads = torch_threads();
    const AttentionPlan plan = PYDL_CPU_CALL(attention_backward_mask_plan)(p, threads.threads);
    p.scratch = Scratch::of_at_least(plan.scratch);
    PYDL_CPU_CALL(attention_backward_mask)(plan, p, threads);
  }
  return sums.scalar_type() == mask.scalar_type() ? sums : converted(sums, mask.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&forward));
  m.impl("attention_backward", TORCH_BOX(&backward));
  m.impl("attention_backward_mask", TORCH_BOX(&backward_mask));
}

}  // namespace pydl
