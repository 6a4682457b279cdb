// Implicit GEMM for the forward pass and the input gradient over slabs (slab.h).
//
// A task is a region of the result. It copies the part of the images that the region sees once, for all taps
// and, in the input gradient, for all phases of the stride; then, for each tile of two vectors of output
// channels, it runs the microkernel over groups of neighbouring pixels, reading windows in place. Sums stay
// in registers over the whole depth. Channels_last results are written by the microkernel itself; others pass
// through a staging area of one tile and are transposed from there. Images whose channels lie together and
// that need no padding are not copied either.
#include "kernels/cpu/base/activation.h"
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/conv2d/implicit/slabs_pack.h"

namespace pydl::cpu::PYDL_ISA::implicit {
namespace {

// Where a region's windows are read: a slab, or the tensor itself.
template <class E>
struct View {
  const E* data;
  int64_t image, row, column;  // elements between neighbours of the grid
};

template <class T, class E>
struct Task {
  using A = acc_of<E>;
  const SlabPlan<T, E>& plan;
  const E* packed;
  const A* bias;
  const SlabPhase* phases;
  const int64_t* offsets;
  int64_t group;
  Region region;
  View<E> view;
  A* staging;

  T* result(int64_t m0) const {
    const WindowProduct<T>& g = plan.product;
    return g.result + group * g.result_group + m0 * g.result_stride[1];
  }
  const E* window(const Pixel& at) const {
    return view.data + at.image * view.image + at.row * view.row + at.column * view.column;
  }
  int64_t staged_columns() const { return region.columns * plan.phases_x; }
  int64_t staged_rows() const { return region.rows * plan.phases_y; }

  // Calls body(block, groups, first pixels of the groups) for blocks that cover the region's pixels of a
  // phase. The last group of a row may reach back over pixels that another has done.
  template <class F>
  void each_block(const SlabPhase& phase, const F& body) const {
    const int64_t rows = min_of(region.rows, phase.rows - region.row),
                  columns = min_of(region.columns, phase.columns - region.column);
    if (rows <= 0 || columns <= 0) return;
    const int64_t pixels = pixels_per_group(columns), most = most_groups(static_cast<int>(pixels));
    Pixel first[kMostGroups];
    int64_t groups = 0;
    for (int64_t n = 0; n < region.images; ++n)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; c += pixels) {
          first[groups++] = {n, r, min_of(c, columns - pixels)};
          if (groups == most) {
            body(first, groups, pixels);
            groups = 0;
          }
        }
    if (groups) body(first, groups, pixels);
  }

  // One block of pixels of a phase, tiles [first_tile, last_tile) of channels.
  void run_block(const SlabPhase& phase, int64_t first_tile, int64_t last_tile, bool staged,
                 const Pixel* first, int64_t groups, int64_t pixels) const {
    const WindowProduct<T>& g = plan.product;
    const int64_t tile0 = group * plan.tiles + first_tile;
    WindowsBlock<E> block;
    block.pitch = view.column;
    block.offsets = offsets + phase.offsets;
    block.segments = phase.segments;
    block.depth = plan.segment_depth;
    block.weights = packed + tile0 * plan.tile_elements + phase.weights;
    block.bias = bias + tile0 * kNr<A>;
    block.relu = g.activation == Activation::relu;
    block.narrow = !staged && !__is_same(T, A);
    block.stream = !staged && plan.stream;
    // Windows read where they lie are prefetched a block ahead: all of them while this block is at work where
    // they are one stretch of memory, else their beginnings, which the hardware has not seen enough of.
    const int64_t pixel_bytes = view.column * static_cast<int64_t>(sizeof(E));
    const char* next = reinterpret_cast<const char*>(window(first[0])) + groups * pixels * pixel_bytes;
    const bool stretch = plan.direct && view.column == plan.elements;
    if (plan.direct && !stretch)
      for (int64_t j = 0; j < groups * pixels; ++j)
        for (int64_t line = 0; line < 4; ++line) prefetch(next + j * pixel_bytes + line * 64);
    const int64_t ahead_bytes = stretch ? groups * pixels * pixel_bytes : 0;
    block.out_pitch = staged ? plan.phases_x * plan.staged_pitch() : g.result_stride[3] * plan.phases_x;
    for (int64_t i = 0; i < groups; ++i) {
      const Pixel& at = first[i];
      block.window[i] = window(at);
      if (staged) {
        const int64_t row = at.row * plan.phases_y + phase.y, column = at.column * plan.phases_x + phase.x;
        block.out[i] =
            staging + ((at.image * staged_rows() + row) * staged_columns() + column) * plan.staged_pitch();
      } else {
        const int64_t row = (region.row + at.row) * plan.phases_y + phase.y,
                      column = (region.column + at.column) * plan.phases_x + phase.x;
        block.out[i] = result(first_tile * kNr<A>) + (region.image + at.image) * g.result_stride[0] +
                       row * g.result_stride[2] + column * g.result_stride[3];
      }
    }
    int64_t prefetched = 0;  // bytes ahead
    for (int64_t tile = first_tile; tile < last_tile; ++tile) {
      block.ahead =
          prefetched < ahead_bytes ? next + prefetched : reinterpret_cast<const char*>(block.window[0]);
      block.ahead_step = prefetched < ahead_bytes ? kAheadStep : 0;
      prefetched += plan.segment_depth * phase.segments * kAheadStep;
      gemm_windows(groups, pixels, plan.channels_of(tile), block);
      block.weights += plan.tile_elements;
      block.bias += kNr<A>;
      for (int64_t i = 0; i < groups; ++i)
        block.out[i] = static_cast<char*>(block.out[i]) + kNr<A> * (staged ? sizeof(A) : sizeof(T));
    }
  }

