// Entry points of depthwise convolution: see depthwise.h.
#include "kernels/cpu/conv2d/depthwise/depthwise.h"

namespace pydl::cpu::PYDL_ISA::depthwise {

bool supported(const Conv2dParams& p, Conv2dPass) {
  const int64_t inputs = inputs_of(p);
  if (inputs == 1) return p.out_channels % p.groups == 0;
  return p.groups > 1 && p.out_channels == p.in_channels && lanes<float> % inputs == 0;
}

int64_t scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  if (depthwise_3x3(p)) return 0;
  return depthwise_by_pixel(p) ? depthwise_pixels_scratch(p, pass, threads)
                               : depthwise_planes_scratch(p, pass, threads);
}

static void gather(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  if (depthwise_3x3(p)) return depthwise_3x3_gather(p, pass, parallel);
  depthwise_by_pixel(p) ? depthwise_pixels_gather(p, pass, parallel)
                        : depthwise_planes_gather(p, pass, parallel);
}

void forward(const Conv2dParams& p, const Parallel& parallel) { gather(p, Conv2dPass::forward, parallel); }

void backward_input(const Conv2dParams& p, const Parallel& parallel) {
  gather(p, Conv2dPass::backward_input, parallel);
}

void backward_weight(const Conv2dParams& p, const Parallel& parallel) {
  if (depthwise_3x3(p)) return depthwise_3x3_weight(p, parallel);
  depthwise_by_pixel(p) ? depthwise_pixels_weight(p, parallel) : depthwise_planes_weight(p, parallel);
}

}  // namespace pydl::cpu::PYDL_ISA::depthwise
