// pydl::conv2d_forward, conv2d_backward_input, conv2d_backward_weight, conv2d_backward_bias, conv2d_backward_parameters
//
// stride, dilation: (y, x). padding: (top, bottom, left, right), so that "same" with an even kernel can be
// said. channels_last: the memory format of the result, which Python decides once for the kernel and for
// tracing.
#include "kernels/conv2d.h"

#include "csrc/conv2d_call.h"
#include "csrc/convert.h"
#include "csrc/cuda.h"
#include "csrc/elementwise_call.h"
#include "csrc/plans.h"
#include "csrc/scratch.h"
#include "csrc/selection.h"
#include "csrc/verbose.h"
#include "kernels/machine.h"
#include "kernels/matmul.h"

namespace pydl {
namespace {

using Sizes = std::vector<int64_t>;

struct Options {
  const Sizes &stride, &padding, &dilation;
  int64_t groups;
};

// Checks sizes and options, and fills in everything but pointers, strides and dtype.
Conv2dParams geometry(const Sizes& input, const Sizes& weight, const Options& o) {
  PYDL_CHECK(o.stride.size() == 2 && o.padding.size() == 4 && o.dilation.size() == 2,
             "conv2d: expected stride, padding and dilation to be 2, 4 and 2 numbers, got ",
             shape_of(o.stride), ", ", shape_of(o.padding), ", ", shape_of(o.dilation));
  PYDL_CHECK(input.size() == 4, "conv2d: expected input to be 3-D (unbatched) or 4-D (batched), got shape ",
             shape_of(input));
  PYDL_CHECK(weight.size() == 4, "conv2d: expected weight to be 4-D, got shape ", shape_of(weight));
  PYDL_CHECK(o.stride[0] > 0 && o.stride[1] > 0, "conv2d: expected stride to be positive, got ",
             shape_of(o.stride));
  PYDL_CHECK(o.padding[0] >= 0 && o.padding[1] >= 0 && o.padding[2] >= 0 && o.padding[3] >= 0,
             "conv2d: expected padding to be at least 0, got ", shape_of(o.padding));
  PYDL_CHECK(o.dilation[0] > 0 && o.dilation[1] > 0, "conv2d: expected dilation to be positive, got ",
             shape_of(o.dilation));
  PYDL_CHECK(o.groups > 0, "conv2d: expected groups to be positive, got ", o.groups);
  PYDL_CHECK(weight[0] > 0 && weight[2] > 0 && weight[3] > 0,
             "conv2d: expected weight to be without empty dimensions, got shape ", shape_of(weight));
  PYDL_CHECK(weight[0] % o.groups == 0, "conv2d: expected out_channels to be divisible by groups (", o.groups,
             "), got ", weight[0]);
  PYDL_CHECK(input[1] == weight[1] * o.groups, "conv2d: expected input to be of ", weight[1] * o.groups,
             " channels (weight of shape ", shape_of(weight), ", ", o.groups, " groups), got ", input[1]);
  Conv2dParams p{};
  p.batch = input[0];
  p.groups = o.groups;
  p.in_channels = input[1];
  p.in_height = input[2];
  p.in_width = input[3];
  p.out_channels = weight[0];
  p.kernel_height = weight[2];
  p.kernel_width = weight[3];
  p.stride_height = o.stride[0];
  p.stride_width = o.stride[1];
  p.pad_top = o.padding[0];
  p.pad_left = o.padding[2];
  p.dilation_height = o.dilation[0];
  p.dilation_width = o.dilation[1];
  const int64_t height = p.in_height + o.padding[0] + o.padding[1],
                width = p.in_width + o.padding[2] + o.padding[3];
  const int64_t reach_y = (p.kernel_height - 1) * p.dilation_height + 1;
  const int64_t reach_x = (p.kernel_width - 1) * p.dilation_width + 1;
  PYDL_CHECK(reach_y <= height && reach_x <= width,
             "conv2d: expected the kernel to be no larger than the padded input (", height, " x ", width,
             "), got ", reach_y, " x ", reach_x);
  PYDL_CHECK(p.batch == 0 || (p.in_height > 0 && p.in_width > 0 && p.in_channels > 0),
             "conv2d: expected input to be empty in its batch alone, got shape ", shape_of(input));
  p.out_height = (height - reach_y) / p.stride_height + 1;
  p.out_width = (width - reach_x) / p.stride_width + 1;
  return p;
}

void take_strides(const Tensor& t, int64_t* strides) {
  for (int64_t d = 0; d < 4; ++d) strides[d] = t.stride(d);
}

Tensor empty_format(const Tensor& like, const Sizes& sizes, bool channels_last) {
  return channels_last ? empty_strided(like, like.scalar_type(), sizes, channels_last_strides(sizes))
                       : empty(like, like.scalar_type(), sizes);
}

void check_same(const char* what, const Tensor& a, const char* as, const Tensor& b) {
  check_same_dtype("conv2d", what, a, as, b);
  PYDL_CHECK(same_device(a, b), "conv2d: expected ", what, " to be on the device of ", as, ", got another");
}

void check_gradient(const Tensor& grad_output, const Conv2dParams& p) {
  PYDL_CHECK(grad_output.dim() == 4 && grad_output.size(0) == p.batch &&
                 grad_output.size(1) == p.out_channels && grad_output.size(2) == p.out_height &&
                 grad_output.size(3) == p.out_width,
             "conv2d: expected grad_output to be of shape ",
             shape_of({p.batch, p.out_channels, p.out_height, p.out_width}), ", got ", shape_of(grad_output));
}

// Tensor cores take a weight whose channels lie side by side: beside channels_last tensors of a half type,
// one that does not is copied, which is small beside what it is multiplied with. On the CPU it is read as it
// is.
Tensor fitting_weight(const Tensor& weight, DType dtype, bool channels_last) {
  const bool half = dtype == DType::bf16 || dtype == DType::f16;
  if (!half || !channels_last || !on_cuda(weight) ||
      has_strides(weight, channels_last_strides(sizes_of(weight))))
    return weight;
  Tensor copy = empty_format(weight, sizes_of(weight), true);
  torch::stable::copy_(copy, weight);
  return copy;
}

bool by_way_of_float(const Tensor& t) { return !on_cuda(t) && t.scalar_type() == ScalarType::Half; }

// The plan of a pass on the CPU, kept by all that it depends on; wanted and exact as in conv2d_plan.
const Conv2dPlan& plan_of(const Conv2dParams& p, Conv2dPass pass, int64_t threads, const char* wanted,
                          bool exact) {
  thread_local Plans<Conv2dPlan, 38> plans;
  decltype(plans)::Key key{};
  size_t n = 0;
  for (int64_t number : {static_cast<int64_t>(cpu::isa_number()),
                         machine().level2,
                         machine().level3,
                         static_cast<int64_t>(pass),
                         threads,
                         static_cast<int64_t>(reinterpret_cast<intptr_t>(wanted)),
                         static_cast<int64_t>(exact),
                         static_cast<int64_t>(p.dtype),
                         static_cast<int64_t>(p.activation),
                         p.batch,
                         p.groups,
                         p.in_channels,
                         p.in_height,
                         p.in_width,
                         p.out_channels,
                         p.out_height,
                         p.out_width,
                         p.kernel_height,
                         p.kernel_width,
                         p.stride_height,
                         p.stride_width,
                         p.pad_top,
                         p.pad_left,
                         p.dilation_height,
                         p.dilation_width})
    key[n++] = number;
  for (const int64_t* strides : {p.input_stride, p.weight_stride, p.output_stride})
    for (int d = 0; d < 4; ++d) key[n++] = strides[d];
  const Conv2dPlan& plan =
      plans.at(key, [&] { return PYDL_CPU_CALL(conv2d_plan)(p, pass, threads, wanted, exact); });
  PYDL_CHECK(plan.algorithm != nullptr,
             "conv2d: expected the algorithm asked for to serve this convolution, got ", wanted,
             ", which does not");
  return plan;
}

// preferred: what is taken where no algorithm is asked for, or null.
const Conv2dPlan& plan_asked_for(const Conv2dParams& p, Conv2dPass pass, int64_t threads,
                                 const char* preferred) {
  const char* wanted = conv2d_selection.wanted[static_cast<int>(pass)].load(std::memory_order_relaxed);
  return plan_of(p, pass, threads, wanted ? wanted : preferred, exact.load(std::memory_order_relaxed));
}

}  // namespace

const char* conv2d_on_cpu(Conv2dParams& p, Conv2dPass pass, const char* preferred) {
  const Parallel threads = torch_threads();
  const char* algorithm = nullptr;
  auto run = [&](const Conv2dPlan& plan) {
    conv2d_selection.served.store(algorithm = plan.algorithm, std::memory_order_relaxed);
    p.scratch = Scratch::of_at_least(plan.scratch);
    return PYDL_CPU_CALL(conv2d_run)(plan, p, pass, threads);
  };
  if (!run(plan_asked_for(p, pass, threads.threads, preferred)))
    run(plan_of(p, pass, threads.threads, nullptr, true));
  return algorithm;
}

namespace {

constexpr const char* kNames[] = {"conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight"};

// One pass on the device of `like`: by `gpu` of the CUDA library, or by the plan on the CPU.
void launch(const Tensor& like, const Tensor& weight, Conv2dParams& p, Conv2dPass pass,
            int (*cuda::Library::*gpu)(const Conv2dParams&, void*)) {
  Verbose line(kNames[static_cast<int>(pass)], like, &weight);
  if (const CudaCall cuda{"conv2d", like}) {
    std::optional<Tensor>
        scratch;  // may go while kernels are queued: it is handed out again to this stream only
    if (pass == Conv2dPass::backward_weight) {
      scratch = empty(like, ScalarType::Byte, {cuda->conv2d_weight_scratch(p)});
      p.scratch = scratch->mutable_data_ptr();
    }
    return cuda.run(cuda_library->*gpu, p);
  }
  line.algorithm = conv2d_on_cpu(p, pass);
}

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
               const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups,
               const std::string& activation, bool channels_last) {
  Conv2dParams p = geometry(sizes_of(input), sizes_of(weight), {stride, padding, dilation, groups});
  p.dtype = dtype_of("conv2d", input);
  p.activation = activation_of("conv2d", activation);
  check_same("weight", weight, "input", input);
  if (bias) {
    check_same("bias", *bias, "input", input);
    PYDL_CHECK(bias->dim() == 1 && bias->size(0) == p.out_channels, "conv2d: expected bias to be of shape (",
               p.out_channels, "), got ", shape_of(*bias));
  }
  if (by_way_of_float(input))
    return rounded(forward(widened(input), widened(weight), bias ? std::optional(widened(*bias)) : bias,
                           stride, padding, dilation, groups, activation, channels_last));
  Tensor output = empty_format(input, {p.batch, p.out_channels, p.out_height, p.out_width}, channels_last);
  if (output.numel() == 0) return output;
  std::optional<Tensor> dense_bias;  // the kernels read it as contiguous; it is small
  if (bias) dense_bias = torch::stable::contiguous(*bias);
  p.input = const_cast<void*>(input.const_data_ptr());
  const Tensor filters = fitting_weight(weight, p.dtype, channels_last);
  p.weight = const_cast<void*>(filters.const_data_ptr());
  p.bias = bias ? dense_bias->const_data_ptr() : nullptr;
  p.output = output.mutable_data_ptr();
  take_strides(input, p.input_stride);
  take_strides(filters, p.weight_stride);
  take_strides(output, p.output_stride);
  launch(input, filters, p, Conv2dPass::forward, &cuda::Library::conv2d_forward);
  return output;
}

// What the input gradient of a convolution is, plus a bias for each of its channels, where there is one, through the
// activation.
Tensor spread(const Tensor& grad_output, const Tensor& weight, const std::optional<Tensor>& bias,
              const Sizes& input_size, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
              int64_t groups, Activation activation, bool channels_last) {
  Conv2dParams p = geometry(input_size, sizes_of(weight), {stride, padding, dilation, groups});
  p.dtype = dtype_of("conv2d", grad_output);
  p.activation = activation;
  check_same("weight", weight, "grad_output", grad_output);
  check_gradient(grad_output, p);
  if (by_way_of_float(grad_output))
    return rounded(spread(widened(grad_output), widened(weight), bias ? std::optional(widened(*bias)) : bias,
                          input_size, stride, padding, dilation, groups, activation, channels_last));
  Tensor grad_input = empty_format(grad_output, input_size, channels_last);
  if (grad_input.numel() == 0) return grad_input;
  p.input = grad_input.mutable_data_ptr();
  const Tensor filters = fitting_weight(weight, p.dtype, channels_last);
  p.weight = const_cast<void*>(filters.const_data_ptr());
  p.output = const_cast<void*>(grad_output.const_data_ptr());
  std::optional<Tensor> dense_bias;
  if (bias) dense_bias = torch::stable::contiguous(*bias);
  p.bias = bias ? dense_bias->const_data_ptr() : nullptr;
  take_strides(grad_input, p.input_stride);
  take_strides(filters, p.weight_stride);
  take_strides(grad_output, p.output_stride);
  launch(grad_output, filters, p, Conv2dPass::backward_input, &cuda::Library::conv2d_backward_input);
  return grad_input;
}

Tensor backward_input(const Tensor& grad_output, const Tensor& weight, const Sizes& input_size,
                      const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups,
                      bool channels_last) {
  return spread(grad_output, weight, std::nullopt, input_size, stride, padding, dilation, groups,
                Activation::none, channels_last);
}

Tensor transposed(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                  const Sizes& output_size, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                  int64_t groups, const std::string& activation, bool channels_last) {
  if (bias) {
    check_same("bias", *bias, "input", input);
    PYDL_CHECK(output_size.size() == 4, "conv_transpose2d: expected output_size to be 4 numbers, got ",
               shape_of(output_size));
    PYDL_CHECK(bias->dim() == 1 && bias->size(0) == output_size[1],
               "conv_transpose2d: expected bias to be of shape (", output_size[1], "), got ",
               shape_of(*bias));
  }
  return spread(input, weight, bias, output_size, stride, padding, dilation, groups,
                activation_of("conv_transpose2d", activation), channels_last);
}

// The weight gradient's tensor, and the params that write it.
std::pair<Tensor, Conv2dParams> of_weight(const Tensor& grad_output, const Tensor& input,
                                          const Sizes& weight_size, const Options& o, bool channels_last) {
  Conv2dParams p = geometry(sizes_of(input), weight_size, o);
  p.dtype = dtype_of("conv2d", grad_output);
  check_same("input", input, "grad_output", grad_output);
  check_gradient(grad_output, p);
  Tensor grad_weight = empty_format(grad_output, weight_size, channels_last);
  p.input = const_cast<void*>(input.const_data_ptr());
  p.weight = grad_weight.mutable_data_ptr();
  p.output = const_cast<void*>(grad_output.const_data_ptr());
  take_strides(input, p.input_stride);
  take_strides(grad_weight, p.weight_stride);
  take_strides(grad_output, p.output_stride);
  return {grad_weight, p};
}

Tensor backward_weight(const Tensor& grad_output, const Tensor& input, const Sizes& weight_size,
                       const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups,
                       bool channels_last) {
  if (by_way_of_float(grad_output) && by_way_of_float(input))
    return rounded(backward_weight(widened(grad_output), widened(input), weight_size, stride, padding,
                                   dilation, groups, channels_last));
  auto [grad_weight, p] =
      of_weight(grad_output, input, weight_size, {stride, padding, dilation, groups}, channels_last);
  if (grad_weight.numel() == 0) return grad_weight;
  launch(grad_output, grad_weight, p, Conv2dPass::backward_weight, &cuda::Library::conv2d_backward_weight);
  return grad_weight;
}

// Whether pixels are rows of channels that lie side by side, one a fixed distance after the other: of a matrix then.
bool has_rows_of_channels(const Conv2dParams& p, Matrix& rows) {
  const int64_t* stride = p.output_stride;
  const int64_t pixel = p.out_width > 1 ? stride[3] : p.out_height > 1 ? stride[2] : stride[0];
  rows = {p.output, pixel, 1};
  return p.out_channels > 1 && stride[1] == 1 && (p.out_height == 1 || stride[2] == p.out_width * pixel) &&
         (p.batch == 1 || stride[0] == p.out_height * p.out_width * pixel);
}

Tensor backward_bias(const Tensor& grad_output) {
  PYDL_CHECK(grad_output.dim() == 4, "conv2d: expected grad_output to be 4-D, got shape ",
             shape_of(grad_output));
  Conv2dParams p{};
  p.dtype = dtype_of("conv2d", grad_output);
  p.batch = grad_output.size(0);
  p.out_channels = grad_output.size(1);
  p.out_height = grad_output.size(2);
  p.out_width = grad_output.size(3);
  Tensor grad_bias = empty(grad_output, grad_output.scalar_type(), {p.out_channels});
  p.output = const_cast<void*>(grad_output.const_data_ptr());
  p.grad_bias = grad_bias.mutable_data_ptr();
  take_strides(grad_output, p.output_stride);
  const Verbose line("conv2d_backward_bias", grad_output);
  if (const CudaCall cuda{"conv2d", grad_output}) {
    p.groups = 1;
    Tensor scratch = empty(grad_output, ScalarType::Byte, {cuda->conv2d_bias_scratch(p)});
    p.scratch = scratch.mutable_data_ptr();
    cuda.run(cuda->conv2d_backward_bias, p);
  } else if (Matrix rows; has_rows_of_channels(p, rows)) {
    ColumnSumsParams sums{p.dtype, p.batch * p.out_height * p.out_width, p.out_channels, rows, p.grad_bias,
                          nullptr};
    sums.scratch = Scratch::of_at_least(PYDL_CPU_CALL(column_sums_scratch)(sums));
    PYDL_CPU_CALL(column_sums)(sums, torch_threads());
  } else {
    PYDL_CPU_CALL(conv2d_backward_bias)(p, torch_threads());
  }
  return grad_bias;
}

}  // namespace

