// Softmax cross entropy, backward: one read of the logits and one write of their gradient; for class
// probabilities also the gradient of the target.
//
//   grad_input_c  = g ((sum_j q_j + 2 z_loss lse) exp(x_c - lse) - q_c)
//   grad_target_c = g (1 - s) w_c (lse - x_c)
//
// With (max, log of the sum) from the forward every element is computed alone, so a row is cut wherever that
// fills the GPU. Only sum_j q_j needs a row at once: for probabilities a kernel before sums it up, and so it
// does the weights of smoothed class indices. x - lse is taken as (x - max) - log_sum, which loses nothing at
// large logits.
#include "kernels/cuda/library.h"
#include "kernels/cuda/softmax/softmax_cross_entropy.h"

namespace pydl::cuda {
namespace {

constexpr int kThreads = 256;

enum class Mode { sparse, dense, target };

// ---- sums of q

// One row of q for each block (kBlock) or warp; `position` 0 alone where q is the same in every row.
template <class A, bool kBlock>
__global__ void __launch_bounds__(kThreads)
    softmax_cross_entropy_totals_kernel(PYDL_CONSTANT Params p, int64_t rows, int64_t totals) {
  PYDL_SHARED(A, shared, kThreads / kWarp);
  constexpr int kStep = kBlock ? kThreads : kWarp;
  const int64_t position = kBlock
                               ? static_cast<int64_t>(blockIdx.x)
                               : static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (position >= rows) return;
  const Constants<A> k(p);
  const Row at = row_at(p, position);
  A sum = 0;
  for (int64_t c = threadIdx.x % kStep; c < p.classes; c += kStep) sum += dense_q(k, at.target, c, p.target);
  sum = kBlock ? block_sum<kThreads>(sum, shared) : warp_sum(sum);
  if (threadIdx.x % kStep == 0) reinterpret_cast<A*>(static_cast<char*>(p.scratch) + totals)[position] = sum;
}

// ---- what multiplies what in a row

template <class A>
struct Terms {
  A softmax, upstream, one_hot;  // factors of exp(x - lse), of q_c, and of [c = t]
  A maximum, log_sum;
};

// totals: where the sums of q lie in the scratch, -1 without them; for class indices there is one for all
// rows
template <class A>
PYDL_DEVICE Terms<A> terms_of(const Params& p, const Constants<A>& k, const Row& at, int64_t position,
                              int64_t target, int64_t totals) {
  double g = 1;
  if (p.grad_output)
    g = read_as<double>(p.output_dtype, p.grad_output, p.reduction == Reduction::none ? at.grad_output : 0);
  if (p.reduction == Reduction::mean) g /= *p.denominator;
  Terms<A> terms{};
  terms.maximum = static_cast<const A*>(p.norm)[at.row];
  terms.log_sum = static_cast<const A*>(p.norm)[p.rows + at.row];
  terms.upstream = static_cast<A>(g);
  A q_total = 0;
  if (totals >= 0)
    q_total = reinterpret_cast<const A*>(static_cast<const char*>(p.scratch) +
                                         totals)[p.probabilities ? position : 0];
  else if (!p.probabilities)
    q_total = k.smooth * static_cast<A>(p.classes);
  if (!p.probabilities) {
    const A hit = is_class(p, target) ? k.hit * (k.weight ? k.weight[target] : A(1))
                                      : static_cast<A>(__builtin_nanf(""));
    terms.one_hot = terms.upstream * hit;
    q_total += hit;
  }
  const A slope = k.z_loss != 0 ? 2 * k.z_loss * (terms.maximum + terms.log_sum) : A(0);
  terms.softmax = terms.upstream * (q_total + slope);
  return terms;
}

// The gradient of class c, from its logit.
template <class T, Mode kMode>
PYDL_DEVICE acc_t<T> gradient(const Params& p, const Constants<acc_t<T>>& k, const Terms<acc_t<T>>& terms,
                              const Row& at, int64_t target, int64_t c, acc_t<T> x) {
  using A = acc_t<T>;
  if constexpr (kMode == Mode::target)
    return terms.upstream * k.hit * (k.weight ? k.weight[c] : A(1)) * (terms.log_sum + (terms.maximum - x));
  A y = terms.softmax * softmax_exp<T>((x - terms.maximum) - terms.log_sum);
  if constexpr (kMode == Mode::dense) y -= terms.upstream * dense_q(k, at.target, c, p.target);
  return c == target ? y - terms.one_hot : y;
}

template <class T, Mode kMode>
PYDL_DEVICE void put(const Params& p, int64_t at, acc_t<T> y) {
  if constexpr (kMode == Mode::target)
    write_as<acc_t<T>>(p.target_dtype, p.grad_target, at, y);
  else
    static_cast<T*>(p.grad_input)[at] = narrow<T>(y);
}

// ---- classes side by side: `group` threads for a row, or for one of its `splits` segments

template <class T, Mode kMode>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T>)
    softmax_cross_entropy_gradient_kernel(PYDL_CONSTANT Params p, int group, int64_t splits, int64_t totals) {
  using A = acc_t<T>;
  constexpr int V = kPack<T>;
  const int64_t segment = static_cast<int64_t>(blockIdx.x) * (kThreads / group) + threadIdx.x / group;
  const int64_t position = splits == 1 ? segment : segment / splits;
  if (position >= p.rows) return;
  const int thread = static_cast<int>(threadIdx.x % group);
  const int64_t length = ceil_div(p.classes, splits),
                begin = min_of((segment - position * splits) * length, p.classes);
  const int64_t end = min_of(begin + length, p.classes);
  const Constants<A> k(p);
  const Row at = row_at(p, position);
  const int64_t target = class_of(p, at);
  const bool ignored = is_ignored(p, target);
  Terms<A> terms{};
  if (!ignored) terms = terms_of(p, k, at, position, target, totals);
  const T* x = static_cast<const T*>(p.input) + at.input;
  auto single = [&](int64_t c) {
    put<T, kMode>(p, at.grad + c * p.grad_class_stride,
                  ignored ? A(0) : gradient<T, kMode>(p, k, terms, at, target, c, widen(x[c])));
  };
  if constexpr (kMode == Mode::target) {
    for (int64_t c = begin + thread; c < end; c += group) single(c);
  } else {
    T* y = static_cast<T*>(p.grad_input) + at.grad;
    const int64_t head = misaligned(x + begin, end - begin), packs = (end - begin - head) / V;
    const int64_t first = begin + head;
    const bool whole = is_aligned(y + first) && p.grad_class_stride == 1;
    if (thread < head) single(begin + thread);
#pragma unroll 2
    for (int64_t i = thread; i < packs; i += group) {
      const int64_t c = first + i * V;
      Pack<T> pack = load_pack(x + c);
#pragma unroll
      for (int j = 0; j < V; ++j)
        pack.value[j] = narrow<T>(
            ignored ? A(0) : gradient<T, kMode>(p, k, terms, at, target, c + j, widen(pack.value[j])));
      if (whole) {
        store_pack(y + c, pack);
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j) y[(c + j) * p.grad_class_stride] = pack.value[j];
      }
    }
    for (int64_t c = first + packs * V + thread; c < end; c += group) single(c);
  }
}

