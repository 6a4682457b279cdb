#include "csrc/cuda.h"

#include <dlfcn.h>

namespace pydl {

const cuda::Library* cuda_library = nullptr;

namespace {

// Not linked to: one build of pydl serves torch with and without CUDA.
using CurrentStream = AOTITorchError (*)(int32_t device_index, void** stream);
CurrentStream current_stream = nullptr;

}  // namespace

void load_cuda(const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr)
    throw std::runtime_error(join("pydl's CUDA library could not be loaded: ", dlerror()));
  using Entry = const cuda::Library* (*)();
  const Entry entry = reinterpret_cast<Entry>(dlsym(handle, "pydl_cuda_library"));
  const cuda::Library* library = entry ? entry() : nullptr;
  if (library == nullptr || library->stamp != cuda::expected_stamp())
    throw std::runtime_error("pydl's CUDA library is of another version than pydl; install pydl again");
  if (!library->on_host) {
    void* torch = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    if (torch)
      current_stream = reinterpret_cast<CurrentStream>(dlsym(torch, "aoti_torch_get_current_cuda_stream"));
    if (current_stream == nullptr) throw std::runtime_error("torch is built without CUDA");
  }
  cuda_library = library;
  memory::poison = library->on_host;
}

void CudaCall::enter(const Tensor& t) {
  const int32_t device = t.get_device_index();
  guard_.emplace(device);
  STABLE_TORCH_ERROR_CODE_CHECK(current_stream(device, &stream_));
}

}  // namespace pydl
