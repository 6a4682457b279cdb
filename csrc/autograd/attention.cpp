// The node of attention, whose formula is in src/pydl/ops/_attention_autograd.py.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/node.h"
#include "csrc/autograd/seed.h"

#include <ATen/Context.h>

#include <cmath>

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

Tensor attention_call(Lowered query, Lowered key, Lowered value, const Tensor& mask, const Tensor& lengths,
                      const Tensor& seed, const AttentionOptions& o) {
  static const Op forward("pydl::attention_forward");
  BelowAutograd guard;
  cast({&query, &key, &value});
  const variable_list made = forward.all(query.read(), key.read(), value.read(), mask, lengths, seed,
                                         o.dropout_p, o.is_causal, o.scale, o.layout);
  if (records({&query, &key, &value})) {
    record(std::make_unique<Attention>(o), made[0], {&query, &key, &value},
           {query.read(), key.read(), value.read(), made[0], made[1], mask, lengths, seed});
  }
  return made[0];
}

constexpr int64_t kWidest = 256;                // numbers of a head
constexpr int64_t kFlash = 0, kTransposed = 2;  // layouts (src/pydl/ops/_attention_schema.py)

// Shapes as the op takes them; what broadcasts, heads that are shared, and what torch refuses, are Python's.
void expect_fitting(const Tensor& query, const Tensor& key, const Tensor& value) {
  const int64_t dims = query.dim(), width = query.size(-1), value_width = value.size(-1);
  if (dims < 3 || dims > 4 || key.dim() != dims || value.dim() != dims) throw NotPlain();
  if (query.numel() == 0 || key.numel() == 0 || value.numel() == 0) throw NotPlain();
  if (width > kWidest || value_width > kWidest || key.size(-1) != width || value.size(-2) != key.size(-2))
    throw NotPlain();
  const at::IntArrayRef outer = query.sizes().slice(0, dims - 2);
  if (key.sizes().slice(0, dims - 2) != outer || value.sizes().slice(0, dims - 2) != outer) throw NotPlain();
}

// How torch lays out the output and the gradients: by which of its own ways serves the call.
int64_t layout_of(const Tensor& query, const Tensor& key, const Tensor& value, double dropout_p) {
  const bool is_flashs = dropout_p == 0 && query.dim() == 4 && value.size(3) == query.size(3) &&
                         query.stride(3) == 1 && key.stride(3) == 1 && value.stride(3) == 1;
  return is_flashs ? kFlash : kTransposed;
}

}  // namespace

// scaled_dot_product_attention(query, key, value, dropout_p, is_causal, scale, layout): a call without mask, lengths and
// shared heads. scale may be None, and so may layout, which is torch's then.
PYDL_PYTHON_FUNCTION(scaled_dot_product_attention) {
  return answer<7>(objects, given, [](const Arguments& arguments) {
    const Lowered of[] = {arguments.lowered(0), arguments.lowered(1), arguments.lowered(2)};
    const Tensor &query = of[0].given(), &key = of[1].given(), &value = of[2].given();
    if (of[1].dtype() != of[0].dtype() || of[2].dtype() != of[0].dtype()) throw NotPlain();
    const double dropout_p = arguments.real(3);
    if (!(dropout_p >= 0 && dropout_p <= 1) || query.dim() == 0 || value.dim() == 0) throw NotPlain();
    expect_fitting(query, key, value);
    if (!at::globalContext().userEnabledFlashSDP()) throw NotPlain();  // torch's own way was asked for
    const AttentionOptions o{
        dropout_p, arguments.truth(4),
        arguments.is_none(5) ? std::pow(static_cast<double>(query.size(-1)), -0.5) : arguments.real(5),
        arguments.is_none(6) ? layout_of(query, key, value, dropout_p) : arguments.integer(6)};
    return unlocked([&] {
      const Tensor seed = dropout_p > 0 ? dropout_seed() : Tensor();
      if (query.dim() == 4) return attention_call(of[0], of[1], of[2], Tensor(), Tensor(), seed, o);
      const auto four = [&](int i) { return Lowered(of[i].given().unsqueeze(1), of[i].dtype()); };
      return attention_call(four(0), four(1), four(2), Tensor(), Tensor(), seed, o).squeeze(1);
    });
  });
}

// attention(query, key, value, mask, lengths, seed, dropout_p, is_causal, scale, layout): the arguments of the op, which
// Python has checked and cast; mask, lengths and seed may be None.
PYDL_PYTHON_FUNCTION(attention) {
  return answer<10>(objects, given, [](const Arguments& arguments) {
    const auto read = [&](int i) { return Lowered(arguments.tensor(i), arguments.tensor(i).scalar_type()); };
    const Lowered of[] = {read(0), read(1), read(2)};
    const Tensor& mask = arguments.is_none(3) ? no_tensor() : arguments.any_tensor(3);
    const Tensor& lengths = arguments.is_none(4) ? no_tensor() : arguments.indices(4);
    const Tensor& seed = arguments.is_none(5) ? no_tensor() : arguments.indices(5);
    if (mask.defined() && mask.requires_grad()) throw NotPlain();  // whose gradient is Python's
    const AttentionOptions o{arguments.real(6), arguments.truth(7), arguments.real(8), arguments.integer(9)};
    return unlocked([&] { return attention_call(of[0], of[1], of[2], mask, lengths, seed, o); });
  });
}

}  // namespace pydl::autograd
