// Sizes of implicit GEMM over slabs (slabs.cpp).
#pragma once

#include "kernels/cpu/conv2d/implicit/slab.h"
#include "kernels/cpu/conv2d/implicit/window_product.h"
#include "kernels/cpu/gemm/panel.h"
#include "kernels/machine.h"

namespace pydl::cpu::PYDL_ISA::implicit {
using namespace gemm;

namespace {

// The problem of one phase of the stride; the forward pass has one.
struct SlabPhase {
  int64_t y, x;           // which
  int64_t rows, columns;  // of its grid
  int64_t segments;
  int64_t offsets;  // index of its first offset
  int64_t weights;  // elements of a tile of weights before its own
};

struct Pixel {
  int64_t image, row, column;  // within the region
};

// How many neighbours make a group, for rows of so many pixels: what leaves the fewest lanes of the register
// file idle.
inline int64_t pixels_per_group(int64_t columns) {
  int64_t best = 1, cost = INT64_MAX;
  for (int pixels = 1; pixels <= kMostPixels && pixels <= columns; ++pixels) {
    const int64_t rows = pixels * most_groups(pixels);
    const int64_t c = ceil_div(columns, pixels) * pixels * (64 + 64 / rows);
    if (c <= cost) {
      cost = c;
      best = pixels;
    }
  }
  return best;
}

template <class T>
WindowProduct<T> backward_problem(const Conv2dParams& p) {
  WindowProduct<T> g = phase_problem<T>(p, 0, 0);
  g.weight = static_cast<const T*>(p.weight);
  g.weight_y = p.weight_stride[2];
  g.weight_x = p.weight_stride[3];
  g.result = static_cast<T*>(p.input);
  for (int d = 0; d < 4; ++d) g.result_stride[d] = p.input_stride[d];
  return g;
}

template <class T, class E>
struct SlabPlan {
  using A = acc_of<E>;
  static constexpr int64_t kSlab = 1 << 16;  // elements of a slab: 256 KB, part of a second-level cache
  static constexpr int64_t kStagedPixels = 1 << 10;  // at most, of a tile of results
  static constexpr int64_t kTasks = 16;              // wanted

  // of weights, at most, that pass by for each block of pixels: a share of a last-level cache
  static constexpr int64_t kTogetherBytes = 4 << 20;

  const Conv2dParams& p;
  bool forward;
  WindowProduct<T> product;
  int64_t result_height, result_width, phases_y, phases_x;
  Reach y, x;
  bool direct, dense, any_staged, stream;
  // bf16 of one channel: an element pairs a pixel with the one a tap below, so that no half of it idles. Each row of the
  // slab has a line of these and, for the last of an odd number of taps, one of pixels alone: a pair whose second
  // weight is zero would spread what is not finite there.
  bool rows_in_pairs;
  int64_t pieces;                          // that the channels of a tap are cut into, so that sums stay short
  int64_t elements, pitch, segment_depth;  // per pixel, between pixels, per segment
  int64_t tiles, tile_elements, parts;
  int64_t together;  // tiles of results that are staged at a time
  Regions regions;

  SlabPlan(const Conv2dParams& p, bool forward)
      : p(p),
        forward(forward),
        product(forward ? forward_problem<T>(p) : backward_problem<T>(p)),
        result_height(forward ? p.out_height : p.in_height),
        result_width(forward ? p.out_width : p.in_width),
        phases_y(forward ? 1 : min_of(p.stride_height, p.in_height)),
        phases_x(forward ? 1 : min_of(p.stride_width, p.in_width)),
        y(reach(true)),
        x(reach(false)),
        direct(readable_in_place()),
        rows_in_pairs(__is_same(E, bf16_pair) && forward && !direct && product.windows.channels == 1 &&
                      p.kernel_height > 1 && product.windows.stride[3] == 1),
        regions(1, 1, 1, {1, 0, 1}, {1, 0, 1}, 1, 1, 1) {
    const Windows<T>& w = product.windows;
    elements = ceil_div(w.channels, per_element<E>);
    pitch = direct ? w.stride[3] / per_element<E> : slab_pitch(elements);
    dense = forward && p.dilation_width == 1 && p.kernel_width > 1 && pitch == elements;
    pieces = 1;
    if (!dense)
      while (elements / pieces > 192 && elements % (2 * pieces) == 0) pieces *= 2;
    segment_depth = dense ? p.kernel_width * elements : elements / pieces;
    tiles = ceil_div(product.channels, kNr<A>);
    tile_elements = ceil_div(p.kernel_height, rows_in_pairs ? 2 : 1) * p.kernel_width * elements * kNr<A>;
    any_staged = staged(0) || staged(tiles - 1);
    stream = !any_staged && streams();
    const int64_t phases = phases_y * phases_x;
    int64_t pixels = max_of(14, kStagedPixels / phases);
    const int64_t grid = product.batch * grid_height() * grid_width();
    if (direct && few_weights())  // regions without a copy only share out the work: several for each thread
      pixels = min_of(pixels, max_of(14, grid / (4 * kTasks) / 14 * 14));
    regions = cut(pixels);
    parts = max_of(1, min_of(tiles, ceil_div(kTasks, max_of(1, product.groups * regions.count()))));
    if (product.groups * regions.count() * parts < kTasks / 2 && grid > 14)
      regions = cut(max_of(14, min_of(pixels, grid / kTasks)));
    together = 1;
    if (any_staged && few_weights())
      together = max_of(1, min_of(ceil_div(tiles, parts), kSlab / (staged_pixels() * kNr<A>)));
  }

