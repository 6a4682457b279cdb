// Batch normalisation on the CPU: the entry points. See kernels/batch_norm.h for the formulas,
// batch_norm_rows.cpp for NCHW and batch_norm_columns.cpp for channels_last and small planes of NCHW.
#include "kernels/cpu/norm/batch_norm.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// norm/NOTES.md: 10x10 gains a seventh and 12x12 loses one; with AVX2 7x7 gains and 10x10 loses
constexpr int64_t kMaxPlane = kVectorBytes == 64 ? 100 : 49;
constexpr int64_t kLeastImages = 4;  // what is done once for a column outweighs fewer

bool is_small_planes(const BatchNormParams& p) {
  auto is_dense = [&](const BatchNormView& view) { return !view.data || view.channel_stride == p.spatial; };
  return !p.pooled_width && p.spatial <= kMaxPlane && p.batch >= kLeastImages && !batch_norm_cuts_images(p) &&
         is_dense(p.input) && is_dense(p.residual) && is_dense(p.output) && is_dense(p.grad_output) &&
         is_dense(p.grad_input) && is_dense(p.grad_residual);
}

void forward(const BatchNormParams& p, bool stats, bool apply, const Parallel& parallel) {
  if (p.channels_last) return batch_norm_columns_forward(p, stats, apply, parallel);
  if (is_small_planes(p)) return batch_norm_planes_forward(p, stats, apply, parallel);
  batch_norm_rows_forward(p, stats, apply, parallel);
}

void backward(const BatchNormParams& p, bool reduce, bool apply, const Parallel& parallel) {
  if (p.channels_last) return batch_norm_columns_backward(p, reduce, apply, parallel);
  if (is_small_planes(p)) return batch_norm_planes_backward(p, reduce, apply, parallel);
  batch_norm_rows_backward(p, reduce, apply, parallel);
}

}  // namespace

int64_t batch_norm_scratch(const BatchNormParams& p) {
  return p.channels_last ? batch_norm_columns_scratch(p) : batch_norm_rows_scratch(p);
}

void batch_norm_stats(const BatchNormParams& p, const Parallel& parallel) {
  forward(p, true, false, parallel);
}

void batch_norm_apply(const BatchNormParams& p, const Parallel& parallel) {
  forward(p, false, true, parallel);
}

void batch_norm_forward(const BatchNormParams& p, const Parallel& parallel) {
  if (!p.training)
    for (int64_t c = 0; c < p.channels; ++c) {
      p.mean[c] = param_at(p.param_dtype, p.running_mean, c, 0.0);
      p.var[c] = param_at(p.param_dtype, p.running_var, c, 0.0);
    }
  forward(p, p.training, true, parallel);
}

void batch_norm_backward_reduce(const BatchNormParams& p, const Parallel& parallel) {
  backward(p, true, false, parallel);
}

void batch_norm_backward_apply(const BatchNormParams& p, const Parallel& parallel) {
  backward(p, false, true, parallel);
}

void batch_norm_backward(const BatchNormParams& p, const Parallel& parallel) {
  const bool reduce = p.grad_weight || p.grad_bias || (p.training && p.grad_input.data);
  backward(p, reduce, p.grad_input.data || p.grad_residual.data, parallel);
}

}  // namespace pydl::cpu::PYDL_ISA
