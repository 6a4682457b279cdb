// matmul of kernels/matmul.h: each output is cut into blocks of rows and groups of panels, each a task.
//
// A task takes the depth in equal parts of at most kDepth. For each part and panel it copies the panel of `right`, which
// then stays in the first cache, and multiplies the task's rows with it: so threads share nothing but what they read,
// and wait for nobody. `left` is read where it lies if it can be; its block stays in the second cache meanwhile.
// Each number of the output is a sum over the parts in order, whatever the number of threads and the cut. Of a great
// depth the shapes decide on slices, which are tasks too: each has an output of its own, and these are added in order.
//
// bfloat16 is multiplied in pairs of neighbours along the depth where the CPU has the instruction (an element E of
// microkernel.h), else widened as it is packed. The sums are float32 in both, rounded once.
//
// Never stored: a packed copy of a whole operand.
#include "kernels/matmul.h"

#include "kernels/cpu/base/activation.h"
#include "kernels/cpu/gemm/matmul_plan.h"
#include "kernels/cpu/gemm/pack.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

using namespace gemm;

// A sum on its way out: act(sum), rounded to bf16 where the output is said to be.
template <class A>
PYDL_INLINE vec<A> finished(const MatmulParams& p, vec<A> sum) {
  const vec<A> x = activate<A>(sum, p.activation);
  if constexpr (__is_same(A, float))
    if (p.rounded) return widen_bf16(narrow_bf16(x));
  return x;
}
template <class A, class T>
void finish(const MatmulParams& p, const A* sums, int64_t pitch, int64_t rows, int64_t columns, T* output) {
  for (int64_t i = 0; i < rows; ++i, sums += pitch, output += p.output.row)
    for (int64_t j = 0; j < columns; j += lanes<A>)
      store_n(output + j, finished<A>(p, load(sums + j)), min_of(columns - j, lanes<A>));
}

// What is summed in one go: numbers [first, first + depth) along the depth.
struct Part {
  int64_t first, depth;
};
template <class E>
Part part_of(const MatmulParams& p, int64_t parts, int64_t i) {
  constexpr int64_t per = per_element<E>;
  const int64_t elements = ceil_div(p.depth, per), first = per * (elements * i / parts);
  return {first, min_of(per * (elements * (i + 1) / parts), p.depth) - first};
}

// Rows [row, row + rows) of panels [first, last).
struct Block {
  int64_t row, rows, first, last;
};
Block block_of(const MatmulParams& p, const MatmulPlan& plan, int64_t part) {
  const int64_t r = part / plan.column_parts, c = part % plan.column_parts;
  const int64_t row = p.rows * r / plan.row_parts, end = p.rows * (r + 1) / plan.row_parts;
  return {row, end - row, plan.panels * c / plan.column_parts, plan.panels * (c + 1) / plan.column_parts};
}

template <class T>
void fetch_later(const Matrix& m, int64_t i, int64_t j, int64_t rows, int64_t columns, Ahead& ahead) {
  constexpr int64_t size = sizeof(T);
  if (m.column == 1)
    ahead.add(element<T>(m, i, j), m.row * size, columns * size, rows);
  else if (m.row == 1)
    ahead.add(element<T>(m, i, j), m.column * size, rows * size, columns);
}

// What is read after this panel: the next one, and of left the rows further down, or each panel's share of the next part.
template <class T, class E>
Ahead ahead_of(const MatmulParams& p, const MatmulPlan& plan, const Block& block, int64_t panel, Part part,
               Part next) {
  constexpr int64_t width = kNr<acc_of<E>>;
  Ahead ahead;
  const bool is_last = panel + 1 == block.last;
  if (plan.right_far) {
    const Part of = is_last ? next : part;
    const int64_t column = width * (is_last ? block.first : panel + 1);
    fetch_later<T>(p.right, of.first, column, of.depth, min_of(width, p.columns - column), ahead);
  }
  if (plan.left_far) {
    const int64_t i = panel - block.first, panels = block.last - block.first;
    auto share = [=](int64_t n, int64_t j) { return n * j / panels; };
    if (plan.left == Left::rows && i == 0)
      fetch_later<T>(p.left, block.row + kMr, part.first, block.rows - kMr, part.depth, ahead);
    else if (plan.left == Left::packed_rows)
      fetch_later<T>(p.left, block.row + share(block.rows, i), next.first,
                     share(block.rows, i + 1) - share(block.rows, i), next.depth, ahead);
    else if (plan.left == Left::strips || plan.left == Left::columns)
      fetch_later<T>(p.left, block.row, next.first + share(next.depth, i), block.rows,
                     share(next.depth, i + 1) - share(next.depth, i), ahead);
  }
  ahead.spread_over(ceil_div(block.rows, kMr) * ceil_div(part.depth, per_element<E> * kFetchSteps));
  return ahead;
}

