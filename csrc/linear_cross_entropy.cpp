// pydl::linear_cross_entropy_forward, _forward_backward and _backward: on the CPU alone. See
// kernels/linear_cross_entropy.h.
//
// Half types by way of float32, but for bfloat16 on a CPU that multiplies it: logits and sums never are of half precision.
// The gradients that the forward makes stay in float32, so that whoever scales them rounds last.
#include "kernels/linear_cross_entropy.h"

#include <tuple>

#include "csrc/convert.h"
#include "csrc/scratch.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

using MaybeTensor = std::optional<Tensor>;
using Params = LinearCrossEntropyParams;
constexpr const char* kOp = "linear_cross_entropy";

// The options of a call, as Python hands them over.
struct Options {
  int64_t reduction, ignore_index;
  double label_smoothing, z_loss;
};

void check(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
           const MaybeTensor& linear_bias, const MaybeTensor& weight, const Options& options) {
  PYDL_CHECK(input.dim() == 1 || input.dim() == 2, kOp,
             ": expected input to be of 1 or 2 dimensions, got shape ", shape_of(input));
  PYDL_CHECK(linear_weight.dim() == 2, kOp, ": expected linear_weight to be 2-D, got shape ",
             shape_of(linear_weight));
  const int64_t classes = linear_weight.size(0), features = linear_weight.size(1);
  PYDL_CHECK(input.size(input.dim() - 1) == features, kOp, ": expected input's last dimension to be ",
             features, " (linear_weight of shape ", shape_of(linear_weight), "), got shape ",
             shape_of(input));
  check_same_dtype(kOp, "linear_weight", linear_weight, "input", input);
  if (linear_bias) {
    check_same_dtype(kOp, "linear_bias", *linear_bias, "input", input);
    PYDL_CHECK(linear_bias->dim() == 1 && linear_bias->size(0) == classes, kOp,
               ": expected linear_bias to be of shape (", classes, "), got ", shape_of(*linear_bias));
  }
  if (input.dim() == 1) {
    PYDL_CHECK(target.dim() <= 1, kOp, ": expected target to be of 0 or 1 dimensions, got shape ",
               shape_of(target));
    PYDL_CHECK_VALUE(target.numel() == 1, kOp, ": expected target to be one class index, got shape ",
                     shape_of(target));
  } else {
    PYDL_CHECK_VALUE(target.dim() > 0 && target.size(0) == input.size(0), kOp,
                     ": expected target to be of shape (", input.size(0), "), got ", shape_of(target));
    PYDL_CHECK(target.dim() == 1, kOp, ": expected target to be of shape (", input.size(0), "), got ",
               shape_of(target));
  }
  PYDL_CHECK(target.scalar_type() == ScalarType::Long, kOp,
             ": expected target dtype to be int64 or uint8, got ", dtype_name(target.scalar_type()));
  if (weight) {
    PYDL_CHECK(weight->dim() == 1 && weight->size(0) == classes, kOp, ": expected weight to be of shape (",
               classes, "), one for each class, got ", shape_of(*weight));
    PYDL_CHECK(weight->scalar_type() == accumulate_type(input.scalar_type()) && weight->is_contiguous(), kOp,
               ": expected weight to be contiguous, of the dtype that sums are kept in, got ",
               dtype_name(weight->scalar_type()));
  }
  PYDL_CHECK(!(options.label_smoothing > 1.0), kOp, ": expected label_smoothing to be in [0, 1], got ",
             options.label_smoothing);
  PYDL_CHECK_VALUE(options.reduction >= 0 && options.reduction <= 2, kOp,
                   ": expected reduction to be 0, 1 or 2, got ", options.reduction);
}

// The tensors of a call in a dtype that the kernels take; they live as long as the params that point to them.
struct Operands {
  Tensor input, linear_weight, target;
  MaybeTensor linear_bias, weight;

