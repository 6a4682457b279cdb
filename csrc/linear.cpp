// pydl::linear_forward, linear_backward_input, linear_backward_weight, linear_backward_bias: on the CPU alone
//
// column_major: the result's columns lie one after another in memory, as torch leaves the gradient of a matrix that
// lies so itself; Python decides it once for the kernel and for tracing.
#include "csrc/convert.h"
#include "csrc/product.h"
#include "csrc/scratch.h"

namespace pydl {
namespace {

using Sizes = std::vector<int64_t>;

// A tensor of any number of dimensions as a matrix: its last dimension in rows.
struct Rows {
  Tensor tensor;  // what the matrix is made of: a copy, where one stride cannot lead from row to row
  int64_t rows, columns;
  Matrix matrix;

  explicit Rows(const Tensor& t) : tensor(t) {
    const int64_t last = t.dim() - 1;
    columns = t.size(last);
    if (!collapse()) {
      tensor = torch::stable::contiguous(t);
      collapse();
    }
    matrix.data = const_cast<void*>(tensor.const_data_ptr());
    matrix.column = tensor.stride(last);
  }

 private:
  bool collapse() {
    rows = 1;
    matrix.row = 0;
    int64_t expected = 0;  // stride of the next dimension outwards, if one leads through all rows
    for (int64_t d = tensor.dim() - 2; d >= 0; --d) {
      const int64_t size = tensor.size(d), stride = tensor.stride(d);
      if (size == 1) continue;
      if (rows == 1)
        matrix.row = stride;
      else if (stride != expected && size != 0)
        return false;
      rows *= size;
      expected = matrix.row * rows;
    }
    return true;
  }
};

bool by_way_of_float(const Tensor& t) { return t.scalar_type() == ScalarType::Half; }

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
               const std::string& activation) {
  PYDL_CHECK(input.dim() >= 1, "linear: expected input to be at least 1-D, got shape ", shape_of(input));
  PYDL_CHECK(weight.dim() == 2, "linear: expected weight to be 2-D, got shape ", shape_of(weight));
  PYDL_CHECK(input.size(input.dim() - 1) == weight.size(1), "linear: expected input's last dimension to be ",
             weight.size(1), " (weight of shape ", shape_of(weight), "), got shape ", shape_of(input));
  check_same_dtype("linear", "weight", weight, "input", input);
  if (bias) {
    check_same_dtype("linear", "bias", *bias, "input", input);
    PYDL_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), "linear: expected bias to be of shape (",
               weight.size(0), "), got ", shape_of(*bias));
  }
  if (by_way_of_float(input))
    return rounded(
        forward(widened(input), widened(weight), bias ? std::optional(widened(*bias)) : bias, activation));
  const Activation function = activation_of("linear", activation);
  Sizes sizes = sizes_of(input);
  sizes.back() = weight.size(0);
  Tensor output = empty(input, input.scalar_type(), sizes);
  if (output.numel() == 0) return output;
  std::optional<Tensor> dense_bias;  // the kernels read it as contiguous; it is small
  if (bias) dense_bias = torch::stable::contiguous(*bias);
  const Rows x(input);
  const Verbose line("linear_forward", input, &weight);
  MatmulParams p = product_of("linear", input, x.rows, weight.size(0), x.columns);
  p.left = x.matrix;
  p.right = transposed(matrix_of(weight));
  p.output = {output.mutable_data_ptr(), weight.size(0), 1};
  p.bias = bias ? dense_bias->const_data_ptr() : nullptr;
  p.activation = function;
  multiply(p);
  return output;
}

