// Casts between float32 and bfloat16 on the CPU: all numbers of all tensors in one loop, shared among the threads, so
// that a weight and its bias wake them once.
#include "kernels/cast.h"

#include "kernels/cpu/base/simd.h"
#include "kernels/machine.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kTaskElements = 8192;  // for fewer a thread is not woken
constexpr int64_t kAhead = 1024;         // bytes, of what is read past the caches

// streams: past the caches
template <class To, class From>
void range(const void* from, void* to, int64_t first, int64_t end, bool streams) {
  const From* const x = static_cast<const From*>(from);
  To* const y = static_cast<To*>(to);
  int64_t at = first;
  if (streams) {
    const auto begins_line = [&] { return reinterpret_cast<uintptr_t>(y + at) % kVectorBytes == 0; };
    for (; at < end && !begins_line(); ++at) store_n(y + at, load_n(x + at, 1), 1);
    for (; at + lanes<float> <= end; at += lanes<float>) {
      prefetch(x + at + kAhead / static_cast<int64_t>(sizeof(From)));
      stream(y + at, load(x + at));
    }
    stream_fence();
  }
  for (; at + lanes<float> <= end; at += lanes<float>) store(y + at, load(x + at));
  if (at < end) store_n(y + at, load_n(x + at, end - at), end - at);
}

}  // namespace

void cast(const CastParams& p, const Parallel& parallel) {
  int64_t all = 0;
  for (int64_t t = 0; t < p.tensors; ++t) all += p.tensor[t].count;
  parallel(all, kTaskElements, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0, first = 0; t < p.tensors; first += p.tensor[t++].count) {
      const CastTensor& one = p.tensor[t];
      const int64_t own_begin = max_of(begin - first, int64_t(0)), own_end = min_of(end - first, one.count);
      if (own_begin >= own_end) continue;
      const auto function = one.narrows ? range<bf16, float> : range<float, bf16>;
      const int64_t written = one.narrows ? sizeof(bf16) : sizeof(float);
      function(one.from, one.to, own_begin, own_end, one.count * written >= least_streamed_bytes());
    }
  });
}

}  // namespace pydl::cpu::PYDL_ISA
