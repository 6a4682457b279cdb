// Batch normalisation of rows (NCHW): each channel is batch runs of spatial contiguous elements.
//
// A channel usually fits in the second-level cache, so one thread takes it through statistics and
// application: one read from memory, one write. Where there are fewer channels than threads, both passes are
// split across a channel.
//
// Statistics survive mean >> deviation: a channel is cut into blocks of a fixed size, a block is summed about
// a value near its own mean, and blocks are merged in order (Chan, Golub, LeVeque 1979) in float64. Blocks
// depend on the shape alone, so the result does not depend on the number of threads.
#include "kernels/cpu/norm/batch_norm_rows.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kShiftSample = 64;  // elements whose mean is the shift of a block: square root of its size

// ---- statistics

struct Moments {
  double count, total, m2;

  void merge(const Moments& b) {
    if (count == 0) {
      *this = b;
      return;
    }
    const double delta = b.total / b.count - total / count;
    m2 += b.m2 + delta * delta * count * b.count / (count + b.count);
    count += b.count;
    total += b.total;
  }
};

template <class T>
acc_t<T> shift_of(const BatchNormParams& p, int64_t c, const Block& block) {
  using A = acc_t<T>;
  vec<A> sum{};
  int64_t seen = 0;
  for (int64_t n = block.row; n < block.row + block.rows && seen < kShiftSample; ++n) {
    const T* x = run_of<const T>(p.input, n, c) + block.begin;
    for (int64_t i = 0; i < block.length && seen < kShiftSample; i += lanes<A>) {
      sum += load_n(x + i, min_of(block.length - i, lanes<A>));
      seen += min_of(block.length - i, lanes<A>);
    }
  }
  const A shift = reduce_add(sum) / static_cast<A>(seen);
  return shift - shift == 0 ? shift : 0;  // inf and nan go through the sums, not through the shift
}

template <class T>
Moments block_moments(const BatchNormParams& p, int64_t c, const Block& block) {
  using A = acc_t<T>;
  constexpr int kUnroll = 4;  // eight independent sums hide the latency of the additions
  const A shift = shift_of<T>(p, c, block);
  vec<A> sum[kUnroll]{}, squares[kUnroll]{};
  for (int64_t n = block.row; n < block.row + block.rows; ++n) {
    const T* x = run_of<const T>(p.input, n, c) + block.begin;
    const int64_t ahead = ahead_in_block<T>(p, p.input, n);
    if (block.length < kUnroll * lanes<A>) prefetch_short_run(x, block.length, ahead);
    int64_t i = 0;
    auto add = [&](int u, vec<A> d) PYDL_INLINE_LAMBDA {
      sum[u] += d;
      squares[u] += d * d;
    };
    for (; i + kUnroll * lanes<A> <= block.length; i += kUnroll * lanes<A>)
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) {
        if (u * lanes<A> * sizeof(T) % 64 == 0) prefetch_far_ahead(x + i + u * lanes<A>, ahead);
        add(u, load(x + i + u * lanes<A>) - shift);
      }
    for (; i + lanes<A> <= block.length; i += lanes<A>) add(0, load(x + i) - shift);
    if (const int64_t rest = block.length - i; rest > 0)
      add(kUnroll - 1, keep_first<A>(load_n(x + i, rest) - shift, rest));
  }
  const double count = static_cast<double>(block.rows * block.length);
  const double d = static_cast<double>(reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3])));
  const double d2 = static_cast<double>(reduce_add((squares[0] + squares[1]) + (squares[2] + squares[3])));
  const double m2 = d2 - d * d / count;
  return {count, static_cast<double>(shift) * count + d, m2 < 0 ? 0.0 : m2};  // rounding may leave a negative
}

// ---- application

