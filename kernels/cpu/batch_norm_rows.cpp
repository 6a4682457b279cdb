// Batch normalisation of rows (NCHW): each channel is batch runs of spatial contiguous elements.
//
// A channel usually fits in the second-level cache, so one thread takes it through statistics and
// application: one read from memory, one write. Where there are fewer channels than threads, both passes are
// split across a channel.
//
// Statistics survive mean >> deviation: a channel is cut into blocks of a fixed size, a block is summed about
// a value near its own mean, and blocks are merged in order (Chan, Golub, LeVeque 1979) in float64. Blocks
// depend on the shape alone, so the result does not depend on the number of threads.
#include "kernels/cpu/batch_norm.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kBlock = 4096;      // elements of a block: 16 KB of float, inside the first-level cache
constexpr int64_t kGrain = 16384;     // elements of a task: a few µs, several times the cost of a fork
constexpr int64_t kShiftSample = 64;  // elements whose mean is the shift of a block: square root of its size

// A block is `rows` runs of `length` elements.
struct Block {
  int64_t row, rows, begin, length;
};

struct Blocks {
  int64_t pieces, rows, count;  // pieces per run, or runs per block
  explicit Blocks(const BatchNormParams& p)
      : pieces(max_of(ceil_div(p.spatial, kBlock), 1)),
        rows(max_of(kBlock / max_of(p.spatial, 1), 1)),
        count(pieces > 1 ? p.batch * pieces : ceil_div(p.batch, rows)) {}

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
    int64_t i = 0;
    auto add = [&](int u, vec<A> d) PYDL_INLINE_LAMBDA {
      sum[u] += d;
      squares[u] += d * d;
    };
    for (; i + kUnroll * lanes<A> <= block.length; i += kUnroll * lanes<A>)
      for (int u = 0; u < kUnroll; ++u) add(u, load(x + i + u * lanes<A>) - shift);
    for (int u = 0; i + lanes<A> <= block.length; i += lanes<A>) add(u++, load(x + i) - shift);
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

template <class A>
PYDL_INLINE vec<A> normalise(vec<A> x, const Affine<A>& f) {
  return (x - f.shift) * f.scale + f.offset;
}

// Stores of one run from its end, which is the part that may still be in the cache. Where the output leaves
// the cache they are non-temporal, so that whole vectors begin at a vector's boundary.
template <class T, class F>
PYDL_INLINE void store_run(T* y, int64_t n, bool past_cache, const F& value) {
  using A = acc_t<T>;
  constexpr uintptr_t align = lanes<A> * sizeof(T);
  const uintptr_t off = past_cache ? reinterpret_cast<uintptr_t>(y) % align : 0;
  const int64_t head = min_of(n, static_cast<int64_t>((align - off) % align / sizeof(T)));
  int64_t i = head + (n - head) / lanes<A> * lanes<A>;
  if (i < n) store_n(y + i, value(i, n - i), n - i);
  if (past_cache) {
    for (; i > head; i -= lanes<A>) stream(y + i - lanes<A>, value(i - lanes<A>, 0));
  } else {
    for (; i > head; i -= lanes<A>) store(y + i - lanes<A>, value(i - lanes<A>, 0));
  }
  if (head > 0) store_n(y, value(0, head), head);
}

// count = 0 reads a whole vector, else the first count lanes.
template <class T>
PYDL_INLINE vec<acc_t<T>> load_some(const T* x, int64_t count) {
  return count ? load_n(x, count) : load(x);
}

template <Activation kActivation, class T>
void apply_run(const BatchNormParams& p, int64_t n, int64_t c, int64_t begin, int64_t length,
               const Affine<acc_t<T>>& affine) {
  const T* x = run_of<const T>(p.input, n, c) + begin;
  T* y = run_of<T>(p.output, n, c) + begin;
  if (p.residual.data) {
    const T* r = run_of<const T>(p.residual, n, c) + begin;
    store_run(y, length, p.stream, [&](int64_t i, int64_t count) PYDL_INLINE_LAMBDA {
      return activate<kActivation>(normalise(load_some(x + i, count), affine) + load_some(r + i, count));
    });
  } else {
    store_run(y, length, p.stream, [&](int64_t i, int64_t count) PYDL_INLINE_LAMBDA {
      return activate<kActivation>(normalise(load_some(x + i, count), affine));
    });
  }
}

// ---- gradient

struct GradientSums {
  double sum, shifted;  // of gz and gz * (x - shift)
};

template <BatchNormGradient kGradient, class T>
PYDL_INLINE vec<acc_t<T>> gradient_at(const T* g, const T* y, vec<acc_t<T>> x, const Affine<acc_t<T>>& affine,
                                      int64_t count) {
  const vec<acc_t<T>> grad = pin(load_some(g, count));
  if constexpr (kGradient == BatchNormGradient::relu_input)
    return activation_gradient<kGradient>(grad, normalise(x, affine));
  if constexpr (reads_output(kGradient)) return activation_gradient<kGradient>(grad, load_some(y, count));
  return grad;
}

template <class T>
PYDL_INLINE const T* output_run(const BatchNormParams& p, int64_t n, int64_t c, int64_t begin) {
  return p.output.data ? run_of<const T>(p.output, n, c) + begin : nullptr;
}

template <BatchNormGradient kGradient, class T>
GradientSums block_gradient(const BatchNormParams& p, int64_t c, const Block& block,
                            const Affine<acc_t<T>>& affine) {
  using A = acc_t<T>;
  constexpr int kUnroll = 4;
  vec<A> sum[kUnroll]{}, shifted[kUnroll]{};
  for (int64_t n = block.row; n < block.row + block.rows; ++n) {
    const T* x = run_of<const T>(p.input, n, c) + block.begin;
    const T* g = run_of<const T>(p.grad_output, n, c) + block.begin;
    const T* y = output_run<T>(p, n, c, block.begin);
    int64_t i = 0;
    auto add = [&](int u, int64_t i, int64_t count) PYDL_INLINE_LAMBDA {
      const vec<A> xs = load_some(x + i, count);
      const vec<A> gz = gradient_at<kGradient>(g + i, y + i, xs, affine, count);
      const vec<A> product = gz * (xs - affine.shift);
      sum[u] += count ? keep_first<A>(gz, count) : gz;
      shifted[u] += count ? keep_first<A>(product, count) : product;
    };
    for (; i + kUnroll * lanes<A> <= block.length; i += kUnroll * lanes<A>)
      for (int u = 0; u < kUnroll; ++u) add(u, i + u * lanes<A>, 0);
    for (int u = 0; i + lanes<A> <= block.length; i += lanes<A>) add(u++, i, 0);
    if (i < block.length) add(kUnroll - 1, i, block.length - i);
  }
  return {static_cast<double>(reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]))),
          static_cast<double>(reduce_add((shifted[0] + shifted[1]) + (shifted[2] + shifted[3])))};
}

