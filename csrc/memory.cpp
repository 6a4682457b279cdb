// The pool of csrc/memory.h.
#include "csrc/memory.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "csrc/memory_of_torch.h"
#include "csrc/torch.h"

namespace pydl::memory {
namespace {

constexpr int64_t kPage = 2 << 20;                               // a huge page
constexpr int64_t kWholePages = 8 << 20, kSmallUnit = 64 << 10;  // sizes below and the step between them
// What may lie idle over the peak, or as much as the peak. A step of training needs half: its sizes have
// their peaks at different times (ResNet-18: 195 MB for 129). With an eighth, seven buffers of each step were
// mapped anew, 20 of 210 ms.
constexpr int64_t kSlack = 64 << 20;

struct Block {
  void* data;
  int64_t size;
};

class Pool {
 public:
  Pool() {
    const int64_t memory = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
    stats_.limit = max_of(memory / 8, kSlack);
    const char* wanted = std::getenv("PYDL_MEMORY_POOL");
    stats_.enabled = wanted == nullptr || std::strcmp(wanted, "0") != 0;
    // A child of fork() has one thread; a lock that another thread held would stay locked in it. Its idle
    // buffers are copies on write of its parent's: reusing one would copy what nobody reads, so they go.
    pthread_atfork([] { pool().mutex_.lock(); }, [] { pool().mutex_.unlock(); },
                   [] {
                     pool().mutex_.unlock();
                     pool().is_child_ = true;
                     pool().empty_cache();
                   });
  }

  // Never destroyed: tensors may die after static objects do.
  static Pool& pool() {
    static Pool* the = new Pool;
    return *the;
  }

  MemoryStats stats() {
    std::lock_guard lock(mutex_);
    return stats_;
  }

  Block take(int64_t bytes) {
    const int64_t unit = bytes < kWholePages ? kSmallUnit : kPage, size = ceil_div(bytes, unit) * unit;
    std::vector<Block> gone;
    {
      std::lock_guard lock(mutex_);
      // what exceeds it by an eighth at most; else, sooner than give other buffers back for a fresh one, the next larger
      if (const int64_t i = closest(size, size / 8); i >= 0) return reuse(i);
      if (stats_.used + stats_.idle + size > footprint_with(size))
        if (const int64_t i = closest(size, size); i >= 0) return reuse(i);
      use(size);
      ++stats_.fresh;
      evict(max_of(footprint_with(0) - stats_.used, 0), gone);
    }
    unmap(gone);
    void* data = map(size);
    if (data == nullptr) {  // give back what is idle, and try once more
      empty_cache();
      data = map(size);
    }
    if (data == nullptr) {
      std::lock_guard lock(mutex_);
      stats_.used -= size;
      --stats_.fresh;
    }
    return {data, size};
  }

  void give(Block block) {
    std::vector<Block> gone;
    {
      std::lock_guard lock(mutex_);
      stats_.used -= block.size;
      stats_.idle += block.size;
      idle_.push_back(block);
      evict(stats_.limit, gone);
    }
    unmap(gone);
  }

  void set_limit(int64_t bytes) {
    std::vector<Block> gone;
    {
      std::lock_guard lock(mutex_);
      stats_.limit = bytes;
      evict(bytes, gone);
    }
    unmap(gone);
  }

  void empty_cache() {
    std::vector<Block> gone;
    {
      std::lock_guard lock(mutex_);
      evict(0, gone);
    }
    unmap(gone);
  }

 private:
  // The smallest idle block that holds size bytes, and over more at most; of equal ones the latest freed, which is the
  // warmest. -1 where there is none.
  int64_t closest(int64_t size, int64_t over) const {
    int64_t best = -1;
    for (int64_t i = static_cast<int64_t>(idle_.size()) - 1; i >= 0; --i)
      if (idle_[i].size >= size && idle_[i].size - size <= over &&
          (best < 0 || idle_[i].size < idle_[best].size))
        best = i;
    return best;
  }

