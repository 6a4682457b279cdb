// pydl::<name>_forward(Tensor input, ...) -> Tensor, <name>_backward(Tensor grad_output, Tensor saved, ...) -> Tensor:
// the functions of one number that kernels/elementwise.h lists, on the CPU alone
#include "csrc/elementwise_call.h"

#include <algorithm>

#include "csrc/convert.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

// What torch sees: gelu is two of the kernel's functions.
struct Function {
  const char *name, *forward, *backward;
  Elementwise kind;
};
#define PYDL_FUNCTION(name) {#name, #name "_forward", #name "_backward", Elementwise::name}
constexpr Function kFunctions[] = {PYDL_FUNCTION(relu),    PYDL_FUNCTION(leaky_relu), PYDL_FUNCTION(sigmoid),
                                   PYDL_FUNCTION(tanh),    PYDL_FUNCTION(gelu),       PYDL_FUNCTION(silu),
                                   PYDL_FUNCTION(softplus)};
constexpr size_t kCount = sizeof kFunctions / sizeof kFunctions[0];

struct Options {
  double a = 0, b = 0;
  bool tanh = false;  // of gelu: the approximation with a hyperbolic tangent
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
Tensor run(const Function& f, const Options& options, const Tensor& input, const Tensor* grad_output) {
  const char* name = f.name;
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
  if (widens(p.dtype)) {
    const Tensor x = widened(input), g = grad_output ? widened(*grad_output) : x;
    torch::stable::copy_(output, run(f, options, x, grad_output ? &g : nullptr));
    return output;
  }
  const Verbose line(grad_output ? f.backward : f.forward, input);
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
  p.function = options.tanh ? Elementwise::gelu_tanh : f.kind;
  p.a = options.a;
  p.b = options.b;
  p.input = x.const_data_ptr();
  p.grad_output = grad_output ? g.const_data_ptr() : nullptr;
  p.output = output.mutable_data_ptr();
  if (grad_output)
    PYDL_CPU_CALL(elementwise_backward)(p, torch_threads());
  else
    PYDL_CPU_CALL(elementwise_forward)(p, torch_threads());
  return output;
}

// The arguments as torch hands them over: input, or grad_output and what was saved; then the function's own.
void call(const Function& f, bool backward, StableIValue* stack) {
  const auto number = [&] { return torch::stable::detail::to<double>(*stack++); };
  StableIValue* result = stack;
  const Tensor first = torch::stable::detail::to<Tensor>(*stack++);
  const Tensor saved = backward ? torch::stable::detail::to<Tensor>(*stack++) : first;
  Options options;
  if (f.kind == Elementwise::gelu) options.tanh = torch::stable::detail::to<bool>(*stack++);
  if (f.kind == Elementwise::leaky_relu) options.a = number();                      // its negative slope
  if (f.kind == Elementwise::softplus) options.a = number(), options.b = number();  // beta and threshold
  *result = torch::stable::detail::from(run(f, options, saved, backward ? &first : nullptr));
}

template <size_t kIndex, bool kBackward>
void entry(StableIValue* stack, uint64_t, uint64_t) {
  call(kFunctions[kIndex], kBackward, stack);
}

template <size_t... kIndex>
void implement(torch::stable::detail::StableLibrary& m, std::index_sequence<kIndex...>) {
  (m.impl(kFunctions[kIndex].forward, &entry<kIndex, false>), ...);
  (m.impl(kFunctions[kIndex].backward, &entry<kIndex, true>), ...);
}

}  // namespace

Tensor elementwise_backward(Elementwise function, const Tensor& grad_output, const Tensor& saved) {
  for (const Function& f : kFunctions)
    if (f.kind == function) return run(f, Options(), saved, &grad_output);
  __builtin_unreachable();
}

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) { implement(m, std::make_index_sequence<kCount>()); }

}  // namespace pydl
