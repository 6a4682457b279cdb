// pydl::recurrent_forward, recurrent_backward: one layer of rnn_tanh, rnn_relu, gru or lstm in one direction, on the CPU
// alone
//
// input: (steps, batch, features); or of sequences of different lengths, longest first, the rows of all steps one after
// another, (rows, features), with batch_sizes: int64, how many sequences have each step. What a call has no use for
// (cell of another than lstm, gradients that are not wanted) is an empty tensor.
#include "kernels/recurrent.h"

#include "csrc/convert.h"
#include "csrc/product.h"
#include "csrc/scratch.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

using Sizes = std::vector<int64_t>;
using Optional = std::optional<Tensor>;

Optional without_half(const Optional& t) { return t ? Optional(widened(*t)) : t; }
const void* data_of(const Optional& t) { return t ? t->const_data_ptr() : nullptr; }
Tensor none(const Tensor& like) { return empty(like, like.scalar_type(), {0}); }

Cell cell_of(const std::string& kind) {
  if (kind == "rnn_tanh") return Cell::tanh;
  if (kind == "rnn_relu") return Cell::relu;
  if (kind == "gru") return Cell::gru;
  if (kind == "lstm") return Cell::lstm;
  throw pybind11::value_error(
      join("recurrent: expected kind to be rnn_tanh, rnn_relu, gru or lstm, got '", kind, "'"));
}

// Which rows of the input belong to which step.
struct Steps {
  Sizes sizes, first_row;
  int64_t rows = 0;
  bool packed;

  Steps(const Tensor& input, const Optional& batch_sizes) : packed(batch_sizes) {
    if (batch_sizes) {
      PYDL_CHECK(batch_sizes->scalar_type() == ScalarType::Long && batch_sizes->dim() == 1,
                 "recurrent: expected batch_sizes to be int64 and 1-D, got ",
                 dtype_name(batch_sizes->scalar_type()), " of shape ", shape_of(*batch_sizes));
      const Tensor own = dense(*batch_sizes);
      const int64_t* const data = own.const_data_ptr<int64_t>();
      sizes.assign(data, data + own.numel());
    } else {
      sizes.assign(static_cast<size_t>(input.size(0)), input.size(1));
    }
    int64_t before = sizes.empty() ? 0 : sizes[0];
    for (int64_t size : sizes) {
      PYDL_CHECK(size > 0 && size <= before,
                 "recurrent: expected batch_sizes to be positive and not to grow, got ", shape_of(sizes));
      first_row.push_back(rows);
      rows += before = size;
    }
    PYDL_CHECK(!sizes.empty(), "recurrent: expected at least one step, got input of shape ", shape_of(input));
    PYDL_CHECK(!packed || rows == input.size(0),
               "recurrent: expected input to have as many rows as batch_sizes say, ", rows, ", got shape ",
               shape_of(input));
  }
};

void check(const char* what, const Tensor& t, const Tensor& input, const Sizes& sizes) {
  check_same_dtype("recurrent", what, t, "input", input);
  PYDL_CHECK(sizes_of(t) == sizes, "recurrent: expected ", what, " to be of shape ", shape_of(sizes),
             ", got ", shape_of(t));
}
void check(const char* what, const Optional& t, const Tensor& input, const Sizes& sizes) {
  if (t) check(what, *t, input, sizes);
}

void check_cell(Cell kind, const Optional& cell, const Tensor& input, const Sizes& sizes) {
  PYDL_CHECK(cell.has_value() == (kind == Cell::lstm), "recurrent: expected cell to be given for lstm alone");
  check("cell", cell, input, sizes);
}

