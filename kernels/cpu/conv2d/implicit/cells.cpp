// The forward and the input gradient over disjoint cells (cells.h).
#include "kernels/cpu/conv2d/implicit/cells.h"

#include "kernels/cpu/base/activation.h"
#include "kernels/cpu/base/scratch.h"
#include "kernels/cpu/base/simd_transpose.h"
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/conv2d/spoiled.h"
#include "kernels/cpu/gemm/parts.h"
#include "kernels/machine.h"

namespace pydl::cpu::PYDL_ISA::implicit {
namespace {

using gemm::kDepth;
using gemm::kMr;
using gemm::kNr;

constexpr int64_t kWeightsAhead = 8;  // numbers of the depth whose weights are on their way
constexpr int64_t kRows = 8 * kMr;    // cells at once: their gradients and results stay in the first cache

// ---- the input gradient

// Writes a line of each cell; past the caches where lines of memory are written whole.
template <class T, class A>
PYDL_INLINE void write_line(const Cells& cells, int64_t begin, int64_t end, int64_t line, const A* from,
                            bool past_cache, vec<A>& seen) {
  const T* biases = static_cast<const T*>(cells.p.bias);
  const vec<A> bias = biases ? vec<A>{} + load_n(biases + line / cells.p.stride_height, 1)[0] : vec<A>{};
  const int64_t width = cells.p.stride_width, pitch = cells.line_pitch<A>();
  const bool whole_lines = past_cache && width * static_cast<int64_t>(sizeof(T)) % 64 == 0;
  cells.each_line<T>(begin, end, line, [&](int64_t row, T* at, int64_t low, int64_t high) PYDL_INLINE_LAMBDA {
    const bool streams =
        whole_lines && low == 0 && high == width && reinterpret_cast<uintptr_t>(at) % 64 == 0;
    for (int64_t j = 0; j < width; j += lanes<A>) {
      vec<A> v = load(from + row * pitch + j);
      watch(v, seen);
      v = activate<A>(v + bias, cells.p.activation);
      streams ? stream(at + j, v) : store_between(at + j, v, low - j, high - j);
    }
  });
}

template <class T>
void input_gradient(const Conv2dParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  const Cells cells(p);
  Pieces pieces{static_cast<char*>(p.scratch)};
  const int64_t rows = cells.rows(), depth = cells.depth(), pitch = cells.pitch<A>();
  const int64_t line_pitch = cells.line_pitch<A>(), at_once = cells.lines_at_once(parallel.threads);
  A* gradients = pieces.take<A>(rows * pitch);
  parallel(rows, 64, [&](int64_t begin, int64_t end) { pack_gradients<T>(cells, begin, end, gradients); });
  const int64_t own = Pieces::bytes<A>((at_once * depth + kRows) * line_pitch) + kApart;
  const int64_t numbers = p.batch * p.in_channels * p.in_height * p.in_width;
  const bool past_cache = numbers * static_cast<int64_t>(sizeof(T)) >= least_streamed_bytes();
  run_tasks(parallel, ceil_div(cells.lines(), at_once), [&](int64_t task, int64_t worker) {
    A* weights = reinterpret_cast<A*>(pieces.next + worker * own);
    A* results = weights + at_once * depth * line_pitch;
    const int64_t first = task * at_once, end = min_of(first + at_once, cells.lines());
    for (int64_t line = first; line < end; ++line)
      for (int64_t k = 0; k < depth; ++k) {
        const T* const from = cells.weights<const T>(k, line);
        // the next part's or channel's lie pages apart, which no hardware looks ahead of
        const T* const next = cells.weights<const T>(min_of(k + kWeightsAhead, depth - 1), line);
        for (int64_t j = 0; j < line_pitch; j += lanes<A>) {  // by panels: [depth][kNr]
          prefetch(next + j);
          store(weights + ((line - first) * line_pitch + j / kNr<A> * kNr<A>)*depth + k * kNr<A> + j % kNr<A>,
                j < p.stride_width ? load_n(from + j, min_of(lanes<A>, p.stride_width - j)) : vec<A>{});
        }
      }
    vec<A> seen{};
    gemm::PanelProduct<A> product{};
    product.depth = depth;
    product.left_pitch = pitch;
    product.right_pitch = kNr<A>;
    product.alpha = 1;
    product.result_pitch = line_pitch;
    for (int64_t row = 0; row < rows; row += kRows) {
      product.rows = min_of(kRows, rows - row);
      product.left = gradients + row * pitch;
      for (int64_t line = first; line < end; ++line) {
        for (int64_t column = 0; column < p.stride_width; column += kNr<A>) {
          product.columns = min_of(kNr<A>, p.stride_width - column);
          product.right = weights + ((line - first) * line_pitch + column) * depth;
          product.result = results + column;
          gemm::multiply_in_parts(product);
        }
        write_line<T>(cells, row, row + product.rows, line, results, past_cache, seen);
      }
    }
    report_spoiled(seen, p.spoiled);
    if (past_cache) stream_fence();
  });
}

// ---- the forward

// The weights transposed, in groups of so many lines of a cell as make a depth: panels of [depth][kNr], one for each
// kNr of the (part, o), group after group.
struct Groups {
  const Cells& cells;
  int64_t lines, count, columns;  // lines of a group; groups; (part, o) in whole panels

