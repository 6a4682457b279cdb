// pydl::conv3d_forward, conv3d_backward_input, conv3d_backward_weight, on the CPU
//
// By conv2d's kernels, of which nothing is compiled again. A kernel of `taps` planes over C channels is a 2-D one over
// taps * C channels where the planes that it reaches lie one after another: so the input (for the input gradient the
// output's) is copied once with depth outside of channels, and each depth of the result is one call for all images. The
// weight gradient of a tap in depth is one call as well, over the images of all depths. Kernels of one pixel a plane see
// a plane as a row and depth as the rows below each other: one call, nothing copied.
//
// stride, dilation: (z, y, x). padding: (front, back, top, bottom, left, right). channels_last: the memory format of the
// result, which Python decides once for the kernel and for tracing.
#include <numeric>

#include "csrc/conv3d_call.h"
#include "csrc/convert.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

struct Options {
  const Sizes &stride, &padding, &dilation;
  int64_t groups;
};

void check_numbers(const char* name, const Sizes& numbers, size_t count, int64_t least) {
  PYDL_CHECK(numbers.size() == count, "conv3d: expected ", name, " to be ", count, " numbers, got ",
             shape_of(numbers));
  PYDL_CHECK(*std::min_element(numbers.begin(), numbers.end()) >= least, "conv3d: expected ", name, " to be ",
             least ? "positive" : "at least 0", ", got ", shape_of(numbers));
}

Geometry geometry(const Sizes& input, const Sizes& weight, const Options& o, const Tensor& t) {
  PYDL_CHECK(input.size() == 5, "conv3d: expected input to be 4-D (unbatched) or 5-D (batched), got shape ",
             shape_of(input));
  PYDL_CHECK(weight.size() == 5, "conv3d: expected weight to be 5-D, got shape ", shape_of(weight));
  check_numbers("stride", o.stride, 3, 1);
  check_numbers("padding", o.padding, 6, 0);
  check_numbers("dilation", o.dilation, 3, 1);
  PYDL_CHECK(o.groups > 0, "conv3d: expected groups to be positive, got ", o.groups);
  PYDL_CHECK(*std::min_element(weight.begin(), weight.end()) > 0,
             "conv3d: expected weight to be without empty dimensions, got shape ", shape_of(weight));
  PYDL_CHECK(weight[0] % o.groups == 0, "conv3d: expected out_channels to be divisible by groups (", o.groups,
             "), got ", weight[0]);
  PYDL_CHECK(input[1] == weight[1] * o.groups, "conv3d: expected input to be of ", weight[1] * o.groups,
             " channels (weight of shape ", shape_of(weight), ", ", o.groups, " groups), got ", input[1]);
  Geometry g{};
  Axis* axes[] = {&g.z, &g.y, &g.x};
  for (size_t d = 0; d < 3; ++d) {
    const int64_t padded = input[2 + d] + o.padding[2 * d] + o.padding[2 * d + 1];
    const int64_t reach = (weight[2 + d] - 1) * o.dilation[d] + 1;
    PYDL_CHECK(reach <= padded, "conv3d: expected the kernel to be no larger than the padded input (", padded,
               "), got ", reach);
    *axes[d] = {input[2 + d],     (padded - reach) / o.stride[d] + 1,
                weight[2 + d],    o.stride[d],
                o.padding[2 * d], o.dilation[d]};
  }
  g.batch = input[0];
  g.groups = o.groups;
  g.in_channels = weight[1];
  g.out_channels = weight[0] / o.groups;
  g.dtype = dtype_of("conv3d", t);
  g.element = bytes_per_element(t.scalar_type());
  return g;
}

void check_gradient(const Tensor& grad_output, const Geometry& g) {
  PYDL_CHECK(sizes_of(grad_output) == g.output_size(), "conv3d: expected grad_output to be of shape ",
             shape_of(g.output_size()), ", got ", shape_of(grad_output));
}

