// Products of two matrices (d2l "Linear Algebra"), one or a batch of them: what linear layers, and matrix products in
// a program's own words, are made of.
//
//   output[i][j] = act(bias[j] + alpha * sum_k left[i][k] * right[k][j] + beta * addend[i][j])
//                                                                    i < rows, j < columns, k < depth
//
// Any of them may lie in any order, so that a transposed or a repeated one is read where it lies:
//
//   linear, forward          output      = act(input · weightᵀ + bias)      weight: (out, in)
//   linear, input gradient   grad_input  = grad_output · weight
//   linear, weight gradient  grad_weight = grad_outputᵀ · input
//   linear, bias gradient    sums[j]     = sum_i grad_output[i][j]
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

struct Matrix {
  void* data;
  int64_t row, column;           // strides in elements
  int64_t outer = 0, inner = 0;  // of a batch, from matrix to matrix
};

struct MatmulParams {
  DType dtype;  // not f16, which arrives as f32
  Activation activation;
  int64_t rows, columns, depth;
  Matrix left, right, output;    // output.column is 1
  const void* bias;              // `columns` elements, contiguous; may be null, and is if alpha is not 1
  void* scratch;                 // MatmulPlan::scratch bytes, 64-byte aligned
  int64_t outer = 1, inner = 1;  // outer * inner matrices
  double alpha = 1, beta = 1;
  Matrix addend{};            // its data may be null; overlaps no output, but may be the output itself
  bool float_output = false;  // of bf16: output and addend are f32
  bool rounded = false;       // of float_output: to bf16 all the same
};

// How a product is cut: made once for all calls whose params differ in nothing but their pointers.
struct MatmulPlan {
  int64_t row_parts, column_parts;  // of an output; each pair of them is a task, for each matrix of a batch
  int64_t panels, group;            // in all, and of a task at most
  int64_t rows;                     // of a task at most
  int64_t slices;              // of the depth, each a task with sums of its own, which are added in order
  int64_t depth_parts, depth;  // equal parts of the sums of a slice, and their length in elements
  bool pairs;                  // an element is two bf16 that lie side by side along the depth, else a number
  enum class Left {
    rows,
    columns,
    packed_rows,
    strips
  } left;                    // read where it lies, or copied: packed_rows, strips
  bool left_far, right_far;  // past the caches
  bool streams;              // the output goes past the caches
  bool dots;  // a dot product for each number of the output (cpu/gemm/dots.h); the cut is not used
  int64_t workers, worker_bytes, scratch;
};

struct ColumnSumsParams {
  DType dtype;
  int64_t rows, columns;
  Matrix input;
  void* sums;     // `columns` elements, contiguous
  void* scratch;  // column_sums_scratch() bytes, 64-byte aligned
};

namespace cpu {
PYDL_CPU_ENTRY(MatmulPlan matmul_plan(const MatmulParams& params, int64_t threads))
PYDL_CPU_ENTRY(void matmul(const MatmulPlan& plan, const MatmulParams& params, const Parallel& parallel))
PYDL_CPU_ENTRY(int64_t column_sums_scratch(const ColumnSumsParams& params))
PYDL_CPU_ENTRY(void column_sums(const ColumnSumsParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