  template <class A>
  static Groups of(const Cells& cells) {
    const int64_t lines = min_of(cells.p.stride_height, max_of(1, kDepth / cells.p.stride_width));
    return {cells, lines, ceil_div(cells.lines(), lines), ceil_div(cells.depth(), kNr<A>) * kNr<A>};
  }
  int64_t depth(int64_t group) const {
    return min_of(lines, cells.lines() - group * lines) * cells.p.stride_width;
  }
  int64_t at(int64_t group) const { return group * lines * cells.p.stride_width * columns; }
  int64_t weights() const { return cells.lines() * cells.p.stride_width * columns; }
  template <class A>
  int64_t pitch() const {
    return lines * cells.p.stride_width + 2 * lanes<A>;
  }
};

template <class T, class A>
void pack_transposed(const Groups& groups, int64_t group, A* to) {
  constexpr int L = lanes<A>;
  const Cells& cells = groups.cells;
  const int64_t depth = groups.depth(group), width = cells.p.stride_width, end = cells.depth();
  for (int64_t k = 0; k < groups.columns; k += L) {
    A* column = to + k / kNr<A> * kNr<A> * depth + k % kNr<A>;
    for (int64_t line = 0; line < depth / width; ++line) {
      const T* from[L];
      for (int64_t i = 0; i < L; ++i)
        from[i] = k + i < end ? cells.weights<const T>(k + i, group * groups.lines + line) : nullptr;
      for (int64_t x = 0; x < width; x += L) {
        const int64_t n = min_of(L, width - x);
        vec<A> block[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) block[i] = from[i] ? load_n(from[i] + x, n) : vec<A>{};
        transpose(block);
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) {
          if (i >= n) break;
          store(column, block[i]);
          column += kNr<A>;
        }
      }
    }
  }
}

// The output pixels of rows [begin, end), counted over images: the sums over parts of what the cells have for them.
template <class T, class A>
void write_output(const Cells& cells, const A* sums, int64_t pitch, int64_t begin, int64_t end) {
  const Conv2dParams& p = cells.p;
  const int64_t* stride = p.output_stride;
  for (int64_t row = begin; row < end; ++row)
    for (int64_t x = 0; x < p.out_width; ++x) {
      const int64_t image = row / p.out_height, y = row % p.out_height;
      T* to = static_cast<T*>(p.output) + image * stride[0] + y * stride[2] + x * stride[3];
      for (int64_t o = 0; o < p.out_channels; o += lanes<A>) {
        const int64_t n = min_of(lanes<A>, p.out_channels - o);
        vec<A> sum = p.bias ? load_n(static_cast<const T*>(p.bias) + o, n) : vec<A>{};
        for (int64_t part = 0; part < cells.parts_y * cells.parts_x; ++part) {
          const int64_t i = y + part / cells.parts_x - cells.first_y,
                        j = x + part % cells.parts_x - cells.first_x;
          if (i < 0 || i >= cells.height || j < 0 || j >= cells.width) continue;
          const int64_t cell = (image * cells.height + i) * cells.width + j;
          sum += load_n(sums + cell * pitch + part * p.out_channels + o, n);
        }
        sum = activate<A>(sum, p.activation);
        if (stride[1] == 1) {
          store_n(to + o, sum, n);
          continue;
        }
        for (int64_t i = 0; i < n; ++i) store_n(to + (o + i) * stride[1], broadcast(sum[i]), 1);
      }
    }
}

// Rows of a task: many, since each goes through all weights, and as many tasks for each thread.
int64_t rows_at_once(int64_t rows, int64_t threads) {
  const int64_t rounds = ceil_div(rows, threads * 2 * kRows);
  return ceil_div(rows, rounds * threads);
}

template <class T>
void forward(const Conv2dParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  const Cells cells(p);
  const Groups groups = Groups::of<A>(cells);
  Pieces pieces{static_cast<char*>(p.scratch)};
  const int64_t rows = cells.rows(), pitch = groups.pitch<A>();
  A* weights = pieces.take<A>(groups.weights());
  A* sums = pieces.take<A>(rows * groups.columns);
  const int64_t most = rows_at_once(rows, parallel.threads), own = Pieces::bytes<A>(most * pitch) + kApart;
  parallel(groups.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group)
      pack_transposed<T>(groups, group, weights + groups.at(group));
  });
  run_tasks(parallel, ceil_div(rows, most), [&](int64_t task, int64_t worker) {
    A* left = reinterpret_cast<A*>(pieces.next + worker * own);
    const int64_t row = task * most, count = min_of(most, rows - row);
    gemm::PanelProduct<A> product{};
    product.rows = count;
    product.left = left;
    product.left_pitch = pitch;
    product.right_pitch = kNr<A>;
    product.alpha = 1;
    product.result_pitch = groups.columns;
    for (int64_t group = 0; group < groups.count; ++group) {
      product.depth = groups.depth(group);
      product.add = group > 0;
      // the pixels of the next group: short rows of memory, which no hardware looks ahead of
      gemm::Ahead ahead;
      if (group + 1 < groups.count)
        cells.add_lines<T>(ahead, row, row + count, (group + 1) * groups.lines,
                           groups.depth(group + 1) / p.stride_width);
      ahead.spread_over(groups.columns / kNr<A> * ceil_div(count, kMr) *
                        ceil_div(product.depth, gemm::kFetchSteps));
      product.ahead = &ahead;
      for (int64_t line = 0; line < product.depth / p.stride_width; ++line)
        pack_line<T>(cells, row, row + count, group * groups.lines + line, left + line * p.stride_width,
                     pitch);
      for (int64_t column = 0; column < groups.columns; column += kNr<A>) {
        product.columns = min_of(kNr<A>, cells.depth() - column);
        product.right = weights + groups.at(group) + column * product.depth;
        product.result = sums + row * groups.columns + column;
        gemm::multiply_in_parts(product);
      }
    }
    vec<A> seen{};
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < cells.depth(); j += lanes<A>)
        watch(load_n(sums + (row + i) * groups.columns + j, min_of(lanes<A>, cells.depth() - j)), seen);
    report_spoiled(seen, p.spoiled);
  });
  parallel(p.batch * p.out_height, 1,
           [&](int64_t begin, int64_t end) { write_output<T>(cells, sums, groups.columns, begin, end); });
}

}  // namespace