  // The phase grid's axis of each phase, with the kernel taps behind it.
  PhaseAxis axis_y(int64_t phase) const {
    return forward ? PhaseAxis{product.windows.y, 0, 1}
                   : phase_axis(phase, p.stride_height, p.pad_top, p.dilation_height, p.kernel_height,
                                p.in_height, p.out_height);
  }
  PhaseAxis axis_x(int64_t phase) const {
    return forward ? PhaseAxis{product.windows.x, 0, 1}
                   : phase_axis(phase, p.stride_width, p.pad_left, p.dilation_width, p.kernel_width,
                                p.in_width, p.out_width);
  }
  Reach reach(bool vertical) const {
    int64_t low = INT64_MAX, high = INT64_MIN;
    const int64_t phases = vertical ? phases_y : phases_x;
    for (int64_t phase = 0; phase < phases; ++phase) {
      const Axis a = (vertical ? axis_y(phase) : axis_x(phase)).axis;
      if (a.taps == 0) continue;
      const int64_t last = a.first + (a.taps - 1) * a.spacing;
      low = min_of(low, min_of(a.first, last));
      high = max_of(high, max_of(a.first, last));
    }
    if (low > high) low = high = 0;  // no phase has taps
    return {vertical ? product.windows.y.step : product.windows.x.step, low, high - low + 1};
  }
  int64_t grid_height() const { return ceil_div(result_height, forward ? 1 : p.stride_height); }
  int64_t grid_width() const { return ceil_div(result_width, forward ? 1 : p.stride_width); }
  int64_t taps() const { return p.kernel_height * p.kernel_width; }
  int64_t n_phases() const { return phases_y * phases_x; }
  int64_t lines() const { return rows_in_pairs && p.kernel_height % 2 ? 2 : 1; }  // of the slab, for each row
  // Which half of its elements a tap's weights go to.
  int64_t half(int64_t tap) const { return rows_in_pairs ? tap / p.kernel_width % 2 : 0; }
  Regions cut(int64_t pixels) const {
    auto within = [&](int64_t budget) {
      return Regions(product.batch, grid_height(), grid_width(), y, x, direct ? elements : lines() * pitch,
                     budget, pixels);
    };
    // every region reads all weights once: where these exceed the caches, larger regions are worth windows
    // that come from beyond the second level, as long as there is more than one to share
    const Regions large = within(max_of(kSlab, min_of(tiles * tile_elements / 8, 4 * kSlab)));
    return large.count() > 1 ? large : within(kSlab);
  }

  // Channels side by side, every window inside the image, and pixels not a multiple of 4 KB apart, which
  // would all fall into one set of the first-level cache.
  bool readable_in_place() const {
    const Windows<T>& w = product.windows;
    if (!__is_same(T, E) && !__is_same(E, bf16_pair)) return false;
    for (int d = 0; d < 4; ++d)
      if (d != 1 && w.stride[d] % per_element<E> != 0) return false;
    const int64_t apart = w.stride[3] * w.x.step * static_cast<int64_t>(sizeof(T));
    return w.stride[1] == 1 && w.channels % per_element<E> == 0 && apart % 4096 != 0 && y.low >= 0 &&
           x.low >= 0 && y.low + y.covered(grid_height()) <= w.y.in_size &&
           x.low + x.covered(grid_width()) <= w.x.in_size;
  }