// Calls run(p, depth) for the depths [begin, end) of a result, whose windows are alike: one for each depth and all images,
// or one for each image and all depths, whichever are fewer; `next` are bytes from a depth to the next.
struct Next {
  int64_t input, output;
};
template <class F>
void over_depths(Conv2dParams p, int64_t begin, int64_t end, const Next& next, int64_t element,
                 const F& run) {
  const int64_t depths = end - begin;
  const auto moved = [&](int64_t images, int64_t image, int64_t depth) {
    Conv2dParams at = p;
    at.batch = images;
    at.input = static_cast<char*>(p.input) + (image * p.input_stride[0] + depth * next.input) * element;
    at.output = static_cast<char*>(p.output) + (image * p.output_stride[0] + depth * next.output) * element;
    return at;
  };
  if (depths <= p.batch) {
    for (int64_t d = 0; d < depths; ++d) run(moved(p.batch, 0, d));
    return;
  }
  for (int64_t n = 0; n < p.batch; ++n) {
    Conv2dParams at = moved(depths, n, 0);
    at.input_stride[0] = next.input;
    at.output_stride[0] = next.output;
    run(at);
  }
}

// The weights of the 2-D convolutions: of `weight` itself where its depth is one, else of a copy with taps in depth, in the
// order given, before the input channels (forward) or before all channels (input gradient).
struct Filters {
  Tensor keeps;
  char* data;
  int64_t out, tap, in, row, column;  // strides in elements

  Filters(const Tensor& weight, const Geometry& g, Conv2dPass pass, const Sizes& order,
          const Parallel& parallel)
      : keeps(weight) {
    const bool last = !weight.is_contiguous() && has_strides(weight, channels_last_strides(sizes_of(weight)));
    if (!last) keeps = dense(weight);
    data = static_cast<char*>(const_cast<void*>(keeps.const_data_ptr()));
    const int64_t taps = g.taps(), channels = g.in_channels, plane = channels * taps, depth = g.z.kernel;
    const int64_t outs = g.groups * g.out_channels;
    out = depth * plane;
    in = last ? 1 : depth * taps;
    column = last ? channels : 1;
    row = g.x.kernel * column;
    tap = last ? plane : taps;
    if (depth == 1) return;
    Tensor packed = empty(weight, weight.scalar_type(), {outs * out});
    char* to = static_cast<char*>(packed.mutable_data_ptr());
    const auto copy = [&](const Runs& runs) { copy_runs(to, data, g.element, runs, parallel); };
    if (pass == Conv2dPass::forward && last) {
      copy({{outs, g.y.kernel, g.x.kernel, depth}, {out, row, column, tap}, channels, 3, order});
      tap = channels;
      column = depth * channels;
      row = g.x.kernel * column;
    } else if (pass == Conv2dPass::forward) {
      copy({{outs, depth, channels, 1}, {out, tap, in, 0}, taps, 1, order});
      tap = plane;
      in = taps;
    } else {
      if (last) copy({{depth, outs, 1, 1}, {tap, out, 0, 0}, plane, 0, order});
      if (!last) copy({{depth, outs, channels, 1}, {tap, out, in, 0}, taps, 0, order});
      if (!last) in = taps;
      out = plane;
      tap = outs * plane;
    }
    keeps = packed;
    data = to;
  }
};

