// 1x1 kernels of stride 1: matrix products of kernels/matmul.h, which read the images where they lie.
//
//   channels_last  forward          output      = act(input · weightᵀ + bias)     rows are the pixels of all images
//                  input gradient   grad_input  = grad_output · weight
//                  weight gradient  grad_weight = grad_outputᵀ · input
//   planes         forward          output      = act(weight · input + bias)      columns are the pixels of an image
//                  input gradient   grad_input  = weightᵀ · grad_output
#include "kernels/cpu/conv2d/algorithms.h"
#include "kernels/matmul.h"

namespace pydl::cpu::PYDL_ISA::implicit::product {
namespace {

// A row for each pixel of a line of pixels; a matrix for each image, and for each of its lines where they are several.
Matrix pixels_of(void* data, const int64_t* stride) {
  return {data, stride[3], stride[1], stride[0], stride[2]};
}

Matrix transposed(const Matrix& m) { return {m.data, m.column, m.row, m.outer, m.inner}; }

MatmulParams product_of(const Conv2dParams& p, Conv2dPass pass) {
  const Matrix input = pixels_of(p.input, p.input_stride), output = pixels_of(p.output, p.output_stride);
  const Matrix weight{p.weight, p.weight_stride[0], p.weight_stride[1]};
  MatmulParams m{};
  m.dtype = p.dtype;
  if (pass == Conv2dPass::backward_weight) {
    m.rows = p.out_channels;
    m.columns = p.in_channels;
    m.depth = p.out_width;
    m.left = transposed(output);
    m.right = input;
    m.output = weight;
    return m;
  }
  m.outer = p.batch;
  m.inner = p.out_height;
  const bool forward = pass == Conv2dPass::forward;
  m.rows = p.out_width;
  m.columns = forward ? p.out_channels : p.in_channels;
  m.depth = forward ? p.in_channels : p.out_channels;
  m.left = forward ? input : output;
  m.right = forward ? transposed(weight) : weight;
  m.output = forward ? output : input;
  if (forward) {
    m.activation = p.activation;
    m.bias = p.bias;
  }
  if (m.output.column == 1) return m;
  const Matrix left = m.left;
  m.left = transposed(m.right);
  m.right = transposed(left);
  m.output = transposed(m.output);
  m.rows = m.columns;
  m.columns = p.out_width;
  if (m.bias) m.addend = {const_cast<void*>(p.bias), 1, 0};
  m.bias = nullptr;
  return m;
}

}  // namespace

bool serves(const Conv2dParams& p, Conv2dPass pass) {
  if (p.groups != 1 || p.kernel_height != 1 || p.kernel_width != 1 || p.stride_height != 1 ||
      p.stride_width != 1 || p.pad_top != 0 || p.pad_left != 0 || p.in_height != p.out_height ||
      p.in_width != p.out_width)
    return false;
  if (pass == Conv2dPass::backward_weight)
    return p.weight_stride[1] == 1 && p.batch == 1 && p.out_height == 1;
  const int64_t* stride = pass == Conv2dPass::forward ? p.output_stride : p.input_stride;
  return stride[1] == 1 || stride[3] == 1;
}

int64_t scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  return matmul_plan(product_of(p, pass), threads).scratch;
}

void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  MatmulParams m = product_of(p, pass);
  m.scratch = p.scratch;
  matmul(matmul_plan(m, parallel.threads), m, parallel);
}

}  // namespace pydl::cpu::PYDL_ISA::implicit::product
