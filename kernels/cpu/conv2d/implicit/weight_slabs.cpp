// Implicit GEMM for the weight gradient, over slabs (slab.h).
//
//   grad_weight[o][tap][c] = sum over pixels of grad_output[pixel][o] * input[pixel's window at tap][c]
//
// The sum over pixels is the depth of the product. Rows are channels of one tap (or of a row of taps), which
// lie side by side in a slab of the input, so they are broadcast from where they lie; columns are output
// channels, packed once per region, two vectors wide. Taps share slab and panel.
//
// A task owns a block of input channels and a range of regions of the output; where channels alone make too
// few tasks the regions are cut into `splits` ranges, whose sums are kept apart and added in order at the
// end. Both the cut and the order depend on the shape alone, never on the number of threads.
#include "kernels/cpu/conv2d/implicit/weight.h"
#include "kernels/cpu/conv2d/implicit/weight_slabs_pack.h"

namespace pydl::cpu::PYDL_ISA::implicit {
namespace {

template <class T, class E>
struct WeightPlan {
  using A = acc_of<E>;
  static constexpr int64_t kPairs = per_element<E>;            // pixels that one element holds
  static constexpr int64_t kSlab = 1 << 16, kPanel = 1 << 16;  // elements, at most
  static constexpr int64_t kChannels = 64;                     // per block, at most
  static constexpr int64_t kTasks = 16;                        // wanted, while each sums kSplitPixels
  static constexpr int64_t kSplitPixels = 256;
  static constexpr int64_t kMaxSplitBytes = 32 << 20;  // of partial sums

  const Conv2dParams& p;
  int64_t channels, columns, taps, tiles;  // of one group
  Reach y, x;
  int64_t blocks, block_channels, pitch, splits;
  bool direct;  // the input is read where it lies
  bool dense;   // taps of a row lie without gaps
  Regions regions;

  explicit WeightPlan(const Conv2dParams& p)
      : p(p),
        channels(p.in_channels / p.groups),
        columns(p.out_channels / p.groups),
        taps(p.kernel_height * p.kernel_width),
        tiles(ceil_div(columns, kNr<A>)),
        y{p.stride_height, -p.pad_top, (p.kernel_height - 1) * p.dilation_height + 1},
        x{p.stride_width, -p.pad_left, (p.kernel_width - 1) * p.dilation_width + 1},
        regions(1, 1, 1, {1, 0, 1}, {1, 0, 1}, 1, 1, 1) {
    // channels side by side, every window inside, pixels not all in one set of the first-level cache
    direct = __is_same(T, E) && p.input_stride[1] == 1 && y.low >= 0 && x.low >= 0 &&
             y.covered(p.out_height) + y.low <= p.in_height && x.covered(p.out_width) + x.low <= p.in_width &&
             p.input_stride[3] * x.step * static_cast<int64_t>(sizeof(T)) % 4096 != 0;
    const int64_t pixels = p.batch * p.out_height * p.out_width;
    const int64_t ranges = max_of(1, pixels / kSplitPixels);
    blocks = ceil_div(channels, taps == 1 ? 2 * kChannels : kChannels);
    while (p.groups * blocks * ranges < kTasks / 2 && ceil_div(channels, blocks) > 32) blocks *= 2;
    block_channels = ceil_div(ceil_div(channels, blocks), lanes<A>) * lanes<A>;
    block_channels = min_of(channels, block_channels);
    blocks = ceil_div(channels, block_channels);
    pitch = direct ? p.input_stride[3] : slab_pitch(block_channels);
    dense = blocks == 1 && pitch == channels && p.dilation_width == 1 && p.kernel_width > 1;
    regions = Regions(p.batch, p.out_height, p.out_width, y, x, direct ? block_channels : pitch, kSlab,
                      max_of(28, min_of(256, kPanel / (tiles * kNr<A>))));
    splits = max_of(1, min_of(min_of(kTasks / (p.groups * blocks), ranges), regions.count()));
    splits = max_of(1, min_of(splits, kMaxSplitBytes /
                                          (p.groups * blocks * partial() * static_cast<int64_t>(sizeof(A)))));
  }

