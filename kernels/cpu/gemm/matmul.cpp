// matmul of kernels/matmul.h: each output is cut into blocks of rows and groups of panels, each a task.
//
// A task takes the depth in equal parts of at most kDepth. For each part and panel it copies the panel of `right`, which
// then stays in the first cache, and multiplies the task's rows with it: so threads share nothing but what they read,
// and wait for nobody. `left` is read where it lies if it can be; its block stays in the second cache meanwhile.
// Each number of the output is a sum over the parts in order, whatever the number of threads and the cut.
//
// bfloat16 is multiplied in pairs of neighbours along the depth where the CPU has the instruction (an element E of
// microkernel.h), else widened as it is packed. The sums are float32 in both, rounded once.
//
// Never stored: a packed copy of a whole operand.
#include "kernels/matmul.h"

#include "kernels/cpu/base/activation.h"
#include "kernels/cpu/base/scratch.h"
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/gemm/pack.h"
#include "kernels/cpu/gemm/panel.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

using namespace gemm;

constexpr int64_t kMostRows = 336;     // of a task: kDepth of each stay in the second cache
constexpr int64_t kMostPanels = 32;    // of a task
constexpr int64_t kFewRows = 4 * kMr;  // which reuse a panel too seldom for a copy of it to pay
// Cycles for each element that is read, copied, or copied across, as measured on Zen 3; they decide nothing but the cut.
constexpr double kReadCycles = 0.1, kPackCycles = 0.3, kTransposeCycles = 0.5;
constexpr double kWorthAThread = 1 << 17;  // multiply-adds that outweigh waking a thread

// The cut that should take least, in cycles for each element of the depth: of the largest task times how many of them a
// worker has, multiplication, and bringing in its rows of left and its columns of right.
template <class E>
void cut(const MatmulParams& p, int64_t threads, MatmulPlan& plan) {
  using A = acc_of<E>;
  const int64_t most_tasks = threads == 1 ? 1 : 4 * threads, batch = p.outer * p.inner;
  const int64_t least_rows = ceil_div(p.rows, kMostRows), least_columns = ceil_div(plan.panels, kMostPanels);
  const double left = plan.strips || plan.rows_packed ? kPackCycles : kReadCycles;
  const double right = p.right.column == 1 ? kPackCycles : kTransposeCycles;
  const double per_cycle = 2.0 * lanes<A>;
  double least = -1;
  for (int64_t c = least_columns; c <= plan.panels; ++c) {
    for (int64_t r = least_rows; r <= ceil_div(p.rows, kMr); ++r) {
      const double height = static_cast<double>(ceil_div(p.rows, r)),
                   width = static_cast<double>(ceil_div(plan.panels, c) * kNr<A>);
      const double turns = static_cast<double>(ceil_div(batch * r * c, threads));
      const double cycles = turns * (height * width / per_cycle + height * left + width * right);
      if (least < 0 || cycles < least) {
        least = cycles;
        plan.row_parts = r;
        plan.column_parts = c;
      }
      if (batch * r * c >= most_tasks) break;
    }
    if (batch * least_rows * c >= most_tasks) break;
  }
}

// Sums that cannot be kept in the output, of another type or the last panel's: each panel's own, if the next part of the
// depth adds to them and it is not the output that holds them.
template <class T>
bool keeps_sums(const MatmulPlan& plan) {
  return !__is_same(T, acc_t<T>) && plan.depth_parts > 1;
}
template <class T>
int64_t sums_pitch(const MatmulPlan& plan) {
  return (keeps_sums<T>(plan) ? plan.group : 1) * kNr<acc_t<T>>;
}

// What one worker has to itself.
template <class T, class E>
struct Workspace {
  using A = acc_of<E>;
  E *panel, *left;
  A *sums, *bias;
  int64_t bytes;

  static Workspace of(const MatmulPlan& plan, char* scratch) {
    Pieces pieces{scratch};
    const int64_t left = plan.strips        ? ceil_div(plan.rows, kMr) * strip_numbers<E>(plan.depth)
                         : plan.rows_packed ? plan.rows * kPitch + lanes<A>
                                            : 0;
    Workspace space{};
    space.panel = pieces.take<E>(plan.depth * kNr<A>);
    space.left = pieces.take<E>(left);
    space.sums = pieces.take<A>(plan.rows * sums_pitch<T>(plan));
    space.bias = pieces.take<A>(kNr<A>);
    space.bytes = pieces.next - scratch;
    return space;
  }
};

