// pydl::softmax_cross_entropy_forward, _backward and _backward_target. See kernels/softmax_cross_entropy.h.
#include "kernels/softmax_cross_entropy.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "csrc/cuda.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

using MaybeTensor = std::optional<Tensor>;
using Params = SoftmaxCrossEntropyParams;

// Scratch of small calls lies on the stack: an allocation would be a tenth of a (256, 10) forward.
struct Scratch {
  static constexpr int64_t small_bytes = 8192;
  alignas(64) char small[small_bytes];
  std::optional<Tensor> large;

  void* get(const Tensor& like, int64_t bytes) {
    if (bytes <= small_bytes) return small;
    large = empty(like, ScalarType::Byte, {bytes + 64});
    const uintptr_t at = reinterpret_cast<uintptr_t>(large->mutable_data_ptr());
    return reinterpret_cast<void*>((at + 63) / 64 * 64);
  }
};

// The same on the GPU. The allocator hands it out again to this stream only, so it may go while kernels are
// queued.
Tensor cuda_scratch(const Tensor& like, Params& p) {
  Tensor scratch = empty(like, ScalarType::Byte, {cuda_library->softmax_cross_entropy_scratch(p)});
  p.scratch = scratch.mutable_data_ptr();
  return scratch;
}

bool is_probability_type(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

// Shapes and types, with the exceptions that torch raises. Returns whether targets are probabilities.
bool check(const Tensor& input, const Tensor& target, const MaybeTensor& weight, double label_smoothing) {
  const int64_t dim = input.dim();
  PYDL_CHECK_INDEX(dim > 0, "cross_entropy: expected input to be of 1 or more dimensions, got 0");
  const int64_t class_dim = dim == 1 ? 0 : 1, classes = input.size(class_dim);
  PYDL_CHECK(!(label_smoothing > 1.0), "cross_entropy: expected label_smoothing to be in [0, 1], got ",
             label_smoothing);
  auto same_shape = [&] {
    if (target.dim() != dim) return false;
    for (int64_t d = 0; d < dim; ++d)
      if (target.size(d) != input.size(d)) return false;
    return true;
  };
  const bool probabilities = same_shape();
  if (probabilities) {
    PYDL_CHECK(is_probability_type(target.scalar_type()),
               "cross_entropy: expected target of input's shape to be class probabilities of a floating "
               "point dtype, got ",
               dtype_name(target.scalar_type()));
  } else if (dim == 1) {
    PYDL_CHECK(target.dim() <= 1, "cross_entropy: expected target to be of 0 or 1 dimensions, got shape ",
               shape_of(target));
    PYDL_CHECK_VALUE(target.numel() == 1, "cross_entropy: expected target to be one class index, got shape ",
                     shape_of(target));
  } else {
    auto expected = [&] {
      std::string text = "(" + std::to_string(input.size(0));
      for (int64_t d = 2; d < dim; ++d) text += ", " + std::to_string(input.size(d));
      return text + ")";
    };
    const bool batches = target.dim() > 0 && target.size(0) == input.size(0);
    PYDL_CHECK_VALUE(batches, "cross_entropy: expected target to be of shape ", expected(), " or ",
                     shape_of(input), ", got ", shape_of(target));
    bool same = target.dim() == dim - 1;
    for (int64_t d = 1; same && d < dim - 1; ++d) same = target.size(d) == input.size(d + 1);
    PYDL_CHECK(same, "cross_entropy: expected target to be of shape ", expected(), " or ", shape_of(input),
               ", got ", shape_of(target));
  }
  PYDL_CHECK(same_device(target, input),
             "cross_entropy: expected target to be on the device of input, got another");
  if (!probabilities)
    PYDL_CHECK(target.scalar_type() == ScalarType::Long,
               "cross_entropy: expected target dtype to be int64 or uint8, got ",
               dtype_name(target.scalar_type()));
  if (weight) {
    PYDL_CHECK(same_device(*weight, input),
               "cross_entropy: expected weight to be on the device of input, got another");
    PYDL_CHECK(weight->dim() == 1 && weight->size(0) == classes,
               "cross_entropy: expected weight to be of shape (", classes, "), one for each class, got ",
               shape_of(*weight));
    PYDL_CHECK(weight->scalar_type() == accumulate_type(input.scalar_type()) && weight->is_contiguous(),
               "cross_entropy: expected weight to be contiguous, of the dtype that sums are kept in, got ",
               dtype_name(weight->scalar_type()));
  }
  return probabilities;
}

Reduction reduction_of(int64_t reduction) {
  PYDL_CHECK_VALUE(reduction >= 0 && reduction <= 2,
                   "cross_entropy: expected reduction to be 0, 1 or 2, got ", reduction);
  return static_cast<Reduction>(reduction);
}

// Sizes of the output without reduction: the input's without the classes.
std::vector<int64_t> row_sizes(const Tensor& input) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < input.dim(); ++d)
    if (d != (input.dim() == 1 ? 0 : 1)) sizes.push_back(input.size(d));
  return sizes;
}

