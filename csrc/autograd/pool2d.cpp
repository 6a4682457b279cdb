// The nodes of max_pool2d and avg_pool2d, adaptive ones among them, whose formulas are in src/pydl/ops.
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/adaptive_max_pool2d.h>

#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/layout.h"
#include "csrc/autograd/node.h"

namespace pydl::autograd {
namespace {

struct MaxPoolOptions {
  Integers kernel, stride, padding, dilation;
  bool ceil_mode, channels_last;
};

class MaxPool2d : public Node {
  const MaxPoolOptions options_;
  const Integers size_;

 public:
  MaxPool2d(MaxPoolOptions&& options, const Tensor& input)
      : Node("max_pool2d"), options_(std::move(options)), size_(input.sizes().vec()) {}

  variable_list backward(const Tensor& grad, const variable_list& saved) override {
    static const Op op("pydl::max_pool2d_backward");
    const MaxPoolOptions& o = options_;
    return {op(grad, saved[0], size_, o.kernel, o.stride, o.padding, o.dilation, o.channels_last)};
  }
};

Tensor max_pool2d_call(const Tensor& input, MaxPoolOptions&& o) {
  static const Op forward("pydl::max_pool2d");
  BelowAutograd guard;
  const bool wants_places = records({&input});
  const variable_list made = forward.all(input, o.kernel, o.stride, o.padding, o.dilation, o.ceil_mode,
                                         o.channels_last, wants_places);
  if (wants_places) {
    record(std::make_unique<MaxPool2d>(std::move(o), input), made[0], {&input}, {made[1]});
  }
  return made[0];
}

struct AvgPoolOptions {
  Integers kernel, stride, padding;
  bool ceil_mode, count_include_pad;
  int64_t divisor;
  bool channels_last, grad_channels_last;
};

class AvgPool2d : public Node {
  const AvgPoolOptions options_;
  const Integers size_;

 public:
  AvgPool2d(AvgPoolOptions&& options, const Tensor& input)
      : Node("avg_pool2d"), options_(std::move(options)), size_(input.sizes().vec()) {}

  variable_list backward(const Tensor& grad, const variable_list&) override {
    static const Op op("pydl::avg_pool2d_backward");
    const AvgPoolOptions& o = options_;
    return {op(grad, size_, o.kernel, o.stride, o.padding, o.ceil_mode, o.count_include_pad, o.divisor,
               o.channels_last, o.grad_channels_last)};
  }
};

Tensor avg_pool2d_call(const Tensor& input, AvgPoolOptions&& o) {
  static const Op forward("pydl::avg_pool2d");
  BelowAutograd guard;
  Tensor output = forward(input, o.kernel, o.stride, o.padding, o.ceil_mode, o.count_include_pad, o.divisor,
                          o.channels_last, o.grad_channels_last);
  if (records({&input})) record(std::make_unique<AvgPool2d>(std::move(o), input), output, {&input}, {});
  return output;
}

const Tensor& image(const Arguments& arguments) {
  const Tensor& input = arguments.tensor(0);
  if (input.dim() != 4) throw NotPlain();  // unbatched images are Python's
  return input;
}

Integers stride_or(const Arguments& arguments, int i, const Integers& kernel) {
  return arguments.is_none(i) ? kernel : arguments.pair(i);
}

// The size of the windows that cut an image into so many; none where they are not equal, which is torch's.
Integers equal_windows(const Tensor& input, const Integers& count) {
  Integers kernel;
  for (size_t d = 0; d < 2; ++d) {
    const int64_t length = input.size(2 + static_cast<int64_t>(d));
    if (count[d] <= 0 || length == 0 || input.size(1) == 0) throw NotPlain();  // refused in Python
    if (length % count[d] != 0) return {};
    kernel.push_back(length / count[d]);
  }
  return kernel;
}

}  // namespace

// max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode): stride may be None.
PYDL_PYTHON_FUNCTION(max_pool2d) {
  return answer<6>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = image(arguments);
    const Integers kernel = arguments.pair(1);
    MaxPoolOptions options{kernel,
                           stride_or(arguments, 2, kernel),
                           arguments.pair(3),
                           arguments.pair(4),
                           arguments.truth(5),
                           is_channels_last(input)};
    return unlocked([&] { return max_pool2d_call(input, std::move(options)); });
  });
}

// avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override): stride and
// divisor_override may be None.
PYDL_PYTHON_FUNCTION(avg_pool2d) {
  return answer<7>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = image(arguments);
    const Integers kernel = arguments.pair(1);
    const int64_t divisor = arguments.is_none(6) ? 0 : arguments.integer(6);
    if (divisor == 0 && !arguments.is_none(6)) throw NotPlain();  // refused in Python
    const bool last = is_channels_last(input);
    AvgPoolOptions options{kernel,
                           stride_or(arguments, 2, kernel),
                           arguments.pair(3),
                           arguments.truth(4),
                           arguments.truth(5),
                           divisor,
                           last,
                           last};
    return unlocked([&] { return avg_pool2d_call(input, std::move(options)); });
  });
}

// adaptive_avg_pool2d(input, output_size)
PYDL_PYTHON_FUNCTION(adaptive_avg_pool2d) {
  return answer<2>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = image(arguments);
    const Integers size = arguments.pair(1), kernel = equal_windows(input, size);
    if (kernel.empty()) return unlocked([&] { return at::adaptive_avg_pool2d(input, size); });
    const bool last = is_channels_last(input), whole = size[0] == 1 && size[1] == 1;
    AvgPoolOptions options{kernel, kernel, {0, 0}, false, true, 0, last, last && !whole};
    return unlocked([&] { return avg_pool2d_call(input, std::move(options)); });
  });
}

// adaptive_max_pool2d(input, output_size): the maxima without their indices
PYDL_PYTHON_FUNCTION(adaptive_max_pool2d) {
  return answer<2>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = image(arguments);
    const Integers size = arguments.pair(1), kernel = equal_windows(input, size);
    if (kernel.empty()) return unlocked([&] { return std::get<0>(at::adaptive_max_pool2d(input, size)); });
    MaxPoolOptions options{kernel, kernel, {0, 0}, {1, 1}, false, is_channels_last(input)};
    return unlocked([&] { return max_pool2d_call(input, std::move(options)); });
  });
}

}  // namespace pydl::autograd