  // A staged tile goes out; `at` is the first of its columns in the staging area.
  void finish(int64_t tile, A* at) const {
    const WindowProduct<T>& g = plan.product;
    const int64_t channels = plan.channels_of(tile), pitch = plan.staged_pitch();
    const int64_t row0 = region.row * plan.phases_y, column0 = region.column * plan.phases_x;
    const int64_t rows = min_of(staged_rows(), plan.result_height - row0),
                  columns = min_of(staged_columns(), plan.result_width - column0);
    const bool flat = columns == staged_columns() && g.result_stride[3] == 1 && g.result_stride[2] == columns;
    for (int64_t n = 0; n < region.images; ++n)
      for (int64_t r = 0; r < rows; ++r) {
        A* from = at + (n * staged_rows() + r) * staged_columns() * pitch;
        T* to = result(tile * kNr<A>) + (region.image + n) * g.result_stride[0] +
                (row0 + r) * g.result_stride[2] + column0 * g.result_stride[3];
        const int64_t pixels = flat ? rows * columns : columns;
        if (g.activation == Activation::sigmoid)
          for (int64_t j = 0; j < pixels; ++j)
            for (int64_t c = 0; c < kNr<A>; c += lanes<A>) {
              A* x = from + j * pitch + c;
              store(x, activate<A>(load(x), g.activation));
            }
        write_pixels(from, pitch, pixels, channels, to, g.result_stride[1], g.result_stride[3]);
        if (flat) break;
      }
  }

  static void write_pixels(const A* from, int64_t pitch, int64_t pixels, int64_t channels, T* to,
                           int64_t channel_stride, int64_t pixel_stride) {
    if (channel_stride == 1) {
      for (int64_t j = 0; j < pixels; ++j)
        for (int64_t c = 0; c < channels; c += lanes<A>)
          store_n(to + j * pixel_stride + c, load(from + j * pitch + c), min_of(lanes<A>, channels - c));
      return;
    }
    if constexpr (__is_same(A, float))
      if (pixel_stride == 1) {
        for (int64_t c = 0; c < channels; c += lanes<A>)
          transpose_out_ahead(from + c, pitch, pixels, min_of(lanes<A>, channels - c),
                              to + c * channel_stride, channel_stride);
        return;
      }
    for (int64_t j = 0; j < pixels; ++j)
      for (int64_t c = 0; c < channels; ++c)
        store_n(to + c * channel_stride + j * pixel_stride, vec<A>{} + from[j * pitch + c], 1);
  }

