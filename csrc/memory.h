// A pool of recycled memory for large outputs on the CPU (pydl.memory).
//
// The C library maps a buffer of more than 32 MB anew at each allocation, and the kernel zeroes its pages at
// first touch: 3 to 6 GB/s, slower than the ops that fill it. The pool keeps freed buffers, in huge pages,
// and hands them out again. Smaller buffers fare as badly where the C library trims its heap between two
// steps. Sizes are whole huge pages, or multiples of 64 KB below 8 MB; an idle buffer serves a request that
// it exceeds by at most an eighth; by at most as much again where others would have to go for a fresh one, since a step
// of training would need those next time round (DenseNet: 10 of 48 buffers of each step were mapped anew, 8 of 68 ms).
//
// Bounds: idle memory stays below the limit, and idle plus used memory below twice what was in use at the
// busiest moment (or 64 MB over it), oldest buffers going first.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pydl {

struct MemoryStats {
  bool enabled;
  int64_t used, idle, peak, limit;    // bytes: handed out, kept, most ever handed out, most kept
  int64_t fresh, reused, given_back;  // buffers: mapped, handed out again, unmapped
};

namespace memory {

// Outputs smaller than this come from torch's own allocator, whose freed memory is reused.
constexpr int64_t kThreshold = 1 << 20;

extern bool poison;  // fill new outputs with bytes 0xFF: set by the host twin of CUDA
bool enabled();      // false under PYDL_MEMORY_POOL=0
void* allocate(int64_t bytes, int64_t* got);  // null when there is none; got: what release() is told
void release(void* data, int64_t got);        // from any thread
void empty_cache();
void set_limit(int64_t bytes);
MemoryStats stats();

}  // namespace memory
}  // namespace pydl
