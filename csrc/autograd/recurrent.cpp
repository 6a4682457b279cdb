// The node of one recurrent layer in one direction, and the calls of torch's functions of layers and cells that are made
// of it: the formulas and the rules of src/pydl/ops/recurrent.py and recurrent_cells.py.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/node.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <cstring>

namespace pydl::autograd {
namespace {

struct CellKind {
  const char* name;
  int64_t gates;
  bool is_lstm;
};
constexpr CellKind cell_kinds[] = {
    {"rnn_tanh", 1, false}, {"rnn_relu", 1, false}, {"gru", 3, false}, {"lstm", 4, true}};

const CellKind& kind_of(const Arguments& arguments, int i) {
  const char* name = arguments.text(i);
  for (const CellKind& kind : cell_kinds) {
    if (std::strcmp(kind.name, name) == 0) return kind;
  }
  throw NotPlain();
}

struct CellWeights {
  Tensor ih, hh, bias_ih, bias_hh;  // both biases or none
};

// One layer in one direction.
struct RecurrentLayer {
  const CellKind* kind;
  Tensor input, hidden, cell;
  CellWeights weights;
  Tensor batch_sizes;  // or not defined
  bool reverse;

  variable_list tensors() const {
    return {input, hidden, cell, weights.ih, weights.hh, weights.bias_ih, weights.bias_hh};
  }
};

const Op& forward_op() {
  static const Op op("pydl::recurrent_forward");
  return op;
}

// A tensor that may be written to after the forward, and its version then.
class Noted {
  Tensor tensor_;
  uint32_t version_ = 0;

 public:
  Noted() = default;
  explicit Noted(const Tensor& tensor)
      : tensor_(tensor), version_(tensor.defined() ? tensor._version() : 0) {}

  const Tensor& tensor() const { return tensor_; }
  bool is_written() const { return tensor_.defined() && tensor_._version() != version_; }
  void expect_unwritten(const char* op) const {
    TORCH_CHECK(
        !is_written(), op,
        ": expected no tensor that the forward is repeated from to be modified by an inplace operation, got "
        "one of shape ",
        pybind11::repr(pybind11::cast(tensor_.sizes())).cast<std::string>(), " at version ",
        tensor_._version(), " instead of ", version_);
  }
};

// The output is kept unchecked, since torch lets one write to it (output += x): its version is noted, and what was
// written to is computed once more. Saved is what torch saves too.
class Recurrent : public NodeOfMany {
  const CellKind& kind_;
  const bool reverse_;
  Noted output_;
  std::array<Noted, 4> unchecked_;  // input and weight_ih where they are not saved, and the biases

  void expect_unwritten() const {
    pybind11::gil_scoped_acquire lock;
    for (const Noted& one : unchecked_) one.expect_unwritten(kind_.name);
  }

  // By torch's cells, which can be differentiated or batched further.
  variable_list by_cells(const variable_list& tensors, const Tensor& batch_sizes,
                         const variable_list& grads) const {
    pybind11::gil_scoped_acquire lock;
    static PyObject* const function =
        pybind11::object(pybind11::module_::import("pydl.ops._recurrent_steps").attr("gradients"))
            .release()
            .ptr();
    std::vector<bool> needs;
    for (size_t i = 0; i < tensors.size(); ++i) needs.push_back(wants(i));
    const auto found =
        pybind11::handle(function)(kind_.name, pybind11::cast(tensors), pybind11::cast(batch_sizes), reverse_,
                                   needs, pybind11::cast(grads));
    variable_list gradients;
    for (const pybind11::handle one : found)
      gradients.push_back(one.is_none() ? Tensor() : one.cast<Tensor>());
    return gradients;
  }

 public:
  Recurrent(const RecurrentLayer& layer, const Tensor& output)
      : NodeOfMany(layer.kind->name),
        kind_(*layer.kind),
        reverse_(layer.reverse),
        output_(output.tensor_data()),  // the version is shared
        unchecked_{Noted(layer.weights.ih.requires_grad() ? Tensor() : layer.input),
                   Noted(layer.input.requires_grad() ? Tensor() : layer.weights.ih),
                   Noted(layer.weights.bias_ih), Noted(layer.weights.bias_hh)} {}

  void release_variables() override {
    NodeOfMany::release_variables();
    const std::lock_guard<std::mutex> lock(mutex_);
    output_ = Noted();
    unchecked_ = {};
  }

 protected:
  // Torch's cells, which serve a vmap over the gradient too, are differentiated in a backward of their own.
  bool is_below_autograd() const override { return NodeOfMany::is_below_autograd() && !under_transform(); }