  void run(int64_t first_tile, int64_t last_tile) const {
    for (int64_t t = first_tile; t < last_tile;) {
      // all channels of a block of pixels while it is in L1, or all pixels for a tile of weights
      const bool staged = plan.staged(t);
      const int64_t most = staged ? plan.together : plan.few_weights() ? last_tile - t : 1;
      int64_t end = t + 1;
      while (end < last_tile && end - t < most && plan.staged(end) == staged) ++end;
      for (int64_t f = 0; f < plan.n_phases(); ++f)
        each_block(phases[f], [&](const Pixel* first, int64_t groups, int64_t pixels) {
          run_block(phases[f], t, end, staged, first, groups, pixels);
        });
      for (int64_t done = t; staged && done < end; ++done) finish(done, staging + (done - t) * kNr<A>);
      t = end;
    }
    if (plan.stream) stream_fence();
  }
};

template <class T, class E>
void copy(const SlabPlan<T, E>& plan, const Windows<T>& windows, const Region& region, E* slab) {
#if defined(PYDL_BF16_DOT)
  if constexpr (__is_same(E, bf16_pair))
    if (plan.rows_in_pairs)
      return copy_rows_in_pairs(windows, region, plan.y, plan.x, slab, plan.lines() > 1);
#endif
  copy_slab(windows, region, plan.y, plan.x, slab, plan.pitch);
}

template <class T, class E>
void run_problem(const SlabPlan<T, E>& plan, void* scratch, const Parallel& parallel) {
  using A = acc_of<E>;
  const WindowProduct<T>& g = plan.product;
  Pieces pieces{static_cast<char*>(scratch)};
  SlabPhase* phases = pieces.take<SlabPhase>(plan.n_phases());
  int64_t* offsets = pieces.take<int64_t>(plan.taps() * plan.pieces);
  int64_t* rows_of_taps = pieces.take<int64_t>(plan.taps());
  E* packed = pieces.take<E>(g.groups * plan.tiles * plan.tile_elements);
  A* bias = pieces.take<A>(g.groups * plan.tiles * kNr<A>);
  plan.list_phases(phases, offsets, rows_of_taps);
  pack_weights(plan, rows_of_taps, packed, bias, parallel);

  const int64_t regions = plan.regions.count(), tasks = g.groups * regions * plan.parts;
  const int64_t threads = workers_for(parallel, tasks);
  // one slot of scratch per thread; which slot does a task does not change its result
  Tasks shares(threads, tasks);
  parallel(threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) {
      Pieces own{pieces.next + slot * plan.slot_bytes()};
      E* slab = own.template take<E>(plan.slab_elements());
      A* staging = own.template take<A>(plan.staging_elements());
      int64_t copied = -1;
      for (int64_t task; (task = shares.take(slot)) >= 0;) {
        const int64_t part = task % plan.parts, i = task / plan.parts;
        const int64_t group = i / regions;
        const Region region = plan.regions.at(i % regions);
        Windows<T> windows = g.windows;
        windows.data += group * g.window_group;
        View<E> view;
        if (plan.direct) {
          view = {reinterpret_cast<const E*>(windows.data + region.image * windows.stride[0] +
                                             (region.row * plan.y.step + plan.y.low) * windows.stride[2] +
                                             (region.column * plan.x.step + plan.x.low) * windows.stride[3]),
                  windows.stride[0] / per_element<E>, plan.row_stride() * plan.y.step,
                  plan.column_stride() * plan.x.step};
        } else {
          Region whole = region;
          whole.columns = plan.regions.columns;  // the same distance between rows at the right edge
          if (copied != i) copy(plan, windows, whole, slab);
          copied = i;
          const int64_t row = plan.row_stride();
          view = {slab, plan.y.covered(region.rows) * row, row * plan.y.step, plan.pitch * plan.x.step};
        }
        Task<T, E>{plan, packed, bias, phases, offsets, group, region, view, staging}.run(
            plan.tiles * part / plan.parts, plan.tiles * (part + 1) / plan.parts);
      }
    }
  });
}

// Calls body(plan) with the plan of these params: bf16 in pairs where the CPU multiplies them.
template <class F>
void with_plan(const Conv2dParams& p, Conv2dPass pass, const F& body) {
  const bool forward = pass == Conv2dPass::forward;
  dispatch_trained(p.dtype, [&](auto type) {
    using T = decltype(type);
#if defined(PYDL_BF16_DOT)
    if constexpr (__is_same(T, bf16))
      if (cpu_has_bf16_dot()) return body(SlabPlan<T, bf16_pair>(p, forward));
#endif
    body(SlabPlan<T, acc_t<T>>(p, forward));
  });
}

}  // namespace

namespace slabs {

bool serves(const Conv2dParams& p, Conv2dPass pass) {
  if (p.dtype == DType::f64) return false;
  bool fits = false;
  with_plan(p, pass, [&](const auto& plan) { fits = plan.slab_elements() <= 8 * plan.kSlab; });
  return fits;
}

int64_t scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  int64_t bytes = 0;
  with_plan(p, pass, [&](const auto& plan) { bytes = plan.bytes(threads); });
  return bytes;
}

void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  with_plan(p, pass, [&](const auto& plan) { run_problem(plan, p.scratch, parallel); });
}

}  // namespace slabs

}  // namespace pydl::cpu::PYDL_ISA::implicit