// Strided convolutions of many pixels are cheaper without Winograd's phases, whatever conv2d takes for few channels: measured
// on Zen 5, 192 -> 128 channels at 56 and 384 -> 256 at 28 pixels take 0.85 and 0.91 of the time.
const char* preferred_for(const Conv2dParams& p) {
  constexpr int64_t kManyPixels = 512;
  const bool strided =
      p.stride_height * p.stride_width > 1 && p.batch * p.out_height * p.out_width >= kManyPixels;
  return strided && p.in_channels >= 16 && p.kernel_height == 3 && p.kernel_width == 3 &&
                 p.dtype != DType::f64
             ? "implicit.slabs"
             : nullptr;
}

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
               const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups,
               bool channels_last) {
  const Geometry g = geometry(sizes_of(input), sizes_of(weight), {stride, padding, dilation, groups}, input);
  check_same_dtype("conv3d", "weight", weight, "input", input);
  if (bias) {
    check_same_dtype("conv3d", "bias", *bias, "input", input);
    PYDL_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), "conv3d: expected bias to be of shape (",
               weight.size(0), "), got ", shape_of(*bias));
  }
  if (g.dtype == DType::f16)
    return rounded(forward(widened(input), widened(weight), bias ? std::optional(widened(*bias)) : bias,
                           stride, padding, dilation, groups, channels_last));
  Verbose line("conv3d_forward", input, &weight);
  Tensor output = empty_format(input, g.output_size(), channels_last);
  if (output.numel() == 0) return output;
  const Parallel parallel = torch_threads();
  const Volume from = volume_of(input, channels_last), to = volume_of(output, channels_last);
  const std::optional<Tensor> numbers = dense(bias);
  const char* biases = numbers ? static_cast<const char*>(numbers->const_data_ptr()) : nullptr;
  if (is_of_rows(g)) {
    line.algorithm = run_rows(g, from, to, dense(weight), biases, Conv2dPass::forward);
    return output;
  }
  const bool single = g.z.kernel == 1;  // planes are read where they are
  const Filters filters(weight, g, Conv2dPass::forward, {}, parallel);
  const DepthOrder order(g.z.in, single ? 1 : g.z.dilation);
  for (int64_t group = 0; group < groups; ++group) {
    Volume planes = channels_of(from, group * g.in_channels, g.in_channels, g.element);
    if (!single) planes = deep_channels(planes, order, g.element, parallel);
    const Volume results = channels_of(to, group * g.out_channels, g.out_channels, g.element);
    const char* own_bias = biases ? biases + group * g.out_channels * g.element : nullptr;
    for (int64_t at = 0, end; at < g.z.out; at = end) {
      int64_t first, last;
      g.z.taps_of(at, first, last);
      end = at + 1;
      if (first == last) {
        fill_depth(results, at, own_bias, g.element, parallel);
        continue;
      }
      // depths whose windows are inside as well, and lie as far apart as in the input
      while (order.step() == 1 && first == 0 && last == g.z.kernel && end < g.z.out) {
        int64_t begin, stop;
        g.z.taps_of(end, begin, stop);
        if (begin != 0 || stop != g.z.kernel) break;
        ++end;
      }
      Conv2dParams p = plane_of(g, planes, results);
      p.in_channels *= last - first;
      const int64_t depth = at * g.z.stride - g.z.pad + first * g.z.dilation;
      p.input = planes.data + order.place(depth) * planes.d * g.element;
      p.output = results.data + at * results.d * g.element;
      p.weight = filters.data + (group * g.out_channels * filters.out + first * filters.tap) * g.element;
      p.bias = own_bias;
      set_weight_strides(p, filters.out, filters.in, filters.row, filters.column);
      over_depths(p, at, end, {g.z.stride * planes.d, results.d}, g.element, [&](Conv2dParams call) {
        line.algorithm = conv2d_on_cpu(call, Conv2dPass::forward, preferred_for(call));
      });
    }
  }
  return output;
}