// All but pointers. `steps` outlives the params.
RecurrentParams params_of(const Tensor& input, const Steps& steps, const Tensor& weight_ih,
                          const Tensor& weight_hh, Cell cell, bool reverse) {
  RecurrentParams p{};
  p.dtype = dtype_of("recurrent", input);
  p.cell = cell;
  p.reverse = reverse;
  p.steps = static_cast<int64_t>(steps.sizes.size());
  p.batch = steps.sizes[0];
  p.rows = steps.rows;
  p.features = input.size(input.dim() - 1);
  PYDL_CHECK(weight_hh.dim() == 2, "recurrent: expected weight_hh to be 2-D, got shape ",
             shape_of(weight_hh));
  p.units = weight_hh.size(1);
  check("weight_ih", weight_ih, input, {gates_of(cell) * p.units, p.features});
  check("weight_hh", weight_hh, input, {gates_of(cell) * p.units, p.units});
  p.sizes = steps.sizes.data();
  p.first_row = steps.first_row.data();
  return p;
}

void check_dims(const Tensor& input, const Optional& batch_sizes) {
  PYDL_CHECK(input.dim() == (batch_sizes ? 2 : 3), "recurrent: expected input to be ",
             batch_sizes ? "2-D" : "3-D", ", got shape ", shape_of(input));
  PYDL_CHECK(input.numel() > 0, "recurrent: expected input not to be empty, got shape ", shape_of(input));
}

Sizes with_units(const Tensor& input, int64_t units) {
  Sizes sizes = sizes_of(input);
  sizes.back() = units;
  return sizes;
}

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;
Forward forward(const Tensor& input, const Tensor& hidden, const Optional& cell, const Tensor& weight_ih,
                const Tensor& weight_hh, const Optional& bias_ih, const Optional& bias_hh,
                const Optional& batch_sizes, const std::string& kind, bool reverse, bool save) {
  check_dims(input, batch_sizes);
  const Cell which = cell_of(kind);
  const Steps steps(input, batch_sizes);
  RecurrentParams p = params_of(input, steps, weight_ih, weight_hh, which, reverse);
  check("hidden", hidden, input, {p.batch, p.units});
  check_cell(which, cell, input, {p.batch, p.units});
  check("bias_ih", bias_ih, input, {gates_of(which) * p.units});
  check("bias_hh", bias_hh, input, {gates_of(which) * p.units});
  if (p.dtype == DType::f16) {
    auto [output, hidden_n, cell_n, saved] =
        forward(widened(input), widened(hidden), without_half(cell), widened(weight_ih), widened(weight_hh),
                without_half(bias_ih), without_half(bias_hh), batch_sizes, kind, reverse, save);
    return {rounded(output), rounded(hidden_n), rounded(cell_n), rounded(saved)};
  }
  const ScalarType type = input.scalar_type();
  Tensor output = empty(input, type, with_units(input, p.units));
  Tensor hidden_n = empty(input, type, {p.batch, p.units});
  Tensor cell_n = which == Cell::lstm ? empty(input, type, {p.batch, p.units}) : none(input);
  Tensor saved =
      save && saved_of(which) ? empty(input, type, {p.rows, saved_of(which), p.units}) : none(input);
  Verbose line("recurrent_forward", input, &weight_hh);
  line.algorithm = kind.c_str();
  const Tensor x = dense(input), w_ih = dense(weight_ih), w_hh = dense(weight_hh);
  const Tensor h = dense(hidden);
  const Optional c = dense(cell), b_ih = dense(bias_ih), b_hh = dense(bias_hh);
  p.input = x.const_data_ptr();
  p.hidden = h.const_data_ptr();
  p.cell_state = data_of(c);
  p.weight_ih = w_ih.const_data_ptr();
  p.weight_hh = w_hh.const_data_ptr();
  p.bias_ih = data_of(b_ih);
  p.bias_hh = data_of(b_hh);
  p.output = output.mutable_data_ptr();
  p.saved = saved.numel() ? saved.mutable_data_ptr() : nullptr;
  p.hidden_n = hidden_n.mutable_data_ptr();
  p.cell_n = cell_n.mutable_data_ptr();
  const Parallel threads = torch_threads();
  p.scratch = Scratch::of_at_least(PYDL_CPU_CALL(recurrent_forward_scratch)(p, threads.threads));
  PYDL_CPU_CALL(recurrent_forward)(p, threads);
  return {output, hidden_n, cell_n, saved};
}

