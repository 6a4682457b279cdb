// The input gradient of strided convolutions with a few input channels (first layers), over slabs
// (slab.h).
//
// Phase by phase, as panels.cpp does it, each product has one to four columns: the vectors of the
// microkernel stay empty. Here the phases of the stride are columns of one product. Input row h, with
// h + pad = i * stride + a, is reached from gradient row i - j by kernel row a + j * stride, so all phases
// (a, b) of grid position (i, i') see the same window of ceil(kernel / stride) squared pixels of the
// gradient:
//
//   staging[i][i'][(a, b), c] = sum_{j, j', o} gradient[o][i - j][i' - j'] * weight[o][c][a + j s][b + j' s]
//
// Weights beyond the kernel are zeros: a 7x7 kernel of stride 2 multiplies 64 where 49 would do (and an
// infinite gradient makes nan there, one step of the stride beyond what it reaches).

#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/conv2d/implicit/slabs.h"
#include "kernels/cpu/conv2d/spoiled.h"
namespace pydl::cpu::PYDL_ISA::implicit {
namespace {

template <class T>
struct SpreadPlan {
  using A = acc_t<T>;
  static constexpr int64_t kSlab = 1 << 16;  // elements, part of a second-level cache
  static constexpr int64_t kPixels = 1 << 10;

  const Conv2dParams& p;
  int64_t first_y, first_x;  // grid positions of input row and column 0
  int64_t taps_y, taps_x;
  int64_t columns;  // of the product: phases times channels
  int64_t pitch;
  Reach y, x;
  Regions regions;

  explicit SpreadPlan(const Conv2dParams& p)
      : p(p),
        first_y(p.pad_top / p.stride_height),
        first_x(p.pad_left / p.stride_width),
        taps_y(ceil_div(p.kernel_height, p.stride_height)),
        taps_x(ceil_div(p.kernel_width, p.stride_width)),
        columns(p.stride_height * p.stride_width * p.in_channels),
        pitch(slab_pitch(p.out_channels)),
        y{1, first_y - (taps_y - 1), taps_y},
        x{1, first_x - (taps_x - 1), taps_x},
        regions(p.batch, (p.in_height - 1 + p.pad_top) / p.stride_height - first_y + 1,
                (p.in_width - 1 + p.pad_left) / p.stride_width - first_x + 1, y, x, pitch, kSlab, kPixels) {}