  static Tensor wide(const Tensor& t) {
    const ScalarType type = t.scalar_type();
    const bool widens = type == ScalarType::Half ||
                        (type == ScalarType::BFloat16 && !PYDL_CPU_CALL(linear_cross_entropy_takes_bf16)());
    return widens ? widened(t) : t;
  }
  Operands(const Tensor& x, const Tensor& w, const Tensor& t, const MaybeTensor& b,
           const MaybeTensor& classes)
      : input(wide(x)), linear_weight(wide(w)), target(t), weight(classes) {
    if (b) linear_bias = torch::stable::contiguous(wide(*b));
  }

  Params params(const Options& options) const {
    Params p{};
    p.dtype = dtype_of(kOp, input);
    p.reduction = static_cast<Reduction>(options.reduction);
    p.ignore_index = options.ignore_index;
    p.label_smoothing = options.label_smoothing > 0 ? options.label_smoothing : 0;
    p.z_loss = options.z_loss;
    p.classes = linear_weight.size(0);
    p.features = linear_weight.size(1);
    p.rows = input.dim() == 1 ? 1 : input.size(0);
    p.input = {const_cast<void*>(input.const_data_ptr()), input.dim() == 1 ? 0 : input.stride(0),
               input.stride(input.dim() - 1)};
    p.linear_weight = {const_cast<void*>(linear_weight.const_data_ptr()), linear_weight.stride(0),
                       linear_weight.stride(1)};
    p.linear_bias = linear_bias ? linear_bias->const_data_ptr() : nullptr;
    p.target = static_cast<const int64_t*>(target.const_data_ptr());
    p.target_stride = target.dim() == 0 ? 0 : target.stride(0);
    p.weight = weight ? weight->const_data_ptr() : nullptr;
    return p;
  }
};

// The gradients that are wanted, in the dtype of the sums; empty ones in place of the others.
struct Gradients {
  Tensor input, weight, bias;

  Gradients(Params& p, const Operands& of, bool needs_input, bool needs_weight, bool needs_bias)
      : input(make(of, needs_input, sizes_of(of.input), p.grad_input)),
        weight(make(of, needs_weight, sizes_of(of.linear_weight), p.grad_weight)),
        bias(make(of, needs_bias, {p.classes}, p.grad_bias)) {}

 private:
  static Tensor make(const Operands& of, bool needed, const std::vector<int64_t>& sizes, void*& data) {
    Tensor t =
        empty(of.input, accumulate_type(of.input.scalar_type()), needed ? sizes : std::vector<int64_t>{0});
    data = needed ? t.mutable_data_ptr() : nullptr;
    return t;
  }
};

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using OutputsAndGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// p: with the gradients to make, if any. input: as the caller has it, before half types became float32.
Outputs run_forward(Params& p, const Tensor& input, const Options& options, bool float_output,
                    bool counts_correct) {
  const ScalarType sums = accumulate_type(input.scalar_type());
  const bool each = p.reduction == Reduction::none && input.dim() == 2;
  Tensor output = empty(input, float_output ? sums : input.scalar_type(),
                        each ? std::vector<int64_t>{p.rows} : std::vector<int64_t>{});
  Tensor norm = empty(input, sums, {2 * p.rows});
  Tensor denominator = empty(input, ScalarType::Double, {});
  Tensor correct =
      empty(input, ScalarType::Long, counts_correct ? std::vector<int64_t>{} : std::vector<int64_t>{0});
  p.output_dtype = dtype_of(kOp, output);
  p.output = output.mutable_data_ptr();
  p.norm = norm.mutable_data_ptr();
  p.denominator = static_cast<double*>(denominator.mutable_data_ptr());
  p.correct = counts_correct ? static_cast<int64_t*>(correct.mutable_data_ptr()) : nullptr;
  const Parallel threads = torch_threads();
  p.scratch = Scratch::of_at_least(PYDL_CPU_CALL(linear_cross_entropy_scratch)(p, threads.threads));
  const SoftmaxCrossEntropyStatus status = PYDL_CPU_CALL(linear_cross_entropy_forward)(p, threads);
  PYDL_CHECK_INDEX(status.ok, kOp, ": expected target to be in [0, ", p.classes, ") or ignore_index (",
                   options.ignore_index, "), got ", status.bad_target);
  return {output, norm, denominator, correct};
}