// What every entry point fills in the same way. grad is grad_input or grad_target, grad_output may be null.
Params params_of(const Tensor& input, const Tensor& target, const MaybeTensor& weight, const Tensor* grad,
                 const Tensor* grad_output, int64_t reduction, int64_t ignore_index, double label_smoothing,
                 double z_loss) {
  Params p{};
  p.dtype = dtype_of("cross_entropy", input);
  p.probabilities = check(input, target, weight, label_smoothing);
  p.target_dtype = p.dtype;
  if (p.probabilities) {
    p.target_dtype = dtype_of("cross_entropy", target);
    PYDL_CHECK(
        p.target_dtype == p.dtype || (p.target_dtype == DType::f32 && p.dtype != DType::f64),
        "cross_entropy: expected probabilities to be of input's dtype, or float32 for half types, got ",
        dtype_name(target.scalar_type()));
  }
  p.reduction = reduction_of(reduction);
  p.ignore_index = ignore_index;
  p.label_smoothing = label_smoothing > 0 ? label_smoothing : 0;
  p.z_loss = z_loss;
  p.input = input.const_data_ptr();
  p.target = target.const_data_ptr();
  p.weight = weight ? weight->const_data_ptr() : nullptr;

  const int64_t dim = input.dim(), class_dim = dim == 1 ? 0 : 1;
  p.classes = input.size(class_dim);
  p.input_class_stride = input.stride(class_dim);
  p.target_class_stride = p.probabilities ? target.stride(class_dim) : 0;
  p.grad_class_stride = grad ? grad->stride(class_dim) : 0;
  if (p.classes == 1) {  // any stride will do: take the one of the fast layout
    p.input_class_stride = p.target_class_stride = p.grad_class_stride = 1;
  }

  struct Dim {
    int64_t size, row, input, target, grad, grad_output;
  };
  constexpr int64_t kMost = 64;
  PYDL_CHECK(dim <= kMost, "cross_entropy: expected input to be of at most ", kMost, " dimensions, got ",
             dim);
  Dim dims[kMost];
  int count = 0;
  int64_t row_stride = 1;
  p.rows = 1;
  for (int64_t d = dim - 1; d >= 0; --d) {
    if (d == class_dim) continue;
    const int64_t size = input.size(d), row_dim = d == 0 ? 0 : d - 1;
    p.rows *= size;
    if (size != 1)
      dims[count++] = {size,
                       row_stride,
                       input.stride(d),
                       target.stride(p.probabilities ? d : row_dim),
                       grad ? grad->stride(d) : 0,
                       grad_output && p.reduction == Reduction::none ? grad_output->stride(row_dim) : 0};
    row_stride *= size;
  }
  // Outermost first; neighbours in memory become neighbours here, so that one dimension can go across the
  // lanes.
  std::reverse(dims, dims + count);
  std::stable_sort(dims, dims + count, [](const Dim& a, const Dim& b) { return a.input > b.input; });
  for (int i = 0; i < count; ++i) {
    const Dim& d = dims[i];
    const int last = p.dims - 1;
    const bool merges =
        last >= 0 && p.row_stride[last] == d.size * d.row && p.input_stride[last] == d.size * d.input &&
        p.target_stride[last] == d.size * d.target && p.grad_stride[last] == d.size * d.grad &&
        p.grad_output_stride[last] == d.size * d.grad_output;
    const int at = merges ? last : p.dims++;
    PYDL_CHECK(at < Params::max_dims, "cross_entropy: expected input to have at most ", Params::max_dims,
               " dimensions that do not merge, got shape ", shape_of(input));
    p.size[at] = merges ? p.size[at] * d.size : d.size;
    p.row_stride[at] = d.row;
    p.input_stride[at] = d.input;
    p.target_stride[at] = d.target;
    p.grad_stride[at] = d.grad;
    p.grad_output_stride[at] = d.grad_output;
  }
  if (p.dims == 0) {
    p.dims = 1;
    p.size[0] = 1;
    p.row_stride[0] = p.input_stride[0] = p.target_stride[0] = p.grad_stride[0] = 1;
  }
  return p;
}