Tensor backward_input(const Tensor& grad_output, const Tensor& weight, bool column_major) {
  PYDL_CHECK(weight.dim() == 2, "linear: expected weight to be 2-D, got shape ", shape_of(weight));
  PYDL_CHECK(grad_output.dim() >= 1 && grad_output.size(grad_output.dim() - 1) == weight.size(0),
             "linear: expected grad_output's last dimension to be ", weight.size(0), ", got shape ",
             shape_of(grad_output));
  PYDL_CHECK(!column_major || grad_output.dim() == 2,
             "linear: expected grad_output to be 2-D for a column-major gradient, got shape ",
             shape_of(grad_output));
  check_same_dtype("linear", "weight", weight, "grad_output", grad_output);
  if (by_way_of_float(grad_output))
    return rounded(backward_input(widened(grad_output), widened(weight), column_major));
  Sizes sizes = sizes_of(grad_output);
  sizes.back() = weight.size(1);
  Tensor grad_input = column_major ? empty_matrix(grad_output, sizes[0], sizes[1], true)
                                   : empty(grad_output, grad_output.scalar_type(), sizes);
  if (grad_input.numel() == 0) return grad_input;
  const Rows g(grad_output);
  const Verbose line("linear_backward_input", grad_output, &weight);
  MatmulParams p = product_of("linear", grad_output, g.rows, weight.size(1), g.columns);
  p.left = g.matrix;
  p.right = matrix_of(weight);
  p.output = {grad_input.mutable_data_ptr(), column_major ? 1 : weight.size(1), column_major ? g.rows : 1};
  multiply(p);
  return grad_input;
}

// in_float32: of bfloat16, with the same numbers in float32, as a parameter's gradient under autocast is to be.
Tensor backward_weight(const Tensor& grad_output, const Tensor& input, bool column_major, bool in_float32) {
  PYDL_CHECK(grad_output.dim() == input.dim() && input.dim() >= 1,
             "linear: expected grad_output to have the dimensions of input, got shapes ",
             shape_of(grad_output), " and ", shape_of(input));
  check_same_dtype("linear", "input", input, "grad_output", grad_output);
  if (by_way_of_float(grad_output))
    return rounded(backward_weight(widened(grad_output), widened(input), column_major, false));
  const Rows g(grad_output), x(input);
  PYDL_CHECK(g.rows == x.rows, "linear: expected grad_output to have as many rows as input, got shapes ",
             shape_of(grad_output), " and ", shape_of(input));
  const bool widens = in_float32 && grad_output.scalar_type() == ScalarType::BFloat16;
  Tensor grad_weight = empty_matrix(grad_output, g.columns, x.columns, column_major,
                                    widens ? ScalarType::Float : grad_output.scalar_type());
  if (grad_weight.numel() == 0) return grad_weight;
  const Verbose line("linear_backward_weight", grad_output, &input);
  MatmulParams p = product_of("linear", grad_output, g.columns, x.columns, g.rows);
  p.left = transposed(g.matrix);
  p.right = x.matrix;
  p.output = {grad_weight.mutable_data_ptr(), column_major ? 1 : x.columns, column_major ? g.columns : 1};
  p.float_output = p.rounded = widens;
  multiply(p);
  return grad_weight;
}

Tensor backward_bias(const Tensor& grad_output) {
  PYDL_CHECK(grad_output.dim() >= 1, "linear: expected grad_output to be at least 1-D, got shape ",
             shape_of(grad_output));
  const Verbose line("linear_backward_bias", grad_output);
  const Rows g(grad_output);
  Tensor grad_bias = empty(grad_output, grad_output.scalar_type(), {g.columns});
  if (g.columns == 0) return grad_bias;
  ColumnSumsParams p{dtype_of("linear", grad_output), g.rows, g.columns, g.matrix,
                     grad_bias.mutable_data_ptr(),    nullptr};
  p.scratch = Scratch::of_at_least(PYDL_CPU_CALL(column_sums_scratch)(p));
  PYDL_CPU_CALL(column_sums)(p, torch_threads());
  return grad_bias;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("linear_forward", TORCH_BOX(&forward));
  m.impl("linear_backward_input", TORCH_BOX(&backward_input));
  m.impl("linear_backward_weight", TORCH_BOX(&backward_weight));
  m.impl("linear_backward_bias", TORCH_BOX(&backward_bias));
}

}  // namespace pydl