// -> output, norm (2 rows), denominator (float64, one element), correct (one int64, or none)
Outputs forward(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                const MaybeTensor& linear_bias, const MaybeTensor& weight, int64_t reduction,
                int64_t ignore_index, double label_smoothing, double z_loss, bool float_output,
                bool counts_correct) {
  const Options options{reduction, ignore_index, label_smoothing, z_loss};
  check(input, linear_weight, target, linear_bias, weight, options);
  const Verbose line("linear_cross_entropy_forward", input, &linear_weight);
  const Operands operands(input, linear_weight, target, linear_bias, weight);
  Params p = operands.params(options);
  return run_forward(p, input, options, float_output, counts_correct);
}

OutputsAndGradients forward_backward(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                                     const MaybeTensor& linear_bias, const MaybeTensor& weight,
                                     int64_t reduction, int64_t ignore_index, double label_smoothing,
                                     double z_loss, bool float_output, bool counts_correct, bool needs_input,
                                     bool needs_weight, bool needs_bias) {
  const Options options{reduction, ignore_index, label_smoothing, z_loss};
  check(input, linear_weight, target, linear_bias, weight, options);
  PYDL_CHECK_VALUE(reduction != 0, kOp, ": expected reduction to be mean or sum, got none");
  const Verbose line("linear_cross_entropy_forward_backward", input, &linear_weight);
  const Operands operands(input, linear_weight, target, linear_bias, weight);
  Params p = operands.params(options);
  const Gradients made(p, operands, needs_input, needs_weight, needs_bias);
  auto [output, norm, denominator, correct] = run_forward(p, input, options, float_output, counts_correct);
  return {output, norm, denominator, correct, made.input, made.weight, made.bias};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input,
                                            const Tensor& linear_weight, const Tensor& target,
                                            const MaybeTensor& linear_bias, const MaybeTensor& weight,
                                            const Tensor& norm, const Tensor& denominator, int64_t reduction,
                                            int64_t ignore_index, double label_smoothing, double z_loss,
                                            bool needs_input, bool needs_weight, bool needs_bias) {
  const Options options{reduction, ignore_index, label_smoothing, z_loss};
  check(input, linear_weight, target, linear_bias, weight, options);
  const Verbose line("linear_cross_entropy_backward", input, &linear_weight);
  const Operands operands(input, linear_weight, target, linear_bias, weight);
  Params p = operands.params(options);
  const Gradients made(p, operands, needs_input, needs_weight, needs_bias);
  PYDL_CHECK(grad_output.numel() == (p.reduction == Reduction::none ? p.rows : 1), kOp,
             ": expected grad_output to be of the output's shape, got ", shape_of(grad_output));
  PYDL_CHECK(norm.scalar_type() == accumulate_type(input.scalar_type()) && norm.numel() == 2 * p.rows &&
                 norm.is_contiguous() && denominator.scalar_type() == ScalarType::Double &&
                 denominator.numel() == 1,
             kOp, ": expected norm and denominator to be what forward returned, got shapes ", shape_of(norm),
             " and ", shape_of(denominator));
  p.output_dtype = dtype_of(kOp, grad_output);
  p.grad_output = grad_output.const_data_ptr();
  p.grad_output_stride = grad_output.dim() == 0 ? 0 : grad_output.stride(0);
  p.norm = const_cast<void*>(norm.const_data_ptr());  // read only in a backward
  p.denominator = static_cast<double*>(const_cast<void*>(denominator.const_data_ptr()));
  const Parallel threads = torch_threads();
  p.scratch = Scratch::of_at_least(PYDL_CPU_CALL(linear_cross_entropy_scratch)(p, threads.threads));
  PYDL_CPU_CALL(linear_cross_entropy_backward)(p, threads);
  const auto rounded_as_input = [&](const Tensor& t) {
    return t.scalar_type() == input.scalar_type() ? t : converted(t, input.scalar_type());
  };
  return {rounded_as_input(made.input), rounded_as_input(made.weight), rounded_as_input(made.bias)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("linear_cross_entropy_forward", TORCH_BOX(&forward));
  m.impl("linear_cross_entropy_forward_backward", TORCH_BOX(&forward_backward));
  m.impl("linear_cross_entropy_backward", TORCH_BOX(&backward));
}

}  // namespace pydl
