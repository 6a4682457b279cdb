// The weight gradient of 1x1 kernels: a product of two matrices whose common axis is the pixels.
//
//   grad_weight[o][c] = sum over pixels of grad_output[pixel][o] * input[pixel][c]
//
// No taps share a slab here, so both sides are packed, in chunks of pixels, but those that lie as the microkernel wants
// them (Side::in_place), of which the next chunk is fetched meanwhile: the gradient in tiles of two
// vectors of output channels, the input in blocks of as many channels as the microkernel has rows, a whole
// number of vectors apart. A block of the input (8 KB) then stays in the first-level cache while the tiles
// of the gradient pass by in order, which the hardware fetches ahead. Pixels that lie a power of two
// apart would share a few cache sets.
//
// A task owns a block of input channels, a block of output channels and a part of the pixels.
#include <type_traits>
#include <utility>

#include "kernels/cpu/conv2d/implicit/weight.h"
#include "kernels/cpu/gemm/windows.h"

namespace pydl::cpu::PYDL_ISA::implicit {
namespace {

// One of the two matrices: channels of pixels, wherever they lie.
template <class T>
struct Side {
  const T* data;
  int64_t image, channel, row, column;  // elements between neighbours

  const T* at(const Run& run, int64_t c) const {
    return data + run.image * image + run.row * row + run.column * column + c * channel;
  }
  // Whether a chunk of pixels, all whole vectors of `channels`, can be multiplied where it lies: without jumps, and
  // spread over the sets of the first-level cache.
  bool in_place(const Conv2dParams& p, int64_t channels) const {
    constexpr int64_t kSets = 512 / sizeof(T);
    return __is_same(T, acc_t<T>) && channel == 1 && column % kSets != 0 && channels % lanes<T> == 0 &&
           (p.out_height == 1 || row == column * p.out_width) &&
           (p.batch == 1 || image == column * p.out_width * p.out_height);
  }
};

// Up to a vector of channels, and where they go: to[pixel * pitch + i].
template <class A>
struct Strip {
  int64_t channel, count;
  A* to;
};

// Strips of all pixels of a chunk. Lanes beyond a strip's count may be written, with anything.
template <class T, class A>
void pack_strips(const Side<T>& side, const Run* runs, int64_t n_runs, const Strip<A>* strips, int64_t n,
                 int64_t pitch) {
  for (int64_t r = 0; r < n_runs; ++r) {
    const int64_t at = runs[r].at * pitch;
    if (side.channel == 1) {         // all strips of a pixel in succession, as they lie
      constexpr int64_t kAhead = 4;  // pixels
      const T* from = side.at(runs[r], 0);
      for (int64_t j = 0; j < runs[r].count; ++j, from += side.column)
        for (int64_t i = 0; i < n; ++i) {
          const T* x = from + strips[i].channel;
          prefetch(x + kAhead * side.column);
          store(strips[i].to + at + j * pitch,
                strips[i].count == lanes<A> ? load(x) : load_n(x, strips[i].count));
        }
      continue;
    }
    for (int64_t i = 0; i < n; ++i) {
      const T* from = side.at(runs[r], strips[i].channel);
      A* to = strips[i].to + at;
      if constexpr (__is_same(A, float)) {
        if (side.column == 1) {
          transpose_in(from, side.channel, strips[i].count, runs[r].count, to, pitch,
                       i + 1 < n ? side.at(runs[r], strips[i + 1].channel) : from);
          continue;
        }
        for (int64_t j = 0; j < runs[r].count; j += lanes<A>) {
          const int64_t some = min_of(lanes<A>, runs[r].count - j);
          A rows[lanes<A> * lanes<A>];
          for (int64_t c = 0; c < strips[i].count; ++c) {
            const T* row = from + c * side.channel + j * side.column;
            if (side.column == 2)
              copy_span<2>(rows + c * lanes<A>, row, 0, some, some);
            else
              copy_strided(rows + c * lanes<A>, row, side.column, some);
          }
          transpose_in(rows, lanes<A>, strips[i].count, some, to + j * pitch, pitch);
        }
      } else {
        for (int64_t j = 0; j < runs[r].count; ++j)
          for (int64_t c = 0; c < strips[i].count; ++c)
            to[j * pitch + c] = load_n(from + j * side.column + c * side.channel, 1)[0];
      }
    }
  }
}

template <class T>
struct Pointwise {
  using Type = T;
  using A = acc_t<T>;
  static constexpr int64_t kPixels = 128;              // of a chunk, at most
  static constexpr int64_t kChannels = 256;            // of a task, at most:
  static constexpr int64_t kOutChannels = 256;         // panels of 160 and 128 KB, 256 KB of sums, in L2
  static constexpr int64_t kTasks = 16;                // wanted, while each sums a chunk
  static constexpr int64_t kMaxSplitBytes = 32 << 20;  // of partial sums
  static constexpr int64_t kLeft = ceil_div(static_cast<int64_t>(kMr), lanes<A>) * lanes<A>;

