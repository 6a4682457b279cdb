#include "twin.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <mutex>
#include <vector>

#include "context.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define SWITCH_BEGIN(save, bottom, size) __sanitizer_start_switch_fiber(save, bottom, size)
#define SWITCH_END(saved, bottom, size) __sanitizer_finish_switch_fiber(saved, bottom, size)
#else
#define SWITCH_BEGIN(save, bottom, size) ((void)(save), (void)(bottom))
#define SWITCH_END(saved, bottom, size) ((void)(bottom), (void)(size))
#endif

namespace twin {
namespace {

constexpr size_t kStack = 256 << 10;

// Where a thread waits: until *counter is no longer `seen`.
struct Wait {
  const int64_t* counter = nullptr;
  int64_t seen = 0;
};

// A stack and what runs on it: one thread after another until one has to wait, and that one until it is done.
struct Fiber {
  Context context;
  void* stack = nullptr;
  void* fake_stack = nullptr;
};

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Thread {
  Fiber* fiber = nullptr;
  Wait wait;
  bool done = false;
  std::vector<std::vector<Copy>> copies;  // groups of asynchronous copies, the last one still open
};

// Threads that meet: `arrived` of them so far, `generation` meetings before.
struct Meeting {
  int64_t generation = 0;
  int arrived = 0, line = 0;
};

struct Warp {
  Meeting meeting;
  uint64_t value[2][32];  // a lane can be one meeting ahead of its readers, not two
};

struct Shared {
  void* data;
  size_t bytes;
};

struct Machine {
  std::mutex mutex;
  const std::function<void()>* kernel;
  unsigned blocks, threads, block, thread;
  unsigned started, left;  // threads of the block that have begun, and that are not done
  unsigned first, step;    // the order of this round: thread (first + i * step) % threads is the i-th
  std::vector<Thread> all;
  std::vector<Fiber*> idle;
  std::vector<Warp> warps;
  Meeting barrier;
  std::map<const void*, Shared> shared;
  Context scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  uint32_t round = 1;
};

Machine& machine() {
  static Machine* machine = new Machine;  // never destroyed: a process may end while a kernel runs
  return *machine;
}

[[noreturn]] void fail(const char* what, int line) {
  const Machine& m = machine();
  fprintf(stderr, "host twin: %s (block %u, thread %u, line %d)\n", what, m.block, m.thread, line);
  fflush(stderr);
  abort();
}

// A start and a step for this round's order; the step is odd and prime to every block size.
void shuffle() {
  Machine& m = machine();
  m.round = m.round * 1664525u + 1013904223u;
  m.first = m.round >> 8;
  m.step = m.round & 1u << 30 ? 1031 : m.threads * 2 - 1;
}
unsigned thread_at(unsigned i) {
  const Machine& m = machine();
  return static_cast<unsigned>((m.first + static_cast<uint64_t>(i) * m.step) % m.threads);
}

void to_scheduler(Fiber& fiber) {
  Machine& m = machine();
  SWITCH_BEGIN(&fiber.fake_stack, m.scheduler_stack, m.scheduler_stack_bytes);
  fiber.context.switch_to(m.scheduler);
  SWITCH_END(fiber.fake_stack, &m.scheduler_stack, &m.scheduler_stack_bytes);
}

void to_fiber(Fiber& fiber) {
  Machine& m = machine();
  SWITCH_BEGIN(&m.scheduler_fake_stack, fiber.stack, kStack);
  m.scheduler.switch_to(fiber.context);
  SWITCH_END(m.scheduler_fake_stack, nullptr, nullptr);
}

void wait(Wait what) {
  Machine& m = machine();
  Thread& thread = m.all[m.thread];
  thread.wait = what;
  to_scheduler(*thread.fiber);
}

Fiber* starting = nullptr;

void fiber_main() {
  Machine& m = machine();
  Fiber* const fiber = starting;
  SWITCH_END(nullptr, &m.scheduler_stack, &m.scheduler_stack_bytes);
  for (;;) {
    while (m.started < m.threads) {
      m.thread = thread_at(m.started++);
      m.all[m.thread].fiber = fiber;
      (*m.kernel)();
      for (const auto& group : m.all[m.thread].copies)
        if (!group.empty()) fail("a thread ends before its asynchronous copies", 0);
      m.all[m.thread].done = true;
      --m.left;
    }
    m.idle.push_back(fiber);
    to_scheduler(*fiber);
  }
}

Fiber* idle_fiber() {
  Machine& m = machine();
  if (!m.idle.empty()) {
    Fiber* fiber = m.idle.back();
    m.idle.pop_back();
    return fiber;
  }
  Fiber* fiber = new Fiber;
  fiber->stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (fiber->stack == MAP_FAILED) fail("no memory for a thread's stack", 0);
  fiber->context.begin(fiber->stack, kStack, fiber_main);
  return fiber;
}

void run_block() {
  Machine& m = machine();
  for (Thread& thread : m.all) thread = Thread{};
  for (Warp& warp : m.warps) warp = Warp{};
  m.barrier = {};
  m.started = 0;
  m.left = m.threads;
  shuffle();
  while (m.started < m.threads) {
    starting = idle_fiber();
    to_fiber(*starting);
  }
  while (m.left > 0) {
    shuffle();
    bool moved = false;
    for (unsigned i = 0; i < m.threads; ++i) {
      const unsigned t = thread_at(i);
      Thread& thread = m.all[t];
      if (thread.done || *thread.wait.counter == thread.wait.seen) continue;
      m.thread = t;
      to_fiber(*thread.fiber);
      moved = true;
    }
    if (!moved)
      fail("threads wait at a barrier or shuffle that others have not reached and never will",
           m.barrier.line);
  }
  if (listener) listener->end_block();
  for (auto& [declaration, array] : m.shared) free(array.data);
  m.shared.clear();
}

// The running thread joins a meeting of `threads`.
void meet(Meeting& meeting, unsigned threads, int line) {
  if (meeting.arrived > 0 && meeting.line != line) fail("threads meet in different lines", line);
  meeting.line = line;
  if (static_cast<unsigned>(++meeting.arrived) == threads) {
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  wait({&meeting.generation, meeting.generation});
}

}  // namespace

Listener* listener = nullptr;

int run(const void* name, int64_t blocks, int threads, const std::function<void()>& kernel) {
  Machine& m = machine();
  const std::lock_guard<std::mutex> lock(m.mutex);
  if (blocks < 1 || blocks > 0x7FFFFFFF || threads < 32 || threads > 1024 || threads % 32 != 0) {
    fprintf(stderr, "host twin: a launch of %lld blocks of %d threads\n", static_cast<long long>(blocks),
            threads);
    abort();
  }
  m.kernel = &kernel;
  m.blocks = static_cast<unsigned>(blocks);
  m.threads = static_cast<unsigned>(threads);
  m.all.resize(m.threads);
  m.warps.resize(m.threads / 32);
  if (listener) listener->begin_launch(name, blocks, threads);
  for (m.block = 0; m.block < m.blocks; ++m.block) {
    if (listener && !listener->wants(m.block)) continue;
    run_block();
  }
  return 0;
}

Index thread_index() { return {machine().thread}; }
Index block_index() { return {machine().block}; }
Index block_size() { return {machine().threads}; }
Index grid_size() { return {machine().blocks}; }
int lane() { return static_cast<int>(machine().thread % 32); }

void* shared(const void* declaration, size_t bytes) {
  auto [at, is_new] = machine().shared.try_emplace(declaration);
  if (is_new) {
    void* data = nullptr;
    if (posix_memalign(&data, 128, bytes) != 0) fail("no memory for a shared array", 0);
    memset(data, 0xFF, bytes);
    at->second = {data, bytes};
  }
  if (at->second.bytes != bytes) fail("two sizes of one shared array", 0);
  return at->second.data;
}

bool is_shared(const void* address) {
  for (const auto& [declaration, array] : machine().shared)
    if (address >= array.data && address < static_cast<const char*>(array.data) + array.bytes) return true;
  return false;
}

void copy16(void* to, const void* from, bool valid) {
  if (listener) listener->copy16(to, from, valid, __builtin_return_address(0));
  Machine& m = machine();
  auto& groups = m.all[m.thread].copies;
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back({to, from, valid});
}

void commit_copies() {
  Machine& m = machine();
  auto& groups = m.all[m.thread].copies;
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

void wait_copies(int left) {
  Machine& m = machine();
  auto& groups = m.all[m.thread].copies;
  if (listener) listener->wait_copies(groups.size(), left);
  while (groups.size() > static_cast<size_t>(left) + 1) {
    for (const Copy& copy : groups.front())
      store_uint4(copy.to, copy.valid ? load_uint4(copy.from) : uint4{0, 0, 0, 0});
    groups.erase(groups.begin());
  }
}

void barrier(int line) {
  if (listener) listener->barrier();
  meet(machine().barrier, machine().threads, line);
}

const uint64_t* meet_warp(uint64_t value, int line) {
  Machine& m = machine();
  Warp& warp = m.warps[m.thread / 32];
  uint64_t* values = warp.value[warp.meeting.generation % 2];
  values[m.thread % 32] = value;
  meet(warp.meeting, 32, line);
  return values;
}

const uint64_t* exchange(unsigned lanes, uint64_t value, int line) {
  if (lanes != ~0u) fail("a shuffle or vote of a part of the warp", line);
  if (listener) listener->exchange();
  return meet_warp(value, line);
}

void load_matrices(uint32_t (&to)[4], const void* row, bool transpose, int line) {
  if (listener) listener->load_matrices(row, __builtin_return_address(0));
  const uint64_t* rows = meet_warp(reinterpret_cast<uint64_t>(row), line);
  const int my_lane = lane();
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (int h = 0; h < 2; ++h) {
      const int r = transpose ? my_lane % 4 * 2 + h : my_lane / 4,
                column = transpose ? my_lane / 4 : my_lane % 4 * 2 + h;
      const uint4 values = load_uint4(reinterpret_cast<const void*>(rows[8 * matrix + r]));
      memcpy(&pair[h], reinterpret_cast<const char*>(&values) + 2 * column, 2);
    }
    memcpy(&to[matrix], pair, 4);
  }
}

}  // namespace twin
