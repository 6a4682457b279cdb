// recurrent_products of kernels/recurrent.h: what follows the loop over steps, where the weights are small.
//
//   grad_input     = gradients of a · weight_ih
//   grad_weight_ih = gradients of a, transposed · input        grad_weight_hh = gradients of b, transposed · states
//   grad_bias      = sums of the gradients
//
// As matrix products of their own each would read the gradients of all steps, and most would copy them. Here a chunk of
// rows comes into the second cache once, row by row for the first product, and the others take it from there in place.
// Each group of chunks has sums of its own, which are added in order: the groups are a matter of sizes, not of threads.
#include "kernels/cpu/gemm/pack.h"
#include "kernels/cpu/gemm/parts.h"
#include "kernels/cpu/gemm/windows.h"
#include "kernels/cpu/recurrent/cells.h"
#include "kernels/cpu/recurrent/steps.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

using namespace recurrent;

constexpr int64_t kChunk = 128;  // rows: their gradients stay in the second cache, rounding in bounds
constexpr int64_t kMostGroups = 8;
constexpr int64_t kMostNumbers = 1 << 16;  // of the weights: as many sums has each group

template <class A>
struct Sums {
  int64_t own, width;  // gradients of a or b, and of both
  int64_t input_panels, state_panels;
  int64_t chunks, groups;
  A *input, *state, *bias;  // of one group: panels x own x kNr, the same, width
  A* weights;               // of all: weight_ih in input_panels x own x kNr, if its product is wanted
  A* right;                 // of one worker: a panel of a chunk, of an operand or of a result
  int64_t group_bytes, worker_bytes, bytes;

  Sums(const RecurrentParams& p, int64_t group, int64_t workers, int64_t worker) {
    own = gates_of(p.cell) * p.units;
    width = gradients_of(p.cell) * p.units;
    input_panels = ceil_div(p.features, gemm::kNr<A>);
    state_panels = ceil_div(p.units, gemm::kNr<A>);
    chunks = ceil_div(p.rows, kChunk);
    groups = min_of(chunks, kMostGroups);
    Pieces pieces{static_cast<char*>(p.scratch)};
    weights = pieces.take<A>(p.grad_input ? input_panels * own * gemm::kNr<A> : 0);
    char* const first = pieces.next;
    input = pieces.take<A>(input_panels * own * gemm::kNr<A>);
    state = pieces.take<A>(state_panels * own * gemm::kNr<A>);
    bias = pieces.take<A>(width + lanes<A>);
    group_bytes = pieces.next - first;
    worker_bytes = Pieces::bytes<A>(kChunk * gemm::kNr<A> + lanes<A>) + kApart;
    char* const of_workers = first + groups * group_bytes;
    bytes = of_workers - static_cast<char*>(p.scratch) + workers * worker_bytes;
    right = reinterpret_cast<A*>(of_workers + worker * worker_bytes);
    A** const of_group[] = {&input, &state, &bias};
    for (A** piece : of_group)
      *piece = reinterpret_cast<A*>(reinterpret_cast<char*>(*piece) + group * group_bytes);
  }
};

// Calls body(states, row, count) for pieces of rows [first, end): the states before them, one row after another.
template <class A, class F>
void for_states(const RecurrentParams& p, int64_t first, int64_t end, const F& body) {
  if (p.before) return body(static_cast<const A*>(p.before) + first * p.units, first, end - first);
  const int64_t begins = p.reverse ? p.rows - p.batch : 0,
                begun = begins + p.batch;  // rows of the first step
  for (int64_t row = first; row < end;) {
    const bool initial = row >= begins && row < begun;
    const int64_t stop = min_of(end, initial ? begun : row < begins ? begins : end);
    const A* from =
        initial ? static_cast<const A*>(p.hidden) + (row - begins) * p.units
                : static_cast<const A*>(p.output) + (row + (p.reverse ? p.batch : -p.batch)) * p.units;
    body(from, row, stop - row);
    row = stop;
  }
}

