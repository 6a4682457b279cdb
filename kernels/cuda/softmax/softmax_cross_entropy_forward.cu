// Softmax cross entropy, forward: loss and (max, log of the sum) of each row in one read of the logits.
//
// Bound by memory, so a row is read once, 16 bytes at a time with several loads on the way, into a running
// maximum and sum that are rescaled once per batch of loads. A warp takes a short row, a block a long one;
// where there are fewer rows than fill the GPU, several blocks share one and a second kernel merges their
// states. Rows whose classes do not lie side by side (N, C, H, W) go across the lanes, so that neighbouring
// lanes read neighbouring addresses.
//
// The softmax is never stored. Losses of the rows are added up by a kernel of their own, in float64 and a
// fixed order.
#include "kernels/cuda/softmax/softmax_cross_entropy.h"

#include "kernels/cuda/library.h"

namespace pydl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLoads = 4;        // packs that a thread has on the way
constexpr int kReduceLoads = 4;  // losses and targets

// ---- what a finished row leaves

template <class A>
PYDL_DEVICE void put_loss(const Params& p, int64_t losses, int64_t row, A loss) {
  if (p.reduction == Reduction::none)
    write_as<A>(p.output_dtype, p.output, row, loss);
  else
    reinterpret_cast<A*>(static_cast<char*>(p.scratch) + losses)[row] = loss;
}

template <class A>
PYDL_DEVICE void put_norm(const Params& p, int64_t row, A maximum, A log_sum) {
  static_cast<A*>(p.norm)[row] = maximum;
  static_cast<A*>(p.norm)[p.rows + row] = log_sum;
}

// One thread finishes a row.
template <class T, bool kDense>
PYDL_DEVICE void finish(const Params& p, const Constants<acc_t<T>>& k, int64_t losses, const Row& at,
                        int64_t target, const State<acc_t<T>>& state) {
  using A = acc_t<T>;
  const A log_sum = logarithm(state.sum), lse = state.maximum + log_sum;
  A loss = k.z_loss != 0 ? k.z_loss * lse * lse : A(0);
  if constexpr (kDense) loss += p.classes > 0 ? state.q_total * log_sum - state.q_x : A(0);
  if (!p.probabilities) {
    if (is_class(p, target)) {
      const A x = widen(static_cast<const T*>(p.input)[at.input + target * p.input_class_stride]);
      loss += k.hit * (k.weight ? k.weight[target] : A(1)) * (log_sum + (state.maximum - x));
    } else {
      loss = static_cast<A>(__builtin_nanf(""));
    }
  }
  put_norm<A>(p, at.row, state.maximum, log_sum);
  put_loss<A>(p, losses, at.row, loss);
}

template <class A>
PYDL_DEVICE void ignore(const Params& p, int64_t losses, int64_t row) {
  put_norm<A>(p, row, A(0), A(0));
  put_loss<A>(p, losses, row, A(0));
}

// ---- classes side by side

// Thread `thread` of `threads` absorbs its share of classes [begin, end).
template <class T, bool kDense>
PYDL_DEVICE State<acc_t<T>> sum_classes(const Params& p, const Constants<acc_t<T>>& k, const Row& at,
                                        int64_t begin, int64_t end, int thread, int threads) {
  using A = acc_t<T>;
  constexpr int V = kPack<T>;
  const T* x = static_cast<const T*>(p.input) + at.input;
  State<A> state;
  auto single = [&](int64_t c) {
    const A value[1] = {widen(x[c])};
    const A q[1] = {kDense ? dense_q(k, at.target, c, p.target) : A(0)};
    absorb<T, kDense, 1>(state, value, q);
  };
  const int64_t head = misaligned(x + begin, end - begin);
  const int64_t packs = (end - begin - head) / V;
  const T* body = x + begin + head;
  auto batch = [&](int64_t first, auto loads_) {
    constexpr int loads = decltype(loads_)::value;
    Pack<T> pack[loads];
#pragma unroll
    for (int i = 0; i < loads; ++i)
      pack[i] = load_pack(body + (first + static_cast<int64_t>(i) * threads) * V);
    A value[loads * V], q[kDense ? loads * V : 1];
#pragma unroll
    for (int i = 0; i < loads; ++i)
#pragma unroll
      for (int j = 0; j < V; ++j) {
        value[i * V + j] = widen(pack[i].value[j]);
        if constexpr (kDense)
          q[i * V + j] = dense_q(
              k, at.target, begin + head + (first + static_cast<int64_t>(i) * threads) * V + j, p.target);
      }
    absorb<T, kDense, loads * V>(state, value, q);
  };
  if (thread < head) single(begin + thread);
  int64_t i = thread;
  constexpr int kBatch = kDense ? 1 : kLoads;  // q of a batch would fill the registers
  if constexpr (kBatch > 1)
    for (; i + static_cast<int64_t>(kBatch - 1) * threads < packs;
         i += static_cast<int64_t>(kBatch) * threads)
      batch(i, Constant<kBatch>{});
  for (; i < packs; i += threads) batch(i, Constant<1>{});
  for (int64_t c = begin + head + packs * V + thread; c < end; c += threads) single(c);
  return state;
}

