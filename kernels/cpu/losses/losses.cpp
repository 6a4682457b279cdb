// Losses number by number on the CPU. See kernels/losses.h for the formulas, functions.h for how each is computed.
//
// The forward reads each number once and keeps sums alone, one for each block, which are added up in order; the backward
// reads once and writes once, past the caches where the gradient would not stay in them. One loop for all losses.
#include "kernels/losses.h"

#include "kernels/cpu/losses/functions.h"
#include "kernels/cpu/rows/along.h"
#include "kernels/cpu/rows/walk.h"
#include "kernels/machine.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// Vectors in step; float64 and SSE2, which few train in, do without the text.
template <class T>
constexpr int kGroup = kVectorBytes == 16 || sizeof(T) == 8 ? 1 : 2;
constexpr int64_t kTaskElements = 8192;  // for fewer a thread is not woken
constexpr int64_t kChunk = 4096;  // numbers that one sum is kept of: for more its roundings would be felt

// What lies side by side. weight, pos_weight, grad: null where there is none.
template <class T>
struct LossStreams {
  static constexpr int count = 5;
  const T* in[count];  // input, target, weight, pos_weight, grad_output
  T* out;              // null: the losses are summed up
};

// Returns the sum of n losses, or writes them, or their derivatives times scale or grad.
template <class T>
using Range = acc_t<T> (*)(LossStreams<T> streams, int64_t n, acc_t<T> scale, LossOptions<acc_t<T>> options,
                           bool past_cache);

template <class F, bool kBackward, class T>
acc_t<T> range(LossStreams<T> streams, int64_t n, acc_t<T> scale, LossOptions<acc_t<T>> options,
               bool past_cache) {
  using A = acc_t<T>;
  constexpr int kCount = kGroup<T>;
  constexpr bool kHalf = sizeof(T) == 2;
  constexpr int64_t kStep = kCount * lanes<A>, kLine = 64 / sizeof(T);
  constexpr int kStreams = LossStreams<T>::count;
  T spare[kStreams + 1][kStep];  // for the last, which fill no step: one copy of the instructions serves all
  vec<A> sum[kCount]{};
  A last = 0;
  for (int64_t at = 0; at < n; at += kStep) {
    const bool whole = n - at >= kStep;
    LossStreams<T> here;
#pragma GCC unroll 5
    for (int s = 0; s < kStreams; ++s) here.in[s] = streams.in[s] ? streams.in[s] + at : nullptr;
    here.out = streams.out ? streams.out + at : nullptr;
    const size_t bytes = static_cast<size_t>(n - at) * sizeof(T);
    if (!whole) [[unlikely]] {
      memset(spare, 0, sizeof spare);
      for (int s = 0; s < kStreams; ++s) {
        if (!here.in[s]) continue;
        memcpy(spare[s], here.in[s], bytes);
        here.in[s] = spare[s];
      }
      here.out = spare[kStreams];
    }
    const auto [x, target, weight, pos_weight, grad] = here.in;
#pragma GCC unroll 4
    for (int64_t k = 0; k < kStep; k += kLine) {
      prefetch_ahead(x + k);
      prefetch_ahead(target + k);
    }
    vec<A> v[kCount], t[kCount], p[kCount];
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      v[i] = load(x + i * lanes<A>);
      t[i] = load(target + i * lanes<A>);
    }
    if constexpr (F::kWeights) {
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) p[i] = pos_weight ? load(pos_weight + i * lanes<A>) : broadcast<A>(1);
    }
    if constexpr (kBackward)
      F::template slope<kHalf, A>(v, t, p, options);
    else
      F::template loss<kHalf, A>(v, t, p, options);
    if constexpr (F::kWeights) {
      if (weight) {
#pragma GCC unroll 4
        for (int i = 0; i < kCount; ++i) v[i] *= load(weight + i * lanes<A>);
      }
    }
    if constexpr (kBackward) {
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) v[i] *= grad ? load(grad + i * lanes<A>) : broadcast<A>(scale);
    } else if (!streams.out) {
      if (whole) {
#pragma GCC unroll 4
        for (int i = 0; i < kCount; ++i) sum[i] += v[i];
      } else {
        A each[kStep];
        memcpy(each, v, sizeof each);
        for (int64_t i = 0; i < n - at; ++i) last += each[i];
      }
      continue;
    }
    if (past_cache && whole) {
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) stream(here.out + i * lanes<A>, v[i]);
    } else {
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) store(here.out + i * lanes<A>, v[i]);
    }
    if (!whole) [[unlikely]]
      memcpy(streams.out + at, here.out, bytes);
  }
  if (past_cache) stream_fence();
  for (int i = 1; i < kCount; ++i) sum[0] += sum[i];
  return reduce_add(sum[0]) + last;
}

// In the order of Loss.
template <class T, bool kBackward>
constexpr Range<T> kRanges[] = {range<Difference, kBackward, T>, range<BinaryCrossEntropy, kBackward, T>};

template <class T, bool kBackward>
void run(const LossParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  const auto numbers = [](const void* at) { return static_cast<const T*>(at); };
  const LossOptions<A> options = {static_cast<A>(p.limit), static_cast<A>(p.square), static_cast<A>(p.linear),
                                  static_cast<A>(p.offset),
                                  static_cast<A>(p.limit < 0 ? 0 : __builtin_nan(""))};
  const bool sums = !kBackward && !p.per_number;
  A scale = 0;
  if (kBackward && !p.grad_per_number)
    scale = load_n(numbers(p.grad_output), 1)[0] * static_cast<A>(p.factor);
  const Range<T> function = kRanges<T, kBackward>[static_cast<int>(p.loss)];
  T* output = static_cast<T*>(p.output);
  const auto aligned = [](int64_t bytes) { return bytes % kVectorBytes == 0; };
  const int64_t size = sizeof(T);
  const bool past_cache = !sums && p.count * size >= least_streamed_bytes() && aligned(p.block * size) &&
                          aligned(static_cast<int64_t>(reinterpret_cast<uintptr_t>(output)));
  const int64_t blocks = ceil_div(p.count, p.block);
  parallel(blocks, ceil_div(kTaskElements, p.block), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * p.block, length = min_of(p.block, p.count - first);
      double sum = 0;
      for (int64_t at = 0; at < length; at += kChunk) {
        const auto weights = [&](const void* of, int64_t stride) {
          return of ? numbers(of) + block * stride + at : nullptr;
        };
        const LossStreams<T> streams = {
            {numbers(p.input) + first + at, numbers(p.target) + first + at,
             weights(p.weight, p.weight_stride), weights(p.pos_weight, p.pos_weight_stride),
             kBackward && p.grad_per_number ? numbers(p.grad_output) + first + at : nullptr},
            sums ? nullptr : output + first + at};
        sum +=
            static_cast<double>(function(streams, min_of(kChunk, length - at), scale, options, past_cache));
      }
      if (sums) p.sums[block] = sum;
    }
  });
  if (!sums) return;
  double total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += p.sums[block];
  store_n(output, broadcast<A>(static_cast<A>(total * p.factor)), 1);
}

}  // namespace

void loss_forward(const LossParams& p, const Parallel& parallel) {
  dispatch_rows(p.dtype, [&](auto type) { run<decltype(type), false>(p, parallel); });
}

void loss_backward(const LossParams& p, const Parallel& parallel) {
  dispatch_rows(p.dtype, [&](auto type) { run<decltype(type), true>(p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
