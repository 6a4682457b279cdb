// The nodes of softmax and log_softmax, whose formulas are in src/pydl/ops/softmax.py.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/node.h"

namespace pydl::autograd {
namespace {

class Softmax : public Node {
  const bool logarithm_;
  const int64_t dim_;

 public:
  Softmax(bool logarithm, int64_t dim)
      : Node(logarithm ? "log_softmax" : "softmax"), logarithm_(logarithm), dim_(dim) {}

  variable_list backward(const Tensor& grad, const variable_list& saved) override {
    static const Op plain("pydl::softmax_backward"), of_logarithm("pydl::log_softmax_backward");
    return {logarithm_ ? of_logarithm(grad, saved[0], dim_) : plain(grad, saved[0], dim_, no_tensor())};
  }
};

Tensor softmax_call(const Tensor& input, int64_t dim, bool logarithm) {
  static const Op plain("pydl::softmax_forward"), of_logarithm("pydl::log_softmax_forward");
  BelowAutograd guard;
  Tensor output = logarithm ? of_logarithm(input, dim) : plain(input, dim, no_tensor());
  if (records({&input})) record(std::make_unique<Softmax>(logarithm, dim), output, {&input}, {output});
  return output;
}

PyObject* along(PyObject* const* objects, Py_ssize_t given, bool logarithm) {
  return answer<2>(objects, given, [logarithm](const Arguments& arguments) {
    const Tensor& input = arguments.tensor(0);
    const int64_t dim = arguments.integer(1), all = input.dim();
    if (dim < -all || dim >= all) throw NotPlain();
    return unlocked([&] { return softmax_call(input, dim < 0 ? dim : dim - all, logarithm); });
  });
}

}  // namespace

// softmax(input, dim)
PYDL_PYTHON_FUNCTION(softmax) { return along(objects, given, false); }

// log_softmax(input, dim)
PYDL_PYTHON_FUNCTION(log_softmax) { return along(objects, given, true); }

}  // namespace pydl::autograd
