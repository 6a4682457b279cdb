// Dropout (Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, JMLR 2014; d2l "Dropout").
//
//   output[i] = keep(i / share) ? input[i] / (1 - p) : 0
//   keep(j)   = word j mod 4 of Philox4x32-10(key = seed, counter = j / 4)  >=  round(p * 2^32)
//
// i is the row-major logical index, whatever the strides. share is 1, or for dropout1d/2d/3d the number of
// elements of a channel, which live or die together. No mask is stored: the backward is the same function of
// the gradient.
#pragma once

#include "kernels/common.h"
#include "kernels/cpu/isa.h"

namespace pydl {

struct DropoutParams {
  static constexpr int max_dims = 8;  // after csrc has merged what can be merged

  DType dtype;
  const void* input;
  void* output;
  int64_t numel;
  int64_t share;
  uint64_t seed;
  uint64_t threshold;  // round(p * 2^32), in [0, 2^32]
  double scale;        // 1 / (1 - p), or 0 for p = 1

  // 1 dimension of stride 1 in both is the fast path; strides count elements, outermost dimension first
  int dims;
  int64_t size[max_dims], input_stride[max_dims], output_stride[max_dims];
};

namespace cpu {
PYDL_CPU_ENTRY(void dropout(const DropoutParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