  Block reuse(int64_t i) {
    const Block block = idle_[i];
    idle_.erase(idle_.begin() + i);
    stats_.idle -= block.size;
    use(block.size);
    ++stats_.reused;
    return block;
  }

  // What idle and used memory may come to, once so many bytes more are used.
  int64_t footprint_with(int64_t more) const {
    const int64_t peak = max_of(stats_.peak, stats_.used + more);
    return peak + max_of(peak, kSlack);
  }

  void use(int64_t size) {
    stats_.used += size;
    stats_.peak = max_of(stats_.peak, stats_.used);
  }

  // Moves the oldest idle blocks to `gone` until at most `bytes` are left; they are unmapped outside the
  // lock.
  void evict(int64_t bytes, std::vector<Block>& gone) {
    size_t n = 0;
    for (; stats_.idle > bytes; ++n) {
      stats_.idle -= idle_[n].size;
      gone.push_back(idle_[n]);
    }
    idle_.erase(idle_.begin(), idle_.begin() + static_cast<int64_t>(n));
    stats_.given_back += static_cast<int64_t>(n);
  }

  static void unmap(const std::vector<Block>& blocks) {
    for (const Block& block : blocks) munmap(block.data, static_cast<size_t>(block.size));
  }

  // A fresh block that begins with a huge page, or null.
  void* map(int64_t size) {
    const size_t span = static_cast<size_t>(size + kPage);
    void* raw = mmap(nullptr, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return nullptr;
    char* begin = static_cast<char*>(raw);
    char* data = begin + (kPage - reinterpret_cast<uintptr_t>(begin) % kPage) % kPage;
    if (data != begin) munmap(begin, static_cast<size_t>(data - begin));
    if (char* end = begin + span; end != data + size)
      munmap(data + size, static_cast<size_t>(end - data - size));
#if defined(MADV_HUGEPAGE)
    madvise(data, static_cast<size_t>(size), MADV_HUGEPAGE);
#endif
    if (is_child_) return data;  // after a fork the threads of the parent are not there to be asked
    // Touched here, each page by one thread: two threads that fault the same huge page wait for each other
    // (0.9 GB/s instead of 24), and how an op cuts its work need not heed that.
    torch_threads()(ceil_div(size, kPage), 1, [&](int64_t first, int64_t last) {
      for (int64_t page = first; page < last; ++page) static_cast<volatile char*>(data)[page * kPage] = 0;
    });
    return data;
  }

  std::mutex mutex_;
  std::vector<Block> idle_;  // oldest first
  MemoryStats stats_{};
  bool is_child_ = false;
};

}  // namespace

bool poison = false;

namespace {
std::atomic<bool> torch_is_served{false};
}

void serve_torch(bool on) {
  torch_is_served.store(on && Pool::pool().stats().enabled, std::memory_order_relaxed);
}
bool serves_torch() { return torch_is_served.load(std::memory_order_relaxed); }

namespace {
// Not what would not be kept when it is freed: torch's own maps such buffers without touching them, and a huge one
// that is used in part costs what it uses.
void* allocate_for_torch(int64_t bytes, int64_t* got) {
  return serves_torch() && bytes <= stats().limit ? allocate(bytes, got) : nullptr;
}
}  // namespace

const Shared* shared() {
  static constexpr Shared functions = {allocate_for_torch, release};
  return &functions;
}

bool enabled() { return !serves_torch() && Pool::pool().stats().enabled; }

void* allocate(int64_t bytes, int64_t* got) {
  const Block block = Pool::pool().take(bytes);
  *got = block.size;
  return block.data;
}

void release(void* data, int64_t got) { Pool::pool().give({data, got}); }
void empty_cache() { Pool::pool().empty_cache(); }
void set_limit(int64_t bytes) { Pool::pool().set_limit(bytes); }
MemoryStats stats() { return Pool::pool().stats(); }

}  // namespace pydl::memory