// Those of weight and bias together, on the CPU alone. output: what `activation` gave in the forward, of which grad_output
// is the gradient then.
std::tuple<Tensor, Tensor> backward_parameters(const Tensor& grad_output, const Tensor& input,
                                               const std::optional<Tensor>& output, const Sizes& weight_size,
                                               const Sizes& stride, const Sizes& padding,
                                               const Sizes& dilation, int64_t groups,
                                               const std::string& activation, bool channels_last) {
  const Activation through = output ? activation_of("conv2d", activation) : Activation::none;
  bool together = !by_way_of_float(grad_output) && grad_output.numel() != 0 && input.numel() != 0;
  if (through != Activation::none) {
    check_same("output", *output, "grad_output", grad_output);
    PYDL_CHECK(sizes_of(*output) == sizes_of(grad_output),
               "conv2d: expected output to be of grad_output's shape, got ", shape_of(*output));
    for (int64_t d = 0; d < output->dim(); ++d) together &= output->stride(d) == grad_output.stride(d);
  }
  if (together) {
    auto [grad_weight, p] =
        of_weight(grad_output, input, weight_size, {stride, padding, dilation, groups}, channels_last);
    p.activation = through;
    if (plan_asked_for(p, Conv2dPass::backward_weight, torch_threads().threads, nullptr).gives_bias) {
      Tensor grad_bias = empty(grad_output, grad_output.scalar_type(), {p.out_channels});
      p.grad_bias = grad_bias.mutable_data_ptr();
      p.activated = through == Activation::none ? nullptr : output->const_data_ptr();
      Verbose line("conv2d_backward_parameters", grad_output, &grad_weight);
      line.algorithm = conv2d_on_cpu(p, Conv2dPass::backward_weight);
      return {grad_weight, grad_bias};
    }
  }
  const Tensor grad = through == Activation::none ? grad_output
                      : through == Activation::relu
                          ? elementwise_backward(Elementwise::relu, grad_output, *output)
                          : elementwise_backward(Elementwise::sigmoid, grad_output, *output);
  return {backward_weight(grad, input, weight_size, stride, padding, dilation, groups, channels_last),
          backward_bias(grad)};
}

#define PYDL_REGISTER(m)                                         \
  m.impl("conv2d_forward", TORCH_BOX(&forward));                 \
  m.impl("conv2d_backward_input", TORCH_BOX(&backward_input));   \
  m.impl("conv2d_backward_weight", TORCH_BOX(&backward_weight)); \
  m.impl("conv2d_backward_bias", TORCH_BOX(&backward_bias));

// clang-format off: it takes the two for one
STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  PYDL_REGISTER(m)
  m.impl("conv_transpose2d", TORCH_BOX(&transposed));
  m.impl("conv2d_backward_parameters", TORCH_BOX(&backward_parameters));
}
STABLE_TORCH_LIBRARY_IMPL(pydl, CUDA, m) { PYDL_REGISTER(m) }
// clang-format on

}  // namespace pydl