template <BatchNormGradient kGradient, class T>
void gradient_run(const BatchNormParams& p, int64_t n, int64_t c, int64_t begin, int64_t length,
                  const Affine<acc_t<T>>& affine, const AffineGradient<acc_t<T>>& affine_gradient) {
  using A = acc_t<T>;
  const T* x = run_of<const T>(p.input, n, c) + begin;
  const T* g = run_of<const T>(p.grad_output, n, c) + begin;
  const T* y = output_run<T>(p, n, c, begin);
  if (p.grad_residual.data) {
    store_run(run_of<T>(p.grad_residual, n, c) + begin, length, p.stream,
              [&](int64_t i, int64_t count) PYDL_INLINE_LAMBDA {
                return gradient_at<kGradient>(g + i, y + i, load_some(x + i, count), affine, count);
              });
  }
  if (p.grad_input.data == nullptr) return;
  T* out = run_of<T>(p.grad_input, n, c) + begin;
  if (p.training) {
    store_run(out, length, p.stream, [&](int64_t i, int64_t count) PYDL_INLINE_LAMBDA {
      const vec<A> xs = load_some(x + i, count);
      const vec<A> gz = gradient_at<kGradient>(g + i, y + i, xs, affine, count);
      return gz * affine.scale + ((xs - affine.shift) * affine_gradient.slope + affine_gradient.constant);
    });
  } else {
    store_run(out, length, p.stream, [&](int64_t i, int64_t count) PYDL_INLINE_LAMBDA {
      return gradient_at<kGradient>(g + i, y + i, load_some(x + i, count), affine, count) * affine.scale;
    });
  }
}

// ---- who does what

// Whether one thread takes a channel as a whole: not where that leaves threads idle.
bool channel_per_task(const BatchNormParams& p, const Parallel& parallel) {
  const int64_t rounds = ceil_div(p.channels, parallel.threads);
  return rounds * parallel.threads * 4 <= p.channels * 5 || p.batch * p.spatial * p.channels <= kGrain;
}

int64_t channel_grain(const BatchNormParams& p) { return ceil_div(kGrain, max_of(p.batch * p.spatial, 1)); }

// body(n, c, begin, length) over all runs, in the order of memory.
template <class F>
void over_runs(const BatchNormParams& p, const Parallel& parallel, const F& body) {
  const int64_t pieces = max_of(ceil_div(p.spatial, kGrain), 1), length = min_of(p.spatial, kGrain);
  parallel(p.batch * p.channels * pieces, ceil_div(kGrain, max_of(length, 1)),
           [&](int64_t first, int64_t last) {
             for (int64_t j = first; j < last; ++j) {
               const int64_t run = j / pieces, begin = j % pieces * kGrain;
               body(run / p.channels, run % p.channels, begin, min_of(length, p.spatial - begin));
             }
             stream_fence();
           });
}

