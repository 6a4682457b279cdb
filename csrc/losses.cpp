// pydl::<name>_forward(Tensor input, Tensor target, ..., int reduction, ...) -> Tensor and <name>_backward(Tensor
// grad_output, Tensor input, Tensor target, ...) -> Tensor: difference_loss and binary_cross_entropy_with_logits, on the
// CPU alone
//
// reduction: torch's numbers, 0 none, 1 mean, 2 sum. Results and gradients are contiguous.
#include "kernels/losses.h"

#include <numeric>

#include "csrc/convert.h"
#include "csrc/scratch.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

using Optional = std::optional<Tensor>;

struct Names {
  const char *name, *forward, *backward;
};
#define PYDL_NAMES(name) {#name, #name "_forward", #name "_backward"}

struct Function {
  Names names;
  LossParams params;  // what the loss is; all else is filled in by run()
};

constexpr int64_t kBlock = 4096;
constexpr int64_t kMostRepeated = 2048;  // numbers of weights of which one block holds several rows

void check_sizes(const char* name, const char* what, const Tensor& t, const std::vector<int64_t>& sizes) {
  PYDL_CHECK(sizes_of(t) == sizes, name, ": expected ", what, " to be of shape ", shape_of(sizes), ", got ",
             shape_of(t));
}

bool broadcasts(const Tensor& weight, const Tensor& input) {
  const int64_t missing = input.dim() - weight.dim();
  if (missing < 0) return false;
  for (int64_t d = 0; d < weight.dim(); ++d)
    if (weight.size(d) != 1 && weight.size(d) != input.size(d + missing)) return false;
  return true;
}

// How many numbers it takes until the weights come again: those of input's last dimensions, from the first on in which
// the weights differ.
int64_t period_of(const Tensor& weight, const Tensor& input) {
  const int64_t missing = input.dim() - weight.dim();
  int64_t first = 0;
  while (first < weight.dim() && weight.size(first) == 1) ++first;
  int64_t period = 1;
  for (int64_t d = first; d < weight.dim(); ++d) period *= input.size(d + missing);
  return period;
}

// Weights as the kernel reads them: those of a block, or one for each number of input.
struct Weights {
  Optional held;
  const void* data = nullptr;
  int64_t stride = 0;

  Weights(const char* name, const char* what, const Optional& weight, const Tensor& input, int64_t block) {
    if (!weight) return;
    PYDL_CHECK(broadcasts(*weight, input), name, ": expected ", what, " to broadcast to the shape of input, ",
               shape_of(input), ", got ", shape_of(*weight));
    check_same_dtype(name, what, *weight, "input", input);
    std::vector<int64_t> sizes = sizes_of(input);
    const int64_t period = period_of(*weight, input);
    if (period <= kMostRepeated) {
      const size_t dims = static_cast<size_t>(weight->dim());
      sizes.erase(sizes.begin(), sizes.end() - static_cast<std::ptrdiff_t>(dims));
      for (size_t d = 0; d < dims && weight->size(static_cast<int64_t>(d)) == 1; ++d) sizes[d] = 1;
      sizes.insert(sizes.begin(), block / period);
    } else {
      stride = block;
    }
    if (stride != 0 && weight->is_contiguous() && sizes_of(*weight) == sizes) {
      held = *weight;
    } else {
      held = empty(input, input.scalar_type(), sizes);
      torch::stable::copy_(*held, *weight);
    }
    data = held->const_data_ptr();
  }
};

// Of how many numbers a block is: a multiple of all weights' periods, and of every vector.
int64_t block_of(std::initializer_list<const Optional*> weights, const Tensor& input) {
  int64_t longest = 1;
  for (const Optional* weight : weights) {
    if (!*weight || !broadcasts(**weight, input)) continue;
    if (const int64_t period = period_of(**weight, input); period <= kMostRepeated)
      longest = max_of(longest, period);  // of two periods one divides the other
  }
  const int64_t whole = std::lcm(longest, int64_t{64});
  return whole * ceil_div(kBlock, whole);
}

bool is_one_number(const Tensor& t) {
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1 && t.stride(d) != 0) return false;
  return true;
}

