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
#include "kernels/isa.h"

namespace pydl {

struct DropoutParams {
  static constexpr int max_dims = 8;  // after csrc has merged what can be merged

  DType dtype;
  const void* input;
  void* output;
  int64_t numel;
  uint64_t seed;
  const int64_t* device_seed;  // CUDA: where the seed lies, read by the kernel; `seed` is the CPU's
  uint64_t threshold;          // round(p * 2^32), in [0, 2^32]
  double scale;                // 1 / (1 - p), or 0 for p = 1

  // Outermost dimension first; strides count elements. index_stride is what one step adds to j = i / share:
  // row-major over the dimensions that decide, 0 for those that share a decision. The output is dense: one of
  // its strides is 1.
  int dims;
  int64_t size[max_dims], input_stride[max_dims], output_stride[max_dims], index_stride[max_dims];
};

namespace cpu {
PYDL_CPU_ENTRY(void dropout(const DropoutParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
