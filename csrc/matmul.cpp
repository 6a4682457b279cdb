// pydl::matmul: products of matrices and of batches of them, on the CPU alone
//
//   output = alpha * left @ right + beta * addend
//
// column_major: the result's columns lie one after another in memory, as torch leaves the gradient of a matrix that
// lies so itself; Python decides it once for the kernel and for tracing.
#include "csrc/convert.h"
#include "csrc/product.h"

namespace pydl {
namespace {

// One dimension of a batch, and how far each of the matrices moves along it.
struct Dimension {
  int64_t size;
  int64_t left, right, output, addend;

  // Whether one stride of each matrix leads through this dimension and the next one inwards.
  bool continues_in(const Dimension& inner) const {
    return left == inner.left * inner.size && right == inner.right * inner.size &&
           output == inner.output * inner.size && addend == inner.addend * inner.size;
  }
};

using Batch = std::vector<Dimension>;

// The stride of t along dimension d of `dims`, to which t is broadcast.
int64_t stride_along(const Tensor& t, int64_t d, int64_t dims) {
  const int64_t own = d - (dims - t.dim());
  return own < 0 || t.size(own) == 1 ? 0 : t.stride(own);
}

Matrix last_two(const Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), t.stride(t.dim() - 2), t.stride(t.dim() - 1)};
}

int64_t size_along(const Tensor& t, int64_t d, int64_t dims) {
  const int64_t own = d - (dims - t.dim());
  return own < 0 ? 1 : t.size(own);
}

// The shape of the product, or an error.
std::vector<int64_t> sizes_of_product(const Tensor& left, const Tensor& right) {
  PYDL_CHECK(left.dim() >= 2 && right.dim() >= 2,
             "matmul: expected matrices of at least 2 dimensions, got shapes ", shape_of(left), " and ",
             shape_of(right));
  const int64_t dims = max_of(left.dim(), right.dim());
  PYDL_CHECK(left.size(left.dim() - 1) == right.size(right.dim() - 2),
             "matmul: expected as many columns on the left as rows on the right, got shapes ", shape_of(left),
             " and ", shape_of(right));
  std::vector<int64_t> sizes(static_cast<size_t>(dims));
  for (int64_t d = 0; d < dims - 2; ++d) {
    const int64_t a = size_along(left, d, dims), b = size_along(right, d, dims);
    PYDL_CHECK(a == b || a == 1 || b == 1, "matmul: expected batches that broadcast, got shapes ",
               shape_of(left), " and ", shape_of(right));
    sizes[static_cast<size_t>(d)] = a == 1 ? b : a;
  }
  sizes[sizes.size() - 2] = left.size(left.dim() - 2);
  sizes[sizes.size() - 1] = right.size(right.dim() - 1);
  return sizes;
}

void check_addend(const Tensor& addend, const Tensor& left, const std::vector<int64_t>& sizes) {
  check_same_dtype("matmul", "addend", addend, "left", left);
  const int64_t dims = static_cast<int64_t>(sizes.size());
  bool broadcasts = addend.dim() <= dims;
  for (int64_t d = 0; broadcasts && d < dims; ++d) {
    const int64_t size = size_along(addend, d, dims);
    broadcasts = size == 1 || size == sizes[static_cast<size_t>(d)];
  }
  PYDL_CHECK(broadcasts, "matmul: expected addend to broadcast to the product's shape ", shape_of(sizes),
             ", got ", shape_of(addend));
}

// The batch, outermost first: dimensions that continue in each other are one.
Batch batch_of(const std::vector<int64_t>& sizes, const Tensor& left, const Tensor& right,
               const Tensor& output, const Tensor* addend) {
  const int64_t dims = static_cast<int64_t>(sizes.size());
  Batch batch;
  for (int64_t d = 0; d < dims - 2; ++d) {
    if (sizes[static_cast<size_t>(d)] == 1) continue;
    const Dimension next{sizes[static_cast<size_t>(d)], stride_along(left, d, dims),
                         stride_along(right, d, dims), stride_along(output, d, dims),
                         addend ? stride_along(*addend, d, dims) : 0};
    if (!batch.empty() && batch.back().continues_in(next)) {
      const int64_t size = batch.back().size * next.size;
      batch.back() = next;
      batch.back().size = size;
    } else {
      batch.push_back(next);
    }
  }
  return batch;
}

