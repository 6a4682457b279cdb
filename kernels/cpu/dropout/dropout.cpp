// Dropout on the CPU: the dense case, and the choice of the path. See kernels/dropout.h for the formula.
//
// Bound by memory once the generator keeps up (kernels/cpu/base/philox_simd.h): the input is read once, the output
// written once, past the caches where it would not stay in them, and the mask exists in registers only.
#include "kernels/dropout.h"

#include "kernels/cpu/base/philox_simd.h"
#include "kernels/cpu/dropout/dropout_strided.h"
#include "kernels/cpu/rows/along.h"
#include "kernels/cpu/rows/walk.h"
#include "kernels/machine.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int kChains = kVectorBytes == 64 ? 8 : 4;  // steps side by side: a power of two, see philox()
constexpr int64_t kGrain = 4096;  // elements per task: about 2 µs, four times the cost of a fork

// What a step needs of the parameters, in locals that no store can alias.
template <class A>
struct Mask {
  RoundKeys keys;
  u32v threshold;
  A scale;
};
template <class A>
PYDL_INLINE Mask<A> mask_of(const DropoutParams& p) {
  return {round_keys(p.seed), u32v{} + static_cast<uint32_t>(p.threshold), static_cast<A>(p.scale)};
}

// Element `first` of the tensor stands at x and y; first is a multiple of kChains * kElements. streams: past the caches;
// a constant once inlined, but for types of one walk.
template <int kChains, class T, class A>
PYDL_INLINE void step(const Mask<A>& mask, const T* x, T* y, int64_t first, bool streams) {
  const A scale = mask.scale;
  constexpr int kLine = 64 / sizeof(T);
#pragma GCC unroll 32
  for (int k = 0; k < kChains * kElements; k += kLine) prefetch_ahead(x + k);
  Words words[kChains];
  philox<kChains, true>(mask.keys, static_cast<uint64_t>(first) / 4, words);
  auto put = [&](T* q, vec<A> v) { streams ? stream(q, v) : store(q, v); };
  auto apply = [&](const T* x, T* y, u32v word) {
    if constexpr (sizeof(A) == 4) {
      put(y, scale_where_at_least(word, mask.threshold, load(x), scale));
    } else {  // twice as many vectors of doubles as of words
      const i32v kept = word >= mask.threshold;
      typedef int32_t half_mask __attribute__((vector_size(kVectorBytes / 2)));
      half_mask parts[2];
      memcpy(parts, &kept, sizeof parts);
      for (int h = 0; h < 2; ++h) {
        const i64v wide = __builtin_convertvector(parts[h], i64v);
        put(y + h * lanes<A>, bit_cast<vec<A>>(wide & bit_cast<i64v>(load(x + h * lanes<A>) * scale)));
      }
    }
  };
#pragma GCC unroll 8
  for (int c = 0; c < kChains; ++c) {
    const int at = c * kElements;
    apply(x + at, y + at, words[c].low);
    apply(x + at + kElements / 2, y + at + kElements / 2, words[c].high);
  }
}

// The last n < kElements elements of the tensor: a whole step in a buffer.
template <class T>
void remainder(const DropoutParams& p, const T* x, T* y, int64_t first, int64_t n) {
  T from[kElements], to[kElements];
  memset(from, 0, sizeof from);
  memcpy(from, x, static_cast<size_t>(n) * sizeof(T));
  step<1>(mask_of<acc_t<T>>(p), from, to, first, false);
  memcpy(y, to, static_cast<size_t>(n) * sizeof(T));
}

// [begin, end) of a dense tensor; begin is a multiple of kChains * kElements.
template <bool kStream, class T>
void dense_range(const DropoutParams& p, int64_t begin, int64_t end, bool past_cache) {
  const bool streams = kOneWalk<T> ? past_cache : kStream;
  const T* x = static_cast<const T*>(p.input);
  T* y = static_cast<T*>(p.output);
  const Mask<acc_t<T>> mask = mask_of<acc_t<T>>(p);
  int64_t i = begin;
  for (; i + kChains * kElements <= end; i += kChains * kElements)
    step<kChains>(mask, x + i, y + i, i, streams);
  for (; i + kElements <= end; i += kElements) step<1>(mask, x + i, y + i, i, streams);
  if (streams) stream_fence();
  if (i < end) remainder(p, x + i, y + i, i, end - i);
}

}  // namespace

void dropout(const DropoutParams& p, const Parallel& parallel) {
  dispatch_rows(p.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t bytes = p.numel * static_cast<int64_t>(sizeof(T));
    if (p.threshold > UINT32_MAX) {  // nothing is kept, and the output is dense
      parallel(bytes, kGrain * 8, [&](int64_t begin, int64_t end) {
        memset(static_cast<char*>(p.output) + begin, 0, static_cast<size_t>(end - begin));
      });
    } else if (p.dims == 1 && p.input_stride[0] == 1 && p.index_stride[0] == 1) {
      const bool past_cache =
          reinterpret_cast<uintptr_t>(p.output) % kVectorBytes == 0 && bytes >= least_streamed_bytes();
      constexpr int64_t kStep = kChains * kElements;  // a task starts at a multiple of it
      parallel(ceil_div(p.numel, kStep), ceil_div(kGrain, kStep), [&](int64_t begin, int64_t end) {
        const int64_t last = min_of(end * kStep, p.numel);
        past_cache ? dense_range<!kOneWalk<T>, T>(p, begin * kStep, last, true)
                   : dense_range<false, T>(p, begin * kStep, last, false);
      });
    } else {
      dropout_strided(p, bytes >= least_streamed_bytes(), parallel);
    }
  });
}

}  // namespace pydl::cpu::PYDL_ISA