// Whether left can be read as elements E where it lies.
template <class T, class E>
bool left_fits(const MatmulParams& p) {
  if (__is_same(E, bf16_pair)) return p.left.column == 1 && p.left.row % 2 == 0 && p.depth % 2 == 0;
  return __is_same(T, E) && (p.left.column == 1 || p.depth == 1);
}

template <class T, class E>
MatmulPlan plan_of(const MatmulParams& p, int64_t threads) {
  using A = acc_of<E>;
  MatmulPlan plan{};
  const int64_t elements = ceil_div(p.depth, per_element<E>);
  plan.pairs = __is_same(E, bf16_pair);
  plan.panels = ceil_div(p.columns, kNr<A>);
  plan.depth_parts = max_of(ceil_div(elements, kDepth), 1);
  plan.depth = ceil_div(elements, plan.depth_parts);
  plan.strips = p.left.column != 1 && p.left.row == 1 && p.depth > 1;
  plan.rows_packed = !plan.strips && !left_fits<T, E>(p);
  const int64_t batch = p.outer * p.inner;
  const double work =
      static_cast<double>(batch * p.rows) * static_cast<double>(p.columns) * static_cast<double>(elements);
  threads = work < kWorthAThread * static_cast<double>(threads - 1)
                ? 1 + static_cast<int64_t>(work / kWorthAThread)
                : threads;
  cut<E>(p, threads, plan);
  plan.rows = ceil_div(p.rows, plan.row_parts);
  plan.group = ceil_div(plan.panels, plan.column_parts);
  plan.workers = workers_for({nullptr, threads}, batch * plan.row_parts * plan.column_parts);
  plan.worker_bytes = Workspace<T, E>::of(plan, nullptr).bytes;
  plan.scratch = plan.workers * plan.worker_bytes;
  return plan;
}

#if defined(PYDL_BF16_DOT)
// Whether pairs of bfloat16 are multiplied by one instruction, at twice the rate of float32. A single product a sum is
// exact, and so is its rounding, where the instruction takes subnormal numbers for zero.
bool pairs_pay(const MatmulParams& p) { return cpu_has_bf16_dot() && p.depth > 1; }
#endif

// Finished sums on their way out: act(sums[i][j]), rounded.
template <class A, class T>
void finish(const A* sums, int64_t pitch, int64_t rows, int64_t columns, Activation activation, T* output,
            int64_t output_pitch) {
  for (int64_t i = 0; i < rows; ++i, sums += pitch, output += output_pitch)
    for (int64_t j = 0; j < columns; j += lanes<A>)
      store_n(output + j, activate<A>(load(sums + j), activation), min_of(columns - j, lanes<A>));
}