// grad_output: null in the forward.
Tensor run(const Function& f, const Tensor* grad_output, const Tensor& input, const Tensor& target,
           const Optional& weight, const Optional& pos_weight, int64_t reduction) {
  const char* name = f.names.name;
  PYDL_CHECK_VALUE(reduction >= 0 && reduction <= 2, name, ": expected reduction to be 0, 1 or 2, got ",
                   reduction);
  check_sizes(name, "target", target, sizes_of(input));
  check_same_dtype(name, "target", target, "input", input);
  const bool each = reduction == 0;
  if (grad_output) {
    check_sizes(name, "grad_output", *grad_output, each ? sizes_of(input) : std::vector<int64_t>{});
    check_same_dtype(name, "grad_output", *grad_output, "input", input);
  }
  LossParams p = f.params;
  p.dtype = dtype_of(name, input);
  if (widens(p.dtype)) {
    const Tensor x = widened(input), g = grad_output ? widened(*grad_output) : x;
    return rounded(run(f, grad_output ? &g : nullptr, x, widened(target), widened_where_needed(weight),
                       widened_where_needed(pos_weight), reduction),
                   input.scalar_type());
  }
  const Verbose line(grad_output ? f.names.backward : f.names.forward, input);
  p.count = input.numel();
  p.block = block_of({&weight, &pos_weight}, input);
  p.per_number = each;
  p.factor = reduction == 1 ? 1.0 / static_cast<double>(p.count) : 1;
  const bool whole = grad_output || each;
  Tensor output = empty(input, input.scalar_type(), whole ? sizes_of(input) : std::vector<int64_t>{});
  if (whole && p.count == 0) return output;
  const Tensor x = dense(input), t = dense(target);
  const Optional none;
  const Weights w(name, "weight", p.count ? weight : none, input, p.block),
      pw(name, "pos_weight", p.count ? pos_weight : none, input, p.block);
  p.input = x.const_data_ptr();
  p.target = t.const_data_ptr();
  p.weight = w.data;
  p.weight_stride = w.stride;
  p.pos_weight = pw.data;
  p.pos_weight_stride = pw.stride;
  p.output = output.mutable_data_ptr();
  if (grad_output) {
    p.grad_per_number = !is_one_number(*grad_output);
    const Tensor g = p.grad_per_number ? dense(*grad_output) : *grad_output;
    p.grad_output = g.const_data_ptr();
    PYDL_CPU_CALL(loss_backward)(p, torch_threads());
  } else {
    p.sums = static_cast<double*>(Scratch::of_at_least(ceil_div(p.count, p.block) * 8));
    PYDL_CPU_CALL(loss_forward)(p, torch_threads());
  }
  return output;
}

Tensor difference_loss(const Tensor* grad_output, const Tensor& input, const Tensor& target,
                       int64_t reduction, double limit, double square, double linear, double offset) {
  LossParams p{};
  p.loss = Loss::difference;
  p.limit = limit;
  p.square = square;
  p.linear = linear;
  p.offset = offset;
  return run({PYDL_NAMES(difference_loss), p}, grad_output, input, target, std::nullopt, std::nullopt,
             reduction);
}
Tensor difference_loss_forward(const Tensor& input, const Tensor& target, int64_t reduction, double limit,
                               double square, double linear, double offset) {
  return difference_loss(nullptr, input, target, reduction, limit, square, linear, offset);
}
Tensor difference_loss_backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                                int64_t reduction, double limit, double square, double linear,
                                double offset) {
  return difference_loss(&grad_output, input, target, reduction, limit, square, linear, offset);
}

Function binary_cross_entropy_with_logits() {
  LossParams p{};
  p.loss = Loss::binary_cross_entropy;
  return {PYDL_NAMES(binary_cross_entropy_with_logits), p};
}
Tensor binary_cross_entropy_with_logits_forward(const Tensor& input, const Tensor& target, int64_t reduction,
                                                const Optional& weight, const Optional& pos_weight) {
  return run(binary_cross_entropy_with_logits(), nullptr, input, target, weight, pos_weight, reduction);
}
Tensor binary_cross_entropy_with_logits_backward(const Tensor& grad_output, const Tensor& input,
                                                 const Tensor& target, int64_t reduction,
                                                 const Optional& weight, const Optional& pos_weight) {
  return run(binary_cross_entropy_with_logits(), &grad_output, input, target, weight, pos_weight, reduction);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("difference_loss_forward", TORCH_BOX(&difference_loss_forward));
  m.impl("difference_loss_backward", TORCH_BOX(&difference_loss_backward));
  m.impl("binary_cross_entropy_with_logits_forward", TORCH_BOX(&binary_cross_entropy_with_logits_forward));
  m.impl("binary_cross_entropy_with_logits_backward", TORCH_BOX(&binary_cross_entropy_with_logits_backward));
}

}  // namespace pydl
