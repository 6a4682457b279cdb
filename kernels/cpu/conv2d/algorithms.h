// The algorithms behind kernels/conv2d.h; kernels/cpu/conv2d/select.cpp chooses between them.
#pragma once

#include "kernels/conv2d.h"

#ifndef PYDL_ISA
#error "PYDL_ISA names the instruction set being compiled (CMakeLists.txt)"
#endif

namespace pydl::cpu::PYDL_ISA {

// Calls body(T{}) with the storage type of a dtype: what networks are trained in, for every algorithm, and
// float64, which is for checks more than for speed, for the algorithms that serve everything (implicit::panels and
// implicit::weight_slabs). float16 arrives as float32 (csrc/conv2d.cpp).
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
static inline void dispatch_every(DType dtype, F&& body) {
  dtype == DType::f64 ? body(double{}) : dispatch_trained(dtype, body);
}

// One algorithm: whether it can serve these params at all, the scratch it needs, and the pass itself. Whether it should
// serve them is for the table in select.cpp.
#define PYDL_ALGORITHM(name)                                                       \
  namespace name {                                                                 \
  bool serves(const Conv2dParams& params, Conv2dPass pass);                        \
  int64_t scratch(const Conv2dParams& params, Conv2dPass pass, int64_t threads);   \
  void run(const Conv2dParams& params, Conv2dPass pass, const Parallel& parallel); \
  }

// input = act(input + bias), for the input gradient of algorithms that store it without; input is dense.
void finish(const Conv2dParams& params, const Parallel& parallel);

// Implicit GEMM. Forward and input gradient: panels serve everything.
namespace implicit {
PYDL_ALGORITHM(panels)            // packed windows
PYDL_ALGORITHM(slabs)             // windows read where they lie, in copies of a part of some images
PYDL_ALGORITHM(gathered)          // copies of 1x1 kernels' pixels, and the best for these
PYDL_ALGORITHM(product)           // of 1x1 kernels: the matrix product
PYDL_ALGORITHM(phases)            // the input gradient of strided first layers
PYDL_ALGORITHM(cells)             // kernels as large as a large stride, or a few times that
PYDL_ALGORITHM(weight_cells)      // their weight gradient
PYDL_ALGORITHM(weight_pointwise)  // the weight gradient of 1x1 kernels
PYDL_ALGORITHM(weight_slabs)      // and of everything
}  // namespace implicit

// Few channels: a vector across the images of a batch, or along the rows of planes (stride 1).
namespace direct {
PYDL_ALGORITHM(batch)
PYDL_ALGORITHM(batch_weight)
PYDL_ALGORITHM(rows)
PYDL_ALGORITHM(rows_weight)
namespace rows {
bool pays(const Conv2dParams& params, Conv2dPass pass);  // measured to beat implicit GEMM
}
}  // namespace direct

// One input channel per group, or a few, as many out as in.
namespace depthwise {
PYDL_ALGORITHM(planes_3x3)
PYDL_ALGORITHM(pixels)  // channels_last
PYDL_ALGORITHM(planes)  // everything
}  // namespace depthwise

// Winograd's minimal filtering for 3x3 and 5x5 kernels, and by phases for 3x3 of stride 2.
namespace winograd {
PYDL_ALGORITHM(tiles)          // forward and input gradient
PYDL_ALGORITHM(weight_chunks)  // few channels: everything but the images stays in L2
PYDL_ALGORITHM(weight_passes)
bool pays(const Conv2dParams& params, Conv2dPass pass);  // measured to beat implicit GEMM
namespace weight_chunks {
bool pays(const Conv2dParams& params);  // against passes
}
}  // namespace winograd

}  // namespace pydl::cpu::PYDL_ISA