// The rows of left for one part, packed or where they lie.
template <class T, class E>
void set_left(const MatmulParams& p, const MatmulPlan& plan, const Block& block, Part part, E* packed,
              PanelProduct<E>& product) {
  product.left = packed;
  switch (plan.left) {
    case Left::strips:
      product.strips = true;
      product.left_pitch = kMr;
      return pack_strips<T>(p.left, block.row, block.rows, p.rows, part.first, part.depth, packed);
    case Left::packed_rows:
      product.left_pitch = kPitch;
      return pack_rows<T>(p.left, block.row, block.rows, part.first, part.depth, packed, kPitch);
    case Left::rows:
      product.left_pitch = p.left.row / per_element<E>;
      break;
    case Left::columns:
      product.left_columns = true;
      product.left_pitch = p.left.column;
  }
  product.left = reinterpret_cast<const E*>(element<T>(p.left, block.row, part.first));
}

// T, E, O: numbers of the operands, what they are multiplied as, numbers of the output.
template <class T, class E, class O>
void run_task(const MatmulParams& p, const MatmulPlan& plan, const Block& block,
              const Workspace<E, O>& space) {
  using A = acc_of<E>;
  constexpr bool kRounds = __is_same(E, bf16_pair) && !__is_same(O, A);
  const auto [row, rows, first, last] = block;
  O* output = static_cast<O*>(p.output.data) + row * p.output.row;
  for (int64_t i = 0; i < plan.depth_parts; ++i) {
    const bool begins = i == 0, ends = i + 1 == plan.depth_parts;
    const Part part = part_of<E>(p, plan.depth_parts, i),
               next = ends ? Part{} : part_of<E>(p, plan.depth_parts, i + 1);
    PanelProduct<E> product{};
    product.rows = rows;
    product.depth = ceil_div(part.depth, per_element<E>);
    product.alpha = static_cast<A>(p.alpha);
    set_left<T>(p, plan, block, part, space.left, product);
    for (int64_t panel = first; panel < last; ++panel) {
      const int64_t column = panel * kNr<A>, columns = min_of(kNr<A>, p.columns - column);
      product.columns = columns;
      product.right = space.panel;
      product.right_pitch = kNr<A>;
      if constexpr (__is_same(T, E)) {
        if (rows <= kFewRows && p.right.column == 1 && columns == kNr<A>) {
          product.right = element<T>(p.right, part.first, column);
          product.right_pitch = p.right.row;
        }
      }
      if (product.right == space.panel)
        pack_panel<T>(p.right, part.first, part.depth, column, columns, space.panel);
      product.bias = nullptr;
      if (begins && p.bias) {
        copy_rows(static_cast<const T*>(p.bias) + column, 0, 1, columns, space.bias, 0);
        product.bias = space.bias;
      }
      // whole panels of the output's own type are summed in place, those of pairs rounded on their way out
      const bool whole = columns == kNr<A>, in_place = __is_same(O, A) && whole;
      const bool rounds = kRounds && whole && ends && p.activation != Activation::sigmoid;
      if constexpr (__is_same(O, A))
        if (in_place) product.result = output + column;
      product.result_pitch = p.output.row;
      if (!in_place) {
        product.result = space.sums + (keeps_sums<O>(plan) ? (panel - first) * kNr<A> : 0);
        product.result_pitch = sums_pitch<O>(plan);
      }
      product.rounded = nullptr;
      if constexpr (kRounds)
        if (rounds) product.rounded = output + column;
      product.rounded_pitch = p.output.row;
      product.add = !begins;
      if (begins && p.addend.data) {
        const bool there = in_place && p.addend.data == p.output.data && p.beta == 1;
        if (!there)
          scaled_rows<O>(p.addend, row, rows, column, columns, static_cast<A>(p.beta), product.result,
                         product.result_pitch);
        product.add = true;
      }
      product.relu = ends && (in_place || rounds) && p.activation == Activation::relu;
      product.as_bf16 = ends && in_place && p.rounded && p.activation != Activation::sigmoid;
      product.streams = plan.streams && (in_place || rounds) && p.activation != Activation::sigmoid &&
                        reinterpret_cast<uintptr_t>(p.output.data) % kVectorBytes == 0;
      Ahead ahead;
      if (plan.left_far || plan.right_far) {
        ahead = ahead_of<T, E>(p, plan, block, panel, part, next);
        product.ahead = &ahead;
      }
      multiply_panel(product);
      if (ends && !rounds && (!in_place || p.activation == Activation::sigmoid))
        finish(p, product.result, product.result_pitch, rows, columns, output + column);
    }
  }
  if (plan.streams) stream_fence();
}

