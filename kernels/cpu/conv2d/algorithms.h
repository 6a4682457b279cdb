// The algorithms behind kernels/conv2d.h, one group of functions each; kernels/cpu/conv2d/select.cpp chooses between
// them.
//
// *_supported says whether an algorithm can serve these params at all (the table says whether it should).
#pragma once

#include "kernels/conv2d.h"

#ifndef PYDL_ISA
#error "PYDL_ISA names the instruction set being compiled (CMakeLists.txt)"
#endif

namespace pydl::cpu::PYDL_ISA {

// Calls body(T{}) with the storage type of a dtype: what networks are trained in, for every algorithm, and
// float64, which is for checks more than for speed, for implicit GEMM. float16 arrives as float32
// (csrc/conv2d.cpp).
template <class F>
static inline void dispatch_trained(DType dtype, F&& body) {
  switch (dtype) {
    case DType::f32:
      return body(float{});
    case DType::bf16:
      return body(bf16{});
    default:
      __builtin_trap();
  }
}
template <class F>
static inline void dispatch_gemm(DType dtype, F&& body) {
  dtype == DType::f64 ? body(double{}) : dispatch_trained(dtype, body);
}

// Implicit GEMM: serves everything.
namespace implicit {
int64_t gather_scratch(const Conv2dParams& params, Conv2dPass pass,
                       int64_t threads);  // not weight
int64_t weight_scratch(const Conv2dParams& params, int64_t threads);
void forward(const Conv2dParams& params, const Parallel& parallel);
void backward_input(const Conv2dParams& params, const Parallel& parallel);
void backward_weight(const Conv2dParams& params, const Parallel& parallel);
}  // namespace implicit

namespace direct {
// Direct, with a vector across the images of a batch: few channels and large batches.
bool batch_supported(const Conv2dParams& params, Conv2dPass pass);
int64_t batch_gather_scratch(const Conv2dParams& params, Conv2dPass pass,
                             int64_t threads);  // not weight
int64_t batch_weight_scratch(const Conv2dParams& params, int64_t threads);
void batch_forward(const Conv2dParams& params, const Parallel& parallel);
void batch_backward_input(const Conv2dParams& params, const Parallel& parallel);
void batch_backward_weight(const Conv2dParams& params, const Parallel& parallel);

// Direct, with a vector along the rows of planes: few channels, stride 1; no weight gradient.
bool rows_supported(const Conv2dParams& params, Conv2dPass pass);
bool rows_worthwhile(const Conv2dParams& params, Conv2dPass pass);
int64_t rows_scratch(const Conv2dParams& params, Conv2dPass pass, int64_t threads);
void rows(const Conv2dParams& params, Conv2dPass pass, const Parallel& parallel);
}  // namespace direct

// One input channel per group, or a few, as many out as in.
namespace depthwise {
bool supported(const Conv2dParams& params, Conv2dPass pass);
int64_t scratch(const Conv2dParams& params, Conv2dPass pass, int64_t threads);
void forward(const Conv2dParams& params, const Parallel& parallel);
void backward_input(const Conv2dParams& params, const Parallel& parallel);
void backward_weight(const Conv2dParams& params, const Parallel& parallel);
}  // namespace depthwise

// Winograd's minimal filtering for 3x3 and 5x5 kernels, and by phases for 3x3 of stride 2.
namespace winograd {
bool supported(const Conv2dParams& params, Conv2dPass pass);
bool worthwhile(const Conv2dParams& params, Conv2dPass pass);  // measured to be the quickest
int64_t scratch(const Conv2dParams& params, Conv2dPass pass, int64_t threads);
void forward(const Conv2dParams& params, const Parallel& parallel);
void backward_input(const Conv2dParams& params, const Parallel& parallel);
void backward_weight(const Conv2dParams& params, const Parallel& parallel);
}  // namespace winograd

}  // namespace pydl::cpu::PYDL_ISA
