// Depthwise convolution of channels_last tensors, where they lie. See depthwise.h.
//
// The weight gradient's rows are cut into a fixed number of parts, whose sums are added in order.
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/conv2d/depthwise/rows.h"
#include "kernels/machine.h"

namespace pydl::cpu::PYDL_ISA::depthwise {
namespace {

constexpr int64_t kMaxParts = 16;  // of the rows, for the weight gradient

template <class T>
struct Pixels {
  using A = acc_t<T>;
  static constexpr int64_t all = lanes<A>;
  const Conv2dParams& p;
  RowPlan plan;
  int64_t channels, blocks, block, parts;

  Pixels(const Conv2dParams& p, Conv2dPass pass) : p(p), plan(p, pass) {
    channels = p.in_channels;
    blocks = ceil_div(channels, all);
    const int64_t taps = inputs_of(p) * p.kernel_height * p.kernel_width * all;
    const bool weight = pass == Conv2dPass::backward_weight;
    block = weight ? taps : taps + all;  // then the bias
    parts = weight ? max_of(1, min_of(p.batch * p.out_height, kMaxParts)) : 1;
  }
  bool prefetch() const {
    const int64_t pixels = p.in_height * p.in_width + p.out_height * p.out_width;
    const int64_t bytes = p.batch * channels * pixels * static_cast<int64_t>(sizeof(T));
    // beyond the last-level cache the hardware loses the many streams of a tile; within it, a prefetch costs 5 %
    return bytes > last_level_bytes() && p.input_stride[2] == p.in_width * channels &&
           p.output_stride[2] == p.out_width * channels;
  }
  int64_t slot_bytes() const { return RowRunner<T>::bytes(plan, p.kernel_height, channels) + kApart; }
  int64_t bytes(int64_t threads) const {
    return Pieces::bytes<A>(parts * blocks * block) + Pieces::bytes<T>(channels) + plan.table_bytes() +
           threads * slot_bytes();
  }
};

// Whether every vector of a tensor's channels is aligned as stores past the caches want it.
template <class T>
bool aligned(const T* data, const int64_t* stride, int64_t channels) {
  constexpr int64_t vector = lanes<acc_t<T>>;
  return channels % vector == 0 && reinterpret_cast<uintptr_t>(data) % (vector * sizeof(T)) == 0 &&
         stride[0] % vector == 0 && stride[2] % vector == 0 && stride[3] % vector == 0;
}

template <class T>
void convolve(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const Pixels<T> s(p, pass);
  const bool backward = s.plan.backward;
  const int64_t *from_stride = backward ? p.output_stride : p.input_stride,
                *to_stride = backward ? p.input_stride : p.output_stride;
  Pieces pieces{static_cast<char*>(p.scratch)};
  A* weights = pieces.take<A>(s.blocks * s.block);
  T* zeros = pieces.take<T>(s.channels);
  memset(zeros, 0, static_cast<size_t>(s.channels) * sizeof(T));
  const RowTables tables(s.plan, from_stride[3], to_stride[3], pieces);
  const T* bias = backward ? nullptr : static_cast<const T*>(p.bias);
  parallel(s.blocks, ceil_div(16, inputs_of(p)), [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t c = first_channel(b, s.channels, all);
      pack_taps(s.plan, static_cast<const T*>(p.weight) + c * p.weight_stride[0], p.weight_stride[0], all,
                weights + b * s.block);
      if (bias) store(weights + (b + 1) * s.block - all, load(bias + c));
    }
  });
  const T* from = static_cast<const T*>(backward ? p.output : p.input);
  T* to = static_cast<T*>(backward ? p.input : p.output);
  const int64_t height = backward ? p.in_height : p.out_height, rows = p.batch * height;
  const int64_t threads = workers_for(parallel, rows);
  const int64_t result_bytes = rows * s.plan.width * s.channels * static_cast<int64_t>(sizeof(T));
  // half of the usual, since the input is read more than once, row by row, and wants to stay;
  // not for the interleaved results of stride 2 backward, where it was twice as slow
  const bool stream = s.plan.shape.pattern != TileShape::transposed &&
                      result_bytes >= least_streamed_bytes() / 2 && aligned(to, to_stride, s.channels);
  Tasks shares(threads, rows);
  parallel(threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) {
      Pieces own{pieces.next + slot * s.slot_bytes()};
      RowRunner<T> runner(s.plan, tables, p.kernel_height, s.channels, zeros,
                          (inputs_of(p) > 1 ? grouped_tile<T> : depthwise_tile<T>)(s.plan.shape), own);
      runner.tile.weights = weights;
      runner.tile.block = s.block;
      runner.tile.bias = bias ? weights + s.block - all : nullptr;
      runner.tile.activation = backward ? Activation::none : p.activation;
      runner.tile.stream = stream;
      for (int64_t i; (i = shares.take(slot)) >= 0;) {
        const int64_t image = i / height, y = i % height;
        const T* source = from + image * from_stride[0];
        runner.tile.rows = 0;
        runner.add_rows(y, source, from_stride[2], 0);
        if (s.prefetch()) runner.prefetch_rows(y, height, source, from_stride[2]);
        runner.run_row(to + image * to_stride[0] + y * to_stride[2], runner.sink);
      }
      if (stream) stream_fence();
    }
  });
}