  const Conv2dParams& p;
  Side<T> left, right;  // input and gradient, or the other way round where that fills more lanes
  int64_t pixels, chunks, chunk;
  WeightSums<A> sums;

  explicit Pointwise(const Conv2dParams& p)
      : p(p),
        pixels(p.batch * p.out_height * p.out_width),
        chunks(max_of(1, ceil_div(pixels, kPixels))),
        chunk(ceil_div(ceil_div(pixels, chunks), lanes<A>) * lanes<A>) {
    int64_t channels = p.in_channels / p.groups, columns = p.out_channels / p.groups;
    left = {static_cast<const T*>(p.input), p.input_stride[0], p.input_stride[1],
            p.input_stride[2] * p.stride_height, p.input_stride[3] * p.stride_width};
    right = {static_cast<const T*>(p.output), p.output_stride[0], p.output_stride[1], p.output_stride[2],
             p.output_stride[3]};
    auto lanes_used = [](int64_t rows, int64_t count) { return rows * ceil_div(count, kNr<A>); };
    const bool swapped = lanes_used(columns, channels) < lanes_used(channels, columns);
    if (swapped) {
      std::swap(left, right);
      std::swap(channels, columns);
    }
    const int64_t tiles = ceil_div(columns, kNr<A>);
    const int64_t blocks = max_of(1, ceil_div(channels, kChannels));
    const int64_t column_blocks = max_of(1, ceil_div(tiles * kNr<A>, kOutChannels));
    sums = {channels,
            columns,
            1,
            max_of(1, ceil_div(channels, blocks)),
            max_of(1, ceil_div(tiles, column_blocks)),
            1,
            swapped};
    const int64_t tasks = max_of(1, p.groups * sums.blocks() * sums.column_blocks());
    sums.splits = min_of(max_of(1, ceil_div(kTasks, tasks)), chunks);
    sums.splits = max_of(
        1, min_of(sums.splits, kMaxSplitBytes / (tasks * sums.partial() * static_cast<int64_t>(sizeof(A)))));
  }

  int64_t tasks() const { return p.groups * sums.per_group(); }
  int64_t row_blocks(int64_t channels) const { return ceil_div(channels, static_cast<int64_t>(kMr)); }
  // Elements of a panel; the panels of a power of two of pixels would share their cache sets.
  int64_t left_panel() const { return chunk * kLeft + lanes<A>; }
  int64_t right_panel() const { return chunk * kNr<A> + lanes<A>; }
  int64_t left_elements() const { return row_blocks(sums.block_channels) * left_panel(); }
  int64_t right_elements() const { return sums.block_tiles * right_panel(); }
  int64_t slot_bytes() const {
    return Pieces::bytes<A>(left_elements()) + Pieces::bytes<A>(right_elements()) +
           Pieces::bytes<Run>(chunk) + kApart;
  }
  int64_t bytes(int64_t threads) const {
    return Pieces::bytes<A>(tasks() * sums.partial()) + threads * slot_bytes();
  }