// ---- rows side by side: a lane for a row, a warp for every eighth of a chunk of classes

constexpr int64_t kChunk = 128;

template <class T, Mode kMode>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T>)
    softmax_cross_entropy_strided_gradient_kernel(PYDL_CONSTANT Params p, int64_t chunks, int64_t totals) {
  using A = acc_t<T>;
  const int64_t block = blockIdx.x / chunks, begin = blockIdx.x % chunks * kChunk;
  const int64_t position = block * kWarp + threadIdx.x % kWarp, end = min_of(begin + kChunk, p.classes);
  if (position >= p.rows) return;
  const Constants<A> k(p);
  const Row at = row_at(p, position);
  const int64_t target = class_of(p, at);
  const bool ignored = is_ignored(p, target);
  Terms<A> terms{};
  if (!ignored) terms = terms_of(p, k, at, position, target, totals);
  const T* x = static_cast<const T*>(p.input) + at.input;
#pragma unroll 2
  for (int64_t c = begin + threadIdx.x / kWarp; c < end; c += kThreads / kWarp)
    put<T, kMode>(
        p, at.grad + c * p.grad_class_stride,
        ignored ? A(0) : gradient<T, kMode>(p, k, terms, at, target, c, widen(x[c * p.input_class_stride])));
}

template <class T, Mode kMode>
int run(const Params& p, void* stream) {
  using A = acc_t<T>;
  if (p.rows == 0 || p.classes == 0) return 0;
  int64_t totals = -1;
  if (kMode == Mode::dense && (p.probabilities || p.weight)) {
    totals = Scratch(p).totals;
    const int64_t rows = p.probabilities ? p.rows : 1;
    const int error =
        p.classes > 1024
            ? launch(softmax_cross_entropy_totals_kernel<A, true>, rows, kThreads, stream, p, rows, totals)
            : launch(softmax_cross_entropy_totals_kernel<A, false>, ceil_div(rows, kThreads / kWarp),
                     kThreads, stream, p, rows, totals);
    if (error != 0) return error;
  }
  if (p.input_class_stride != 1 || p.classes < 16) {
    const int64_t chunks = ceil_div(p.classes, kChunk);
    return launch(softmax_cross_entropy_strided_gradient_kernel<T, kMode>, ceil_div(p.rows, kWarp) * chunks,
                  kThreads, stream, p, chunks, totals);
  }
  const int group = p.classes <= 2048 ? kWarp : kThreads;
  // 8192 classes at least for each block, where rows alone do not fill the GPU
  const int64_t splits = p.rows >= 2048 ? 1 : max_of(min_of(ceil_div(2048, p.rows), p.classes / 8192), 1);
  return launch(softmax_cross_entropy_gradient_kernel<T, kMode>, ceil_div(p.rows * splits, kThreads / group),
                kThreads, stream, p, group, splits, totals);
}

}  // namespace

int softmax_cross_entropy_backward(const Params& p, void* stream) {
  int error = 0;
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    error = is_dense(p) ? run<T, Mode::dense>(p, stream) : run<T, Mode::sparse>(p, stream);
  });
  return error;
}

int softmax_cross_entropy_backward_target(const Params& p, void* stream) {
  int error = 0;
  dispatch_dtype(p.dtype, [&](auto type) { error = run<decltype(type), Mode::target>(p, stream); });
  return error;
}

}  // namespace pydl::cuda
