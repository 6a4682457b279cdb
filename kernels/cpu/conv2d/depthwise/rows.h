// One row of results of a depthwise pass: which source columns each tile reads, and running all tiles of the
// row. Shared by both forms of depthwise.h.
#pragma once

#include "kernels/cpu/conv2d/depthwise/depthwise.h"
#include "kernels/cpu/conv2d/lanes.h"

namespace pydl::cpu::PYDL_ISA::depthwise {

// The tap of kernel position t that links output `out` to input `in`: in = out * stride - pad + t * dilation.
// tap_input: the input position that tap t of `out` reads, or -1 outside; tap_output: the output position
// that reads `in` by tap t, or -1.
static PYDL_INLINE int64_t tap_input(int64_t out, int64_t t, int64_t stride, int64_t pad, int64_t dilation,
                                     int64_t size) {
  const int64_t in = out * stride - pad + t * dilation;
  return in >= 0 && in < size ? in : -1;
}
static PYDL_INLINE int64_t tap_output(int64_t in, int64_t t, int64_t stride, int64_t pad, int64_t dilation,
                                      int64_t size) {
  const int64_t scaled = in + pad - t * dilation;
  if (stride == 1) return scaled >= 0 && scaled < size ? scaled : -1;
  return scaled >= 0 && scaled % stride == 0 && scaled / stride < size ? scaled / stride : -1;
}

// The columns of a pass. "Source" is what is read: the input, or the gradient for the input
// gradient.
struct RowPlan {
  const Conv2dParams& p;
  bool backward, turned;  // turned: the taps of a row are packed last to first
  TileShape shape;
  int64_t width, source_width;  // of a row of results, of a row of sources
  int64_t tiles, pitch;

  RowPlan(const Conv2dParams& p, Conv2dPass pass) : p(p), backward(pass == Conv2dPass::backward_input) {
    const int64_t taps = p.kernel_width, step = p.stride_width;
    // wider kernels of groups are rare
    const bool unrolled = (taps == 3 || (inputs_of(p) == 1 && (taps == 5 || taps == 7))) &&
                          (step == 1 || step == 2) && p.dilation_width == 1;
    turned = backward && unrolled && step == 1;
    shape = {!unrolled               ? TileShape::any
             : backward && step == 2 ? TileShape::transposed
                                     : TileShape::strided,
             taps, step};
    width = backward ? p.in_width : p.out_width;
    source_width = backward ? p.out_width : p.in_width;
    tiles = ceil_div(width - result(0, 0), shape.results());
    pitch = ceil_div(shape.sources(), 8) * 8;
  }
  // The column of result i of a tile; it may lie beside the image.
  int64_t result(int64_t tile, int64_t i) const {
    if (shape.pattern == TileShape::transposed)
      return 2 * (p.pad_left / 2 + tile * kTilePixels) - p.pad_left + i;
    return tile * kTilePixels + i;
  }
  // The column of source j of a tile, or -1.
  int64_t source(int64_t tile, int64_t j) const {
    const int64_t first = tile * kTilePixels;
    int64_t column = -1;
    if (shape.pattern == TileShape::any) {
      const int64_t x = first + j % kTilePixels, t = j / kTilePixels;
      return backward ? tap_output(x, t, p.stride_width, p.pad_left, p.dilation_width, source_width)
                      : tap_input(x, t, p.stride_width, p.pad_left, p.dilation_width, source_width);
    }
    if (shape.pattern == TileShape::transposed)
      column = p.pad_left / 2 + first - ((shape.taps + 1) / 2 - 1) + j;
    else
      column = first * shape.step + j - (turned ? shape.taps - 1 - p.pad_left : p.pad_left);
    return column >= 0 && column < source_width ? column : -1;
  }
  // The row that kernel row r of a row of results reads, or -1.
  int64_t source_row(int64_t row, int64_t r) const {
    return backward ? tap_output(row, r, p.stride_height, p.pad_top, p.dilation_height, p.out_height)
                    : tap_input(row, r, p.stride_height, p.pad_top, p.dilation_height, p.in_height);
  }

  // The first row that no row of results up to `row` reads.
  int64_t rows_read(int64_t row) const {
    int64_t read = 0;
    for (; row >= 0 && read == 0; --row)
      for (int64_t r = 0; r < p.kernel_height; ++r) read = max_of(read, source_row(row, r) + 1);
    return read;
  }