  int64_t tasks() const { return p.groups * blocks * splits; }
  int64_t partial() const { return tiles * taps * block_channels * kNr<A>; }  // sums of one task
  int64_t row_elements() const { return ceil_div(regions.columns, kPairs); }  // of depth
  int64_t panel_elements() const { return tiles * regions.images * regions.rows * row_elements() * kNr<A>; }
  int64_t slot_bytes() const {
    return Pieces::bytes<E>(direct ? 0 : regions.slab) + Pieces::bytes<E>(panel_elements()) +
           Pieces::bytes<int64_t>(regions.images * regions.rows) + kApart;
  }
  int64_t bytes(int64_t threads) const {
    return Pieces::bytes<A>(tasks() * partial()) + threads * slot_bytes();
  }
};

template <class T, class E>
void run_weight_task(const WeightPlan<T, E>& plan, int64_t task, acc_of<E>* sums, Pieces scratch) {
  using A = acc_of<E>;
  const Conv2dParams& p = plan.p;
  const int64_t split = task % plan.splits, block = task / plan.splits % plan.blocks;
  const int64_t group = task / plan.splits / plan.blocks, channel0 = block * plan.block_channels;
  const int64_t channels = min_of(plan.block_channels, plan.channels - channel0);
  const Windows<T> windows = {
      static_cast<const T*>(p.input) + (group * plan.channels + channel0) * p.input_stride[1],
      {p.input_stride[0], p.input_stride[1], p.input_stride[2], p.input_stride[3]},
      channels,
      {p.kernel_height, p.stride_height, -p.pad_top, p.dilation_height, p.in_height, p.out_height},
      {p.kernel_width, p.stride_width, -p.pad_left, p.dilation_width, p.in_width, p.out_width}};
  const T* gradient = static_cast<const T*>(p.output) + group * plan.columns * p.output_stride[1];
  E* slab = scratch.take<E>(plan.direct ? 0 : plan.regions.slab);
  E* panel = scratch.take<E>(plan.panel_elements());
  int64_t* offsets = scratch.take<int64_t>(plan.regions.images * plan.regions.rows);
  const int64_t row_pitch =
      plan.direct ? p.input_stride[2] : plan.x.covered(plan.regions.columns) * plan.pitch;
  const int64_t count = plan.regions.count(), first = count * split / plan.splits;
  const int64_t runs = plan.dense ? p.kernel_height : plan.taps;
  const int64_t run_rows = plan.dense ? p.kernel_width * channels : channels;
  const int64_t run_blocks = ceil_div(run_rows, kMr);
  for (int64_t i = first; i < count * (split + 1) / plan.splits; ++i) {
    const Region region = plan.regions.at(i);
    const int64_t image_pitch = plan.direct ? p.input_stride[0] : plan.y.covered(region.rows) * row_pitch;
    const E* windows_at = slab;
    Region whole = region;
    whole.columns = plan.regions.columns;
    if (plan.direct)
      windows_at = reinterpret_cast<const E*>(windows.data + region.image * p.input_stride[0] +
                                              (region.row * plan.y.step + plan.y.low) * p.input_stride[2] +
                                              (region.column * plan.x.step + plan.x.low) * p.input_stride[3]);
    else if constexpr (__is_same(E, bf16_pair))
      copy_slab_of_neighbours(windows, whole, plan.y, plan.x, slab, plan.pitch);
    else
      copy_slab(windows, whole, plan.y, plan.x, slab, plan.pitch);
    const int64_t depth = ceil_div(region.columns, plan.kPairs), segments = region.images * region.rows;
    // rows of the gradient that follow each other in memory go together: short ones would waste vectors
    const bool flat = p.output_stride[2] == region.columns * p.output_stride[3] &&
                      region.columns == p.out_width && region.columns % plan.kPairs == 0;
    for (int64_t n = 0; n < region.images; ++n)
      for (int64_t r = 0; r < region.rows; ++r) {
        const int64_t s = n * region.rows + r;
        offsets[s] = n * image_pitch + r * plan.y.step * row_pitch;
        if (flat && r > 0) continue;
        const T* from = gradient + (region.image + n) * p.output_stride[0] +
                        (region.row + r) * p.output_stride[2] + region.column * p.output_stride[3];
        const int64_t pixels = region.columns * (flat ? region.rows : 1), tile = segments * depth * kNr<A>;
        E* to = panel + s * depth * kNr<A>;
        if (p.output_stride[1] == 1) {
          pack_gradient_channels(from, p.output_stride[3], pixels, plan.columns, to, tile);
          continue;
        }
        for (int64_t t = 0; t < plan.tiles; ++t)
          pack_gradient_row(from + t * kNr<A> * p.output_stride[1], p.output_stride, pixels,
                            min_of(kNr<A>, plan.columns - t * kNr<A>), to + t * tile);
      }
    OuterBlock<E> outer;
    outer.offsets = offsets;
    outer.step = plan.kPairs * plan.x.step * plan.pitch;
    outer.segments = segments;
    outer.depth = depth;
    outer.accumulate = i > first;
    for (int64_t t = 0; t < plan.tiles; ++t) {
      outer.right = panel + t * segments * depth * kNr<A>;
      for (int64_t run = 0; run < runs; ++run) {
        const int64_t tap = plan.dense ? run * p.kernel_width : run;
        const E* left = windows_at + tap / p.kernel_width * p.dilation_height * row_pitch +
                        tap % p.kernel_width * p.dilation_width * plan.pitch;
        for (int64_t b = 0; b < run_blocks; ++b) {
          const int64_t row0 = run_rows * b / run_blocks, row1 = run_rows * (b + 1) / run_blocks;
          outer.left = left + row0;
          outer.sums = sums + (t * plan.taps * channels + run * run_rows + row0) * kNr<A>;
          gemm_outer(row1 - row0, min_of(kNr<A>, plan.columns - t * kNr<A>), outer);
        }
      }
    }
  }
}

template <class T, class E>
void run_weight(const WeightPlan<T, E>& plan, const Parallel& parallel) {
  using A = acc_of<E>;
  const Conv2dParams& p = plan.p;
  if (plan.channels == 0 || plan.columns == 0) return;
  if (p.batch * p.out_height * p.out_width == 0) {  // an empty batch: zeros
    for (int64_t o = 0; o < p.out_channels; ++o)
      for (int64_t i = 0; i < plan.channels; ++i)
        for (int64_t y = 0; y < p.kernel_height; ++y)
          for (int64_t x = 0; x < p.kernel_width; ++x)
            static_cast<T*>(p.weight)[o * p.weight_stride[0] + i * p.weight_stride[1] +
                                      y * p.weight_stride[2] + x * p.weight_stride[3]] = T{};
    return;
  }
  Pieces pieces{static_cast<char*>(p.scratch)};
  A* partials = pieces.take<A>(plan.tasks() * plan.partial());
  run_tasks(parallel, plan.tasks(), [&](int64_t task, int64_t slot) {
    run_weight_task<T, E>(plan, task, partials + task * plan.partial(),
                          Pieces{pieces.next + slot * plan.slot_bytes()});
  });
  write_weights<T, A>(
      p, {plan.channels, plan.columns, plan.taps, plan.block_channels, plan.tiles, plan.splits, false},
      partials, parallel);
}

// Calls body(plan) with the plan of these params: bf16 in pairs where the CPU multiplies them.
template <class F>
void with_plan(const Conv2dParams& p, const F& body) {
  dispatch_every(p.dtype, [&](auto type) {
    using T = decltype(type);
#if defined(PYDL_BF16_DOT)
    if constexpr (__is_same(T, bf16))
      if (cpu_has_bf16_dot()) return body(WeightPlan<T, bf16_pair>(p));
#endif
    body(WeightPlan<T, acc_t<T>>(p));
  });
}

}  // namespace

namespace weight_slabs {

bool serves(const Conv2dParams&, Conv2dPass) { return true; }

int64_t scratch(const Conv2dParams& p, Conv2dPass, int64_t threads) {
  int64_t bytes = 0;
  with_plan(p, [&](const auto& plan) { bytes = plan.bytes(threads); });
  return bytes;
}

void run(const Conv2dParams& p, Conv2dPass, const Parallel& parallel) {
  with_plan(p, [&](const auto& plan) { run_weight(plan, parallel); });
}

}  // namespace weight_slabs

}  // namespace pydl::cpu::PYDL_ISA::implicit
