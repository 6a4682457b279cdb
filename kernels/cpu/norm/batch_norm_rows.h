// What forward and backward of batch_norm's rows share (batch_norm_rows.cpp says what rows are): blocks,
// runs, and who walks over which.
#pragma once

#include "kernels/cpu/norm/batch_norm.h"

namespace pydl::cpu::PYDL_ISA {

// A block is `rows` runs of `length` elements.
struct Block {
  int64_t row, rows, begin, length;
};

struct GradientSums {
  double sum, shifted;  // of gz and gz * (x - shift)
};

// The walks that depend on the type in memory and on the activation; who does what exists once for each type of sums.
// Those over runs take [first, last) of a channel from the last, which is still in the cache.
template <class A>
using ApplyRuns = void (*)(const BatchNormParams&, int64_t c, int64_t first, int64_t last, int64_t begin,
                           int64_t length, const Affine<A>&);
template <class A>
struct GradientWalks {
  GradientSums (*block)(const BatchNormParams&, int64_t c, const Block&, const Affine<A>&);
  void (*runs)(const BatchNormParams&, int64_t c, int64_t first, int64_t last, int64_t begin, int64_t length,
               const Affine<A>&, const AffineGradient<A>&);
};

// those of batch_norm_pooled.cpp
ApplyRuns<float> pooled_apply(DType dtype);
GradientWalks<float> pooled_gradient(DType dtype);

namespace {

constexpr int64_t kBlock = 4096;   // elements of a block: 16 KB of float, inside the first-level cache
constexpr int64_t kGrain = 16384;  // elements of a task: a few µs, several times the cost of a fork

struct Blocks {
  int64_t pieces, rows, count;  // pieces per run, or runs per block
  explicit Blocks(const BatchNormParams& p)
      : pieces(max_of(ceil_div(p.spatial, kBlock), 1)),
        rows(power_of_two(kBlock / max_of(p.spatial, 1))),
        count(pieces > 1 ? p.batch * pieces : ceil_div(p.batch, rows)) {}

  // the greatest up to n: half of a batch is then often a whole number of blocks
  static int64_t power_of_two(int64_t n) {
    int64_t power = 1;
    while (2 * power <= n) power *= 2;
    return power;
  }