  int64_t channels_of(int64_t tile) const { return min_of(kNr<A>, product.channels - tile * kNr<A>); }
  // Whether a tile of results has to pass through the staging area.
  bool staged(int64_t tile) const {
    return (!__is_same(T, A) && !__is_same(E, bf16_pair)) || product.result_stride[1] != 1 ||
           product.activation == Activation::sigmoid || channels_of(tile) % lanes<A> != 0;
  }
  // Whether results are too many for the cache, and vectors of them aligned.
  bool streams() const {
    const int64_t vector = lanes<A> * static_cast<int64_t>(sizeof(T));
    const int64_t bytes = product.batch * result_height * result_width * product.groups * product.channels *
                          static_cast<int64_t>(sizeof(T));
    for (int d = 0; d < 4; ++d)
      if (d != 1 && product.result_stride[d] % lanes<A> != 0) return false;
    return bytes > least_streamed_bytes() && product.channels % lanes<A> == 0 &&
           reinterpret_cast<uintptr_t>(product.result) % static_cast<uintptr_t>(vector) == 0;
  }
  bool few_weights() const {
    return tiles * tile_elements * static_cast<int64_t>(sizeof(E)) <= kTogetherBytes;
  }

  int64_t column_stride() const { return pitch; }
  int64_t row_stride() const {
    return direct ? product.windows.stride[2] / per_element<E> : lines() * x.covered(regions.columns) * pitch;
  }

  void list_phases(SlabPhase* phases, int64_t* offsets, int64_t* rows_of_taps) const {
    int64_t n = 0, rows = 0, i = 0;
    for (int64_t tap = 0; tap < taps(); ++tap) rows_of_taps[tap] = -1;
    for (int64_t phase_y = 0; phase_y < phases_y; ++phase_y)
      for (int64_t phase_x = 0; phase_x < phases_x; ++phase_x) {
        const PhaseAxis v = axis_y(phase_y), h = axis_x(phase_x);
        const int64_t across = dense ? 1 : h.axis.taps;
        const int64_t taps_of_row = rows_in_pairs ? 2 : 1;
        const int64_t segments = ceil_div(v.axis.taps, taps_of_row) * across * pieces;
        phases[n++] = {phase_y, phase_x, v.axis.out_size, h.axis.out_size, segments, i, rows * kNr<A>};
        for (int64_t ty = 0; ty < v.axis.taps; ++ty)
          for (int64_t tx = 0; tx < h.axis.taps; ++tx) {
            const int64_t tap =
                (v.first_tap + ty * v.tap_step) * p.kernel_width + h.first_tap + tx * h.tap_step;
            if (ty % taps_of_row != 0) {
              rows_of_taps[tap] = rows_of_taps[tap - p.kernel_width];
              continue;
            }
            const bool alone = rows_in_pairs && ty + 1 == v.axis.taps;
            for (int64_t piece = 0; piece < (tx < across ? pieces : 0); ++piece)
              offsets[i++] = (v.axis.first + ty * v.axis.spacing - y.low) * row_stride() +
                             (alone ? row_stride() / 2 : 0) +
                             (h.axis.first + tx * h.axis.spacing - x.low) * column_stride() +
                             piece * segment_depth;
            rows_of_taps[tap] = rows;
            rows += elements;
          }
      }
    for (int64_t tap = 0; tap < taps(); ++tap)  // of phases beyond an image smaller than the stride: unused
      if (rows_of_taps[tap] < 0) {
        rows_of_taps[tap] = rows;
        rows += elements;
      }
  }

  int64_t slab_elements() const { return direct ? 0 : regions.slab; }
  int64_t staged_pixels() const { return regions.images * regions.rows * regions.columns * n_phases(); }
  // Elements between staged pixels: an odd number of vectors, so that they do not share cache sets.
  int64_t staged_pitch() const { return together * kNr<A> + (together > 1 ? lanes<A> : 0); }
  int64_t staging_elements() const { return any_staged ? staged_pixels() * staged_pitch() : 0; }
  int64_t slot_bytes() const {
    return Pieces::bytes<E>(slab_elements()) + Pieces::bytes<A>(staging_elements()) + kApart;
  }
  int64_t bytes(int64_t threads) const {
    return Pieces::bytes<SlabPhase>(n_phases()) + Pieces::bytes<int64_t>(taps() * pieces) +
           Pieces::bytes<int64_t>(taps()) + Pieces::bytes<E>(product.groups * tiles * tile_elements) +
           Pieces::bytes<A>(product.groups * tiles * kNr<A>) + threads * slot_bytes();
  }
};

}  // namespace

}  // namespace pydl::cpu::PYDL_ISA::implicit
