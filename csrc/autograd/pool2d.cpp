// The nodes of max_pool2d and avg_pool2d, adaptive ones among them, whose formulas are in src/pydl/ops.
#include "csrc/autograd/pool2d.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/layout.h"

namespace pydl::autograd {
namespace {

class MaxPool2d : public Node {
  const MaxPoolOptions options_;
  const Integers size_;

 public:
  MaxPool2d(MaxPoolOptions&& options, const Tensor& input)
      : Node("max_pool2d"), options_(std::move(options)), size_(input.sizes().vec()) {}

  variable_list backward(const Tensor& grad, const variable_list& saved) override {
    static const Op op("pydl::max_pool2d_backward");
    const MaxPoolOptions& o = options_;
    return {op(through_activation(grad, saved[1], o.behind), saved[0], size_, o.kernel, o.stride, o.padding,
               o.dilation, o.channels_last)};
  }
};

class AvgPool2d : public Node {
  const AvgPoolOptions options_;
  const Integers size_;

 public:
  AvgPool2d(AvgPoolOptions&& options, const Tensor& input)
      : Node("avg_pool2d"), options_(std::move(options)), size_(input.sizes().vec()) {}

  variable_list backward(const Tensor& grad, const variable_list& saved) override {
    static const Op op("pydl::avg_pool2d_backward"), through_sigmoid("pydl::sigmoid_avg_pool2d_backward");
    const AvgPoolOptions& o = options_;
    const bool through = o.behind && goes_through_activation(Pool::average);
    if (through && o.behind == sigmoid && spreads_halves(saved[0]))
      return {through_sigmoid(grad, saved[0], o.kernel, o.stride, o.padding, o.ceil_mode, o.count_include_pad,
                              o.divisor)};
    const Tensor spread = op(grad, size_, o.kernel, o.stride, o.padding, o.ceil_mode, o.count_include_pad,
                             o.divisor, o.channels_last, o.grad_channels_last);
    return {through ? through_activation(spread, saved[0], o.behind) : spread};
  }

 private:
  // Windows of 2 with stride 2 over an NCHW image, which one kernel takes through the sigmoid as well.
  bool spreads_halves(const Tensor& input) const {
    const AvgPoolOptions& o = options_;
    return !o.grad_channels_last && input.is_contiguous() && o.kernel[1] == 2 && o.stride[1] == 2 &&
           o.kernel[0] <= o.stride[0];
  }
};

const Tensor& image(const Arguments& arguments) {
  const Tensor& input = arguments.tensor(0);
  if (input.dim() != 4) throw NotPlain();  // unbatched images are Python's
  return input;
}

Integers stride_or(const Arguments& arguments, int i, const Integers& kernel) {
  return arguments.is_none(i) ? kernel : arguments.pair(i);
}

// The size of the windows that cut an image into so many, where all are equal.
Integers equal_windows(const Tensor& input, const Integers& count) {
  Integers kernel;
  for (size_t d = 0; d < 2; ++d) {
    const int64_t length = input.size(2 + static_cast<int64_t>(d));
    if (count[d] <= 0 || length == 0 || length % count[d] != 0 || input.size(1) == 0)
      throw NotPlain();  // torch's
    kernel.push_back(length / count[d]);
  }
  return kernel;
}

}  // namespace

MaxPoolOptions max_pool_options(const Arguments& arguments, int i, bool channels_last) {
  const Integers kernel = arguments.pair(i);
  return {kernel,
          stride_or(arguments, i + 1, kernel),
          arguments.pair(i + 2),
          arguments.pair(i + 3),
          arguments.truth(i + 4),
          channels_last};
}

AvgPoolOptions avg_pool_options(const Arguments& arguments, int i, bool channels_last) {
  const Integers kernel = arguments.pair(i);
  const int64_t divisor = arguments.is_none(i + 5) ? 0 : arguments.integer(i + 5);
  if (divisor == 0 && !arguments.is_none(i + 5)) throw NotPlain();  // refused in Python
  return {kernel,
          stride_or(arguments, i + 1, kernel),
          arguments.pair(i + 2),
          arguments.truth(i + 3),
          arguments.truth(i + 4),
          divisor,
          channels_last,
          channels_last};
}

Tensor max_pool2d_call(const Tensor& input, MaxPoolOptions&& o) {
  static const Op forward("pydl::max_pool2d");
  BelowAutograd guard;
  const bool wants_places = records({&input});
  const variable_list made = forward.all(input, o.kernel, o.stride, o.padding, o.dilation, o.ceil_mode,
                                         o.channels_last, wants_places);
  if (wants_places) {
    const Tensor output = o.behind ? made[0] : Tensor();
    record(std::make_unique<MaxPool2d>(std::move(o), input), made[0], {&input}, {made[1], output});
  }
  return made[0];
}

Tensor avg_pool2d_call(const Tensor& input, AvgPoolOptions&& o) {
  static const Op forward("pydl::avg_pool2d");
  BelowAutograd guard;
  Tensor output = forward(input, o.kernel, o.stride, o.padding, o.ceil_mode, o.count_include_pad, o.divisor,
                          o.channels_last, o.grad_channels_last);
  if (records({&input})) {
    const Tensor kept = o.behind ? input : Tensor();
    record(std::make_unique<AvgPool2d>(std::move(o), input), output, {&input}, {kept});
  }
  return output;
}

// max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode): stride may be None.
PyObject* max_pool2d(PyObject*, PyObject* const* objects, Py_ssize_t given) {
  return answer<6>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = image(arguments);
    MaxPoolOptions options = max_pool_options(arguments, 1, is_channels_last(input));
    return unlocked([&] { return max_pool2d_call(input, std::move(options)); });
  });
}

// avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override): stride and
// divisor_override may be None.
PyObject* avg_pool2d(PyObject*, PyObject* const* objects, Py_ssize_t given) {
  return answer<7>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = image(arguments);
    AvgPoolOptions options = avg_pool_options(arguments, 1, is_channels_last(input));
    return unlocked([&] { return avg_pool2d_call(input, std::move(options)); });
  });
}

// adaptive_avg_pool2d(input, output_size)
PyObject* adaptive_avg_pool2d(PyObject*, PyObject* const* objects, Py_ssize_t given) {
  return answer<2>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = image(arguments);
    const Integers size = arguments.pair(1), kernel = equal_windows(input, size);
    const bool last = is_channels_last(input), whole = size[0] == 1 && size[1] == 1;
    AvgPoolOptions options{kernel, kernel, {0, 0}, false, true, 0, last, last && !whole};
    return unlocked([&] { return avg_pool2d_call(input, std::move(options)); });
  });
}

// adaptive_max_pool2d(input, output_size): the maxima without their indices
PyObject* adaptive_max_pool2d(PyObject*, PyObject* const* objects, Py_ssize_t given) {
  return answer<2>(objects, given, [](const Arguments& arguments) {
    const Tensor& input = image(arguments);
    const Integers kernel = equal_windows(input, arguments.pair(1));
    MaxPoolOptions options{kernel, kernel, {0, 0}, {1, 1}, false, is_channels_last(input)};
    return unlocked([&] { return max_pool2d_call(input, std::move(options)); });
  });
}

}  // namespace pydl::autograd