namespace cells {

bool serves(const Conv2dParams& p, Conv2dPass) {
  return p.dtype != DType::f64 && p.groups == 1 && p.dilation_height == 1 && p.dilation_width == 1 &&
         p.kernel_height % p.stride_height == 0 && p.kernel_width % p.stride_width == 0 &&
         p.stride_width >= kNr<float> / 2 && p.input_stride[3] == 1 && p.weight_stride[3] == 1;
}

int64_t scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  using A = float;
  const Cells cells(p);
  const int64_t rows = cells.rows();
  const Groups groups = Groups::of<A>(cells);
  const int64_t gradients = Pieces::bytes<A>(rows * cells.pitch<A>());
  if (pass == Conv2dPass::backward_input)
    return gradients + threads * (Pieces::bytes<A>((cells.lines_at_once(threads) * cells.depth() + kRows) *
                                                   cells.line_pitch<A>()) +
                                  kApart);
  return Pieces::bytes<A>(groups.weights()) + Pieces::bytes<A>(rows * groups.columns) +
         threads * (Pieces::bytes<A>(rows_at_once(rows, threads) * groups.pitch<A>()) + kApart);
}

void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  dispatch_trained(p.dtype, [&](auto type) {
    using T = decltype(type);
    pass == Conv2dPass::forward ? forward<T>(p, parallel) : input_gradient<T>(p, parallel);
  });
}

}  // namespace cells
}  // namespace pydl::cpu::PYDL_ISA::implicit
