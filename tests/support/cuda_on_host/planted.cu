// Three faults that the host twin has to find, and the kernel without them. tests/build/test_cuda_on_host.py runs
// them.
#include "kernels/cuda/device.h"

namespace pydl::cuda {
namespace {

constexpr int kThreads = 64;

enum Fault : int { none, out_of_bounds, missing_barrier, unwritten_output, lost_thread };

// output[i] = input[n - 1 - i], through shared memory
__global__ void __launch_bounds__(kThreads)
    reverse_kernel(const float* input, float* output, int n, int fault) {
  PYDL_SHARED(float, tile, kThreads);
  const int i = static_cast<int>(threadIdx.x);
  if (i < n) tile[i] = input[i];
  if (fault == lost_thread && i == 5) return;
  if (fault != missing_barrier) __syncthreads();
  const bool skipped = fault == unwritten_output && i == 7;
  if (i < n && !skipped) output[fault == out_of_bounds ? i + 1 : i] = tile[n - 1 - i];
}

}  // namespace
}  // namespace pydl::cuda

extern "C" __attribute__((visibility("default"))) void planted(const float* input, float* output, int n,
                                                               int fault) {
  using namespace pydl::cuda;
  launch(reverse_kernel, 1, kThreads, nullptr, input, output, n, fault);
}