// sums (+)= left, transposed · the panel
template <class A>
void multiply(const RecurrentParams& p, const A* left, int64_t rows, const A* panel, int64_t columns,
              int64_t own, bool accumulate, A* sums) {
  const int64_t from_here = 0;
  for (int64_t m = 0; m < own; m += gemm::kMr) {
    gemm::OuterBlock<A> block{};
    block.left = left + m;
    block.step = p.pitch;
    block.offsets = &from_here;
    block.segments = 1;
    block.depth = rows;
    block.right = panel;
    block.accumulate = accumulate;
    block.sums = sums + m * gemm::kNr<A>;
    gemm::gemm_outer(min_of(gemm::kMr, own - m), columns, block);
  }
}

// grad_input of the rows of a chunk
template <class A>
void multiply_input(const RecurrentParams& p, const Sums<A>& sums, const A* gradients, int64_t rows,
                    A* grad_input) {
  for (int64_t panel = 0; panel < sums.input_panels; ++panel) {
    const int64_t column = panel * gemm::kNr<A>, columns = min_of(gemm::kNr<A>, p.features - column);
    gemm::PanelProduct<A> product{};
    product.rows = rows;
    product.columns = columns;
    product.depth = sums.own;
    product.left = gradients;
    product.left_pitch = p.pitch;
    product.right = sums.weights + panel * sums.own * gemm::kNr<A>;
    product.right_pitch = product.result_pitch = gemm::kNr<A>;
    product.result = sums.right;
    gemm::multiply_in_parts(product);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; j += lanes<A>)
        store_n(grad_input + i * p.features + column + j, load(sums.right + i * gemm::kNr<A> + j),
                min_of(lanes<A>, columns - j));
  }
}

template <class A>
void add_rows(const A* from, int64_t pitch, int64_t rows, int64_t columns, bool accumulate, A* sums) {
  constexpr int64_t L = lanes<A>;
  for (int64_t j = 0; j < columns; j += L) {
    vec<A> sum{};
    for (int64_t i = 0; i < rows; ++i) sum += load(from + i * pitch + j);  // a row's end has room behind it
    store(sums + j, accumulate ? load(sums + j) + sum : sum);
  }
}

template <class A>
void run_group(const RecurrentParams& p, const Sums<A>& sums, int64_t group) {
  const int64_t of_input = sums.width - sums.own;
  const int64_t begin = sums.chunks * group / sums.groups, stop = sums.chunks * (group + 1) / sums.groups;
  for (int64_t chunk = begin; chunk < stop; ++chunk) {
    const int64_t first = chunk * kChunk, end = min_of(first + kChunk, p.rows), rows = end - first;
    const A* gradients = static_cast<const A*>(p.gradients) + first * p.pitch;
    const bool add = chunk > begin;
    if (p.grad_input)
      multiply_input(p, sums, gradients + of_input, rows, static_cast<A*>(p.grad_input) + first * p.features);
    const Matrix input{const_cast<void*>(p.input), p.features, 1};
    for (int64_t panel = 0; p.grad_weight_ih && panel < sums.input_panels; ++panel) {
      const int64_t column = panel * gemm::kNr<A>, columns = min_of(gemm::kNr<A>, p.features - column);
      gemm::pack_panel<A>(input, first, rows, column, columns, sums.right);
      multiply(p, gradients + of_input, rows, sums.right, columns, sums.own, add,
               sums.input + panel * sums.own * gemm::kNr<A>);
    }
    for (int64_t panel = 0; p.grad_weight_hh && panel < sums.state_panels; ++panel) {
      const int64_t column = panel * gemm::kNr<A>, columns = min_of(gemm::kNr<A>, p.units - column);
      for_states<A>(p, first, end, [&](const A* states, int64_t row, int64_t count) {
        gemm::pack_panel<A>({const_cast<A*>(states), p.units, 1}, 0, count, column, columns,
                            sums.right + (row - first) * gemm::kNr<A>);
      });
      multiply(p, gradients, rows, sums.right, columns, sums.own, add,
               sums.state + panel * sums.own * gemm::kNr<A>);
    }
    if (p.grad_bias_ih) add_rows(gradients, p.pitch, rows, sums.width, add, sums.bias);
  }
}

