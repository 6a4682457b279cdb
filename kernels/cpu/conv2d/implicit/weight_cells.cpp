// The weight gradient over disjoint cells (cells.h).
#include "kernels/cpu/base/scratch.h"
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/conv2d/implicit/cells.h"
#include "kernels/cpu/conv2d/spoiled.h"

namespace pydl::cpu::PYDL_ISA::implicit {
namespace {

using gemm::kDepth;
using gemm::kMr;
using gemm::kNr;

template <class T>
void weight_gradient(const Conv2dParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  const Cells cells(p);
  Pieces pieces{static_cast<char*>(p.scratch)};
  const int64_t rows = cells.rows(), depth = cells.depth(), pitch = cells.pitch<A>();
  A* gradients = pieces.take<A>(rows * pitch);
  parallel(rows, 64, [&](int64_t begin, int64_t end) { pack_gradients<T>(cells, begin, end, gradients); });
  const int64_t line_pitch = cells.line_pitch<A>(), at_once = cells.lines_at_once(parallel.threads);
  const int64_t own = Pieces::bytes<A>((kDepth + at_once * depth) * line_pitch) + kApart,
                parts = ceil_div(rows, kDepth);
  run_tasks(parallel, ceil_div(cells.lines(), at_once), [&](int64_t task, int64_t worker) {
    A* pixels = reinterpret_cast<A*>(pieces.next + worker * own);
    A* results = pixels + kDepth * line_pitch;
    const int64_t first = task * at_once, end = min_of(first + at_once, cells.lines());
    gemm::PanelProduct<A> product{};
    product.rows = depth;
    product.left_pitch = pitch;
    product.left_columns = true;
    product.right_pitch = line_pitch;
    product.alpha = 1;
    product.result_pitch = line_pitch;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t row = rows * part / parts;
      product.depth = rows * (part + 1) / parts - row;
      product.left = gradients + row * pitch;
      product.add = part > 0;
      for (int64_t line = first; line < end; ++line) {
        pack_line<T>(cells, row, row + product.depth, line, pixels, line_pitch);
        gemm::Ahead ahead;  // the next line, or the next part's first: short rows of memory
        const bool last = line + 1 == end;
        const int64_t next = last ? rows * (part + 1) / parts : row,
                      after = last ? rows * (part + 2) / parts : row + product.depth;
        if (!last || part + 1 < parts) cells.add_lines<T>(ahead, next, after, last ? first : line + 1, 1);
        ahead.spread_over(ceil_div(p.stride_width, kNr<A>) * ceil_div(depth, kMr) *
                          ceil_div(product.depth, gemm::kFetchSteps));
        product.ahead = &ahead;
        for (int64_t column = 0; column < p.stride_width; column += kNr<A>) {
          product.columns = min_of(kNr<A>, p.stride_width - column);
          product.right = pixels + column;
          product.result = results + (line - first) * depth * line_pitch + column;
          gemm::multiply_panel(product);
        }
      }
    }
    vec<A> seen{};
    for (int64_t line = first; line < end; ++line)
      for (int64_t k = 0; k < depth; ++k) {
        T* to = cells.weights<T>(k, line);
        for (int64_t j = 0; j < p.stride_width; j += lanes<A>) {
          const int64_t n = min_of(lanes<A>, p.stride_width - j);
          const vec<A> v = load_n(results + ((line - first) * depth + k) * line_pitch + j, n);
          watch(v, seen);
          store_n(to + j, v, n);
        }
      }
    report_spoiled(seen, p.spoiled);
  });
}

}  // namespace

namespace weight_cells {

bool serves(const Conv2dParams& p, Conv2dPass pass) { return cells::serves(p, pass); }

int64_t scratch(const Conv2dParams& p, Conv2dPass, int64_t threads) {
  using A = float;
  const Cells cells(p);
  return Pieces::bytes<A>(cells.rows() * cells.pitch<A>()) +
         threads * (Pieces::bytes<A>((kDepth + cells.lines_at_once(threads) * cells.depth()) *
                                     cells.line_pitch<A>()) +
                    kApart);
}

void run(const Conv2dParams& p, Conv2dPass, const Parallel& parallel) {
  dispatch_trained(p.dtype, [&](auto type) { weight_gradient<decltype(type)>(p, parallel); });
}

}  // namespace weight_cells
}  // namespace pydl::cpu::PYDL_ISA::implicit
