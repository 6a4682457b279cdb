// The one matrix product of kernels/matmul.h, for ops over tensors.
#pragma once

#include "csrc/plans.h"
#include "csrc/scratch.h"
#include "csrc/torch.h"
#include "csrc/verbose.h"
#include "kernels/machine.h"
#include "kernels/matmul.h"

namespace pydl {

inline Matrix matrix_of(const Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1)};
}
inline Matrix transposed(const Matrix& m) { return {m.data, m.column, m.row, m.outer, m.inner}; }

inline Tensor empty_matrix(const Tensor& like, int64_t rows, int64_t columns, bool column_major,
                           ScalarType dtype) {
  const int64_t sizes[2] = {rows, columns}, row_major[2] = {max_of(columns, 1), 1},
                other[2] = {1, max_of(rows, 1)};
  return empty_strided(like, dtype, {sizes, 2}, {column_major ? other : row_major, 2});
}
inline Tensor empty_matrix(const Tensor& like, int64_t rows, int64_t columns, bool column_major) {
  return empty_matrix(like, rows, columns, column_major, like.scalar_type());
}

// Params of left · right, with no matrices yet.
inline MatmulParams product_of(const char* op, const Tensor& like, int64_t rows, int64_t columns,
                               int64_t depth) {
  return {dtype_of(op, like), Activation::none, rows, columns, depth, {}, {}, {}, nullptr, nullptr};
}

// The plan of a product, kept by all that it depends on.
inline const MatmulPlan& plan_of(const MatmulParams& p, int64_t threads) {
  thread_local Plans<MatmulPlan, 16> plans;
  const decltype(plans)::Key key{cpu::isa_number(),
                                 machine().level2,
                                 machine().level3,
                                 static_cast<int64_t>(p.dtype),
                                 threads,
                                 p.outer * p.inner,
                                 p.rows,
                                 p.columns,
                                 p.depth,
                                 p.left.row,
                                 p.left.column,
                                 p.right.row,
                                 p.right.column,
                                 p.output.row,
                                 p.addend.data != nullptr,
                                 p.float_output};
  return plans.at(key, [&] { return PYDL_CPU_CALL(matmul_plan)(p, threads); });
}

// Fills p.output; one that lies in columns has no bias.
inline void multiply(MatmulParams p) {
  if (p.rows == 0 || p.columns == 0 || p.outer * p.inner == 0) return;
  if (p.output.column != 1) {  // outputᵀ = rightᵀ · leftᵀ
    std::swap(p.rows, p.columns);
    std::swap(p.left, p.right);
    p.left = transposed(p.left);
    p.right = transposed(p.right);
    p.output = transposed(p.output);
    p.addend = transposed(p.addend);
  }
  const Parallel threads = torch_threads();
  const MatmulPlan& plan = plan_of(p, threads.threads);
  p.scratch = Scratch::of_at_least(plan.scratch);
  PYDL_CPU_CALL(matmul)(plan, p, threads);
}

}  // namespace pydl
