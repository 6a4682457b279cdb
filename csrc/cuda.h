// The CUDA library, loaded at run time, and calls into it: device guard, current stream, errors.
//
//   if (const CudaCall cuda{"dropout", input})
//     cuda.run(cuda->dropout, params);
//   else
//     PYDL_CPU_CALL(dropout)(params, torch_threads());
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <optional>
#include <string>

#include "csrc/torch.h"
#include "kernels/cuda/library.h"

namespace pydl {

// The library, or null before load_cuda(). With the host twin's library, tensors of the CPU are its own.
extern const cuda::Library* cuda_library;
inline bool cuda_on_host() { return cuda_library && cuda_library->on_host; }

// Loads the library at `path`; throws std::runtime_error with the reason where it cannot be used.
void load_cuda(const std::string& path);

// Whether t is served by the CUDA library. Memory of such a tensor is not for the CPU to read.
inline bool on_cuda(const Tensor& t) { return !t.is_cpu() || cuda_on_host(); }

// One op's calls into the library, for a tensor that it serves.
class CudaCall {
 public:
  CudaCall(const char* op, const Tensor& t) : op_(op) {
    if (!on_cuda(t)) return;
    PYDL_CHECK(cuda_library != nullptr, op,
               ": expected pydl's CUDA library to be loaded for tensors on a GPU, got none");
    active_ = true;
    if (!t.is_cpu()) enter(t);
  }
  explicit operator bool() const { return active_; }
  const cuda::Library* operator->() const { return cuda_library; }

  template <class Params>
  void run(int (*launcher)(const Params&, void*), const Params& params) const {
    const int error = launcher(params, stream_);
    PYDL_CHECK(error == 0, op_, ": expected the launch on the GPU to succeed, got CUDA error ", error, ", ",
               cuda_library->error_text(error));
  }

 private:
  void enter(const Tensor& t);

  const char* op_;
  bool active_ = false;
  void* stream_ = nullptr;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

}  // namespace pydl
