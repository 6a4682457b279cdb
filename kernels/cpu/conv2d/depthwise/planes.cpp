// Depthwise convolution of planes and of any other strides: a vector's worth of channels and a strip of rows
// at a time is turned into lanes, run as channels_last images, and turned back. See depthwise.h.
//
// With several filters per channel, lanes are input channels and filters take turns: filter j of channel c
// writes (forward) or is read from (backward) channel c * filters + j.
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/conv2d/depthwise/rows.h"
#include "kernels/cpu/conv2d/depthwise/slab.h"

namespace pydl::cpu::PYDL_ISA::depthwise {
namespace {

constexpr int64_t kStripBytes = 160 << 10;  // of sources and results together
constexpr int64_t kMinTasks = 16;           // of the weight gradient

struct Range {
  int64_t first, last;
};

template <class T>
struct Planes {
  using A = acc_t<T>;
  static constexpr int64_t all = lanes<A>;
  const Conv2dParams& p;
  RowPlan plan;
  bool weight;
  int64_t filters, blocks, block;             // filters per channel; blocks of channels, and their weights
  int64_t taps;                               // weights of a filter, times lanes
  int64_t height, source_height;              // of results (weight: of the gradient) and sources
  int64_t strips, max_rows, max_source_rows;  // strips per image, and their rows at most
  int64_t source_sets, result_sets;           // strips packed at a time: the gradients of all filters, or one
  int64_t parts;                              // of the weight gradient's strips
  const int64_t *source_stride, *result_stride;

  Planes(const Conv2dParams& p, Conv2dPass pass)
      : p(p), plan(p, pass), weight(pass == Conv2dPass::backward_weight) {
    const bool backward = plan.backward;
    filters = p.out_channels / p.in_channels;
    blocks = ceil_div(p.in_channels, all);
    taps = inputs_of(p) * p.kernel_height * p.kernel_width * all;
    block = filters * (taps + all);
    height = backward ? p.in_height : p.out_height;
    source_height = backward ? p.out_height : p.in_height;
    source_sets = backward ? filters : 1;
    source_stride = backward ? p.output_stride : p.input_stride;
    result_stride = backward ? p.input_stride : p.output_stride;
    const int64_t bytes = all * static_cast<int64_t>(sizeof(A));
    const int64_t source_rows =  // per row of results, about
        backward ? ceil_div(1, p.stride_height) : p.stride_height;
    const int64_t row = (source_rows * source_sets * plan.source_width + plan.width) * bytes;
    strips = ceil_div(height, min_of(height, max_of(1, kStripBytes / row)));
    max_rows = ceil_div(height, strips);
    max_source_rows = 0;
    for (int64_t i = 0; i < strips; ++i) {
      const Range from = source_rows_of(rows_of(i));
      max_source_rows = max_of(max_source_rows, from.last - from.first);
    }
    parts = weight ? min_of(p.batch * strips, max_of(1, ceil_div(kMinTasks, blocks))) : 1;
  }
  Range rows_of(int64_t strip) const { return {height * strip / strips, height * (strip + 1) / strips}; }
  Range source_rows_of(Range rows) const {
    int64_t first = source_height, last = 0;
    for (int64_t y = rows.first; y < rows.last;
         ++y)  // all: a dilated kernel's edges do not move with its rows
      for (int64_t r = 0; r < p.kernel_height; ++r) {
        const int64_t at = plan.source_row(y, r);
        if (at < 0) continue;
        first = min_of(first, at);
        last = max_of(last, at + 1);
      }
    return {first, max_of(first, last)};
  }
  int64_t channels_of(int64_t b) const { return min_of(all, p.in_channels - b * all); }
  int64_t set_elements() const { return max_source_rows * plan.source_width * all; }
  int64_t slot_bytes() const {
    return RowRunner<A>::bytes(plan, p.kernel_height * source_sets, all) +
           Pieces::bytes<A>(source_sets * set_elements()) + Pieces::bytes<A>(max_rows * plan.width * all) +
           kApart;
  }
  int64_t bytes(int64_t threads) const {
    return Pieces::bytes<A>(parts * blocks * block) + Pieces::bytes<A>(all) + plan.table_bytes() +
           threads * slot_bytes();
  }
  // Rows from `row` on of filter j's channels of block b; `step` filters per channel.
  template <class U>
  Slab<U> slab(U* data, const int64_t* stride, int64_t step, int64_t width, int64_t image, int64_t b,
               int64_t j, int64_t row) const {
    return {data + image * stride[0] + (b * all * step + j) * stride[1] + row * stride[2],
            step * stride[1],
            stride[2],
            stride[3],
            channels_of(b),
            width};
  }
};

// What all threads share.
template <class T>
struct Shared {
  using A = acc_t<T>;
  A* weights;  // or the weight gradient's sums, [part][block]
  A* zeros;
  RowTables tables;

