// Batch normalisation, forward: output = activation((x - mean) * invstd * weight + bias + residual).
//
// One read of the input (and of the residual), one write. The threads of a block first work out what
// multiplies and what is added for the block's channels, in float64, once; a thread then has several reads on
// the way.
#include "kernels/cuda/norm/batch_norm.h"

#include "kernels/cuda/library.h"

namespace pydl::cuda {
namespace {

template <class T, bool kColumns, int kWidth>
__global__ void __launch_bounds__(kThreads, kColumns || kWidth < 8 ? kLeastBlocks<T> : 2)
    batch_norm_apply_kernel(PYDL_CONSTANT Params p, PYDL_CONSTANT Walk w) {
  using A = acc_t<T>;
  constexpr int kChannels = kColumns ? kWidth : 1;  // of a thread
  constexpr int kReads = kWidth == 1 ? 4 : 2;
  PYDL_SHARED(Coefficients<A>, shared, kColumns ? kWarp * kWidth : 1);
  const Place at = place_of<kColumns>(p, w);
  const int channels = kColumns ? w.lanes * kWidth : 1;
  const int64_t first =
      kColumns ? at.channel - static_cast<int64_t>(threadIdx.x % w.lanes) * kWidth : at.channel;
  for (int c = static_cast<int>(threadIdx.x); c < channels; c += kThreads)
    if (first + c < p.channels) shared[c] = coefficients_of<A, false>(p, first + c);
  __syncthreads();
  if (!at.inside) return;
  Coefficients<A> k[kChannels];
#pragma unroll
  for (int j = 0; j < kChannels; ++j) k[j] = shared[at.channel - first + j];
  const bool has_residual = p.residual.data != nullptr;
  auto finish = [&](A(&x)[kWidth], const A(&residual)[kWidth], int32_t i) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) x[j] = affine(k[kColumns ? j : 0], x[j]) + residual[j];
    if (p.activation == Activation::relu) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) x[j] = x[j] <= 0 ? A(0) : x[j];  // nan stays nan
    } else if (p.activation == Activation::sigmoid) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) x[j] = sigmoid(x[j]);
    }
    store_values<T, kWidth>(p.output.data, offset_of<kColumns>(w, at, i, p.output), x);
  };
  auto batch = [&](int32_t i, auto reads_) {
    constexpr int reads = decltype(reads_)::value;
    A x[reads][kWidth], residual[reads][kWidth] = {};
#pragma unroll
    for (int r = 0; r < reads; ++r)
      load_values<T, kWidth>(p.input.data, offset_of<kColumns>(w, at, i + r * at.step, p.input), x[r]);
    if (has_residual) {
#pragma unroll
      for (int r = 0; r < reads; ++r)
        load_values<T, kWidth>(p.residual.data, offset_of<kColumns>(w, at, i + r * at.step, p.residual),
                               residual[r]);
    }
#pragma unroll
    for (int r = 0; r < reads; ++r) finish(x[r], residual[r], i + r * at.step);
  };
  int32_t i = at.begin;
  for (; i + (kReads - 1) * at.step < at.end; i += kReads * at.step) batch(i, Constant<kReads>{});
  for (; i < at.end; i += at.step) batch(i, Constant<1>{});
}

}  // namespace

int batch_norm_apply(const Params& p, void* stream) {
  const Walk w = walk_of(p, 8, 1 << 20);
  int error = 0;
  dispatch_walk(p, w, [&](auto type, auto columns, auto width) {
    error =
        launch(batch_norm_apply_kernel<decltype(type), decltype(columns)::value == 1, decltype(width)::value>,
               w.blocks, kThreads, stream, p, w);
  });
  return error;
}

}  // namespace pydl::cuda