using Outputs = std::tuple<Tensor, Tensor, Tensor>;
using OutputsAndGradient = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// grad_input: null, or where to leave the gradient for an upstream gradient of 1.
Outputs run_forward(const Tensor& input, const Tensor& target, const MaybeTensor& weight, int64_t reduction,
                    int64_t ignore_index, double label_smoothing, double z_loss, bool float_output,
                    const Tensor* grad_input) {
  const Verbose line(grad_input ? "softmax_cross_entropy_forward_backward" : "softmax_cross_entropy_forward",
                     input);
  Params p =
      params_of(input, target, weight, grad_input, nullptr, reduction, ignore_index, label_smoothing, z_loss);
  const ScalarType type = float_output ? accumulate_type(input.scalar_type()) : input.scalar_type();
  p.output_dtype = float_output && p.dtype != DType::f64 ? DType::f32 : p.dtype;
  std::vector<int64_t> sizes = row_sizes(input);
  Tensor output = empty(input, type, p.reduction == Reduction::none ? sizes : std::vector<int64_t>{});
  sizes.insert(sizes.begin(), 2);
  Tensor norm = empty(input, accumulate_type(input.scalar_type()), sizes);
  Tensor denominator = empty(input, ScalarType::Double, {});
  p.output = output.mutable_data_ptr();
  p.norm = norm.mutable_data_ptr();
  p.denominator = static_cast<double*>(denominator.mutable_data_ptr());
  p.grad_input = grad_input ? grad_input->mutable_data_ptr() : nullptr;
  if (const CudaCall cuda{"cross_entropy",
                          input}) {  // an index out of range makes its row nan: nobody waits for it
    const Tensor scratch = cuda_scratch(input, p);
    cuda.run(cuda->softmax_cross_entropy_forward, p);
    if (grad_input) cuda.run(cuda->softmax_cross_entropy_backward, p);
    return {output, norm, denominator};
  }
  const Parallel threads = torch_threads();
  Scratch scratch;
  p.scratch = scratch.get(input, PYDL_CPU_CALL(softmax_cross_entropy_scratch)(p, threads.threads));
  const SoftmaxCrossEntropyStatus status = PYDL_CPU_CALL(softmax_cross_entropy_forward)(p, threads);
  PYDL_CHECK_INDEX(status.ok, "cross_entropy: expected target to be in [0, ", p.classes,
                   ") or ignore_index (", ignore_index, "), got ", status.bad_target);
  return {output, norm, denominator};
}

// -> output, norm (2, *rows: max and log_sum of each row), denominator (float64, one element; what mean
// divides by). float_output: the loss of half inputs in float32, as under autocast.
Outputs forward(const Tensor& input, const Tensor& target, const MaybeTensor& weight, int64_t reduction,
                int64_t ignore_index, double label_smoothing, double z_loss, bool float_output) {
  return run_forward(input, target, weight, reduction, ignore_index, label_smoothing, z_loss, float_output,
                     nullptr);
}

OutputsAndGradient forward_backward(const Tensor& input, const Tensor& target, const MaybeTensor& weight,
                                    int64_t reduction, int64_t ignore_index, double label_smoothing,
                                    double z_loss, bool float_output) {
  PYDL_CHECK_VALUE(reduction_of(reduction) != Reduction::none,
                   "cross_entropy: expected reduction to be mean or sum, got none");
  Tensor grad_input = empty(input, input.scalar_type(), sizes_of(input));  // row-major, as torch's always is
  auto [output, norm, denominator] = run_forward(input, target, weight, reduction, ignore_index,
                                                 label_smoothing, z_loss, float_output, &grad_input);
  return {output, norm, denominator, grad_input};
}