  int64_t taps() const { return taps_y * taps_x; }
  int64_t weights() const { return taps() * p.out_channels * kNr<A>; }
  int64_t staging() const { return regions.images * regions.rows * regions.columns * kNr<A>; }
  int64_t slot_bytes() const { return Pieces::bytes<A>(regions.slab) + Pieces::bytes<A>(staging()) + kApart; }
  int64_t bytes(int64_t threads) const {
    return Pieces::bytes<A>(weights()) + Pieces::bytes<A>(kNr<A>) + Pieces::bytes<int64_t>(taps()) +
           threads * slot_bytes();
  }
};

// weights[tap][o][(a, b), c]; taps in the order of the gradient's pixels, that is backwards.
template <class T, class A>
void pack_weights(const SpreadPlan<T>& plan, A* to) {
  const Conv2dParams& p = plan.p;
  const T* from = static_cast<const T*>(p.weight);
  memset(to, 0, static_cast<size_t>(plan.weights()) * sizeof(A));
  for (int64_t tap = 0; tap < plan.taps(); ++tap) {
    const int64_t jy = plan.taps_y - 1 - tap / plan.taps_x, jx = plan.taps_x - 1 - tap % plan.taps_x;
    for (int64_t o = 0; o < p.out_channels; ++o, to += kNr<A>)
      for (int64_t a = 0; a < p.stride_height; ++a)
        for (int64_t b = 0; b < p.stride_width; ++b) {
          const int64_t r = a + jy * p.stride_height, s = b + jx * p.stride_width;
          if (r >= p.kernel_height || s >= p.kernel_width) continue;
          const T* at = from + o * p.weight_stride[0] + r * p.weight_stride[2] + s * p.weight_stride[3];
          for (int64_t c = 0; c < p.in_channels; ++c)
            to[(a * p.stride_width + b) * p.in_channels + c] = load_n(at + c * p.weight_stride[1], 1)[0];
        }
  }
}

// The products of a region, from its slab.
template <class T, class A>
void run_region(const SpreadPlan<T>& plan, const Region& region, const A* slab, const A* weights,
                const A* zeros, const int64_t* offsets, A* staging) {
  const int64_t row = plan.x.covered(plan.regions.columns) * plan.pitch,
                image = plan.y.covered(region.rows) * row;
  const int64_t pixels = pixels_per_group(region.columns), most = most_groups(static_cast<int>(pixels));
  WindowsBlock<A> block{};
  block.pitch = plan.pitch;
  block.offsets = offsets;
  block.segments = plan.taps();
  block.depth = plan.p.out_channels;
  block.weights = weights;
  block.bias = zeros;
  block.out_pitch = kNr<A>;
  int64_t groups = 0;
  for (int64_t n = 0; n < region.images; ++n)
    for (int64_t r = 0; r < region.rows; ++r)
      for (int64_t c = 0; c < region.columns; c += pixels) {
        const int64_t first = min_of(c, region.columns - pixels);  // the last group may reach back
        block.window[groups] = slab + n * image + r * row + first * plan.pitch;
        block.out[groups] = staging + ((n * region.rows + r) * region.columns + first) * kNr<A>;
        if (++groups < most) continue;
        gemm_windows(groups, pixels, plan.columns, block);
        groups = 0;
      }
  if (groups) gemm_windows(groups, pixels, plan.columns, block);
  // taps that a phase lacks are zeros, which make nan of an inf that torch would not have met
  vec<A> seen{};
  const int64_t computed = plan.columns > lanes<A> ? kNr<A> : lanes<A>;
  for (int64_t pixel = 0; pixel < region.images * region.rows * region.columns; ++pixel)
    for (int64_t i = 0; i < computed; i += lanes<A>) watch(load(staging + pixel * kNr<A> + i), seen);
  report_spoiled(seen, plan.p.spoiled);
}

// From the staging area to the rows and columns of each phase.
template <class T, class A>
void write_region(const SpreadPlan<T>& plan, const Region& region, const A* staging) {
  const Conv2dParams& p = plan.p;
  const int64_t* stride = p.input_stride;
  const int64_t run = p.stride_width * p.in_channels;  // numbers of a phase row that one pixel makes
  const bool dense = run <= lanes<A> && stride[1] == 1 && stride[3] == p.in_channels;
  for (int64_t n = 0; n < region.images; ++n)
    for (int64_t r = 0; r < region.rows; ++r, staging += region.columns * kNr<A>)
      for (int64_t a = 0; a < p.stride_height; ++a) {
        const int64_t h = (plan.first_y + region.row + r) * p.stride_height - p.pad_top + a;
        if (h < 0 || h >= p.in_height) continue;
        T* line = static_cast<T*>(p.input) + (region.image + n) * stride[0] + h * stride[2];
        int64_t w = (plan.first_x + region.column) * p.stride_width - p.pad_left;
        const A* from = staging + a * run;
        for (int64_t j = 0; j < region.columns; ++j, from += kNr<A>, w += p.stride_width) {
          if (dense && w >= 0 && w + p.stride_width <= p.in_width) {
            store_n(line + w * stride[3], load_n(from, run), run);
            continue;
          }
          for (int64_t b = 0; b < p.stride_width; ++b)
            for (int64_t c = 0; c < p.in_channels && w + b >= 0 && w + b < p.in_width; ++c)
              store_n(line + (w + b) * stride[3] + c * stride[1], splat(from[b * p.in_channels + c]), 1);
        }
      }
}

}  // namespace

namespace phases {

bool serves(const Conv2dParams& p, Conv2dPass) {
  const int64_t columns = p.stride_height * p.stride_width * p.in_channels;
  return p.dtype != DType::f64 && p.groups == 1 && p.in_channels <= 4 &&
         p.stride_height * p.stride_width > 1 && columns <= kNr<float> && p.dilation_height == 1 &&
         p.dilation_width == 1 && p.kernel_height >= p.stride_height && p.kernel_width >= p.stride_width;
}

int64_t scratch(const Conv2dParams& p, Conv2dPass, int64_t threads) {
  int64_t bytes = 0;
  dispatch_trained(p.dtype, [&](auto type) { bytes = SpreadPlan<decltype(type)>(p).bytes(threads); });
  return bytes;
}

void run(const Conv2dParams& p, Conv2dPass, const Parallel& parallel) {
  dispatch_trained(p.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const SpreadPlan<T> plan(p);
    Pieces pieces{static_cast<char*>(p.scratch)};
    A* weights = pieces.take<A>(plan.weights());
    A* zeros = pieces.take<A>(kNr<A>);
    int64_t* offsets = pieces.take<int64_t>(plan.taps());
    pack_weights<T>(plan, weights);
    fill_zero(zeros, kNr<A>);
    for (int64_t tap = 0; tap < plan.taps(); ++tap)
      offsets[tap] =
          (tap / plan.taps_x * plan.x.covered(plan.regions.columns) + tap % plan.taps_x) * plan.pitch;
    const Windows<T> windows = {
        static_cast<const T*>(p.output),
        {p.output_stride[0], p.output_stride[1], p.output_stride[2], p.output_stride[3]},
        p.out_channels,
        {plan.taps_y, 1, plan.y.low, 1, p.out_height, plan.regions.height},
        {plan.taps_x, 1, plan.x.low, 1, p.out_width, plan.regions.width}};
    const int64_t tasks = plan.regions.count(), threads = workers_for(parallel, tasks);
    Tasks shares(threads, tasks);
    parallel(threads, 1, [&](int64_t first, int64_t last) {
      for (int64_t slot = first; slot < last; ++slot) {
        Pieces own{pieces.next + slot * plan.slot_bytes()};
        A* slab = own.take<A>(plan.regions.slab);
        A* staging = own.take<A>(plan.staging());
        for (int64_t task; (task = shares.take(slot)) >= 0;) {
          const Region region = plan.regions.at(task);
          Region whole = region;
          whole.columns = plan.regions.columns;  // the same distance between rows at the right edge
          copy_slab(windows, whole, plan.y, plan.x, slab, plan.pitch);
          run_region<T>(plan, region, slab, weights, zeros, offsets, staging);
          write_region<T>(plan, region, staging);
        }
      }
    });
  });
}

}  // namespace phases
}  // namespace pydl::cpu::PYDL_ISA::implicit