// Matrices that share the right one are one matrix with more rows, where a stride leads from each to the next.
void fold_into_rows(MatmulParams& p, Batch& batch) {
  while (!batch.empty()) {
    const Dimension& inner = batch.back();
    const bool folds =
        inner.right == 0 &&
        (p.rows == 1 || (inner.left == p.rows * p.left.row && inner.output == p.rows * p.output.row &&
                         (!p.addend.data || inner.addend == p.rows * p.addend.row)));
    if (!folds) return;
    if (p.rows == 1) {
      p.left.row = inner.left;
      p.output.row = inner.output;
      p.addend.row = inner.addend;
    }
    p.rows *= inner.size;
    batch.pop_back();
  }
}

void move(Matrix& m, int64_t elements, int64_t bytes_each) {
  if (m.data) m.data = static_cast<char*>(m.data) + elements * bytes_each;
}

// The kernel takes two dimensions of a batch; those before them are taken one by one.
void multiply_batch(MatmulParams p, const Batch& batch, size_t first, int64_t bytes_each) {
  if (batch.size() - first <= 2) {
    const auto take = [&p](const Dimension& d, int64_t& count, int64_t Matrix::* stride) {
      count = d.size;
      p.left.*stride = d.left;
      p.right.*stride = d.right;
      p.output.*stride = d.output;
      p.addend.*stride = d.addend;
    };
    if (batch.size() > first) take(batch.back(), p.inner, &Matrix::inner);
    if (batch.size() - first == 2) take(batch[first], p.outer, &Matrix::outer);
    return multiply(p);
  }
  const Dimension& d = batch[first];
  for (int64_t i = 0; i < d.size; ++i) {
    multiply_batch(p, batch, first + 1, bytes_each);
    move(p.left, d.left, bytes_each);
    move(p.right, d.right, bytes_each);
    move(p.output, d.output, bytes_each);
    move(p.addend, d.addend, bytes_each);
  }
}

Tensor matmul(const Tensor& left, const Tensor& right, const std::optional<Tensor>& addend, double beta,
              double alpha, bool column_major) {
  const std::vector<int64_t> sizes = sizes_of_product(left, right);
  check_same_dtype("matmul", "right", right, "left", left);
  if (addend) check_addend(*addend, left, sizes);
  PYDL_CHECK(!column_major || sizes.size() == 2,
             "matmul: expected matrices for a column-major result, got shape ", shape_of(sizes));
  if (left.scalar_type() == ScalarType::Half)
    return rounded(matmul(widened(left), widened(right), addend ? std::optional(widened(*addend)) : addend,
                          beta, alpha, column_major));
  const Verbose line("matmul", left, &right);
  const int64_t dims = static_cast<int64_t>(sizes.size()), rows = sizes[sizes.size() - 2],
                columns = sizes.back();
  Tensor output =
      column_major ? empty_matrix(left, rows, columns, true) : empty(left, left.scalar_type(), sizes);
  if (output.numel() == 0) return output;
  MatmulParams p = product_of("matmul", left, rows, columns, left.size(left.dim() - 1));
  p.left = last_two(left);
  p.right = last_two(right);
  p.output = {output.mutable_data_ptr(), column_major ? 1 : columns, column_major ? rows : 1};
  p.alpha = alpha;
  const Tensor* added =
      addend && beta != 0 ? &*addend : nullptr;  // taken zero times, it is not read: torch's rule
  Batch batch = batch_of(sizes, left, right, output, added);
  if (added) {
    p.addend = {const_cast<void*>(added->const_data_ptr()), stride_along(*added, dims - 2, dims),
                stride_along(*added, dims - 1, dims)};
    p.beta = beta;
    const bool is_row = added->numel() == columns && (columns == 1 || p.addend.column == 1);
    if (is_row && alpha == 1 && beta == 1 && !column_major) {
      p.bias = p.addend.data;
      p.addend = {};
    }
  }
  fold_into_rows(p, batch);
  multiply_batch(p, batch, 0, bytes_per_element(left.scalar_type()));
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) { m.impl("matmul", TORCH_BOX(&matmul)); }

}  // namespace pydl