// ---- the products after the loop

Matrix from_row(const Matrix& m, int64_t row, int64_t column, int64_t bytes_each) {
  Matrix part = m;
  part.data = static_cast<char*>(m.data) + (row * m.row + column * m.column) * bytes_each;
  return part;
}

class Products {
 public:
  Products(const RecurrentParams& p, const Tensor& like) : p_(p), like_(like) {
    bytes_ = bytes_per_element(like.scalar_type());
    gradients_ = {p.gradients, p.pitch, 1};
    own_ = gates_of(p.cell) * p.units;
    of_input_ = p.cell == Cell::gru ? p.units : 0;  // db_n comes first, which is none of the input's
  }

  // grad_input = gradients of a · weight_ih
  void input(const Tensor& weight_ih, Tensor& grad_input) const {
    MatmulParams m = product_of("recurrent", like_, p_.rows, p_.features, own_);
    m.left = from_row(gradients_, 0, of_input_, bytes_);
    m.right = matrix_of(weight_ih);
    m.output = {grad_input.mutable_data_ptr(), p_.features, 1};
    multiply(m);
  }

  void weight_ih(const Tensor& input, Tensor& grad) const {
    const Matrix x{const_cast<void*>(input.const_data_ptr()), p_.features, 1};
    weight(x, p_.features, 0, p_.rows, of_input_, 0, own_, false, grad);
  }

  // The state before each step: the output of the step before it, which lies `batch` rows away, and at the first step
  // the initial state.
  void weight_hh(const Tensor& output, const Tensor& hidden, Tensor& grad) const {
    const int64_t others = p_.rows - p_.batch;
    const Matrix h{const_cast<void*>(output.const_data_ptr()), p_.units, 1};
    state({const_cast<void*>(hidden.const_data_ptr()), p_.units, 1}, p_.reverse ? others : 0, p_.batch, false,
          grad);
    if (others > 0)
      state(from_row(h, p_.reverse ? p_.batch : 0, 0, bytes_), p_.reverse ? 0 : p_.batch, others, true, grad);
  }

  // The same of sequences of different lengths: `before` has the state before each step.
  void weight_hh(const Tensor& before, Tensor& grad) const {
    state({const_cast<void*>(before.const_data_ptr()), p_.units, 1}, 0, p_.rows, false, grad);
  }

  void biases(Tensor& grad_ih, Tensor& grad_hh) const {
    const int64_t width = gradients_of(p_.cell) * p_.units, last = width - own_;
    Tensor sums = empty(like_, like_.scalar_type(), {width});
    ColumnSumsParams c{p_.dtype, p_.rows, width, gradients_, sums.mutable_data_ptr(), nullptr};
    c.scratch = Scratch::of_at_least(PYDL_CPU_CALL(column_sums_scratch)(c));
    PYDL_CPU_CALL(column_sums)(c, torch_threads());
    const char* const from = static_cast<const char*>(sums.const_data_ptr());
    const auto copy = [&](Tensor& grad, int64_t to, int64_t first, int64_t count) {
      memcpy(static_cast<char*>(grad.mutable_data_ptr()) + to * bytes_, from + first * bytes_,
             static_cast<size_t>(count * bytes_));
    };
    copy(grad_ih, 0, last, own_);
    copy(grad_hh, 0, last, own_ - last);
    copy(grad_hh, own_ - last, 0, last);
  }