  variable_list gradients(const variable_list& grads, const variable_list& saved) override {
    static const Op op("pydl::recurrent_backward");
    const Tensor& input = saved[0].defined() ? saved[0] : unchecked_[0].tensor();
    const Tensor& weight_ih = saved[3].defined() ? saved[3] : unchecked_[1].tensor();
    const Tensor &hidden = saved[1], &cell = saved[2], &weight_hh = saved[4], &batch_sizes = saved[6],
                 &bias_ih = unchecked_[2].tensor(), &bias_hh = unchecked_[3].tensor();
    if (!is_below_autograd()) {
      expect_unwritten();
      return by_cells({input, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh}, batch_sizes, grads);
    }
    Tensor output = output_.tensor();
    if (output_.is_written()) {
      expect_unwritten();
      output = forward_op().all(input, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes,
                                kind_.name, reverse_, false)[0];
    }
    return only_wanted(op.all(grads[0], grads[1], kind_.is_lstm ? grads[2] : Tensor(), input, hidden, cell,
                              weight_ih, weight_hh, output, saved[5], batch_sizes, kind_.name, reverse_,
                              wants(0), wants(1) || wants(2), wants(3), wants(4), wants(5) || wants(6)));
  }
};

// output and the states after the last step
variable_list layer_call(const RecurrentLayer& layer) {
  const variable_list tensors = layer.tensors();
  const CellWeights& w = layer.weights;
  BelowAutograd guard;
  const bool is_recorded =
      records({&tensors[0], &tensors[1], &tensors[2], &tensors[3], &tensors[4], &tensors[5], &tensors[6]});
  variable_list made =
      forward_op().all(layer.input, layer.hidden, layer.cell, w.ih, w.hh, w.bias_ih, w.bias_hh,
                       layer.batch_sizes, layer.kind->name, layer.reverse, is_recorded);
  const Tensor saved = made[3];
  made.resize(layer.kind->is_lstm ? 3 : 2);
  if (is_recorded) {
    record(std::make_unique<Recurrent>(layer, made[0]), made,
           {&tensors[0], &tensors[1], &tensors[2], &tensors[3], &tensors[4], &tensors[5], &tensors[6]},
           {w.ih.requires_grad() ? layer.input : Tensor(), layer.hidden, layer.cell,
            layer.input.requires_grad() ? w.ih : Tensor(), w.hh, saved, layer.batch_sizes});
  }
  return made;
}

// What is torch's under autocast: is_autocasts() of src/pydl/ops/recurrent.py.
void expect_float32_kept(const Tensor& input, bool keeps_float32) {
  if (is_autocast() && !(keeps_float32 && input.scalar_type() == at::kFloat)) throw NotPlain();
}

// An input of another layout has a gradient of another layout, which is Python's.
void expect_rows(const Tensor& input, const CellKind& kind) {
  if (kind.is_lstm) return;
  if (input.dim() == 2 ? input.stride(0) == 1 && input.stride(1) == input.size(0) : input.stride(-1) != 1)
    throw NotPlain();
}

// What torch refuses, it refuses in its own words.
void expect_weights(const CellWeights& w, const CellKind& kind, const Tensor& input, int64_t features,
                    int64_t units) {
  const int64_t gates = kind.gates * units;
  const auto fits = [&](const Tensor& t, at::IntArrayRef sizes) {
    return t.sizes() == sizes && t.scalar_type() == input.scalar_type();
  };
  if (!fits(w.ih, {gates, features}) || !fits(w.hh, {gates, units})) throw NotPlain();
  if (w.bias_ih.defined() != w.bias_hh.defined()) throw NotPlain();
  if (w.bias_ih.defined() && !(fits(w.bias_ih, {gates}) && fits(w.bias_hh, {gates}))) throw NotPlain();
}

void expect_states(const variable_list& states, const CellKind& kind, const Tensor& input,
                   at::IntArrayRef sizes) {
  if (states.size() != (kind.is_lstm ? 2 : 1)) throw NotPlain();
  for (const Tensor& state : states) {
    if (state.sizes() != sizes || state.scalar_type() != input.scalar_type()) throw NotPlain();
  }
}

int64_t units_of(const Tensor& weight_hh) {
  if (weight_hh.dim() != 2 || weight_hh.size(1) == 0) throw NotPlain();
  return weight_hh.size(1);
}

// A tensor, or of an LSTM two.
variable_list states_of(const Arguments& arguments, int i, const CellKind& kind) {
  return kind.is_lstm ? arguments.tensors(i) : variable_list{arguments.tensor(i)};
}

// torch's function of a whole module: what a call of it says, but for the dropout between layers.
struct RecurrentStack {
  const CellKind& kind;
  Tensor input;
  variable_list states, params;
  bool has_biases, batch_first;
  int64_t layers, directions;

  CellWeights weights(int64_t i) const {
    const auto own = params.begin() + i * (has_biases ? 4 : 2);
    return has_biases ? CellWeights{own[0], own[1], own[2], own[3]} : CellWeights{own[0], own[1], {}, {}};
  }