// to[j] = sum over groups of from[j], group by group in order
template <class A>
void add_groups(const A* from, const Sums<A>& sums, int64_t columns, A* to) {
  for (int64_t j = 0; j < columns; j += lanes<A>) {
    vec<A> sum{};
    for (int64_t group = 0; group < sums.groups; ++group)
      sum += load(from + group * sums.group_bytes / static_cast<int64_t>(sizeof(A)) + j);
    store_n(to + j, sum, min_of(lanes<A>, columns - j));
  }
}

template <class A>
void add_panels(const A* from, const Sums<A>& sums, int64_t panels, int64_t columns, int64_t shift,
                void* grad) {
  for (int64_t panel = 0; panel < panels; ++panel)
    for (int64_t m = 0; m < sums.own; ++m) {
      const int64_t column = panel * gemm::kNr<A>;
      add_groups(from + (panel * sums.own + m) * gemm::kNr<A>, sums, min_of(gemm::kNr<A>, columns - column),
                 static_cast<A*>(grad) + (m + shift) % sums.own * columns + column);
    }
}

template <class A>
void run(const RecurrentParams& p, const Parallel& parallel) {
  const Cut cut(p, parallel.threads);
  const Sums<A> all(p, 0, cut.threads, 0);
  for (int64_t panel = 0; p.grad_input && panel < all.input_panels; ++panel)
    gemm::pack_panel<A>({const_cast<void*>(p.weight_ih), p.features, 1}, 0, all.own, panel * gemm::kNr<A>,
                        min_of(gemm::kNr<A>, p.features - panel * gemm::kNr<A>),
                        all.weights + panel * all.own * gemm::kNr<A>);
  run_tasks({parallel.run, cut.threads}, all.groups, [&](int64_t group, int64_t worker) {
    run_group(p, Sums<A>(p, group, cut.threads, worker), group);
  });
  // of the gradients of b those of gru's n come first, and their weights last
  const int64_t last = all.width - all.own, others = all.own - last;
  if (p.grad_weight_ih) add_panels(all.input, all, all.input_panels, p.features, 0, p.grad_weight_ih);
  if (p.grad_weight_hh) add_panels(all.state, all, all.state_panels, p.units, others, p.grad_weight_hh);
  if (p.grad_bias_ih) {
    A *of_input = static_cast<A*>(p.grad_bias_ih), *of_state = static_cast<A*>(p.grad_bias_hh);
    add_groups(all.bias + last, all, all.own, of_input);
    add_groups(all.bias, all, last, of_state + others);
    add_groups(all.bias + last, all, others, of_state);
  }
}

}  // namespace

bool recurrent_products_serves(const RecurrentParams& p) {
  return p.dtype != DType::bf16 && gates_of(p.cell) * p.units * (p.features + p.units) <= kMostNumbers;
}

int64_t recurrent_products_scratch(const RecurrentParams& params, int64_t threads) {
  RecurrentParams p = params;
  p.scratch = nullptr;
  const int64_t workers = Cut(p, threads).threads;
  return p.dtype == DType::f64 ? Sums<double>(p, 0, workers, 0).bytes : Sums<float>(p, 0, workers, 0).bytes;
}

void recurrent_products(const RecurrentParams& p, const Parallel& parallel) {
  p.dtype == DType::f64 ? run<double>(p, parallel) : run<float>(p, parallel);
}

}  // namespace pydl::cpu::PYDL_ISA
