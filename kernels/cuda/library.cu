// The one symbol that the CUDA library exports: its table of entry points.
#include "kernels/cuda/library.h"

#include "kernels/cuda/device.h"

namespace pydl::cuda {
namespace {

const char* error_text(int error) {
#if defined(__CUDACC__)
  return cudaGetErrorString(static_cast<cudaError_t>(error));
#else
  return error == 0 ? "no error" : "error of the host twin";
#endif
}

#if defined(__CUDACC__)
constexpr bool kOnHost = false;
#else
constexpr bool kOnHost = true;
#endif

constexpr Library kLibrary = {expected_stamp(), kOnHost, PYDL_CUDA_ARCHITECTURES, error_text,
#define PYDL_CUDA_ENTRY(name, Params) name,
                              PYDL_CUDA_ENTRIES(PYDL_CUDA_ENTRY, PYDL_CUDA_ENTRY)
#undef PYDL_CUDA_ENTRY
};

}  // namespace
}  // namespace pydl::cuda

const pydl::cuda::Library* pydl_cuda_library() { return &pydl::cuda::kLibrary; }
