// The host twin: what kernels/cuda needs of a GPU, for the host compiler.
//
// A block's threads are fibres on one thread of the processor, blocks run one after another. A thread runs
// until it waits for others (barrier, shuffle, vote); then another one runs, in an order that changes from
// round to round, so that what a missing barrier leaves to chance does differ. Shared memory is allocated
// anew for every block, array by array, and filled with bytes 0xFF (nan as a float, -1 as an integer).
//
// Reports what it finds on standard error and aborts: a barrier that not every thread of the block reaches,
// lanes of a warp that meet in different places, copies that nobody waits for. The rest is left to
// AddressSanitizer and UndefinedBehaviorSanitizer.
//
// A listener hears of launches and of all that is no plain access to memory (tests/support/gpu_cost counts it);
// it may leave blocks out, which is for counting and never for results.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <functional>

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

// 16 bytes as one access, which they are on a GPU; of a struct of four words the compiler makes four.
typedef uint32_t Bytes16 __attribute__((vector_size(16), may_alias));
static inline uint4 load_uint4(const void* from) {
  const Bytes16 raw = *static_cast<const Bytes16*>(from);
  uint4 x;
  memcpy(&x, &raw, 16);
  return x;
}
static inline void store_uint4(void* to, uint4 x) {
  Bytes16 raw;
  memcpy(&raw, &x, 16);
  *static_cast<Bytes16*>(to) = raw;
}

namespace twin {

struct Index {
  unsigned x, y = 0, z = 0;
};

// Runs `kernel` as every thread of `blocks` blocks; returns 0. `name`: the kernel's address.
int run(const void* name, int64_t blocks, int threads, const std::function<void()>& kernel);

struct Listener {
  virtual void begin_launch(const void* name, int64_t blocks, int threads) = 0;
  virtual bool wants(int64_t block) = 0;
  virtual void end_block() = 0;
  virtual void barrier() = 0;
  virtual void exchange() = 0;  // by one lane
  virtual void copy16(void* to, const void* from, bool valid, const void* site) = 0;
  virtual void wait_copies(size_t groups, int left) = 0;              // of this thread, before the wait
  virtual void load_matrices(const void* row, const void* site) = 0;  // by one lane
  virtual void multiply() = 0;                                        // by one lane
  virtual void special() = 0;                                         // exp2 of the special function unit
};
extern Listener* listener;  // null where nobody listens

// Whether an address lies in the running block's shared memory.
bool is_shared(const void* address);

Index thread_index();
Index block_index();
Index block_size();
Index grid_size();

// The array of the running block that this declaration stands for.
void* shared(const void* declaration, size_t bytes);

void barrier(int line);
// Gives `value` to the warp and returns those of its 32 lanes, once all have come.
const uint64_t* exchange(unsigned lanes, uint64_t value, int line);
// The same without the listener, for an instruction that is counted as another.
const uint64_t* meet_warp(uint64_t value, int line);
int lane();

// The four values of one lane that ptx::load_matrices gives, `row` being the lane's.
void load_matrices(uint32_t (&to)[4], const void* row, bool transpose, int line);

// Asynchronous copies of the running thread: nothing is copied before the wait for its group.
void copy16(void* to, const void* from, bool valid);
void commit_copies();
void wait_copies(int left);

template <class T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <class T>
T unpack(uint64_t bits) {
  T value;
  memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace twin

#define __global__ static
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (::twin::thread_index())
#define blockIdx (::twin::block_index())
#define blockDim (::twin::block_size())
#define gridDim (::twin::grid_size())
#define PYDL_SHARED(type, name, count)    \
  static const char name##_declaration{}; \
  type* const name = static_cast<type*>(::twin::shared(&name##_declaration, sizeof(type) * (count)))

static inline void __syncthreads(int line = __builtin_LINE()) { twin::barrier(line); }
static inline void __syncwarp(unsigned lanes = ~0u, int line = __builtin_LINE()) {
  twin::exchange(lanes, 0, line);
}
template <class T>
static inline T __shfl_xor_sync(unsigned lanes, T value, int mask, int line = __builtin_LINE()) {
  return twin::unpack<T>(twin::exchange(lanes, twin::pack(value), line)[twin::lane() ^ mask]);
}
template <class T>
static inline T __shfl_sync(unsigned lanes, T value, int from, int line = __builtin_LINE()) {
  return twin::unpack<T>(twin::exchange(lanes, twin::pack(value), line)[from % 32]);
}
static inline unsigned __ballot_sync(unsigned lanes, bool vote, int line = __builtin_LINE()) {
  const uint64_t* votes = twin::exchange(lanes, vote, line);
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) ballot |= static_cast<unsigned>(votes[i]) << i;
  return ballot;
}