  void run(int64_t task, A* to, Pieces scratch) const {
    const int64_t split = task % sums.splits, column_block = task / sums.splits % sums.column_blocks();
    const int64_t block = task / sums.splits / sums.column_blocks() % sums.blocks();
    const int64_t group = task / sums.per_group();
    const int64_t c0 = block * sums.block_channels,
                  channels = min_of(sums.block_channels, sums.channels - c0);
    const int64_t o0 = column_block * sums.block_tiles * kNr<A>;
    const int64_t columns = min_of(sums.block_tiles * kNr<A>, sums.columns - o0);
    const int64_t rows = row_blocks(channels), tiles = ceil_div(columns, kNr<A>);
    A* rows_panel = scratch.take<A>(left_elements());
    A* columns_panel = scratch.take<A>(right_elements());
    Run* runs = scratch.take<Run>(chunk);
    Strip<A> left_strips[ceil_div(kChannels, static_cast<int64_t>(kMr)) * (kLeft / lanes<A>)];
    Strip<A> right_strips[kOutChannels / lanes<A>];
    int64_t n_left = 0, n_right = 0;
    for (int64_t c = 0; c < columns; c += lanes<A>)
      right_strips[n_right++] = {group * sums.columns + o0 + c, min_of(lanes<A>, columns - c),
                                 columns_panel + c / kNr<A> * right_panel() + c % kNr<A>};
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row0 = channels * r / rows, row1 = channels * (r + 1) / rows;
      // whole vectors where the channels go on: the microkernel reads its rows alone
      for (int64_t c = row0; c < row1; c += lanes<A>)
        left_strips[n_left++] = {group * sums.channels + c0 + c, min_of(lanes<A>, sums.channels - c0 - c),
                                 rows_panel + r * left_panel() + c - row0};
    }
    const int64_t first = chunks * split / sums.splits, last = chunks * (split + 1) / sums.splits;
    const int64_t left0 = group * sums.channels + c0, right0 = group * sums.columns + o0;
    const bool left_in_place = left.in_place(p, lanes<T>), right_in_place = right.in_place(p, columns);
    // bytes of the next chunk that come while a step of this one is multiplied
    const int64_t line = min_of(64, ceil_div(right.column * static_cast<int64_t>(sizeof(T)), rows * tiles));
    for (int64_t i = first; i < last; ++i) {
      const int64_t count = min_of(chunk, pixels - i * chunk);
      const int64_t n_runs = cut_runs(i * chunk, count, p.out_height, p.out_width, runs);
      if (!right_in_place) pack_strips(right, runs, n_runs, right_strips, n_right, kNr<A>);
      if (!left_in_place) pack_strips(left, runs, n_runs, left_strips, n_left, kLeft);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row0 = channels * r / rows, row1 = channels * (r + 1) / rows;
        const int64_t nowhere = 0;
        OuterBlock<A> outer{rows_panel + r * left_panel(),
                            &nowhere,
                            kLeft,
                            1,
                            count,
                            columns_panel,
                            to + row0 * kNr<A>,
                            i > first};
        int64_t next = right_panel();
        if constexpr (__is_same(T, A)) {
          if (left_in_place) {
            outer.left = left.data + i * chunk * left.column + left0 + row0;
            outer.step = left.column;
          }
          if (right_in_place) {
            outer.right = right.data + i * chunk * right.column + right0;
            outer.right_pitch = right.column;
            outer.ahead = {
                reinterpret_cast<const char*>(outer.right + chunk * right.column) + r * tiles * count * line,
                line};
            next = kNr<A>;
          }
        }
        for (int64_t t = 0; t < tiles; ++t, outer.ahead.at += count * outer.ahead.step) {
          gemm_outer(row1 - row0, min_of(kNr<A>, columns - t * kNr<A>), outer);
          outer.right += next;
          outer.sums += channels * kNr<A>;
        }
      }
    }
  }
};

template <class F>
void with_plan(const Conv2dParams& p, const F& body) {
  dispatch_trained(p.dtype, [&](auto type) { body(Pointwise<decltype(type)>(p)); });
}

}  // namespace

namespace weight_pointwise {

bool serves(const Conv2dParams& p, Conv2dPass) {
  return p.dtype != DType::f64 && p.kernel_height == 1 && p.kernel_width == 1 && p.pad_top == 0 &&
         p.pad_left == 0 && (p.out_height - 1) * p.stride_height < p.in_height &&
         (p.out_width - 1) * p.stride_width < p.in_width;
}

int64_t scratch(const Conv2dParams& p, Conv2dPass, int64_t threads) {
  int64_t bytes = 0;
  with_plan(p, [&](const auto& plan) { bytes = plan.bytes(threads); });
  return bytes;
}

void run(const Conv2dParams& p, Conv2dPass, const Parallel& parallel) {
  with_plan(p, [&](const auto& plan) {
    using T = typename std::remove_cvref_t<decltype(plan)>::Type;
    using A = acc_t<T>;
    Pieces pieces{static_cast<char*>(p.scratch)};
    A* partials = pieces.template take<A>(plan.tasks() * plan.sums.partial());
    run_tasks(parallel, plan.tasks(), [&](int64_t task, int64_t slot) {
      plan.run(task, partials + task * plan.sums.partial(), Pieces{pieces.next + slot * plan.slot_bytes()});
    });
    write_weights<T, A>(p, plan.sums, partials, parallel);
  });
}

}  // namespace weight_pointwise
}  // namespace pydl::cpu::PYDL_ISA::implicit
