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

// Vectors in step; what few train in does without the text.
template <class T>
constexpr int kGroup = kVectorBytes != 16 && sizeof(T) == 4 ? 2 : 1;
constexpr int64_t kTaskElements = 8192;  // for fewer a thread is not woken
constexpr int64_t kChunk = 4096;  // numbers that are summed up in float: for more its roundings would be felt
constexpr int64_t kTerms = 16;    // of a part of such a sum

// What lies side by side. weight, pos_weight, grad_output: null where there is none.
struct LossStreams {
  static constexpr int count = 5;
  const void* in[count];  // input, target, weight, pos_weight, grad_output
  void* out;              // null: the losses are summed up
};

// Returns the sum of n losses, or writes them, or their derivatives times grad_output.
using Range = double (*)(const LossStreams& streams, int64_t n, const LossParams& p, bool past_cache);

template <class F, bool kBackward, class T>
double range(const LossStreams& streams, int64_t n, const LossParams& p, bool past_cache) {
  using A = acc_t<T>;
  constexpr int kCount = kGroup<T>;
  constexpr bool kHalf = sizeof(T) == 2;
  constexpr int64_t kStep = kCount * lanes<A>, kLine = 64 / sizeof(T);
  constexpr int kStreams = LossStreams::count;
  const LossOptions<A> options = {static_cast<A>(p.limit), static_cast<A>(p.square), static_cast<A>(p.linear),
                                  static_cast<A>(p.offset),
                                  static_cast<A>(p.limit < 0 ? 0 : __builtin_nan(""))};
  A scale = 0;
  if (kBackward && !p.grad_per_number)
    scale = load_n(static_cast<const T*>(p.grad_output), 1)[0] * static_cast<A>(p.factor);
  T spare[kStreams + 1][kStep];  // for the last, which fill no step: one copy of the instructions serves all
  vec<A> sum[kCount]{}, part[kCount]{};
  A last = 0;
  for (int64_t at = 0; at < n; at += kStep) {
    const bool whole = n - at >= kStep;
    const T* in[kStreams];
#pragma GCC unroll 5
    for (int s = 0; s < kStreams; ++s)
      in[s] = streams.in[s] ? static_cast<const T*>(streams.in[s]) + at : nullptr;
    T* out = streams.out ? static_cast<T*>(streams.out) + at : nullptr;
    const size_t bytes = static_cast<size_t>(n - at) * sizeof(T);
    if (!whole) [[unlikely]] {
      memset(spare, 0, sizeof spare);
      for (int s = 0; s < kStreams; ++s) {
        if (!in[s]) continue;
        memcpy(spare[s], in[s], bytes);
        in[s] = spare[s];
      }
      out = spare[kStreams];
    }
    const auto [x, target, weight, pos_weight, grad] = in;
#pragma GCC unroll 4
    for (int64_t k = 0; k < kStep; k += kLine) {
      prefetch_ahead(x + k);
      prefetch_ahead(target + k);
    }
    vec<A> v[kCount], t[kCount], positive[kCount];
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      v[i] = load(x + i * lanes<A>);
      t[i] = load(target + i * lanes<A>);
    }
    if constexpr (F::kWeights) {
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i)
        positive[i] = pos_weight ? load(pos_weight + i * lanes<A>) : broadcast<A>(1);
    }
    if constexpr (kBackward)
      F::template slope<kHalf, A>(v, t, positive, options);
    else
      F::template loss<kHalf, A>(v, t, positive, options);
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
        for (int i = 0; i < kCount; ++i) part[i] += v[i];
        if (at / kStep % kTerms == kTerms - 1) {
#pragma GCC unroll 4
          for (int i = 0; i < kCount; ++i) {
            sum[i] += part[i];
            part[i] = vec<A>{};
          }
        }
      } else {
        A each[kStep];
        memcpy(each, v, sizeof each);
        for (int64_t i = 0; i < n - at; ++i) last += each[i];
      }
      continue;
    }
    if (past_cache && whole) {
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) stream(out + i * lanes<A>, v[i]);
    } else {
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) store(out + i * lanes<A>, v[i]);
    }
    if (!whole) [[unlikely]]
      memcpy(static_cast<T*>(streams.out) + at, out, bytes);
  }
  if (past_cache) stream_fence();
  for (int i = 0; i < kCount; ++i) part[i] += sum[i];
  for (int i = 1; i < kCount; ++i) part[0] += part[i];
  return static_cast<double>(reduce_add(part[0]) + last);
}

// In the order of Loss, forward and backward.
template <class T>
constexpr Range kRanges[2][2] = {{range<Difference, false, T>, range<Difference, true, T>},
                                 {range<BinaryCrossEntropy, false, T>, range<BinaryCrossEntropy, true, T>}};

// One for all types.
void run(const LossParams& p, const Parallel& parallel, bool backward) {
  const bool sums = !backward && !p.per_number;
  Range function = nullptr;
  int64_t size = 0;
  dispatch_rows(p.dtype, [&](auto type) {
    function = kRanges<decltype(type)>[static_cast<int>(p.loss)][backward];
    size = sizeof type;
  });
  const auto aligned = [](int64_t bytes) { return bytes % kVectorBytes == 0; };
  const bool past_cache = !sums && p.count * size >= least_streamed_bytes() && aligned(p.block * size) &&
                          aligned(static_cast<int64_t>(reinterpret_cast<uintptr_t>(p.output)));
  const int64_t blocks = ceil_div(p.count, p.block);
  parallel(blocks, ceil_div(kTaskElements, p.block), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * p.block, length = min_of(p.block, p.count - first);
      double sum = 0;
      for (int64_t at = 0; at < length; at += kChunk) {
        const auto from = [&](const void* of, int64_t stride) {
          return of ? static_cast<const char*>(of) + (block * stride + at) * size : nullptr;
        };
        const LossStreams streams = {
            {from(p.input, p.block), from(p.target, p.block), from(p.weight, p.weight_stride),
             from(p.pos_weight, p.pos_weight_stride),
             from(p.grad_per_number ? p.grad_output : nullptr, p.block)},
            sums ? nullptr : static_cast<char*>(p.output) + (first + at) * size};
        sum += function(streams, min_of(kChunk, length - at), p, past_cache);
      }
      if (sums) p.sums[block] = sum;
    }
  });
}

}  // namespace

void loss_forward(const LossParams& p, const Parallel& parallel) {
  run(p, parallel, false);
  if (p.per_number) return;
  double total = 0;
  for (int64_t block = 0; block < ceil_div(p.count, p.block); ++block) total += p.sums[block];
  dispatch_rows(p.dtype, [&](auto type) {
    using T = decltype(type);
    store_n(static_cast<T*>(p.output), broadcast<acc_t<T>>(static_cast<acc_t<T>>(total * p.factor)), 1);
  });
}

void loss_backward(const LossParams& p, const Parallel& parallel) { run(p, parallel, true); }

}  // namespace pydl::cpu::PYDL_ISA