  void expect_plain() const {
    constexpr int64_t kSmall = 1 << 20;  // whose LSTM may be torch's to serve (LARGE) is Python's question
    const int64_t count = layers * directions;
    if (layers < 1 || input.dim() != 3 || input.numel() == 0) throw NotPlain();
    if (int64_t(params.size()) != count * (has_biases ? 4 : 2)) throw NotPlain();
    expect_rows(input, kind);
    const int64_t units = units_of(params[1]);
    int64_t features = input.size(2);
    for (int64_t i = 0; i < count; ++i) {
      const CellWeights w = weights(i);
      expect_weights(w, kind, input, features, units);
      if (w.ih.numel() + w.hh.numel() > kSmall) throw NotPlain();
      if ((i + 1) % directions == 0) features = units * directions;
    }
    expect_states(states, kind, input, {count, input.size(batch_first ? 0 : 1), units});
  }

  variable_list run() const {
    std::vector<variable_list> initial, final(states.size());
    for (const Tensor& state : states) initial.push_back(state.unbind(0));
    Tensor x = batch_first ? input.transpose(0, 1) : input;
    for (int64_t layer = 0; layer < layers; ++layer) {
      variable_list outputs;
      for (int64_t direction = 0; direction < directions; ++direction) {
        const int64_t i = layer * directions + direction;
        const variable_list made =
            layer_call({&kind, x, initial[0][i], kind.is_lstm ? initial[1][i] : Tensor(), weights(i),
                        Tensor(), direction == 1});
        outputs.push_back(made[0]);
        for (size_t s = 0; s < final.size(); ++s) final[s].push_back(made[s + 1]);
      }
      x = directions == 1 ? outputs[0] : at::cat(outputs, -1);
    }
    variable_list results{batch_first ? x.transpose(0, 1) : x};
    for (const variable_list& of : final)
      results.push_back(of.size() == 1 ? of[0].unsqueeze(0) : at::stack(of));
    return results;
  }
};

}  // namespace

// recurrent(input, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, kind, reverse): the arguments of the
// op, which Python has checked; cell, the biases and batch_sizes may be None.
PYDL_PYTHON_FUNCTION(recurrent) {
  return answer<10>(objects, given, [](const Arguments& arguments) {
    const RecurrentLayer layer{&kind_of(arguments, 8),
                               arguments.tensor(0),
                               arguments.tensor(1),
                               arguments.optional_tensor(2),
                               {arguments.tensor(3), arguments.tensor(4), arguments.optional_tensor(5),
                                arguments.optional_tensor(6)},
                               arguments.is_none(7) ? no_tensor() : arguments.indices(7),
                               arguments.truth(9)};
    expect_rows(layer.input, *layer.kind);
    return unlocked([&] { return layer_call(layer); });
  });
}

// recurrent_stack(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first, kind): the
// arguments of torch.gru and its like.
PYDL_PYTHON_FUNCTION(recurrent_stack) {
  return answer<10>(objects, given, [](const Arguments& arguments) {
    const CellKind& kind = kind_of(arguments, 9);
    const RecurrentStack stack{kind,
                               arguments.tensor(0),
                               states_of(arguments, 1, kind),
                               arguments.tensors(2),
                               arguments.truth(3),
                               arguments.truth(8),
                               arguments.integer(4),
                               arguments.truth(7) ? 2 : 1};
    expect_float32_kept(stack.input, std::strcmp(kind.name, "gru") == 0);
    if (arguments.real(5) != 0 && arguments.truth(6)) throw NotPlain();
    stack.expect_plain();
    return unlocked([&] { return stack.run(); });
  });
}

// recurrent_cell(input, hx, w_ih, w_hh, b_ih, b_hh, kind): the arguments of torch.gru_cell and its like. The state, or of
// an LSTM two.
PYDL_PYTHON_FUNCTION(recurrent_cell) {
  return answer<7>(objects, given, [](const Arguments& arguments) {
    const CellKind& kind = kind_of(arguments, 6);
    const Tensor& input = arguments.tensor(0);
    expect_float32_kept(input, kind.gates > 1);
    const variable_list states = states_of(arguments, 1, kind);
    const CellWeights w{arguments.tensor(2), arguments.tensor(3), arguments.optional_tensor(4),
                        arguments.optional_tensor(5)};
    if (input.dim() != 2 || input.numel() == 0 || input.stride(1) != 1) throw NotPlain();
    const int64_t units = units_of(w.hh);
    expect_weights(w, kind, input, input.size(1), units);
    expect_states(states, kind, input, {input.size(0), units});
    return unlocked([&] {
      variable_list made = layer_call(
          {&kind, input.unsqueeze(0), states[0], kind.is_lstm ? states[1] : Tensor(), w, Tensor(), false});
      made.erase(made.begin());  // the output, which is the state
      return made;
    });
  });
}

}  // namespace pydl::autograd