 private:
  // Rows [to, to + count) of grad (+)= columns [first, first + count) of the gradients, transposed, · right
  void weight(const Matrix& right, int64_t columns, int64_t row, int64_t rows, int64_t first, int64_t to,
              int64_t count, bool add, Tensor& grad) const {
    MatmulParams m = product_of("recurrent", like_, count, columns, rows);
    m.left = transposed(from_row(gradients_, row, first, bytes_));
    m.right = right;
    m.output = {static_cast<char*>(grad.mutable_data_ptr()) + to * columns * bytes_, columns, 1};
    if (add) m.addend = m.output;
    multiply(m);
  }
  void state(const Matrix& h, int64_t row, int64_t rows, bool add, Tensor& grad) const {
    weight(h, p_.units, row, rows, of_input_, 0, own_ - of_input_, add, grad);
    if (of_input_) weight(h, p_.units, row, rows, 0, own_ - of_input_, of_input_, add, grad);
  }

  const RecurrentParams& p_;
  const Tensor& like_;
  Matrix gradients_;
  int64_t bytes_, own_, of_input_;
};

// (rows, units): the state before each step.
Tensor states_before(const RecurrentParams& p, const Tensor& output, const Tensor& hidden) {
  Tensor before = empty(output, output.scalar_type(), {p.rows, p.units});
  const size_t row = static_cast<size_t>(p.units * bytes_per_element(output.scalar_type()));
  char* to = static_cast<char*>(before.mutable_data_ptr());
  const char* const from = static_cast<const char*>(output.const_data_ptr());
  const char* const initial = static_cast<const char*>(hidden.const_data_ptr());
  for (int64_t t = 0; t < p.steps; ++t) {
    const int64_t other = p.reverse ? t + 1 : t - 1, size = p.sizes[t];
    const int64_t known = other < 0 || other == p.steps ? 0 : min_of(size, p.sizes[other]);
    if (known > 0)
      memcpy(to, from + static_cast<size_t>(p.first_row[other]) * row, static_cast<size_t>(known) * row);
    memcpy(to + static_cast<size_t>(known) * row, initial + static_cast<size_t>(known) * row,
           static_cast<size_t>(size - known) * row);
    to += static_cast<size_t>(size) * row;
  }
  return before;
}