template <class T, bool kDense>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T>)
    softmax_cross_entropy_warps_kernel(PYDL_CONSTANT Params p, int64_t losses) {
  const int64_t position = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (position >= p.rows) return;
  const Constants<acc_t<T>> k(p);
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const Row at = row_at(p, position);
  const int64_t target = class_of(p, at);
  if (is_ignored(p, target)) {
    if (lane == 0) ignore<acc_t<T>>(p, losses, at.row);
    return;
  }
  State<acc_t<T>> state = sum_classes<T, kDense>(p, k, at, 0, p.classes, lane, kWarp);
  merge_warp<T, kDense>(state);
  if (lane == 0) finish<T, kDense>(p, k, losses, at, target, state);
}

// A block takes segment blockIdx.x % splits of a row, and leaves its state where the row is split.
template <class T, bool kDense>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T>)
    softmax_cross_entropy_blocks_kernel(PYDL_CONSTANT Params p, int64_t losses, int64_t splits,
                                        int64_t states) {
  using A = acc_t<T>;
  PYDL_SHARED(A, shared, 4 * kThreads / kWarp);
  const int64_t position = blockIdx.x / splits, split = blockIdx.x % splits;
  const Constants<A> k(p);
  const Row at = row_at(p, position);
  const int64_t target = class_of(p, at);
  if (is_ignored(p, target)) {  // the whole block leaves
    if (threadIdx.x == 0 && splits == 1) ignore<A>(p, losses, at.row);
    return;
  }
  const int64_t length = ceil_div(p.classes, splits);
  const int64_t begin = min_of(split * length, p.classes), end = min_of(begin + length, p.classes);
  State<A> state = sum_classes<T, kDense>(p, k, at, begin, end, static_cast<int>(threadIdx.x), kThreads);
  merge_warp<T, kDense>(state);
  const int warp = static_cast<int>(threadIdx.x / kWarp);
  if (threadIdx.x % kWarp == 0) {
    shared[4 * warp] = state.maximum;
    shared[4 * warp + 1] = state.sum;
    shared[4 * warp + 2] = state.q_x;
    shared[4 * warp + 3] = state.q_total;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / kWarp; ++w)
    merge<T, kDense>(state, {shared[4 * w], shared[4 * w + 1], shared[4 * w + 2], shared[4 * w + 3]});
  if (splits == 1)
    finish<T, kDense>(p, k, losses, at, target, state);
  else
    reinterpret_cast<State<A>*>(static_cast<char*>(p.scratch) + states)[blockIdx.x] = state;
}

