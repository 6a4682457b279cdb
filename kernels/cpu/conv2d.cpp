// Which algorithm serves which convolution, on one screen. What each computes and why stands at the head of
// its file.
#include "kernels/conv2d.h"

#include "kernels/cpu/conv2d_algorithms.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

bool supported(Conv2dAlgorithm algorithm, const Conv2dParams& p, Conv2dPass pass) {
  if (algorithm == Conv2dAlgorithm::winograd) return p.allow_winograd && conv2d_winograd_supported(p, pass);
  return algorithm == Conv2dAlgorithm::gemm;
}

Conv2dAlgorithm best(const Conv2dParams& p, Conv2dPass pass) {
  if (p.allow_winograd && conv2d_winograd_worthwhile(p, pass)) return Conv2dAlgorithm::winograd;
  return Conv2dAlgorithm::gemm;
}

}  // namespace

Conv2dAlgorithm conv2d_algorithm(const Conv2dParams& p, Conv2dPass pass) {
  const Conv2dAlgorithm wanted = p.algorithm == Conv2dAlgorithm::automatic ? best(p, pass) : p.algorithm;
  return supported(wanted, p, pass) ? wanted : Conv2dAlgorithm::gemm;
}

int64_t conv2d_scratch_bytes(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  switch (conv2d_algorithm(p, pass)) {
    case Conv2dAlgorithm::winograd:
      return conv2d_winograd_scratch(p, pass, threads);
    default:
      return pass == Conv2dPass::backward_weight ? conv2d_gemm_weight_scratch(p, threads)
                                                 : conv2d_gemm_gather_scratch(p, pass, threads);
  }
}

void conv2d_forward(const Conv2dParams& p, const Parallel& parallel) {
  switch (conv2d_algorithm(p, Conv2dPass::forward)) {
    case Conv2dAlgorithm::winograd:
      return conv2d_winograd_forward(p, parallel);
    default:
      return conv2d_gemm_forward(p, parallel);
  }
}

void conv2d_backward_input(const Conv2dParams& p, const Parallel& parallel) {
  switch (conv2d_algorithm(p, Conv2dPass::backward_input)) {
    case Conv2dAlgorithm::winograd:
      return conv2d_winograd_backward_input(p, parallel);
    default:
      return conv2d_gemm_backward_input(p, parallel);
  }
}

void conv2d_backward_weight(const Conv2dParams& p, const Parallel& parallel) {
  switch (conv2d_algorithm(p, Conv2dPass::backward_weight)) {
    case Conv2dAlgorithm::winograd:
      return conv2d_winograd_backward_weight(p, parallel);
    default:
      return conv2d_gemm_backward_weight(p, parallel);
  }
}

}  // namespace pydl::cpu::PYDL_ISA
