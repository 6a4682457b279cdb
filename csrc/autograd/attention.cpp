// The node of attention, whose formula is in src/pydl/ops/_attention_autograd.py.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/node.h"

namespace pydl::autograd {
namespace {

struct AttentionOptions {
  double dropout_p;
  bool is_causal;
  double scale;
  int64_t layout;
};

class Attention : public Node {
  const AttentionOptions options_;

 public:
  explicit Attention(const AttentionOptions& options)
      : Node("scaled_dot_product_attention"), options_(options) {}

  variable_list backward(const Tensor& grad, const variable_list& saved) override {
    static const Op op("pydl::attention_backward");
    const AttentionOptions& o = options_;
    return only_wanted(op.all(grad, saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], saved[6],
                              saved[7], o.dropout_p, o.is_causal, o.scale, o.layout, wants(0), wants(1),
                              wants(2)));
  }
};

}  // namespace

// attention(query, key, value, mask, lengths, seed, dropout_p, is_causal, scale, layout): the arguments of the op, which
// Python has checked; mask, lengths and seed may be None.
PyObject* attention(PyObject*, PyObject* const* objects, Py_ssize_t given) {
  return answer<10>(objects, given, [](const Arguments& arguments) {
    static const Op forward("pydl::attention_forward");
    const Tensor &query = arguments.tensor(0), &key = arguments.tensor(1), &value = arguments.tensor(2);
    const Tensor& mask = arguments.is_none(3) ? no_tensor() : arguments.any_tensor(3);
    const Tensor& lengths = arguments.is_none(4) ? no_tensor() : arguments.indices(4);
    const Tensor& seed = arguments.is_none(5) ? no_tensor() : arguments.indices(5);
    if (mask.defined() && mask.requires_grad()) throw NotPlain();  // whose gradient is Python's
    const AttentionOptions o{arguments.real(6), arguments.truth(7), arguments.real(8), arguments.integer(9)};
    return unlocked([&] {
      BelowAutograd guard;
      const variable_list made =
          forward.all(query, key, value, mask, lengths, seed, o.dropout_p, o.is_causal, o.scale, o.layout);
      if (records({&query, &key, &value})) {
        record(std::make_unique<Attention>(o), made[0], {&query, &key, &value},
               {query, key, value, made[0], made[1], mask, lengths, seed});
      }
      return made[0];
    });
  });
}

}  // namespace pydl::autograd