  Block at(const BatchNormParams& p, int64_t j) const {
    if (pieces > 1) {
      const int64_t begin = j % pieces * kBlock;
      return {j / pieces, 1, begin, min_of(kBlock, p.spatial - begin)};
    }
    return {j * rows, min_of(rows, p.batch - j * rows), 0, p.spatial};
  }
};

template <class T>
PYDL_INLINE T* run_of(const BatchNormView& view, int64_t n, int64_t c) {
  return static_cast<T*>(view.data) + n * view.row_stride + c * view.channel_stride;
}

// From run n of a channel to what its walk reads kFarAheadBytes later, in elements: `runs` runs on, or in one of the
// next channels, whose first run comes first. step is 1 or -1: the order of the runs.
PYDL_INLINE int64_t ahead_of(const BatchNormParams& p, const BatchNormView& view, int64_t n, int64_t runs,
                             int64_t step) {
  const int64_t to = n + step * runs;
  if (to >= 0 && to < p.batch) return step * runs * view.row_stride;
  const int64_t beyond = to < 0 ? -to - 1 : to - p.batch;
  const int64_t channels = beyond < p.batch ? 0 : beyond / p.batch;  // a division for small ones alone
  return (1 + channels) * view.channel_stride + (beyond - channels * p.batch - n) * view.row_stride;
}
template <class T>
PYDL_INLINE int64_t runs_ahead(const BatchNormParams& p) {
  return ceil_div(kFarAheadBytes, max_of(p.spatial * static_cast<int64_t>(sizeof(T)), 1));
}
// The same for a block: a long run goes on by itself.
template <class T>
PYDL_INLINE int64_t ahead_in_block(const BatchNormParams& p, const BatchNormView& view, int64_t n) {
  if (p.spatial > kBlock) return kFarAheadBytes / static_cast<int64_t>(sizeof(T));
  return ahead_of(p, view, n, runs_ahead<T>(p), 1);
}

template <class A>
PYDL_INLINE vec<A> normalise(vec<A> x, const Affine<A>& f) {
  return (x - f.shift) * f.scale + f.offset;
}

// Asks for what lies `ahead` of a whole run that is too short for the walk's unrolled loop to do so.
template <class T>
PYDL_INLINE void prefetch_short_run(const T* run, int64_t length, int64_t ahead) {
  for (int64_t i = 0; i < length; i += 64 / static_cast<int64_t>(sizeof(T)))
    prefetch_far_ahead(run + i, ahead);
}

// Stores of one run: parts of vectors at both ends, then whole vectors from its end, which may still be in
// the cache. Where the output leaves the cache they are non-temporal, so that they begin at a vector's
// boundary.
template <class T, class F>
PYDL_INLINE void store_run(T* y, int64_t n, bool past_cache, const F& value) {
  using A = acc_t<T>;
  constexpr uintptr_t align = lanes<A> * sizeof(T);
  const uintptr_t off = past_cache ? reinterpret_cast<uintptr_t>(y) % align : 0;
  const int64_t head = min_of(n, static_cast<int64_t>((align - off) % align / sizeof(T)));
  int64_t i = head + (n - head) / lanes<A> * lanes<A>;
  for (int64_t at = i, count = n - i;; at = 0, count = head) {
    if (count > 0) store_n(y + at, value(at, count), count);
    if (at == 0) break;
  }
  if (past_cache) {
    for (; i > head; i -= lanes<A>) stream(y + i - lanes<A>, value(i - lanes<A>, 0));
  } else {
    for (; i > head; i -= lanes<A>) store(y + i - lanes<A>, value(i - lanes<A>, 0));
  }
}

// count = 0 reads a whole vector, else the first count lanes.
template <class T>
PYDL_INLINE vec<acc_t<T>> load_some(const T* x, int64_t count) {
  return count ? load_n(x, count) : load(x);
}

// ---- who does what

// Whether one thread takes a channel as a whole: not where that leaves threads idle, nor where channels are so few that
// the layers around cut by images.
bool channel_per_task(const BatchNormParams& p, const Parallel& parallel) {
  if (p.batch * p.spatial * p.channels <= kGrain) return true;
  if (batch_norm_cuts_images(p)) return false;
  const int64_t rounds = ceil_div(p.channels, parallel.threads);
  return rounds * parallel.threads * 4 <= p.channels * 5;
}

int64_t channel_grain(const BatchNormParams& p) { return ceil_div(kGrain, max_of(p.batch * p.spatial, 1)); }

// body(n, c, begin, length) over all runs, each task from the last in memory, which may still be in the cache.
template <class F>
void over_runs(const BatchNormParams& p, const Parallel& parallel, const F& body) {
  const int64_t pieces = max_of(ceil_div(p.spatial, kGrain), 1), length = min_of(p.spatial, kGrain);
  parallel(p.batch * p.channels * pieces, ceil_div(kGrain, max_of(length, 1)),
           [&](int64_t first, int64_t last) {
             for (int64_t j = last; j-- > first;) {
               const int64_t run = j / pieces, begin = j % pieces * kGrain;
               body(run / p.channels, run % p.channels, begin, min_of(length, p.spatial - begin));
             }
             stream_fence();
           });
}

// Scratch: the partial results of all blocks, then the coefficients of all channels.
struct Partial {
  double a, b, c;
};
template <class A>
struct ChannelCoefficients {
  Affine<A> affine;
  AffineGradient<A> gradient;
};
template <class A>
ChannelCoefficients<A>* coefficients_of(const BatchNormParams& p, const Blocks& blocks) {
  return reinterpret_cast<ChannelCoefficients<A>*>(static_cast<Partial*>(p.scratch) +
                                                   p.channels * blocks.count);
}

// Cut by images, as over_runs is.
template <class Partial, class F>
Partial* over_blocks(const BatchNormParams& p, const Blocks& blocks, const Parallel& parallel,
                     const F& body) {
  Partial* partial = static_cast<Partial*>(p.scratch);
  parallel(p.channels * blocks.count, kGrain / kBlock, [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      const int64_t block = j / p.channels, c = j % p.channels;
      partial[c * blocks.count + block] = body(c, blocks.at(p, block));
    }
  });
  return partial;
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