using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
Backward backward(const Optional& grad_output, const Optional& grad_hidden_n, const Optional& grad_cell_n,
                  const Tensor& input, const Tensor& hidden, const Optional& cell, const Tensor& weight_ih,
                  const Tensor& weight_hh, const Tensor& output, const Tensor& saved,
                  const Optional& batch_sizes, const std::string& kind, bool reverse, bool need_input,
                  bool need_state, bool need_weight_ih, bool need_weight_hh, bool need_bias) {
  check_dims(input, batch_sizes);
  const Cell which = cell_of(kind);
  const Steps steps(input, batch_sizes);
  RecurrentParams p = params_of(input, steps, weight_ih, weight_hh, which, reverse);
  const Sizes state{p.batch, p.units};
  check("grad_output", grad_output, input, with_units(input, p.units));
  check("output", output, input, with_units(input, p.units));
  check("grad_hidden", grad_hidden_n, input, state);
  check("grad_cell", grad_cell_n, input, state);
  check("hidden", hidden, input, state);
  check_cell(which, cell, input, state);
  if (saved_of(which)) check("saved", saved, input, {p.rows, saved_of(which), p.units});
  if (p.dtype == DType::f16) {
    auto [a, b, c, d, e, f, g] =
        backward(without_half(grad_output), without_half(grad_hidden_n), without_half(grad_cell_n),
                 widened(input), widened(hidden), without_half(cell), widened(weight_ih), widened(weight_hh),
                 widened(output), widened(saved), batch_sizes, kind, reverse, need_input, need_state,
                 need_weight_ih, need_weight_hh, need_bias);
    return {rounded(a), rounded(b), rounded(c), rounded(d), rounded(e), rounded(f), rounded(g)};
  }
  const ScalarType type = input.scalar_type();
  const auto wanted = [&](bool need, const Sizes& sizes) {
    return need ? empty(input, type, sizes) : none(input);
  };
  const Sizes bias{gates_of(which) * p.units};
  Tensor grad_input = wanted(need_input, sizes_of(input));
  Tensor grad_hidden = wanted(need_state, state),
         grad_cell = wanted(need_state && which == Cell::lstm, state);
  Tensor grad_weight_ih = wanted(need_weight_ih, sizes_of(weight_ih));
  Tensor grad_weight_hh = wanted(need_weight_hh, sizes_of(weight_hh));
  Tensor grad_bias_ih = wanted(need_bias, bias), grad_bias_hh = wanted(need_bias, bias);
  Verbose line("recurrent_backward", input, &weight_hh);
  line.algorithm = kind.c_str();
  const Tensor x = dense(input), y = dense(output), s = dense(saved), w_ih = dense(weight_ih),
               w_hh = dense(weight_hh);
  const Tensor h = dense(hidden);
  const Optional c = dense(cell);
  const Optional dy = dense(grad_output), dh = dense(grad_hidden_n), dc = dense(grad_cell_n);
  p.pitch = gradients_of(which) * p.units + 16;  // away from powers of two
  Tensor gradients = empty(input, type, {p.rows, p.pitch});
  p.hidden = h.const_data_ptr();
  p.cell_state = data_of(c);
  p.weight_hh = w_hh.const_data_ptr();
  p.output = const_cast<void*>(y.const_data_ptr());
  p.saved = const_cast<void*>(s.const_data_ptr());
  p.grad_output = data_of(dy);
  p.grad_hidden_n = data_of(dh);
  p.grad_cell_n = data_of(dc);
  p.gradients = gradients.mutable_data_ptr();
  p.grad_hidden = need_state ? grad_hidden.mutable_data_ptr() : nullptr;
  p.grad_cell = grad_cell.numel() ? grad_cell.mutable_data_ptr() : nullptr;
  const Parallel threads = torch_threads();
  p.scratch = Scratch::of_at_least(PYDL_CPU_CALL(recurrent_backward_scratch)(p, threads.threads));
  PYDL_CPU_CALL(recurrent_backward)(p, threads);

  const Products products(p, input);
  const Optional before = need_weight_hh && steps.packed ? Optional(states_before(p, y, h)) : std::nullopt;
  if (PYDL_CPU_CALL(recurrent_products_serves)(p)) {
    p.input = x.const_data_ptr();
    p.weight_ih = w_ih.const_data_ptr();
    p.grad_input = need_input ? grad_input.mutable_data_ptr() : nullptr;
    p.before = data_of(before);
    p.grad_weight_ih = need_weight_ih ? grad_weight_ih.mutable_data_ptr() : nullptr;
    p.grad_weight_hh = need_weight_hh ? grad_weight_hh.mutable_data_ptr() : nullptr;
    p.grad_bias_ih = need_bias ? grad_bias_ih.mutable_data_ptr() : nullptr;
    p.grad_bias_hh = need_bias ? grad_bias_hh.mutable_data_ptr() : nullptr;
    p.scratch = Scratch::of_at_least(PYDL_CPU_CALL(recurrent_products_scratch)(p, threads.threads));
    PYDL_CPU_CALL(recurrent_products)(p, threads);
  } else {
    if (need_input) products.input(w_ih, grad_input);
    if (need_weight_ih) products.weight_ih(x, grad_weight_ih);
    if (need_weight_hh)
      before ? products.weight_hh(*before, grad_weight_hh) : products.weight_hh(y, h, grad_weight_hh);
    if (need_bias) products.biases(grad_bias_ih, grad_bias_hh);
  }
  return {grad_input, grad_hidden, grad_cell, grad_weight_ih, grad_weight_hh, grad_bias_ih, grad_bias_hh};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("recurrent_forward", TORCH_BOX(&forward));
  m.impl("recurrent_backward", TORCH_BOX(&backward));
}

}  // namespace pydl
