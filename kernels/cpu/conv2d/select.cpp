// Which algorithm serves which convolution, on one screen. What each computes and why stands at the head of
// its file.
#include "kernels/conv2d.h"

#include "kernels/cpu/base/simd.h"
#include "kernels/cpu/conv2d/algorithms.h"
#include "kernels/cpu/conv2d/reduced.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

using Algorithm = Conv2dAlgorithm;

bool supported(Algorithm algorithm, const Conv2dParams& p, Conv2dPass pass) {
  if (algorithm != Algorithm::gemm && p.dtype == DType::f64) return false;
  if (algorithm == Algorithm::winograd) return p.allow_winograd && winograd::supported(p, pass);
  if (algorithm == Algorithm::batch) return direct::batch_supported(p, pass);
  if (algorithm == Algorithm::rows) return direct::rows_supported(p, pass);
  if (algorithm == Algorithm::depthwise) return depthwise::supported(p, pass);
  return true;
}

// Depthwise, and groups of a few channels. Measured on Zen 4: groups of 16 fill implicit GEMM's vectors as
// well, which then loses to lanes of groups where these need not be transposed, but not in the weight
// gradient.
bool depthwise_pays(const Conv2dParams& p, Conv2dPass pass) {
  const bool few = p.in_channels / p.groups < 16;
  return p.groups > 1 && (few || (pass != Conv2dPass::backward_weight && p.input_stride[1] == 1));
}

// Direct over batch lanes where images fill the vectors and fit the second-level cache. Measured on Zen 5
// against implicit GEMM: 1.2 to 3 times as fast below 32 channels, 1.1 to 1.5 up to 64; deeper sums belong to
// GEMM. Measured on Zen 4: with a single vector of large images implicit GEMM is quicker, and in the weight
// gradient of one channel into many.
bool batch_pays(const Conv2dParams& p, Conv2dPass pass) {
  const int64_t vector = kVectorBytes / 4;
  const bool full = p.batch >= vector && 8 * p.batch >= 7 * vector * ceil_div(p.batch, vector);
  const int64_t taps = p.kernel_height * p.kernel_width, weights = p.out_channels * p.in_channels * taps;
  const int64_t in_block = p.in_channels * (p.in_height + p.kernel_height) * (p.in_width + p.kernel_width);
  const int64_t out_block = p.out_channels * p.out_height * p.out_width;
  if (!full || taps == 1) return false;
  if (pass == Conv2dPass::forward) return in_block <= (p.batch > vector ? 1 << 14 : 1 << 13);
  if (pass == Conv2dPass::backward_input) return out_block <= (p.in_channels <= 6 ? 1 << 16 : 1 << 14);
  if (p.in_channels == 1 && p.out_channels >= 32) return false;  // GEMM's columns are full as well
  return in_block <= 1 << 14 && weights <= 1 << 16;
}

Algorithm best(const Conv2dParams& p, Conv2dPass pass) {
  const Algorithm by_preference[] = {Algorithm::depthwise, Algorithm::winograd, Algorithm::rows,
                                     Algorithm::batch};
  const bool few =
      min_of(p.in_channels, p.out_channels) < 16;  // a vector of channels is not full, one of images is
  for (Algorithm algorithm : by_preference) {
    if (!supported(algorithm, p, pass)) continue;
    if (algorithm == Algorithm::depthwise && depthwise_pays(p, pass)) return algorithm;
    if (algorithm == Algorithm::winograd && winograd::worthwhile(p, pass) &&
        !(few && supported(Algorithm::batch, p, pass) && batch_pays(p, pass)))
      return algorithm;
    if (algorithm == Algorithm::rows && direct::rows_worthwhile(p, pass)) return algorithm;
    if (algorithm == Algorithm::batch && batch_pays(p, pass)) return algorithm;
  }
  return Algorithm::gemm;
}

}  // namespace

Conv2dAlgorithm conv2d_algorithm(const Conv2dParams& p, Conv2dPass pass) {
  const Algorithm wanted = p.algorithm == Algorithm::automatic ? best(p, pass) : p.algorithm;
  return supported(wanted, p, pass) ? wanted : Algorithm::gemm;
}

int64_t conv2d_scratch_bytes(const Conv2dParams& params, Conv2dPass pass, int64_t threads) {
  const Conv2dParams p = reduced(params);
  const bool weight = pass == Conv2dPass::backward_weight;
  const Algorithm algorithm = conv2d_algorithm(p, pass);
  if (algorithm == Algorithm::winograd) return winograd::scratch(p, pass, threads);
  if (algorithm == Algorithm::depthwise) return depthwise::scratch(p, pass, threads);
  if (algorithm == Algorithm::rows) return direct::rows_scratch(p, pass, threads);
  if (algorithm == Algorithm::batch)
    return weight ? direct::batch_weight_scratch(p, threads) : direct::batch_gather_scratch(p, pass, threads);
  return weight ? implicit::weight_scratch(p, threads) : implicit::gather_scratch(p, pass, threads);
}

void conv2d_forward(const Conv2dParams& params, const Parallel& parallel) {
  const Conv2dParams p = reduced(params);
  const Algorithm algorithm = conv2d_algorithm(p, Conv2dPass::forward);
  if (algorithm == Algorithm::winograd) return winograd::forward(p, parallel);
  if (algorithm == Algorithm::depthwise) return depthwise::forward(p, parallel);
  if (algorithm == Algorithm::rows) return direct::rows(p, Conv2dPass::forward, parallel);
  if (algorithm == Algorithm::batch) return direct::batch_forward(p, parallel);
  implicit::forward(p, parallel);
}

void conv2d_backward_input(const Conv2dParams& params, const Parallel& parallel) {
  const Conv2dParams p = reduced(params);
  const Algorithm algorithm = conv2d_algorithm(p, Conv2dPass::backward_input);
  if (algorithm == Algorithm::winograd) return winograd::backward_input(p, parallel);
  if (algorithm == Algorithm::depthwise) return depthwise::backward_input(p, parallel);
  if (algorithm == Algorithm::rows) return direct::rows(p, Conv2dPass::backward_input, parallel);
  if (algorithm == Algorithm::batch) return direct::batch_backward_input(p, parallel);
  implicit::backward_input(p, parallel);
}

void conv2d_backward_weight(const Conv2dParams& params, const Parallel& parallel) {
  const Conv2dParams p = reduced(params);
  const Algorithm algorithm = conv2d_algorithm(p, Conv2dPass::backward_weight);
  zero_idle_taps(params, p, parallel);
  if (algorithm == Algorithm::winograd) return winograd::backward_weight(p, parallel);
  if (algorithm == Algorithm::depthwise) return depthwise::backward_weight(p, parallel);
  if (algorithm == Algorithm::batch) return direct::batch_backward_weight(p, parallel);
  implicit::backward_weight(p, parallel);
}

}  // namespace pydl::cpu::PYDL_ISA
