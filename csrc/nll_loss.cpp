// pydl::nll_loss_forward(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index) -> (Tensor output,
// Tensor total_weight) and nll_loss_backward(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, Tensor
// total_weight, int reduction, int ignore_index) -> Tensor, on the CPU alone
//
// input: (C), (N, C) or (N, C, d1, ..., dk); target: int64, of input's shape without C. total_weight: float64, one number,
// what the mean divides by. Results and gradients are contiguous.
#include "kernels/nll_loss.h"

#include "csrc/convert.h"
#include "csrc/scratch.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

using Optional = std::optional<Tensor>;

// All but pointers.
NllLossParams params_of(const Tensor& input, const Tensor& target, const Optional& weight, int64_t reduction,
                        int64_t ignore_index) {
  check_reduction("nll_loss", reduction);
  PYDL_CHECK(input.dim() >= 1, "nll_loss: expected input to be at least 1-D, got shape ()");
  const int64_t of_classes = input.dim() == 1 ? 0 : 1;
  std::vector<int64_t> sizes = sizes_of(input);
  sizes.erase(sizes.begin() + of_classes);
  check_sizes("nll_loss", "target", target, sizes);
  PYDL_CHECK(target.scalar_type() == ScalarType::Long, "nll_loss: expected target to be int64, got ",
             dtype_name(target.scalar_type()));
  NllLossParams p{};
  p.dtype = dtype_of("nll_loss", input);
  p.classes = input.size(of_classes);
  p.batch = of_classes == 0 ? 1 : input.size(0);
  p.inner = 1;
  for (int64_t d = 2; d < input.dim(); ++d) p.inner *= input.size(d);
  p.ignore_index = ignore_index;
  p.per_position = reduction == 0;
  p.mean = reduction == 1;
  if (weight) {
    check_sizes("nll_loss", "weight", *weight, {p.classes});
    check_same_dtype("nll_loss", "weight", *weight, "input", input);
  }
  return p;
}

Optional without_half(const Optional& t) { return t ? Optional(widened(*t)) : t; }

std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& target, const Optional& weight,
                                   int64_t reduction, int64_t ignore_index) {
  NllLossParams p = params_of(input, target, weight, reduction, ignore_index);
  if (p.dtype == DType::f16) {
    auto [output, total_weight] =
        forward(widened(input), target, without_half(weight), reduction, ignore_index);
    return {rounded(output), total_weight};
  }
  const Verbose line("nll_loss_forward", input);
  const Tensor x = dense(input), t = dense(target);
  const Optional w = dense(weight);
  Tensor output =
      empty(input, input.scalar_type(), p.per_position ? sizes_of(target) : std::vector<int64_t>{});
  Tensor total_weight = empty(input, ScalarType::Double, {});
  p.input = x.const_data_ptr();
  p.target = t.const_data_ptr<int64_t>();
  p.weight = w ? w->const_data_ptr() : nullptr;
  p.output = output.mutable_data_ptr();
  p.total_weight = total_weight.mutable_data_ptr<double>();
  p.sums = static_cast<double*>(Scratch::of_at_least(nll_loss_sums(p) * 8));
  const NllLossStatus status = PYDL_CPU_CALL(nll_loss_forward)(p, torch_threads());
  PYDL_CHECK_INDEX(status.ok, "nll_loss: expected target to be in [0, ", p.classes, ") or ignore_index (",
                   ignore_index, "), got ", status.bad_target);
  return {output, total_weight};
}

Tensor backward(const Tensor& grad_output, const Tensor& input, const Tensor& target, const Optional& weight,
                const Tensor& total_weight, int64_t reduction, int64_t ignore_index) {
  NllLossParams p = params_of(input, target, weight, reduction, ignore_index);
  check_sizes("nll_loss", "grad_output", grad_output,
              p.per_position ? sizes_of(target) : std::vector<int64_t>{});
  check_same_dtype("nll_loss", "grad_output", grad_output, "input", input);
  check_sizes("nll_loss", "total_weight", total_weight, {});
  PYDL_CHECK(total_weight.scalar_type() == ScalarType::Double,
             "nll_loss: expected total_weight to be float64, got ", dtype_name(total_weight.scalar_type()));
  if (p.dtype == DType::f16)
    return rounded(backward(widened(grad_output), widened(input), target, without_half(weight), total_weight,
                            reduction, ignore_index));
  Tensor grad_input = empty(input, input.scalar_type(), sizes_of(input));
  if (grad_input.numel() == 0) return grad_input;
  const Verbose line("nll_loss_backward", input);
  const Tensor g = dense(grad_output), t = dense(target);
  const Optional w = dense(weight);
  p.grad_output = g.const_data_ptr();
  p.target = t.const_data_ptr<int64_t>();
  p.weight = w ? w->const_data_ptr() : nullptr;
  p.total_weight = const_cast<double*>(total_weight.const_data_ptr<double>());  // read only in a backward
  p.output = grad_input.mutable_data_ptr();
  PYDL_CPU_CALL(nll_loss_backward)(p, torch_threads());
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("nll_loss_forward", TORCH_BOX(&forward));
  m.impl("nll_loss_backward", TORCH_BOX(&backward));
}

}  // namespace pydl