  // Tables of offsets in elements, for all tiles: sources [tile][pitch], results [tile][results].
  int64_t table_bytes() const {
    return Pieces::bytes<int64_t>(tiles * pitch) + Pieces::bytes<int64_t>(tiles * shape.results());
  }
};

static constexpr int64_t kBeside = INT64_MIN;  // in a table: no such column

struct RowTables {
  int64_t *sources, *results;

  RowTables(const RowPlan& plan, int64_t source_step, int64_t result_step, Pieces& scratch) {
    sources = scratch.take<int64_t>(plan.tiles * plan.pitch);
    results = scratch.take<int64_t>(plan.tiles * plan.shape.results());
    for (int64_t tile = 0; tile < plan.tiles; ++tile) {
      for (int64_t j = 0; j < plan.pitch; ++j) {
        const int64_t x = j < plan.shape.sources() ? plan.source(tile, j) : -1;
        sources[tile * plan.pitch + j] = x < 0 ? kBeside : x * source_step;
      }
      for (int64_t i = 0; i < plan.shape.results(); ++i) {
        const int64_t x = plan.result(tile, i);
        results[tile * plan.shape.results() + i] = x < 0 || x >= plan.width ? kBeside : x * result_step;
      }
    }
  }
};

// Runs rows; owns the lists of pointers of one thread.
template <class T>
struct RowRunner {
  const RowPlan& plan;
  const RowTables& tables;
  const T* zeros;  // `channels` of them
  RunTile<T> run;
  Tile<T> tile{};
  const T** sources;
  T** results;
  const T** rows;  // source rows of the next run, `tile.rows` of them; their weights in tile.row_weights
  int64_t* row_weights;
  T* sink;
  const char* ahead = nullptr;  // what the next run will read from memory: each tile asks for its share of it
  int64_t ahead_bytes = 0;

  // max_rows: kernel rows that a result may read
  static int64_t bytes(const RowPlan& plan, int64_t max_rows, int64_t channels) {
    return Pieces::bytes<T*>(max_rows * plan.pitch) + Pieces::bytes<T*>(plan.shape.results()) +
           Pieces::bytes<T*>(max_rows) + Pieces::bytes<int64_t>(max_rows) + Pieces::bytes<T>(channels);
  }
  RowRunner(const RowPlan& plan, const RowTables& tables, int64_t max_rows, int64_t channels, const T* zeros,
            RunTile<T> run, Pieces& scratch)
      : plan(plan), tables(tables), zeros(zeros), run(run) {
    sources = scratch.take<const T*>(max_rows * plan.pitch);
    results = scratch.take<T*>(plan.shape.results());
    rows = scratch.take<const T*>(max_rows);
    row_weights = scratch.take<int64_t>(max_rows);
    sink = scratch.take<T>(channels);
    tile.channels = channels;
    tile.inputs = inputs_of(plan.p);
    tile.sources = sources;
    tile.pitch = plan.pitch;
    tile.row_weights = row_weights;
    tile.results = results;
    tile.gradients = results;
    tile.taps = plan.shape.taps;
  }

  // Adds the source rows that row `row` of the results reads from an image (or strip) that begins at `from`
  // with row 0 (which need not be there).
  void add_rows(int64_t row, const T* from, int64_t row_step, int64_t weights) {
    const int64_t per_row = tile.inputs * plan.shape.taps * lanes<acc_t<T>>;
    for (int64_t r = 0; r < plan.p.kernel_height; ++r) {
      const int64_t at = plan.source_row(row, r);
      if (at < 0) continue;
      rows[tile.rows] = from + at * row_step;
      row_weights[tile.rows++] = weights + r * per_row;
    }
  }

