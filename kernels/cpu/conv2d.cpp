// Which algorithm serves which convolution, on one screen. What each computes and why stands at the head of
// its file.
#include "kernels/conv2d.h"

#include "kernels/cpu/conv2d_algorithms.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

bool supported(Conv2dAlgorithm algorithm, const Conv2dParams&, Conv2dPass) {
  return algorithm == Conv2dAlgorithm::gemm;
}

Conv2dAlgorithm best(const Conv2dParams&, Conv2dPass) { return Conv2dAlgorithm::gemm; }

// A 1x1 kernel of stride 1 sees no neighbours: rows, and with channels_last images too, are one long row of
// pixels.
Conv2dParams merged(Conv2dParams p) {
  const bool one = p.kernel_height == 1 && p.kernel_width == 1 && p.stride_height == 1 &&
                   p.stride_width == 1 && p.pad_top == 0 && p.pad_left == 0 && p.out_height == p.in_height &&
                   p.out_width == p.in_width;
  if (!one) return p;
  auto follows = [](const int64_t* stride, int d, int64_t count) { return stride[d] == count * stride[3]; };
  if (p.in_height > 1 && follows(p.input_stride, 2, p.in_width) && follows(p.output_stride, 2, p.in_width)) {
    p.in_width = p.out_width = p.in_height * p.in_width;
    p.in_height = p.out_height = 1;
  }
  if (p.in_height == 1 && p.batch > 1 && follows(p.input_stride, 0, p.in_width) &&
      follows(p.output_stride, 0, p.in_width)) {
    p.in_width = p.out_width = p.batch * p.in_width;
    p.batch = 1;
  }
  return p;
}

}  // namespace

Conv2dAlgorithm conv2d_algorithm(const Conv2dParams& p, Conv2dPass pass) {
  const Conv2dAlgorithm wanted = p.algorithm == Conv2dAlgorithm::automatic ? best(p, pass) : p.algorithm;
  return supported(wanted, p, pass) ? wanted : Conv2dAlgorithm::gemm;
}

int64_t conv2d_scratch_bytes(const Conv2dParams& params, Conv2dPass pass, int64_t threads) {
  const Conv2dParams p = merged(params);
  switch (conv2d_algorithm(p, pass)) {
    default:
      return pass == Conv2dPass::backward_weight ? conv2d_gemm_weight_scratch(p, threads)
                                                 : conv2d_gemm_gather_scratch(p, pass, threads);
  }
}

void conv2d_forward(const Conv2dParams& params, const Parallel& parallel) {
  const Conv2dParams p = merged(params);
  switch (conv2d_algorithm(p, Conv2dPass::forward)) {
    default:
      return conv2d_gemm_forward(p, parallel);
  }
}

void conv2d_backward_input(const Conv2dParams& params, const Parallel& parallel) {
  const Conv2dParams p = merged(params);
  switch (conv2d_algorithm(p, Conv2dPass::backward_input)) {
    default:
      return conv2d_gemm_backward_input(p, parallel);
  }
}

void conv2d_backward_weight(const Conv2dParams& params, const Parallel& parallel) {
  const Conv2dParams p = merged(params);
  switch (conv2d_algorithm(p, Conv2dPass::backward_weight)) {
    default:
      return conv2d_gemm_backward_weight(p, parallel);
  }
}

}  // namespace pydl::cpu::PYDL_ISA