// Merges the states of split rows: a warp for a row.
template <class T, bool kDense>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T>)
    softmax_cross_entropy_join_kernel(PYDL_CONSTANT Params p, int64_t losses, int64_t splits,
                                      int64_t states) {
  using A = acc_t<T>;
  const int64_t position = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (position >= p.rows) return;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const Row at = row_at(p, position);
  const int64_t target = class_of(p, at);
  if (is_ignored(p, target)) {
    if (lane == 0) ignore<A>(p, losses, at.row);
    return;
  }
  const State<A>* parts = reinterpret_cast<const State<A>*>(static_cast<const char*>(p.scratch) + states);
  State<A> state;
  for (int64_t s = lane; s < splits; s += kWarp) merge<T, kDense>(state, parts[position * splits + s]);
  merge_warp<T, kDense>(state);
  if (lane == 0) finish<T, kDense>(p, Constants<A>(p), losses, at, target, state);
}

// ---- rows side by side: lane by lane, and a warp for every eighth class

template <class T, bool kDense>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T>)
    softmax_cross_entropy_strided_kernel(PYDL_CONSTANT Params p, int64_t losses) {
  using A = acc_t<T>;
  constexpr int kWarps = kThreads / kWarp, kUnroll = kDense ? 2 : 4;
  PYDL_SHARED(A, shared, 4 * kThreads);
  const int lane = static_cast<int>(threadIdx.x % kWarp), warp = static_cast<int>(threadIdx.x / kWarp);
  const int64_t position = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  const Constants<A> k(p);
  const Row at = row_at(p, min_of(position, p.rows - 1));
  const int64_t target = class_of(p, at);
  const bool ignored = is_ignored(p, target);
  const T* x = static_cast<const T*>(p.input) + at.input;
  State<A> state;
  if (!ignored) {
    int64_t c = warp;
    for (; c + (kUnroll - 1) * kWarps < p.classes; c += kUnroll * kWarps) {
      A value[kUnroll], q[kDense ? kUnroll : 1];
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        value[i] = widen(x[(c + i * kWarps) * p.input_class_stride]);
        if constexpr (kDense) q[i] = dense_q(k, at.target, c + i * kWarps, p.target);
      }
      absorb<T, kDense, kUnroll>(state, value, q);
    }
    for (; c < p.classes; c += kWarps) {
      const A value[1] = {widen(x[c * p.input_class_stride])};
      const A q[1] = {kDense ? dense_q(k, at.target, c, p.target) : A(0)};
      absorb<T, kDense, 1>(state, value, q);
    }
  }
  shared[threadIdx.x] = state.maximum;
  shared[kThreads + threadIdx.x] = state.sum;
  shared[2 * kThreads + threadIdx.x] = state.q_x;
  shared[3 * kThreads + threadIdx.x] = state.q_total;
  __syncthreads();
  if (warp != 0 || position >= p.rows) return;
  if (ignored) return ignore<A>(p, losses, at.row);
  for (int w = 1; w < kWarps; ++w) {
    const int i = w * kWarp + lane;
    merge<T, kDense>(state,
                     {shared[i], shared[kThreads + i], shared[2 * kThreads + i], shared[3 * kThreads + i]});
  }
  finish<T, kDense>(p, k, losses, at, target, state);
}

// ---- the reduction