  Shared(const Planes<T>& s, Pieces& pieces)
      : weights(pieces.take<A>(s.parts * s.blocks * s.block)),
        zeros(pieces.take<A>(lanes<A>)),
        tables(s.plan, lanes<A>, lanes<A>, pieces) {
    memset(zeros, 0, sizeof(vec<A>));
  }
};

// One strip of one block of one image.
template <class T>
void convolve_strip(const Planes<T>& s, int64_t image, int64_t b, Range rows, const acc_t<T>* weights,
                    RowRunner<acc_t<T>>& runner, acc_t<T>* source, acc_t<T>* result) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const Conv2dParams& p = s.p;
  const bool backward = s.plan.backward;
  const Range from = s.source_rows_of(rows);
  const T* source_data = static_cast<const T*>(backward ? p.output : p.input);
  T* result_data = static_cast<T*>(backward ? p.input : p.output);
  const int64_t taps = s.taps, row = s.plan.source_width * all, result_row = s.plan.width * all;
  for (int64_t j = 0; j < s.source_sets; ++j)
    pack_rows(
        s.slab(source_data, s.source_stride, s.source_sets, s.plan.source_width, image, b, j, from.first),
        from.last - from.first, source + j * s.set_elements());
  const int64_t passes = backward ? 1 : s.filters;
  for (int64_t j = 0; j < passes; ++j) {
    runner.tile.weights = weights + j * taps;
    runner.tile.bias = !backward && p.bias ? weights + s.filters * taps + j * all : nullptr;
    for (int64_t y = rows.first; y < rows.last; ++y) {
      runner.tile.rows = 0;
      for (int64_t k = 0; k < s.source_sets; ++k)
        runner.add_rows(y, source + k * s.set_elements() - from.first * row, row, k * taps);
      runner.run_row(result + (y - rows.first) * result_row, runner.sink);
    }
    unpack_rows(result, rows.last - rows.first,
                s.slab(result_data, s.result_stride, passes, s.plan.width, image, b, j, rows.first));
  }
}

template <class T>
void convolve(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const Planes<T> s(p, pass);
  Pieces pieces{static_cast<char*>(p.scratch)};
  const Shared<T> shared(s, pieces);
  const int64_t taps = s.taps;
  parallel(s.blocks, ceil_div(16, inputs_of(p)), [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      for (int64_t j = 0; j < s.filters; ++j) {
        A* to = shared.weights + b * s.block;
        pack_taps(s.plan, static_cast<const T*>(p.weight) + (b * all * s.filters + j) * p.weight_stride[0],
                  s.filters * p.weight_stride[0], s.channels_of(b), to + j * taps);
        if (pass == Conv2dPass::backward_input || !p.bias) continue;
        vec<A> bias{};
        for (int64_t i = 0; i < s.channels_of(b); ++i)
          bias[i] = load_n(static_cast<const T*>(p.bias) + (b * all + i) * s.filters + j, 1)[0];
        store(to + s.filters * taps + j * all, bias);
      }
  });
  const int64_t items = p.batch * s.blocks * s.strips, threads = workers_for(parallel, items);
  Tasks shares(threads, items);
  parallel(threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) {
      Pieces own{pieces.next + slot * s.slot_bytes()};
      RowRunner<A> runner(s.plan, shared.tables, p.kernel_height * s.source_sets, all, shared.zeros,
                          (inputs_of(p) > 1 ? grouped_tile<A> : depthwise_tile<A>)(s.plan.shape), own);
      runner.tile.activation = pass == Conv2dPass::forward ? p.activation : Activation::none;
      A* source = own.take<A>(s.source_sets * s.set_elements());
      A* result = own.take<A>(s.max_rows * s.plan.width * all);
      for (int64_t i; (i = shares.take(slot)) >= 0;) {
        const int64_t b = i / s.strips % s.blocks;
        convolve_strip(s, i / s.strips / s.blocks, b, s.rows_of(i % s.strips), shared.weights + b * s.block,
                       runner, source, result);
      }
    }
  });
}

