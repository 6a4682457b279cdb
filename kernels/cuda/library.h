// The table of entry points by which csrc calls the CUDA library, which knows nothing of torch and is loaded
// at run time. Every launcher queues work on `stream` and returns cudaError_t as a number; nothing waits for
// the GPU.
#pragma once

#include "kernels/batch_norm.h"
#include "kernels/conv2d.h"
#include "kernels/dropout.h"
#include "kernels/softmax_cross_entropy.h"

// op(name, parameters): a launcher.
// scratch(name, parameters): bytes of device memory that the launchers need.
// clang-format off: one entry a line
#define PYDL_CUDA_ENTRIES(op, scratch)                                 \
  op(dropout, DropoutParams)                                           \
  scratch(softmax_cross_entropy_scratch, SoftmaxCrossEntropyParams)    \
  op(softmax_cross_entropy_forward, SoftmaxCrossEntropyParams)         \
  op(softmax_cross_entropy_backward, SoftmaxCrossEntropyParams)        \
  op(softmax_cross_entropy_backward_target, SoftmaxCrossEntropyParams) \
  scratch(batch_norm_scratch, BatchNormParams)                         \
  op(batch_norm_stats, BatchNormParams)                                \
  op(batch_norm_apply, BatchNormParams)                                \
  op(batch_norm_forward, BatchNormParams)                              \
  op(batch_norm_update, BatchNormUpdate)                               \
  op(batch_norm_backward_reduce, BatchNormParams)                      \
  op(batch_norm_backward_apply, BatchNormParams)                       \
  op(batch_norm_backward, BatchNormParams)                             \
  scratch(conv2d_weight_scratch, Conv2dParams)                         \
  op(conv2d_forward, Conv2dParams)                                     \
  op(conv2d_backward_input, Conv2dParams)                              \
  op(conv2d_backward_weight, Conv2dParams)                             \
  scratch(conv2d_bias_scratch, Conv2dParams)                           \
  op(conv2d_backward_bias, Conv2dParams)
// clang-format on

namespace pydl::cuda {

#define PYDL_CUDA_OP(name, Params) int name(const Params& params, void* stream);
#define PYDL_CUDA_SCRATCH(name, Params) int64_t name(const Params& params);
PYDL_CUDA_ENTRIES(PYDL_CUDA_OP, PYDL_CUDA_SCRATCH)
#undef PYDL_CUDA_OP
#undef PYDL_CUDA_SCRATCH

struct Library {
  int64_t stamp;              // of the parameter structs it was compiled with: see expected_stamp()
  bool on_host;               // the host twin, whose kernels take memory of the CPU
  const char* architectures;  // "sm_80, sm_90, compute_120", as compiled
  const char* (*error_text)(int error);
#define PYDL_CUDA_OP(name, Params) int (*name)(const Params& params, void* stream);
#define PYDL_CUDA_SCRATCH(name, Params) int64_t (*name)(const Params& params);
  PYDL_CUDA_ENTRIES(PYDL_CUDA_OP, PYDL_CUDA_SCRATCH)
#undef PYDL_CUDA_OP
#undef PYDL_CUDA_SCRATCH
};

// Differs where one half was compiled again and the other was not.
static constexpr int64_t expected_stamp() {
  int64_t stamp = static_cast<int64_t>(sizeof(Library));
#define PYDL_CUDA_STAMP(name, Params) \
  stamp = (stamp * 31 + static_cast<int64_t>(sizeof(Params))) % 0x7FFFFFFF;
  PYDL_CUDA_ENTRIES(PYDL_CUDA_STAMP, PYDL_CUDA_STAMP)
#undef PYDL_CUDA_STAMP
  return stamp;
}

}  // namespace pydl::cuda

extern "C" __attribute__((visibility("default"))) const pydl::cuda::Library* pydl_cuda_library();