// Adds up the losses of `each` rows, and the weights that mean divides by. With one block, the result; else its
// parts, which a second launch (`parts` of them) adds up. Few rows a block, and several loads on the way: these
// launches are short, and would be nothing but waiting. Two blocks on a multiprocessor at least: ptxas, left alone,
// spills some bytes.
template <class A>
__global__ void __launch_bounds__(kThreads, 2)
    softmax_cross_entropy_reduce_kernel(PYDL_CONSTANT Params p, int64_t losses, int64_t sums, int64_t each,
                                        int64_t parts) {
  PYDL_SHARED(double, shared, 2 * kThreads / kWarp);
  const A* loss_of = reinterpret_cast<const A*>(static_cast<const char*>(p.scratch) + losses);
  double* part = reinterpret_cast<double*>(static_cast<char*>(p.scratch) + sums);
  const bool counts = p.reduction == Reduction::mean && !p.probabilities;
  const int64_t begin = parts > 0 ? 0 : static_cast<int64_t>(blockIdx.x) * each,
                end = parts > 0 ? parts : min_of(begin + each, p.rows);
  double loss = 0, weight = 0;
  for (int64_t first = begin + threadIdx.x; first < end; first += kReduceLoads * kThreads) {
    double losses_of[kReduceLoads] = {}, weights[kReduceLoads] = {};
    int64_t target[kReduceLoads];
#pragma unroll
    for (int i = 0; i < kReduceLoads; ++i) {
      const int64_t at = first + i * kThreads;
      target[i] = p.ignore_index;
      if (at >= end) continue;
      if (parts > 0) {
        losses_of[i] = part[2 * at];
        weights[i] = part[2 * at + 1];
      } else {
        losses_of[i] = static_cast<double>(loss_of[at]);
        if (counts) target[i] = class_of(p, row_at(p, at));
      }
    }
#pragma unroll
    for (int i = 0; i < kReduceLoads; ++i)
      if (counts && parts == 0 && !is_ignored(p, target[i]))
        weights[i] = p.weight && is_class(p, target[i])
                         ? static_cast<double>(static_cast<const A*>(p.weight)[target[i]])
                         : 1.0;
#pragma unroll
    for (int i = 0; i < kReduceLoads; ++i) {
      loss += losses_of[i];
      weight += weights[i];
    }
  }
  loss = block_sum<kThreads>(loss, shared);
  weight = block_sum<kThreads>(weight, shared + kThreads / kWarp);
  if (threadIdx.x != 0) return;
  if (parts == 0 && gridDim.x > 1) {
    part[2 * blockIdx.x] = loss;
    part[2 * blockIdx.x + 1] = weight;
    return;
  }
  if (p.reduction == Reduction::mean) {
    double denominator = weight;
    if (p.probabilities)  // without classes nan, as torch has it
      denominator = p.classes > 0 ? static_cast<double>(p.rows) : static_cast<double>(__builtin_nanf(""));
    *p.denominator = denominator;
    loss /= denominator;
  }
  write_as<double>(p.output_dtype, p.output, 0, loss);
}

template <class A>
int reduce(const Params& p, const Scratch& scratch, void* stream) {
  if (p.reduction == Reduction::none) return 0;
  const int64_t each = reduced_rows(p), blocks = max_of(ceil_div(p.rows, each), 1), none = 0;
  const auto kernel = softmax_cross_entropy_reduce_kernel<A>;
  int error = launch(kernel, blocks, kThreads, stream, p, scratch.losses, scratch.sums, each, none);
  if (error == 0 && blocks > 1)
    error = launch(kernel, 1, kThreads, stream, p, scratch.losses, scratch.sums, each, blocks);
  return error;
}

template <class T, bool kDense>
int run(const Params& p, const Scratch& scratch, void* stream) {
  constexpr int64_t kRows = kThreads / kWarp;
  const int64_t splits = splits_of(p);
  if (p.rows == 0) return 0;
  if (p.input_class_stride != 1 || p.classes < 16)
    return launch(softmax_cross_entropy_strided_kernel<T, kDense>, ceil_div(p.rows, kWarp), kThreads, stream,
                  p, scratch.losses);
  if (p.classes <= 2048)
    return launch(softmax_cross_entropy_warps_kernel<T, kDense>, ceil_div(p.rows, kRows), kThreads, stream, p,
                  scratch.losses);
  int error = launch(softmax_cross_entropy_blocks_kernel<T, kDense>, p.rows * splits, kThreads, stream, p,
                     scratch.losses, splits, scratch.states);
  if (error == 0 && splits > 1)
    error = launch(softmax_cross_entropy_join_kernel<T, kDense>, ceil_div(p.rows, kRows), kThreads, stream, p,
                   scratch.losses, splits, scratch.states);
  return error;
}

}  // namespace

int64_t softmax_cross_entropy_scratch(const Params& p) { return Scratch(p).bytes; }

int softmax_cross_entropy_forward(const Params& p, void* stream) {
  const Scratch scratch(p);
  int error = 0;
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    error = is_dense(p) ? run<T, true>(p, scratch, stream) : run<T, false>(p, scratch, stream);
    if (error == 0) error = reduce<acc_t<T>>(p, scratch, stream);
  });
  return error;
}

}  // namespace pydl::cuda