template <class Partial, class F>
Partial* over_blocks(const BatchNormParams& p, const Blocks& blocks, const Parallel& parallel,
                     const F& body) {
  Partial* partial = static_cast<Partial*>(p.scratch);
  parallel(p.channels * blocks.count, kGrain / kBlock, [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j)
      partial[j] = body(j / blocks.count, blocks.at(p, j % blocks.count));
  });
  return partial;
}

template <class T>
void forward(const BatchNormParams& p, bool stats, bool apply, const Parallel& parallel) {
  using A = acc_t<T>;
  const Blocks blocks(p);
  dispatch_activation(p.activation, [&](auto tag) {
    constexpr Activation kActivation = decltype(tag)::activation;
    if (stats && channel_per_task(p, parallel)) {
      parallel(p.channels, channel_grain(p), [&](int64_t first, int64_t last) {
        for (int64_t c = first; c < last; ++c) {
          Moments moments{};
          for (int64_t j = 0; j < blocks.count; ++j) moments.merge(block_moments<T>(p, c, blocks.at(p, j)));
          finish_moments(p, c, moments.total / moments.count, moments.m2);
          if (!apply) continue;
          const Affine<A> affine = affine_at<A>(p, c);
          // from the last run, which is still in the cache, to the first
          for (int64_t n = p.batch; n-- > 0;) apply_run<kActivation, T>(p, n, c, 0, p.spatial, affine);
        }
        stream_fence();
      });
      return;
    }
    if (stats) {
      const Moments* partial = over_blocks<Moments>(
          p, blocks, parallel, [&](int64_t c, const Block& block) { return block_moments<T>(p, c, block); });
      for (int64_t c = 0; c < p.channels; ++c) {
        Moments moments{};
        for (int64_t j = 0; j < blocks.count; ++j) moments.merge(partial[c * blocks.count + j]);
        finish_moments(p, c, moments.total / moments.count, moments.m2);
      }
    }
    if (apply)
      over_runs(p, parallel, [&](int64_t n, int64_t c, int64_t begin, int64_t length) {
        apply_run<kActivation, T>(p, n, c, begin, length, affine_at<A>(p, c));
      });
  });
}

template <class T>
void backward(const BatchNormParams& p, bool reduce, bool apply, const Parallel& parallel) {
  using A = acc_t<T>;
  const Blocks blocks(p);
  dispatch_gradient(p.gradient, [&](auto tag) {
    constexpr BatchNormGradient kGradient = decltype(tag)::gradient;
    auto slope = [&](int64_t c) { return p.training ? affine_gradient_at<A>(p, c) : AffineGradient<A>{}; };
    if (reduce && channel_per_task(p, parallel)) {
      parallel(p.channels, channel_grain(p), [&](int64_t first, int64_t last) {
        for (int64_t c = first; c < last; ++c) {
          const Affine<A> affine = affine_at<A>(p, c);
          GradientSums sums{};
          for (int64_t j = 0; j < blocks.count; ++j) {
            const GradientSums part = block_gradient<kGradient, T>(p, c, blocks.at(p, j), affine);
            sums.sum += part.sum;
            sums.shifted += part.shifted;
          }
          finish_gradient_sums<A>(p, c, sums.sum, sums.shifted);
          if (!apply) continue;
          for (int64_t n = p.batch; n-- > 0;)
            gradient_run<kGradient, T>(p, n, c, 0, p.spatial, affine, slope(c));
        }
        stream_fence();
      });
      return;
    }
    if (reduce) {
      const GradientSums* partial =
          over_blocks<GradientSums>(p, blocks, parallel, [&](int64_t c, const Block& block) {
            return block_gradient<kGradient, T>(p, c, block, affine_at<A>(p, c));
          });
      for (int64_t c = 0; c < p.channels; ++c) {
        GradientSums sums{};
        for (int64_t j = c * blocks.count; j < (c + 1) * blocks.count; ++j) {
          sums.sum += partial[j].sum;
          sums.shifted += partial[j].shifted;
        }
        finish_gradient_sums<A>(p, c, sums.sum, sums.shifted);
      }
    }
    if (apply)
      over_runs(p, parallel, [&](int64_t n, int64_t c, int64_t begin, int64_t length) {
        gradient_run<kGradient, T>(p, n, c, begin, length, affine_at<A>(p, c), slope(c));
      });
  });
}

}  // namespace

int64_t batch_norm_rows_scratch(const BatchNormParams& p) {
  return p.channels * Blocks(p).count * static_cast<int64_t>(sizeof(Moments));
}

void batch_norm_rows_forward(const BatchNormParams& p, bool stats, bool apply, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) { forward<decltype(type)>(p, stats, apply, parallel); });
}

void batch_norm_rows_backward(const BatchNormParams& p, bool reduce, bool apply, const Parallel& parallel) {
  dispatch_dtype(p.dtype, [&](auto type) { backward<decltype(type)>(p, reduce, apply, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