// ahead: from here to where the residual is read next, in elements
template <Activation kActivation, class T>
PYDL_INLINE void apply_run(const BatchNormParams& p, int64_t n, int64_t c, int64_t begin, int64_t length,
                           const Affine<acc_t<T>>& affine, int64_t ahead) {
  const Activation activation = activation_of<kActivation>(p);
  const T* x = run_of<const T>(p.input, n, c) + begin;
  T* y = run_of<T>(p.output, n, c) + begin;
  if (p.residual.data) {
    const T* r = run_of<const T>(p.residual, n, c) + begin;
    store_run(y, length, p.stream, [&](int64_t i, int64_t count) PYDL_INLINE_LAMBDA {
      prefetch_far_ahead(r + i, ahead);
      return activated(normalise(load_some(x + i, count), affine) + load_some(r + i, count), activation);
    });
  } else {
    store_run(y, length, p.stream, [&](int64_t i, int64_t count) PYDL_INLINE_LAMBDA {
      return activated(normalise(load_some(x + i, count), affine), activation);
    });
  }
}

// Runs [first, last) of a channel from the last, which is still in the cache: what depends on the activation.
template <Activation kActivation, class T>
void apply_runs(const BatchNormParams& p, int64_t c, int64_t first, int64_t last, int64_t begin,
                int64_t length, const Affine<acc_t<T>>& affine) {
  const bool prefetches = last - first > 1;  // in memory's order the hardware does
  const int64_t runs = runs_ahead<T>(p);
  for (int64_t n = last; n-- > first;)
    apply_run<kActivation, T>(p, n, c, begin, length, affine,
                              prefetches ? ahead_of(p, p.residual, n, runs, -1) : 0);
}
template <class T>
ApplyRuns<acc_t<T>> apply_of(const BatchNormParams& p) {
  if constexpr (__is_same(acc_t<T>, float))
    if (p.pooled_width) return pooled_apply(p.dtype);
  ApplyRuns<acc_t<T>> apply{};
  dispatch_activation<T>(p.activation, [&](auto tag) { apply = &apply_runs<decltype(tag)::activation, T>; });
  return apply;
}

template <class A>
struct Walks {
  decltype(&block_moments<A>) moments;
  ApplyRuns<A> apply;
};

template <class A>
void forward(const BatchNormParams& p, bool stats, bool apply, const Walks<A>& walks,
             const Parallel& parallel) {
  const Blocks blocks(p);
  if (stats && channel_per_task(p, parallel)) {
    parallel(p.channels, channel_grain(p), [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        Moments moments{};
        for (int64_t j = 0; j < blocks.count; ++j) moments.merge(walks.moments(p, c, blocks.at(p, j)));
        finish_moments(p, c, moments.total / moments.count, moments.m2);
        if (!apply) continue;
        walks.apply(p, c, 0, p.batch, 0, p.spatial, affine_at<A>(p, c));
      }
      stream_fence();
    });
    return;
  }
  if (stats) {
    const Moments* partial = over_blocks<Moments>(
        p, blocks, parallel, [&](int64_t c, const Block& block) { return walks.moments(p, c, block); });
    for (int64_t c = 0; c < p.channels; ++c) {
      Moments moments{};
      for (int64_t j = 0; j < blocks.count; ++j) moments.merge(partial[c * blocks.count + j]);
      finish_moments(p, c, moments.total / moments.count, moments.m2);
    }
  }
  if (!apply) return;
  ChannelCoefficients<A>* const channel = coefficients_of<A>(p, blocks);
  for (int64_t c = 0; c < p.channels; ++c) channel[c].affine = affine_at<A>(p, c);
  over_runs(p, parallel, [&](int64_t n, int64_t c, int64_t begin, int64_t length) {
    walks.apply(p, c, n, n + 1, begin, length, channel[c].affine);
  });
}

}  // namespace

int64_t batch_norm_rows_scratch(const BatchNormParams& p) {
  return p.channels * (Blocks(p).count * static_cast<int64_t>(sizeof(Partial)) +
                       static_cast<int64_t>(sizeof(ChannelCoefficients<double>)));
}

void batch_norm_rows_forward(const BatchNormParams& p, bool stats, bool apply, const Parallel& parallel) {
  dispatch_storage(p.dtype, [&](auto type) {
    using T = decltype(type);
    forward<acc_t<T>>(p, stats, apply, {&block_moments<T>, apply_of<T>(p)}, parallel);
  });
}

}  // namespace pydl::cpu::PYDL_ISA
