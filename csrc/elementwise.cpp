// pydl::<name>_forward(Tensor input, ...) -> Tensor, <name>_backward(Tensor grad_output, Tensor saved, ...) -> Tensor:
// the functions of one number that kernels/elementwise.h lists, on the CPU alone
#include "kernels/elementwise.h"

#include <algorithm>

#include "csrc/convert.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

struct Names {
  const char *name, *forward, *backward;
};
#define PYDL_NAMES(name) {#name, #name "_forward", #name "_backward"}

struct Function {
  Names names;
  Elementwise kind;
  double a = 0, b = 0;
};

// A tensor as rows of numbers that lie side by side, in the order in which the output lies.
struct Rows {
  int64_t count = 1, width = 1, stride = 0;
};

constexpr int64_t kShortestRow = 64;  // of shorter ones a copy costs less than the calls

// False where t does not lie so, or in rows too short. output: the strides of the output, which is dense.
bool as_rows(const Tensor& t, const std::vector<int64_t>& output, Rows& rows) {
  std::vector<int64_t> order;  // innermost first
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1) order.push_back(d);
  const auto place = [&](int64_t d) { return output[static_cast<size_t>(d)]; };
  std::sort(order.begin(), order.end(), [&](int64_t c, int64_t d) { return place(c) < place(d); });
  size_t at = 0;
  for (; at < order.size() && t.stride(order[at]) == rows.width; ++at) rows.width *= t.size(order[at]);
  if (at < order.size()) rows.stride = t.stride(order[at]);
  for (; at < order.size() && t.stride(order[at]) == rows.stride * rows.count; ++at)
    rows.count *= t.size(order[at]);
  return at == order.size() && (rows.count == 1 || rows.width >= kShortestRow);
}

// Of which tensor the strides decide first how the gradient lies: torch's own order of arguments.
bool saved_comes_first(Elementwise function) {
  return function == Elementwise::relu || function == Elementwise::leaky_relu;
}

// input: of the backward, what is saved; grad_output: null in the forward.
Tensor run(const Function& f, const Tensor& input, const Tensor* grad_output) {
  const char* name = f.names.name;
  ElementwiseParams p{};
  p.dtype = dtype_of(name, input);
  if (grad_output) {
    PYDL_CHECK(sizes_of(*grad_output) == sizes_of(input), name, ": expected grad_output to be of shape ",
               shape_of(input), ", got ", shape_of(*grad_output));
    check_same_dtype(name, "grad_output", *grad_output, "what was saved", input);
  }
  const Tensor& other = grad_output ? *grad_output : input;
  const std::vector<int64_t> strides =
      saved_comes_first(f.kind) ? strides_like(input, other) : strides_like(other, input);
  Tensor output = empty_strided(input, input.scalar_type(), input.sizes(), strides);
  if (input.numel() == 0) return output;
  if (p.dtype == DType::f16) {
    const Tensor x = widened(input), g = grad_output ? widened(*grad_output) : x;
    torch::stable::copy_(output, run(f, x, grad_output ? &g : nullptr));
    return output;
  }
  const Verbose line(grad_output ? f.names.backward : f.names.forward, input);
  Tensor x = input, g = grad_output ? *grad_output : input;
  Rows of_x, of_g;
  const bool fits = as_rows(x, strides, of_x) && as_rows(g, strides, of_g) &&
                    (of_x.count == 1 || of_g.count == 1 || of_x.width == of_g.width);
  if (!fits) {  // a copy of what does not lie as the output
    x = lying_as(strides, x);
    g = grad_output ? lying_as(strides, g) : x;
    of_x = of_g = {1, input.numel(), 0};
  }
  p.width = min_of(of_x.width, of_g.width);
  p.rows = input.numel() / p.width;
  p.input_stride = of_x.count == 1 ? p.width : of_x.stride;
  p.grad_output_stride = of_g.count == 1 ? p.width : of_g.stride;
  p.function = f.kind;
  p.a = f.a;
  p.b = f.b;
  p.input = x.const_data_ptr();
  p.grad_output = grad_output ? g.const_data_ptr() : nullptr;
  p.output = output.mutable_data_ptr();
  if (grad_output)
    PYDL_CPU_CALL(elementwise_backward)(p, torch_threads());
  else
    PYDL_CPU_CALL(elementwise_forward)(p, torch_threads());
  return output;
}

#define PYDL_PLAIN(name)                                                    \
  Tensor name##_forward(const Tensor& input) {                              \
    return run({PYDL_NAMES(name), Elementwise::name}, input, nullptr);      \
  }                                                                         \
  Tensor name##_backward(const Tensor& grad_output, const Tensor& saved) {  \
    return run({PYDL_NAMES(name), Elementwise::name}, saved, &grad_output); \
  }
PYDL_PLAIN(relu)
PYDL_PLAIN(sigmoid)
PYDL_PLAIN(tanh)
PYDL_PLAIN(silu)

Function leaky_relu(double negative_slope) {
  return {PYDL_NAMES(leaky_relu), Elementwise::leaky_relu, negative_slope};
}
Tensor leaky_relu_forward(const Tensor& input, double negative_slope) {
  return run(leaky_relu(negative_slope), input, nullptr);
}
Tensor leaky_relu_backward(const Tensor& grad_output, const Tensor& saved, double negative_slope) {
  return run(leaky_relu(negative_slope), saved, &grad_output);
}

// tanh: by the approximation with a hyperbolic tangent.
Function gelu(bool tanh) { return {PYDL_NAMES(gelu), tanh ? Elementwise::gelu_tanh : Elementwise::gelu}; }
Tensor gelu_forward(const Tensor& input, bool tanh) { return run(gelu(tanh), input, nullptr); }
Tensor gelu_backward(const Tensor& grad_output, const Tensor& saved, bool tanh) {
  return run(gelu(tanh), saved, &grad_output);
}

Function softplus(double beta, double threshold) {
  return {PYDL_NAMES(softplus), Elementwise::softplus, beta, threshold};
}
Tensor softplus_forward(const Tensor& input, double beta, double threshold) {
  return run(softplus(beta, threshold), input, nullptr);
}
Tensor softplus_backward(const Tensor& grad_output, const Tensor& saved, double beta, double threshold) {
  return run(softplus(beta, threshold), saved, &grad_output);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
#define PYDL_IMPLEMENT(name)                            \
  m.impl(#name "_forward", TORCH_BOX(&name##_forward)); \
  m.impl(#name "_backward", TORCH_BOX(&name##_backward));
  PYDL_IMPLEMENT(relu)
  PYDL_IMPLEMENT(leaky_relu)
  PYDL_IMPLEMENT(sigmoid)
  PYDL_IMPLEMENT(tanh)
  PYDL_IMPLEMENT(gelu)
  PYDL_IMPLEMENT(silu)
  PYDL_IMPLEMENT(softplus)
}

}  // namespace pydl
