// The pool of csrc/memory.h as torch's allocator for the CPU: large tensors of the whole process come from it, the
// others from the allocator that was there.
//
// It is installed once and stays, since memory is freed by whoever is the current allocator: oneDNN frees by a raw
// pointer through it. So what the pool gave is in a table by its address, and every other pointer goes to the allocator
// before, whose deleter takes it. Switched off, it passes all requests on.
#include "csrc/memory_of_torch.h"

#include "csrc/memory.h"

#include <c10/core/CPUAllocator.h>
#include <pthread.h>

#include <limits>
#include <mutex>
#include <unordered_map>

#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"

namespace pydl::autograd {
namespace {

class PoolAllocator final : public c10::Allocator {
  const memory::Shared* const pool_;
  c10::Allocator* const torchs_;
  std::mutex mutex_;
  std::unordered_map<void*, int64_t> sizes_;  // of what the pool gave, as it is to be told them

  static PoolAllocator* the_;  // never destroyed: tensors may die after static objects do

  PoolAllocator(const memory::Shared* pool, c10::Allocator* torchs) : pool_(pool), torchs_(torchs) {}

  static void free(void* data) {
    if (data == nullptr) return;
    int64_t size = 0;
    {
      const std::lock_guard<std::mutex> lock(the_->mutex_);
      const auto found = the_->sizes_.find(data);
      if (found != the_->sizes_.end()) {
        size = found->second;
        the_->sizes_.erase(found);
      }
    }
    if (size == 0) return the_->torchs_->raw_deleter()(data);
    c10::profiledCPUMemoryReporter().Delete(data);
    the_->pool_->release(data, size);
  }

 public:
  static void install(const memory::Shared* pool) {
    if (the_ != nullptr) return;
    c10::Allocator* const torchs = c10::GetAllocator(c10::kCPU);
    if (torchs->raw_deleter() == nullptr)
      return;  // one that cannot free by a pointer cannot stand behind ours
    the_ = new PoolAllocator(pool, torchs);
    // a child of fork() may be made while another thread holds the lock
    pthread_atfork([] { the_->mutex_.lock(); }, [] { the_->mutex_.unlock(); }, [] { the_->mutex_.unlock(); });
    c10::SetAllocator(c10::kCPU, the_, std::numeric_limits<uint8_t>::max());
  }

  static bool is_installed() { return the_ != nullptr && c10::GetAllocator(c10::kCPU) == the_; }

  c10::DataPtr allocate(size_t bytes) override {
    constexpr size_t most =
        std::numeric_limits<int64_t>::max() / 2;  // torch says in its own words what is too large
    if (bytes < size_t(memory::kThreshold) || bytes > most) return torchs_->allocate(bytes);
    int64_t size = 0;
    void* data = pool_->allocate(static_cast<int64_t>(bytes), &size);
    if (data == nullptr) return torchs_->allocate(bytes);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      sizes_[data] = size;
    }
    c10::profiledCPUMemoryReporter().New(data, bytes);
    return {data, data, &free, c10::Device(c10::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free; }

  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    torchs_->copy_data(to, from, bytes);
  }
};

PoolAllocator* PoolAllocator::the_ = nullptr;

}  // namespace

// serve_memory(capsule): makes the pool in the capsule torch's allocator, if it is not yet; whether it is.
PyObject* serve_memory(PyObject*, PyObject* capsule) {
  HANDLE_TH_ERRORS
  const auto* pool = static_cast<const memory::Shared*>(PyCapsule_GetPointer(capsule, memory::kCapsule));
  if (pool == nullptr) return nullptr;
  PoolAllocator::install(pool);
  return PyBool_FromLong(PoolAllocator::is_installed());
  END_HANDLE_TH_ERRORS
}

}  // namespace pydl::autograd