// Rows [row, row + rows) of panels [first, last).
template <class T, class E>
void run_task(const MatmulParams& p, const MatmulPlan& plan, int64_t row, int64_t rows, int64_t first,
              int64_t last, const Workspace<T, E>& space) {
  using A = acc_of<E>;
  constexpr int64_t per = per_element<E>;
  const int64_t elements = ceil_div(p.depth, per);
  T* output = static_cast<T*>(p.output.data) + row * p.output.row;
  for (int64_t part = 0; part < plan.depth_parts; ++part) {
    const int64_t k = per * (elements * part / plan.depth_parts),
                  depth = min_of(per * (elements * (part + 1) / plan.depth_parts), p.depth) - k;
    const bool begins = part == 0, ends = part + 1 == plan.depth_parts;
    PanelProduct<E> product{};
    product.rows = rows;
    product.depth = ceil_div(depth, per);
    product.alpha = static_cast<A>(p.alpha);
    product.left = space.left;
    product.left_pitch = plan.strips ? kMr : kPitch;
    product.strips = plan.strips;
    if (plan.strips)
      pack_strips<T>(p.left, row, rows, p.rows, k, depth, space.left);
    else if (plan.rows_packed)
      pack_rows<T>(p.left, row, rows, k, depth, space.left, kPitch);
    else {
      product.left = reinterpret_cast<const E*>(element<T>(p.left, row, k));
      product.left_pitch = p.left.row / per;
    }
    for (int64_t panel = first; panel < last; ++panel) {
      const int64_t column = panel * kNr<A>, columns = min_of(kNr<A>, p.columns - column);
      product.columns = columns;
      product.right = space.panel;
      product.right_pitch = kNr<A>;
      if constexpr (__is_same(T, E)) {
        if (rows <= kFewRows && p.right.column == 1 && columns == kNr<A>) {
          product.right = element<T>(p.right, k, column);
          product.right_pitch = p.right.row;
        }
      }
      if (product.right == space.panel) pack_panel<T>(p.right, k, depth, column, columns, space.panel);
      product.bias = nullptr;
      if (begins && p.bias) {
        copy_rows(static_cast<const T*>(p.bias) + column, 0, 1, columns, space.bias, 0);
        product.bias = space.bias;
      }
      // whole panels of the output's own type are summed in place, those of pairs rounded on their way out
      const bool whole = columns == kNr<A>, in_place = __is_same(T, A) && whole;
      const bool rounds = __is_same(E, bf16_pair) && whole && ends && p.activation != Activation::sigmoid;
      if constexpr (__is_same(T, A))
        if (in_place) product.result = output + column;
      product.result_pitch = p.output.row;
      if (!in_place) {
        product.result = space.sums + (keeps_sums<T>(plan) ? (panel - first) * kNr<A> : 0);
        product.result_pitch = sums_pitch<T>(plan);
      }
      product.rounded = nullptr;
      if constexpr (__is_same(E, bf16_pair))
        if (rounds) product.rounded = output + column;
      product.rounded_pitch = p.output.row;
      product.add = !begins;
      if (begins && p.addend.data) {
        const bool there = in_place && p.addend.data == p.output.data && p.beta == 1;
        if (!there)
          scaled_rows<T>(p.addend, row, rows, column, columns, static_cast<A>(p.beta), product.result,
                         product.result_pitch);
        product.add = true;
      }
      product.relu = ends && (in_place || rounds) && p.activation == Activation::relu;
      multiply_panel(product);
      if (ends && !rounds && (!in_place || p.activation == Activation::sigmoid))
        finish(product.result, product.result_pitch, rows, columns, p.activation, output + column,
               p.output.row);
    }
  }
}

// The matrices of one product of a batch.
template <class T>
MatmulParams one_of(const MatmulParams& p, int64_t index) {
  MatmulParams one = p;
  const int64_t outer = index / p.inner, inner = index % p.inner;
  Matrix* const matrices[] = {&one.left, &one.right, &one.output, &one.addend};
  for (Matrix* m : matrices)
    if (m->data) m->data = static_cast<T*>(m->data) + outer * m->outer + inner * m->inner;
  return one;
}

template <class T, class E>
void run(const MatmulPlan& plan, const MatmulParams& p, const Parallel& parallel) {
  const int64_t parts = plan.row_parts * plan.column_parts;
  run_tasks({parallel.run, plan.workers}, p.outer * p.inner * parts, [&](int64_t task, int64_t worker) {
    const int64_t r = task % parts / plan.column_parts, c = task % plan.column_parts;
    const int64_t row = p.rows * r / plan.row_parts, end = p.rows * (r + 1) / plan.row_parts;
    char* scratch = static_cast<char*>(p.scratch) + worker * plan.worker_bytes;
    run_task(one_of<T>(p, task / parts), plan, row, end - row, plan.panels * c / plan.column_parts,
             plan.panels * (c + 1) / plan.column_parts, Workspace<T, E>::of(plan, scratch));
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
      if (pairs_pay(p)) return plan_of<bf16, bf16_pair>(p, threads);
#endif
      return plan_of<bf16, float>(p, threads);
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
      if (plan.pairs) return run<bf16, bf16_pair>(plan, p, parallel);
#endif
      return run<bf16, float>(plan, p, parallel);
  }
}

}  // namespace pydl::cpu::PYDL_ISA
