// The weight gradient of a 3-D convolution: a call of conv2d's kernels for each tap in depth, or for each depth.
#include "csrc/conv3d_call.h"
#include "csrc/scratch.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

// The weight gradient of a group, [tap in depth][out][in][tap of a plane] with `next` elements from a tap to the next, a
// call for each tap: over the images of all depths, which are copied one depth after the other unless they lie so. beside: the
// input channels of a tap lie side by side.
const char* weight_by_tap(const Geometry& g, Volume in, Volume out, char* weights, int64_t next, bool beside,
                          const Parallel& parallel) {
  const char* algorithm = "-";
  const int64_t filter = g.in_channels * g.taps(), step = g.z.stride * in.d;
  const bool as_they_lie =
      g.batch == 1 || (g.z.kernel == 1 && g.z.pad == 0 && in.n == g.z.out * step && out.n == g.z.out * out.d);
  const DepthOrder in_order(g.z.in, as_they_lie ? 1 : g.z.stride), out_order(g.z.out, 1);
  if (!as_they_lie) {
    in = deep_images(in, in_order, g.element, 0, parallel);
    out = deep_images(out, out_order, g.element, 1, parallel);
  }
  for (int64_t tap = 0; tap < g.z.kernel; ++tap) {
    char* to = weights + tap * next * g.element;
    int64_t first, last;
    g.z.windows_of(tap, first, last);
    if (first == last) {
      memset(to, 0, static_cast<size_t>(g.out_channels * filter * g.element));
      continue;
    }
    Conv2dParams p = plane_of(g, in, out);
    p.batch = (last - first) * g.batch;
    if (as_they_lie) {
      p.input_stride[0] = step;
      p.output_stride[0] = out.d;
    }
    const int64_t depth = first * g.z.stride - g.z.pad + tap * g.z.dilation;
    p.input = in.data + in_order.place(depth) * in.d * g.element;
    p.output = out.data + first * out.d * g.element;
    p.weight = to;
    if (beside) set_weight_strides(p, filter, 1, g.x.kernel * g.in_channels, g.in_channels);
    if (!beside) set_weight_strides(p, filter, g.taps(), g.x.kernel, 1);
    algorithm = conv2d_on_cpu(p, Conv2dPass::backward_weight);
  }
  return algorithm;
}

template <class T>
void add(T* sums, const T* more, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] += more[i];
}

// Few weights: a call for each depth of the output, which has all taps for channels, and a sum over the depths. Not in
// bfloat16, whose sums are float32 until they are whole.
bool is_by_depth(const Geometry& g) {
  if (g.dtype == DType::bf16 || g.batch == 1) return false;
  const int64_t read =
      g.in_channels * g.z.in * g.y.in * g.x.in + g.out_channels * g.z.out * g.y.out * g.x.out;
  return g.z.out * g.out_channels * g.weights() <= g.batch * read;
}

const char* weight_by_depth(const Geometry& g, Volume in, const Volume& out, char* weights, int64_t next,
                            const Parallel& parallel) {
  const char* algorithm = "-";
  const int64_t filter = g.in_channels * g.taps(), all = g.out_channels * filter;
  const bool single = g.z.kernel == 1;
  const DepthOrder order(g.z.in, single ? 1 : g.z.dilation);
  if (!single) in = deep_channels(in, order, g.element, parallel);
  for (int64_t tap = 0; tap < g.z.kernel; ++tap)
    memset(weights + tap * next * g.element, 0, static_cast<size_t>(all * g.element));
  char* part = static_cast<char*>(Scratch::of_copies(all * g.z.kernel * g.element, 1));
  for (int64_t at = 0; at < g.z.out; ++at) {
    int64_t first, last;
    g.z.taps_of(at, first, last);
    if (first == last) continue;
    const int64_t count = last - first, depth = at * g.z.stride - g.z.pad + first * g.z.dilation;
    Conv2dParams p = plane_of(g, in, out);
    p.in_channels *= count;
    p.input = in.data + order.place(depth) * in.d * g.element;
    p.output = out.data + at * out.d * g.element;
    p.weight = part;
    set_weight_strides(p, count * filter, g.taps(), g.x.kernel, 1);
    algorithm = conv2d_on_cpu(p, Conv2dPass::backward_weight);
    parallel(g.out_channels, 16, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o)
        for (int64_t tap = 0; tap < count; ++tap) {
          char* to = weights + ((first + tap) * next + o * filter) * g.element;
          const char* from = part + (o * count + tap) * filter * g.element;
          g.dtype == DType::f64
              ? add(reinterpret_cast<double*>(to), reinterpret_cast<const double*>(from), filter)
              : add(reinterpret_cast<float*>(to), reinterpret_cast<const float*>(from), filter);
        }
    });
  }
  return algorithm;
}

}  // namespace

Tensor conv3d_weight(const Geometry& g, const Tensor& grad_output, const Tensor& input, bool channels_last) {
  Verbose line("conv3d_backward_weight", grad_output, &input);
  Tensor grad_weight = empty_format(grad_output, g.weight_size(), channels_last);
  if (grad_weight.numel() == 0) return grad_weight;
  // filled tap by tap in depth, each of them dense, and put in its own order at the end
  const bool rows = is_of_rows(g), by_depth = is_by_depth(g), last = channels_last && !by_depth;
  const int64_t taps = g.taps(), filter = g.in_channels * taps,
                tap_weights = g.groups * g.out_channels * filter;
  Tensor filled =
      rows ? empty(grad_output, grad_output.scalar_type(), g.weight_size())
           : empty_strided(grad_output, grad_output.scalar_type(), g.weight_size(),
                           last ? Sizes{filter, 1, tap_weights, g.x.kernel * g.in_channels, g.in_channels}
                                : Sizes{filter, taps, tap_weights, g.x.kernel, 1});
  char* weights = static_cast<char*>(filled.mutable_data_ptr());
  const Parallel parallel = torch_threads();
  const Volume inputs = volume_of(input, channels_last), gradients = volume_of(grad_output, channels_last);
  if (g.batch == 0) {
    memset(weights, 0, static_cast<size_t>(g.groups * g.out_channels * g.weights() * g.element));
  } else if (rows) {
    line.algorithm = run_rows(g, inputs, gradients, filled, nullptr, Conv2dPass::backward_weight);
  } else {
    for (int64_t group = 0; group < g.groups; ++group) {
      const Volume in = channels_of(inputs, group * g.in_channels, g.in_channels, g.element);
      const Volume out = channels_of(gradients, group * g.out_channels, g.out_channels, g.element);
      char* to = weights + group * g.out_channels * filter * g.element;
      line.algorithm = by_depth ? weight_by_depth(g, in, out, to, tap_weights, parallel)
                                : weight_by_tap(g, in, out, to, tap_weights, last, parallel);
    }
  }
  torch::stable::copy_(grad_weight, filled);
  return grad_weight;
}

}  // namespace pydl