// The sums of a part of one block's strips.
template <class T>
void weight_part(const Planes<T>& s, int64_t b, int64_t part, RowRunner<acc_t<T>>& runner, acc_t<T>* source,
                 acc_t<T>* gradient, acc_t<T>* sums) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const Conv2dParams& p = s.p;
  memset(sums, 0, static_cast<size_t>(s.block) * sizeof(A));
  const int64_t items = p.batch * s.strips, row = s.plan.source_width * all,
                gradient_row = s.plan.width * all;
  for (int64_t i = items * part / s.parts; i < items * (part + 1) / s.parts; ++i) {
    const int64_t image = i / s.strips;
    const Range rows = s.rows_of(i % s.strips), from = s.source_rows_of(rows);
    pack_rows(s.slab(static_cast<const T*>(p.input), p.input_stride, 1, s.plan.source_width, image, b, 0,
                     from.first),
              from.last - from.first, source);
    for (int64_t j = 0; j < s.filters; ++j) {
      pack_rows(s.slab(static_cast<const T*>(p.output), p.output_stride, s.filters, s.plan.width, image, b, j,
                       rows.first),
                rows.last - rows.first, gradient);
      runner.tile.sums = sums + j * s.taps;
      for (int64_t y = rows.first; y < rows.last; ++y) {
        runner.tile.rows = 0;
        runner.add_rows(y, source - from.first * row, row, 0);
        runner.run_row(gradient + (y - rows.first) * gradient_row, const_cast<A*>(runner.zeros));
      }
    }
  }
}

template <class T>
void weight(const Conv2dParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const Planes<T> s(p, Conv2dPass::backward_weight);
  Pieces pieces{static_cast<char*>(p.scratch)};
  const Shared<T> shared(s, pieces);
  const int64_t tasks = s.blocks * s.parts, threads = workers_for(parallel, tasks);
  Tasks shares(threads, tasks);
  parallel(threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) {
      Pieces own{pieces.next + slot * s.slot_bytes()};
      RowRunner<A> runner(
          s.plan, shared.tables, p.kernel_height, all, shared.zeros,
          (inputs_of(p) > 1 ? grouped_weight_tile<A> : depthwise_weight_tile<A>)(s.plan.shape), own);
      A* source = own.take<A>(s.set_elements());
      A* gradient = own.take<A>(s.max_rows * s.plan.width * all);
      for (int64_t i; (i = shares.take(slot)) >= 0;) {
        const int64_t b = i / s.parts, part = i % s.parts;
        weight_part(s, b, part, runner, source, gradient, shared.weights + (part * s.blocks + b) * s.block);
      }
    }
  });
  parallel(s.blocks, ceil_div(16, inputs_of(p)), [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      for (int64_t j = 0; j < s.filters; ++j)
        unpack_taps(p, shared.weights + b * s.block + j * s.taps, s.blocks * s.block, s.parts,
                    static_cast<T*>(p.weight) + (b * all * s.filters + j) * p.weight_stride[0],
                    s.filters * p.weight_stride[0], s.channels_of(b));
  });
}

}  // namespace

namespace planes {

bool serves(const Conv2dParams& p, Conv2dPass) { return is_depthwise(p); }

int64_t scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  int64_t bytes = 0;
  dispatch_trained(p.dtype, [&](auto type) { bytes = Planes<decltype(type)>(p, pass).bytes(threads); });
  return bytes;
}

void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  dispatch_trained(p.dtype, [&](auto type) {
    using T = decltype(type);
    pass == Conv2dPass::backward_weight ? weight<T>(p, parallel) : convolve<T>(p, pass, parallel);
  });
}

}  // namespace planes

}  // namespace pydl::cpu::PYDL_ISA::depthwise