Tensor backward_input(const Tensor& grad_output, const Tensor& weight, const Sizes& input_size,
                      const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups,
                      bool channels_last) {
  const Geometry g = geometry(input_size, sizes_of(weight), {stride, padding, dilation, groups}, grad_output);
  check_same_dtype("conv3d", "weight", weight, "grad_output", grad_output);
  check_gradient(grad_output, g);
  if (g.dtype == DType::f16)
    return rounded(backward_input(widened(grad_output), widened(weight), input_size, stride, padding,
                                  dilation, groups, channels_last));
  Verbose line("conv3d_backward_input", grad_output, &weight);
  Tensor grad_input = empty_format(grad_output, input_size, channels_last);
  if (grad_input.numel() == 0) return grad_input;
  const Parallel parallel = torch_threads();
  const Volume from = volume_of(grad_output, channels_last), to = volume_of(grad_input, channels_last);
  if (is_of_rows(g)) {
    line.algorithm = run_rows(g, to, from, dense(weight), nullptr, Conv2dPass::backward_input);
    return grad_input;
  }
  // Taps of one depth of the input are `tap_step` apart, and their gradients `step` depths, in falling order: so taps are
  // packed from the last to the first.
  const bool single = g.z.kernel == 1;
  const int64_t divisor = std::gcd(g.z.stride, g.z.dilation);
  const int64_t tap_step = g.z.stride / divisor, step = g.z.dilation / divisor;
  const DepthOrder order(g.z.out, single ? 1 : step), taps(g.z.kernel, tap_step);
  Sizes falling;
  for (int64_t tap : taps.depths()) falling.push_back(g.z.kernel - 1 - tap);
  const Filters filters(weight, g, Conv2dPass::backward_input, falling, parallel);
  const int64_t filter = g.in_channels * g.taps();
  // The taps that meet `depth`, in falling order: the first, how many, and the depth of its gradient.
  struct Met {
    int64_t first, count, depth;
  };
  const auto met = [&](int64_t depth) {
    Met found{0, 0, 0};
    for (int64_t tap = g.z.kernel - 1; tap >= 0; --tap) {
      const int64_t at = depth + g.z.pad - tap * g.z.dilation;
      if (at < 0 || at % g.z.stride != 0 || at / g.z.stride >= g.z.out) continue;
      if (found.count++ == 0) found.first = tap, found.depth = at / g.z.stride;
    }
    return found;
  };
  for (int64_t group = 0; group < groups; ++group) {
    Volume planes = channels_of(from, group * g.out_channels, g.out_channels, g.element);
    std::optional<Tensor> own;  // taps of a group, which are one after another only where there is one group
    char* own_weights = filters.data + group * g.out_channels * filters.out * g.element;
    int64_t own_tap = filters.tap;
    if (!single) planes = deep_channels(planes, order, g.element, parallel);
    if (!single && groups > 1) {
      own = empty(weight, weight.scalar_type(), {g.z.kernel * g.out_channels * filter});
      const Sizes as_they_are;
      copy_runs(static_cast<char*>(own->mutable_data_ptr()), own_weights, g.element,
                {{g.z.kernel, 1, 1, 1}, {filters.tap, 0, 0, 0}, g.out_channels * filter, 0, as_they_are},
                parallel);
      own_weights = static_cast<char*>(own->mutable_data_ptr());
      own_tap = g.out_channels * filter;
    }
    const Volume results = channels_of(to, group * g.in_channels, g.in_channels, g.element);
    for (int64_t at = 0, end; at < g.z.in; at = end) {
      const Met here = met(at);
      end = at + 1;
      if (here.count == 0) {
        fill_depth(results, at, nullptr, g.element, parallel);
        continue;
      }
      while (g.z.stride == 1 && step == 1 && here.count == g.z.kernel && end < g.z.in &&
             met(end).count == g.z.kernel)
        ++end;
      Conv2dParams p = plane_of(g, results, planes);
      p.out_channels *= here.count;
      p.input = results.data + at * results.d * g.element;
      p.output = planes.data + order.place(here.depth) * planes.d * g.element;
      p.weight = own_weights + taps.place(g.z.kernel - 1 - here.first) * own_tap * g.element;
      set_weight_strides(p, filters.out, filters.in, filters.row, filters.column);
      over_depths(p, at, end, {results.d, planes.d}, g.element, [&](Conv2dParams call) {
        line.algorithm = conv2d_on_cpu(call, Conv2dPass::backward_input);
      });
    }
  }
  return grad_input;
}

Tensor backward_weight(const Tensor& grad_output, const Tensor& input, const Sizes& weight_size,
                       const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups,
                       bool channels_last) {
  const Geometry g = geometry(sizes_of(input), weight_size, {stride, padding, dilation, groups}, grad_output);
  check_same_dtype("conv3d", "input", input, "grad_output", grad_output);
  check_gradient(grad_output, g);
  if (g.dtype == DType::f16)
    return rounded(backward_weight(widened(grad_output), widened(input), weight_size, stride, padding,
                                   dilation, groups, channels_last));
  return conv3d_weight(g, grad_output, input, channels_last);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("conv3d_forward", TORCH_BOX(&forward));
  m.impl("conv3d_backward_input", TORCH_BOX(&backward_input));
  m.impl("conv3d_backward_weight", TORCH_BOX(&backward_weight));
}

}  // namespace pydl