void check_saved(const Params& p, const Tensor& grad_output, const Tensor& norm, const Tensor& denominator) {
  PYDL_CHECK(grad_output.numel() == (p.reduction == Reduction::none ? p.rows : 1),
             "cross_entropy: expected grad_output to be of the output's shape, got ", shape_of(grad_output));
  PYDL_CHECK(norm.scalar_type() == scalar_type_of(p.dtype == DType::f64 ? DType::f64 : DType::f32) &&
                 norm.numel() == 2 * p.rows && norm.is_contiguous() &&
                 denominator.scalar_type() == ScalarType::Double && denominator.numel() == 1,
             "cross_entropy: expected norm and denominator to be what forward returned, got shapes ",
             shape_of(norm), " and ", shape_of(denominator));
}

void set_saved(Params& p, const Tensor& grad_output, const Tensor& norm, const Tensor& denominator) {
  p.output_dtype = dtype_of("cross_entropy", grad_output);
  check_saved(p, grad_output, norm, denominator);
  p.grad_output = grad_output.const_data_ptr();
  p.norm = const_cast<void*>(norm.const_data_ptr());  // read only in a backward
  p.denominator = static_cast<double*>(const_cast<void*>(denominator.const_data_ptr()));
}

Tensor backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                const MaybeTensor& weight, const Tensor& norm, const Tensor& denominator, int64_t reduction,
                int64_t ignore_index, double label_smoothing, double z_loss) {
  const Verbose line("softmax_cross_entropy_backward", input);
  Tensor grad_input = empty(input, input.scalar_type(), sizes_of(input));
  Params p = params_of(input, target, weight, &grad_input, &grad_output, reduction, ignore_index,
                       label_smoothing, z_loss);
  set_saved(p, grad_output, norm, denominator);
  p.grad_input = grad_input.mutable_data_ptr();
  if (const CudaCall cuda{"cross_entropy", input}) {
    const Tensor scratch = cuda_scratch(input, p);
    cuda.run(cuda->softmax_cross_entropy_backward, p);
    return grad_input;
  }
  const Parallel threads = torch_threads();
  Scratch scratch;
  p.scratch = scratch.get(input, PYDL_CPU_CALL(softmax_cross_entropy_scratch)(p, threads.threads));
  PYDL_CPU_CALL(softmax_cross_entropy_backward)(p, threads);
  return grad_input;
}

// The gradient of class probabilities.
Tensor backward_target(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                       const MaybeTensor& weight, const Tensor& norm, const Tensor& denominator,
                       int64_t reduction, double label_smoothing) {
  const Verbose line("softmax_cross_entropy_backward_target", input);
  Tensor grad_target = empty(target, target.scalar_type(), sizes_of(target));
  Params p = params_of(input, target, weight, &grad_target, &grad_output, reduction, /*ignore_index=*/-100,
                       label_smoothing, 0);
  PYDL_CHECK(p.probabilities, "cross_entropy: expected target to be class probabilities, got shape ",
             shape_of(target));
  set_saved(p, grad_output, norm, denominator);
  p.grad_target = grad_target.mutable_data_ptr();
  if (const CudaCall cuda{"cross_entropy", input})
    cuda.run(cuda->softmax_cross_entropy_backward_target, p);
  else
    PYDL_CPU_CALL(softmax_cross_entropy_backward_target)(p, torch_threads());
  return grad_target;
}

}  // namespace

#define PYDL_REGISTER(m)                                                          \
  m.impl("softmax_cross_entropy_forward", TORCH_BOX(&forward));                   \
  m.impl("softmax_cross_entropy_forward_backward", TORCH_BOX(&forward_backward)); \
  m.impl("softmax_cross_entropy_backward", TORCH_BOX(&backward));                 \
  m.impl("softmax_cross_entropy_backward_target", TORCH_BOX(&backward_target));

// clang-format off: it takes the two for one
STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) { PYDL_REGISTER(m) }
STABLE_TORCH_LIBRARY_IMPL(pydl, CUDA, m) { PYDL_REGISTER(m) }
// clang-format on

}  // namespace pydl