// The matrices of one product of a batch.
template <class T, class O>
MatmulParams one_of(const MatmulParams& p, int64_t index) {
  MatmulParams one = p;
  const int64_t outer = index / p.inner, inner = index % p.inner;
  const auto move = [=](Matrix& m, auto number) {
    if (m.data) m.data = static_cast<decltype(number)*>(m.data) + outer * m.outer + inner * m.inner;
  };
  move(one.left, T{});
  move(one.right, T{});
  move(one.output, O{});
  move(one.addend, O{});
  return one;
}

// The part of the product that is a slice: an output of sums, with the bias where it is the first.
template <class T, class E>
MatmulParams slice_of(const MatmulParams& p, const MatmulPlan& plan, int64_t slice, acc_of<E>* sums) {
  const Part part = part_of<E>(p, plan.slices, slice);
  const int64_t pitch = slice_pitch<acc_of<E>>(p);
  MatmulParams one = p;
  one.left.data = const_cast<T*>(element<T>(p.left, 0, part.first));
  one.right.data = const_cast<T*>(element<T>(p.right, part.first, 0));
  one.depth = part.depth;
  one.output = {sums + slice * p.rows * pitch, pitch, 1};
  one.addend.data = nullptr;
  one.activation = Activation::none;
  one.rounded = false;
  if (slice > 0) one.bias = nullptr;
  return one;
}

// The output's rows [first, last) from the sums of all slices.
template <class O, class A>
void add_slices(const MatmulParams& p, int64_t slices, const A* sums, int64_t first, int64_t last) {
  const int64_t pitch = slice_pitch<A>(p);
  for (int64_t i = first; i < last; ++i)
    for (int64_t j = 0; j < p.columns; j += lanes<A>) {
      const int64_t n = min_of(p.columns - j, lanes<A>);
      vec<A> sum = load(sums + i * pitch + j);
      for (int64_t s = 1; s < slices; ++s) sum += load(sums + (s * p.rows + i) * pitch + j);
      if (p.addend.data) {
        A addend[lanes<A>];
        scaled_rows<O>(p.addend, i, 1, j, n, static_cast<A>(p.beta), addend, 0);
        sum += load(addend);
      }
      store_n(static_cast<O*>(p.output.data) + i * p.output.row + j, finished<A>(p, sum), n);
    }
}