template <class T>
void weight(const Conv2dParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const Pixels<T> s(p, Conv2dPass::backward_weight);
  Pieces pieces{static_cast<char*>(p.scratch)};
  const int64_t sums = s.blocks * s.block;
  A* partials = pieces.take<A>(s.parts * sums);  // [part][block][row][tap][lane]
  T* zeros = pieces.take<T>(s.channels);
  memset(zeros, 0, static_cast<size_t>(s.channels) * sizeof(T));
  const RowTables tables(s.plan, p.input_stride[3], p.output_stride[3], pieces);
  const int64_t rows = p.batch * p.out_height, threads = workers_for(parallel, s.parts);
  Tasks shares(threads, s.parts);
  parallel(threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) {
      Pieces own{pieces.next + slot * s.slot_bytes()};
      RowRunner<T> runner(
          s.plan, tables, p.kernel_height, s.channels, zeros,
          (inputs_of(p) > 1 ? grouped_weight_tile<T> : depthwise_weight_tile<T>)(s.plan.shape), own);
      runner.tile.block = s.block;
      for (int64_t part; (part = shares.take(slot)) >= 0;) {
        runner.tile.sums = partials + part * sums;
        memset(runner.tile.sums, 0, static_cast<size_t>(sums) * sizeof(A));
        for (int64_t i = rows * part / s.parts; i < rows * (part + 1) / s.parts; ++i) {
          const int64_t image = i / p.out_height, y = i % p.out_height;
          const T* source = static_cast<const T*>(p.input) + image * p.input_stride[0];
          runner.tile.rows = 0;
          runner.add_rows(y, source, p.input_stride[2], 0);
          if (s.prefetch()) runner.prefetch_rows(y, p.out_height, source, p.input_stride[2]);
          runner.run_row(static_cast<T*>(p.output) + image * p.output_stride[0] + y * p.output_stride[2],
                         zeros);
        }
      }
    }
  });
  parallel(s.blocks, ceil_div(16, inputs_of(p)), [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      unpack_taps(p, partials + b * s.block, sums, s.parts,
                  static_cast<T*>(p.weight) + first_channel(b, s.channels, all) * p.weight_stride[0],
                  p.weight_stride[0], all);
  });
}

}  // namespace

namespace pixels {

bool serves(const Conv2dParams& p, Conv2dPass) {
  const int64_t all = lanes<float>;
  return is_depthwise(p) && p.out_channels == p.in_channels && p.input_stride[1] == 1 &&
         p.output_stride[1] == 1 && p.in_channels >= all;
}

int64_t scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  int64_t bytes = 0;
  dispatch_trained(p.dtype, [&](auto type) { bytes = Pixels<decltype(type)>(p, pass).bytes(threads); });
  return bytes;
}

void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  dispatch_trained(p.dtype, [&](auto type) {
    using T = decltype(type);
    pass == Conv2dPass::backward_weight ? weight<T>(p, parallel) : convolve<T>(p, pass, parallel);
  });
}

}  // namespace pixels

}  // namespace pydl::cpu::PYDL_ISA::depthwise
