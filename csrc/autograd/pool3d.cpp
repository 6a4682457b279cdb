// The nodes of max_pool3d and avg_pool3d, of which adaptive ones are made too; formulas: src/pydl/ops/pool3d.py.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"

namespace pydl::autograd {
namespace {

struct MaxPool3dOptions {
  Integers kernel, stride, padding, dilation;
  bool ceil_mode;
};

class MaxPool3d : public Node {
  const MaxPool3dOptions options_;
  const Integers size_;

 public:
  MaxPool3d(MaxPool3dOptions&& options, const Tensor& input)
      : Node("max_pool3d"), options_(std::move(options)), size_(input.sizes().vec()) {}

  variable_list backward(const Tensor& grad, const variable_list& saved) override {
    static const Op op("pydl::max_pool3d_backward");
    const MaxPool3dOptions& o = options_;
    return {op(grad, saved[0], saved[1], size_, o.kernel, o.stride, o.padding, o.dilation, o.ceil_mode)};
  }
};

Tensor max_pool3d_call(const Tensor& input, MaxPool3dOptions&& o) {
  static const Op forward("pydl::max_pool3d");
  BelowAutograd guard;
  const bool wants_places = records({&input});
  const variable_list made =
      forward.all(input, o.kernel, o.stride, o.padding, o.dilation, o.ceil_mode, wants_places);
  if (wants_places) {
    record(std::make_unique<MaxPool3d>(std::move(o), input), made[0], {&input}, {made[1], made[2]});
  }
  return made[0];
}

struct AvgPool3dOptions {
  Integers kernel, stride, padding;
  bool ceil_mode, count_include_pad;
  int64_t divisor;
};

class AvgPool3d : public Node {
  const AvgPool3dOptions options_;
  const Integers size_;

 public:
  AvgPool3d(AvgPool3dOptions&& options, const Tensor& input)
      : Node("avg_pool3d"), options_(std::move(options)), size_(input.sizes().vec()) {}

  variable_list backward(const Tensor& grad, const variable_list&) override {
    static const Op op("pydl::avg_pool3d_backward");
    const AvgPool3dOptions& o = options_;
    return {op(grad, size_, o.kernel, o.stride, o.padding, o.ceil_mode, o.count_include_pad, o.divisor)};
  }
};

Tensor avg_pool3d_call(const Tensor& input, AvgPool3dOptions&& o) {
  static const Op forward("pydl::avg_pool3d");
  BelowAutograd guard;
  Tensor output = forward(input, o.kernel, o.stride, o.padding, o.ceil_mode, o.count_include_pad, o.divisor);
  if (records({&input})) record(std::make_unique<AvgPool3d>(std::move(o), input), output, {&input}, {});
  return output;
}

const Tensor& volume(const Arguments& arguments) {
  const Tensor& input = arguments.tensor(0);
  if (input.dim() != 5) throw NotPlain();
  return input;
}

}  // namespace

// All is as the ops take it, checked and chosen in Python.

// max_pool3d(input, kernel_size, stride, padding, dilation, ceil_mode)
PYDL_PYTHON_FUNCTION(max_pool3d) {
  return answer<6>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = volume(arguments);
    MaxPool3dOptions options{arguments.triple(1), arguments.triple(2), arguments.triple(3),
                             arguments.triple(4), arguments.truth(5)};
    return unlocked([&] { return max_pool3d_call(input, std::move(options)); });
  });
}

// avg_pool3d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor): a divisor of 0 is the number
// of pixels.
PYDL_PYTHON_FUNCTION(avg_pool3d) {
  return answer<7>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = volume(arguments);
    AvgPool3dOptions options{arguments.triple(1), arguments.triple(2), arguments.triple(3),
                             arguments.truth(4),  arguments.truth(5),  arguments.integer(6)};
    return unlocked([&] { return avg_pool3d_call(input, std::move(options)); });
  });
}

}  // namespace pydl::autograd