template <class T, class E, class O>
void run_sliced(const MatmulPlan& plan, const MatmulParams& p, const Parallel& parallel) {
  using A = acc_of<E>;
  const int64_t parts = plan.row_parts * plan.column_parts;
  A* const sums = reinterpret_cast<A*>(static_cast<char*>(p.scratch) + plan.workers * plan.worker_bytes);
  run_tasks({parallel.run, plan.workers}, plan.slices * parts, [&](int64_t task, int64_t worker) {
    char* scratch = static_cast<char*>(p.scratch) + worker * plan.worker_bytes;
    run_task<T>(slice_of<T, E>(p, plan, task / parts, sums), plan, block_of(p, plan, task % parts),
                Workspace<E, A>::of(plan, scratch));
  });
  constexpr int64_t kRows = 16;
  run_tasks({parallel.run, plan.workers}, ceil_div(p.rows, kRows), [&](int64_t task, int64_t) {
    add_slices<O>(p, plan.slices, sums, task * kRows, min_of(p.rows, (task + 1) * kRows));
  });
}

template <class T, class E, class O>
void run_dots(const MatmulPlan& plan, const MatmulParams& p, const Parallel& parallel) {
  run_tasks({parallel.run, plan.workers}, ceil_div(p.columns, kDotColumns), [&](int64_t task, int64_t) {
    const int64_t column = task * kDotColumns, columns = min_of(kDotColumns, p.columns - column);
    alignas(64) float sums[kMostDotRows * kDotColumns];
    dots<T, E>(element<T>(p.left, 0, 0), p.left.row, element<T>(p.right, 0, column), p.right.column, p.rows,
               columns, p.depth, sums);
    const vec<float> bias = p.bias ? load_n(static_cast<const T*>(p.bias) + column, columns) : vec<float>{};
    O* output = static_cast<O*>(p.output.data) + column;
    for (int64_t i = 0; i < p.rows; ++i, output += p.output.row) {
      const vec<float> sum = load(sums + i * kDotColumns) * static_cast<float>(p.alpha) + bias;
      store_n(output, finished<float>(p, sum), columns);
    }
  });
}

template <class T, class E, class O = T>
void run(const MatmulPlan& plan, const MatmulParams& p, const Parallel& parallel) {
  if constexpr (__is_same(acc_of<E>, float) && (__is_same(T, E) || __is_same(E, bf16_pair)))
    if (plan.dots) return run_dots<T, E, O>(plan, p, parallel);
  if (plan.slices > 1) return run_sliced<T, E, O>(plan, p, parallel);
  const int64_t parts = plan.row_parts * plan.column_parts;
  run_tasks({parallel.run, plan.workers}, p.outer * p.inner * parts, [&](int64_t task, int64_t worker) {
    char* scratch = static_cast<char*>(p.scratch) + worker * plan.worker_bytes;
    run_task<T>(one_of<T, O>(p, task / parts), plan, block_of(p, plan, task % parts),
                Workspace<E, O>::of(plan, scratch));
  });
}

}  // namespace

MatmulPlan matmul_plan(const MatmulParams& p, int64_t threads) {
  switch (p.dtype) {
    case DType::f32:
      return plan_of<float, float>(p, threads);
    case DType::f64:
      return plan_of<double, double>(p, threads);
    default:
#if defined(PYDL_BF16_DOT)
      if (pairs_pay(p))
        return p.float_output ? plan_of<bf16, bf16_pair, float>(p, threads)
                              : plan_of<bf16, bf16_pair>(p, threads);
#endif
      return p.float_output ? plan_of<bf16, float, float>(p, threads) : plan_of<bf16, float>(p, threads);
  }
}

void matmul(const MatmulPlan& plan, const MatmulParams& p, const Parallel& parallel) {
  switch (p.dtype) {
    case DType::f32:
      return run<float, float>(plan, p, parallel);
    case DType::f64:
      return run<double, double>(plan, p, parallel);
    default:
#if defined(PYDL_BF16_DOT)
      if (plan.pairs)
        return p.float_output ? run<bf16, bf16_pair, float>(plan, p, parallel)
                              : run<bf16, bf16_pair>(plan, p, parallel);
#endif
      return p.float_output ? run<bf16, float, float>(plan, p, parallel)
                            : run<bf16, float>(plan, p, parallel);
  }
}

}  // namespace pydl::cpu::PYDL_ISA