  // The tiles of a row: forward and input gradient write `row`, the weight gradient reads it.
  void run_row(T* row, T* beside) {
    const int64_t pitch = plan.pitch, count = plan.shape.results();
    for (int64_t i = 0; i < plan.tiles; ++i) {
      const int64_t* at = tables.sources + i * pitch;
      for (int64_t r = 0; r < tile.rows; ++r) {
        const T* from = rows[r];
        const T** list = sources + r * pitch;
        for (int64_t j = 0; j < pitch; ++j) list[j] = at[j] == kBeside ? zeros : from + at[j];
      }
      const int64_t* to = tables.results + i * count;
      for (int64_t j = 0; j < count; ++j) results[j] = to[j] == kBeside ? beside : row + to[j];
      const int64_t share = ceil_div(ahead_bytes, plan.tiles);
      for (int64_t b = i * share; b < min_of((i + 1) * share, ahead_bytes); b += 64) prefetch_l2(ahead + b);
      run(tile);
    }
  }
  // `from` as in add_rows: the source rows that row + 1 of the results reads and row does not.
  void prefetch_rows(int64_t row, int64_t height, const T* from, int64_t row_step) {
    const int64_t read = plan.rows_read(row), next = row + 1 < height ? plan.rows_read(row + 1) : read;
    ahead = reinterpret_cast<const char*>(from + read * row_step);
    ahead_bytes = (next - read) * row_step * static_cast<int64_t>(sizeof(T));
  }
};

// The taps of up to `lanes` filters of groups of several channels, as [row][input][tap][lane]. In the input
// gradient lanes are input channels, and the filters of their group take turns.
template <class T, class A>
static void pack_group_taps(const RowPlan& plan, const T* from, int64_t filters, A* to) {
  const Conv2dParams& p = plan.p;
  const int64_t width = p.kernel_width, inputs = inputs_of(p);
  for (int64_t r = 0; r < p.kernel_height; ++r)
    for (int64_t i = 0; i < inputs; ++i)
      for (int64_t t = 0; t < width; ++t) {
        const int64_t tap = plan.turned ? width - 1 - t : t;
        const T* at = from + r * p.weight_stride[2] + tap * p.weight_stride[3];
        for (int64_t l = 0; l < lanes<A>; ++l, ++to) {
          const int64_t o = plan.backward ? l - l % inputs + i : l, c = plan.backward ? l % inputs : i;
          *to = l < filters ? load_n(at + o * p.weight_stride[0] + c * p.weight_stride[1], 1)[0] : A(0);
        }
      }
}

// The taps of up to `lanes` filters as [row][tap][lane]; filters `stride` elements apart.
template <class T, class A>
static void pack_taps(const RowPlan& plan, const T* from, int64_t stride, int64_t filters, A* to) {
  const Conv2dParams& p = plan.p;
  const int64_t width = p.kernel_width;
  if (inputs_of(p) > 1) return pack_group_taps(plan, from, filters, to);
  auto place = [&](int64_t r, int64_t t) {
    return to + (r * width + (plan.turned ? width - 1 - t : t)) * lanes<A>;
  };
  if (p.weight_stride[3] == 1 && p.weight_stride[2] == width) {
    int64_t r = 0, t = 0;
    gather_squares(PlaneRows<T>{from, stride, filters}, p.kernel_height * width, [&](int64_t) {
      A* to = place(r, t);
      if (++t == width) {
        t = 0;
        ++r;
      }
      return to;
    });
    return;
  }
  for (int64_t r = 0; r < p.kernel_height; ++r)
    for (int64_t t = 0; t < width; ++t) {
      const T* at = from + r * p.weight_stride[2] + t * p.weight_stride[3];
      vec<A> v{};
      for (int64_t i = 0; i < filters; ++i) v[i] = load_n(at + i * stride, 1)[0];
      store(place(r, t), v);
    }
}

// The way back, adding `parts` sets of sums that lie `part` elements apart.
template <class T, class A>
static void unpack_taps(const Conv2dParams& p, const A* from, int64_t part, int64_t parts, T* to,
                        int64_t stride, int64_t filters) {
  for (int64_t r = 0; r < p.kernel_height; ++r)
    for (int64_t input = 0; input < inputs_of(p); ++input)
      for (int64_t t = 0; t < p.kernel_width; ++t, from += lanes<A>) {
        vec<A> sum{};
        for (int64_t i = 0; i < parts; ++i) sum += load(from + i * part);
        T some[lanes<A>];
        store(some, sum);
        T* at = to + input * p.weight_stride[1] + r * p.weight_stride[2] + t * p.weight_stride[3];
        for (int64_t i = 0; i < filters; ++i) at[i * stride] = some[i];
      }
}

}  // namespace pydl::cpu::PYDL_ISA::depthwise
