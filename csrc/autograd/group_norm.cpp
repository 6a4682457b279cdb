// The node of group_norm, whose formula is in src/pydl/ops/group_norm.py.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/node.h"

namespace pydl::autograd {
namespace {

class GroupNorm : public Node {
  const int64_t groups_;
  const double eps_;
  const bool channels_last_;

 public:
  GroupNorm(int64_t groups, double eps, bool channels_last)
      : Node("group_norm"), groups_(groups), eps_(eps), channels_last_(channels_last) {}

  variable_list backward(const Tensor& grad, const variable_list& saved) override {
    static const Op op("pydl::group_norm_backward");
    return only_wanted(op.all(grad, saved[0], saved[2], saved[1], groups_, eps_, channels_last_, wants(0),
                              wants(1), wants(2)));
  }
};

Tensor group_norm_call(const Tensor& input, int64_t groups, const Tensor& weight, const Tensor& bias,
                       double eps) {
  static const Op forward("pydl::group_norm_forward");
  const bool channels_last = input.suggest_memory_format() != at::MemoryFormat::Contiguous;
  BelowAutograd guard;
  const variable_list made = forward.all(input, weight, bias, groups, eps, channels_last);
  if (records({&input, &weight, &bias})) {
    record(std::make_unique<GroupNorm>(groups, eps, channels_last), made[0], {&input, &weight, &bias},
           {input, weight, made[1]});
  }
  return made[0];
}

}  // namespace

// group_norm(input, num_groups, weight, bias, eps): weight and bias may be None.
PYDL_PYTHON_FUNCTION(group_norm) {
  return answer<5>(objects, given, [](const Arguments& arguments) {
    const Tensor &input = arguments.tensor(0), &weight = arguments.optional_tensor(2),
                 &bias = arguments.optional_tensor(3);
    const int64_t groups = arguments.integer(1);
    const double eps = arguments.real(4);
    // what is refused, or torch's, is Python's
    if (input.dim() < 2 || groups <= 0 || input.size(1) % groups != 0) throw NotPlain();
    if (input.numel() <= groups || (!weight.defined() && bias.defined())) throw NotPlain();
    for (const Tensor* t : {&weight, &bias}) {
      if (t->defined() &&
          (t->dim() != 1 || t->size(0) != input.size(1) || t->scalar_type() != input.scalar_type()))
        throw NotPlain();
    }
    return unlocked([&] { return group_norm_call(input, groups, weight, bias, eps); });
  });
}

}  // namespace pydl::autograd
