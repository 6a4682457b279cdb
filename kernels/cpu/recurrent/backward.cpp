// recurrent_backward of kernels/recurrent.h: the gradients of the sums, step by step from the last one on.
//
// Each step is a walk along its sequences, which turns dh into the gradients of the sums, and a product of those with
// W_hh, packed once a call in panels, which gives dh of the step before. Weights that are used once or twice are read as
// they lie.
#include "kernels/cpu/gemm/pack.h"
#include "kernels/cpu/gemm/parts.h"
#include "kernels/cpu/recurrent/cells.h"
#include "kernels/cpu/recurrent/steps.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

using namespace recurrent;

template <class T, Cell cell>
struct Workspace {
  using A = acc_t<T>;
  static constexpr bool kWidens = !__is_same(T, A);
  A *panels, *dh, *dc,
      *gradients;  // panels: null where weights are not packed; the others have p.pitch, or dh's
  int64_t count, depth, panel_numbers, pitch, worker_bytes, bytes;

  Workspace(const RecurrentParams& p, int64_t threads, int64_t worker) {
    const Cut cut(p, threads);
    count = ceil_div(p.units, gemm::kNr<A>);
    depth = gates_of(cell) * p.units;
    panel_numbers = depth * gemm::kNr<A>;
    pitch = (count + 1) * gemm::kNr<A>;  // no power of two for the sizes that are
    Pieces pieces{static_cast<char*>(p.scratch)};
    const bool in_place = cut.in_place && p.units % gemm::kNr<A> == 0;  // which reads whole panels
    const bool packs = !in_place && (p.steps > 1 || p.grad_hidden);
    panels = pieces.take<A>(packs ? count * panel_numbers : 0);
    char* const first = pieces.next;
    dh = pieces.take<A>(cut.rows * pitch);
    dc = pieces.take<A>(cell == Cell::lstm ? cut.rows * pitch : 0);
    gradients = pieces.take<A>(kWidens ? cut.rows * p.pitch : 0);
    worker_bytes = pieces.next - first + kApart;
    bytes = first - static_cast<char*>(p.scratch) + cut.sets() * worker_bytes;
    A** const own[] = {&dh, &dc, &gradients};
    for (A** piece : own)
      *piece = reinterpret_cast<A*>(reinterpret_cast<char*>(*piece) + worker * worker_bytes);
    if (!packs) panels = nullptr;
  }
};

// Rows of W_hh in the order of the gradients: of gru n comes first.
template <class T, Cell cell>
void pack_state_panel(const RecurrentParams& p, int64_t panel, acc_t<T>* to) {
  using A = acc_t<T>;
  const Matrix weight{const_cast<void*>(p.weight_hh), p.units, 1};
  const int64_t column = panel * gemm::kNr<A>, columns = min_of(gemm::kNr<A>, p.units - column);
  const int64_t last = cell == Cell::gru ? p.units : 0, others = gates_of(cell) * p.units - last;
  if (last) gemm::pack_panel<T>(weight, others, last, column, columns, to);
  gemm::pack_panel<T>(weight, 0, others, column, columns, to + last * gemm::kNr<A>);
}

// One sequence at one step.
template <class T>
struct Row {
  const T *grad_output, *output, *saved;  // grad_output may be null
  const T *hidden, *cell_state;           // before this step
  acc_t<T>*dh, *dc, *gradients;
  T* rounded;  // gradients in the tensors' type, where that is another
};

// Units [begin, end) of it.
template <class T, Cell cell>
void walk(const RecurrentParams& p, const Row<T>& row, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int L = lanes<A>;
  const int64_t units = p.units;
  for (int64_t u = begin; u < end; u += L) {
    const int64_t n = min_of(L, end - u);
    const auto get = [&](const T* from) PYDL_INLINE_LAMBDA {
      if (!from) return vec<A>{};
      return n == L ? load(from + u) : load_n(from + u, n);
    };
    const auto saved = [&](int64_t k) PYDL_INLINE_LAMBDA { return get(row.saved + k * units); };
    const auto put = [&](int64_t k, vec<A> x) PYDL_INLINE_LAMBDA {
      A* to = row.gradients + k * units + u;
      n == L ? store(to, x) : store_n(to, x, n);
      if constexpr (!__is_same(T, A)) store_n(row.rounded + k * units + u, x, n);
    };
    const vec<A> dh = load(row.dh + u) + get(row.grad_output);
    if constexpr (cell == Cell::gru) {
      const vec<A> r = saved(0), z = saved(1), new_ = saved(2), state_n = saved(3);
      const vec<A> dn = dh * (A(1) - z) * (A(1) - new_ * new_);
      put(0, dn * r);
      put(1, dn * state_n * (r * (A(1) - r)));
      put(2, dh * (get(row.hidden) - new_) * (z * (A(1) - z)));
      put(3, dn);
      store(row.dh + u, dh * z);
    } else if constexpr (cell == Cell::lstm) {
      const vec<A> i = saved(0), f = saved(1), g = saved(2), o = saved(3), t = tanh_one<A>(saved(4));
      const vec<A> dc = dh * o * (A(1) - t * t) + load(row.dc + u);
      put(0, dc * g * (i * (A(1) - i)));
      put(1, dc * get(row.cell_state) * (f * (A(1) - f)));
      put(2, dc * i * (A(1) - g * g));
      put(3, dh * t * (o * (A(1) - o)));
      store(row.dc + u, dc * f);
    } else {
      const vec<A> h = get(row.output);
      put(0, p.cell == Cell::relu ? (h > vec<A>{} ? dh : vec<A>{}) : dh * (A(1) - h * h));
    }
  }
}

// What a thread does of a step: panels of units, for sequences [first, end).
struct Part {
  int64_t first, end, panel, panels_end;
};

// dh of `rows` sequences: (+)= gradients · W_hh
template <class T, Cell cell>
void multiply_state(const RecurrentParams& p, const Workspace<T, cell>& space, const Part& part,
                    const acc_t<T>* gradients, int64_t rows) {
  using A = acc_t<T>;
  for (int64_t panel = part.panel; panel < part.panels_end; ++panel) {
    const int64_t column = panel * gemm::kNr<A>;
    gemm::PanelProduct<A> product{};
    product.rows = rows;
    product.columns = min_of(gemm::kNr<A>, p.units - column);
    product.left_pitch = p.pitch;
    product.result = space.dh + column;
    product.result_pitch = space.pitch;
    const auto multiply = [&](const A* right, int64_t pitch, int64_t first, int64_t depth, bool add) {
      product.left = gradients + first;
      product.right = right;
      product.right_pitch = pitch;
      product.depth = depth;
      product.add = add;
      gemm::multiply_in_parts(product);
    };
    if (space.panels) {
      multiply(space.panels + panel * space.panel_numbers, gemm::kNr<A>, 0, space.depth, cell == Cell::gru);
    } else if constexpr (!space.kWidens) {
      // of gru the gradients of n come first, whose rows are the last
      const A* const weight = static_cast<const A*>(p.weight_hh) + column;
      const int64_t last = cell == Cell::gru ? p.units : 0, others = space.depth - last;
      if (last) multiply(weight + others * p.units, p.units, 0, last, true);
      multiply(weight, p.units, last, others, last > 0);
    }
  }
}

// Units [begin, end) of the states after the last step.
template <class T>
void read_state(const void* from, const Part& part, int64_t units, int64_t begin, int64_t end, acc_t<T>* to,
                int64_t pitch) {
  constexpr int64_t L = lanes<acc_t<T>>;
  for (int64_t i = part.first; i < part.end; ++i, to += pitch)
    for (int64_t j = begin; j < end; j += L)
      store(to + j,
            from ? load_n(static_cast<const T*>(from) + i * units + j, min_of(L, end - j)) : vec<acc_t<T>>{});
}
template <class T>
void write_state(const acc_t<T>* from, int64_t pitch, const Part& part, int64_t units, int64_t begin,
                 int64_t end, void* to) {
  constexpr int64_t L = lanes<acc_t<T>>;
  for (int64_t i = part.first; i < part.end; ++i, from += pitch)
    for (int64_t j = begin; j < end; j += L)
      store_n(static_cast<T*>(to) + i * units + j, load(from + j), min_of(L, end - j));
}

// The gradients of the sums of step `number` for units [begin, end), from dh.
template <class T, Cell cell>
void walk_step(const RecurrentParams& p, const Workspace<T, cell>& space, const Part& part, const Step& step,
               acc_t<T>* gradients, int64_t begin, int64_t end) {
  constexpr int kSaved = saved_of(cell);
  const T *grad_output = static_cast<const T*>(p.grad_output), *output = static_cast<const T*>(p.output);
  const T *saved = static_cast<const T*>(p.saved), *hidden = static_cast<const T*>(p.hidden);
  const T* cell_state = static_cast<const T*>(p.cell_state);
  for (int64_t i = 0; i < step.active; ++i) {
    const int64_t at = p.first_row[step.t] + part.first + i;
    Row<T> row{};
    if (grad_output) row.grad_output = grad_output + at * p.units;
    row.output = output + at * p.units;
    if constexpr (kSaved > 0) row.saved = saved + at * kSaved * p.units;
    if (i < step.known) {
      const int64_t before = p.first_row[step.before] + part.first + i;
      row.hidden = output + before * p.units;
      if constexpr (cell == Cell::lstm) row.cell_state = saved + (before * kSaved + 4) * p.units;
    } else {
      row.hidden = hidden + (part.first + i) * p.units;
      if constexpr (cell == Cell::lstm) row.cell_state = cell_state + (part.first + i) * p.units;
    }
    row.dh = space.dh + i * space.pitch;
    row.dc = space.dc + i * space.pitch;
    row.gradients = gradients + i * p.pitch;
    row.rounded = static_cast<T*>(p.gradients) + at * p.pitch;
    walk<T, cell>(p, row, begin, end);
  }
}

// Half a step of one part, from the last step to the first: the walk, then, when all parts have done it, the product.
template <class T, Cell cell>
__attribute__((noinline)) void run_part(const RecurrentParams& p, const Part& part, int64_t half,
                                        const Workspace<T, cell>& space) {
  using A = acc_t<T>;
  const int64_t number = p.steps - 1 - half / 2;
  const int64_t begin = part.panel * gemm::kNr<A>, end = min_of(part.panels_end * gemm::kNr<A>, p.units);
  if (half == 0) {
    read_state<T>(p.grad_hidden_n, part, p.units, begin, end, space.dh, space.pitch);
    if constexpr (cell == Cell::lstm)
      read_state<T>(p.grad_cell_n, part, p.units, begin, end, space.dc, space.pitch);
  }
  const Step step(p, number, part.first, part.end);
  A* gradients = space.gradients;
  if constexpr (!space.kWidens)
    gradients = static_cast<A*>(p.gradients) + (p.first_row[step.t] + part.first) * p.pitch;
  if (half % 2 == 0) return walk_step(p, space, part, step, gradients, begin, end);
  if (const int64_t rows = p.grad_hidden ? step.active : step.known; rows > 0)
    multiply_state<T, cell>(p, space, part, gradients, rows);
  if (number > 0) return;
  if (p.grad_hidden) write_state<T>(space.dh, space.pitch, part, p.units, begin, end, p.grad_hidden);
  if (p.grad_cell) write_state<T>(space.dc, space.pitch, part, p.units, begin, end, p.grad_cell);
}

template <class T, Cell cell>
void run(const RecurrentParams& p, const Parallel& parallel) {
  const Cut cut(p, parallel.threads);
  const Workspace<T, cell> shared(p, parallel.threads, 0);
  const auto pack = [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      pack_state_panel<T, cell>(p, panel, shared.panels + panel * shared.panel_numbers);
  };
  const int64_t share = ceil_div(shared.count, cut.threads);
  if (shared.panels) parallel(shared.count, share, pack);
  if (cut.in_place) {
    for (int64_t half = 0; half < 2 * p.steps; ++half)
      parallel(shared.count, share, [&](int64_t begin, int64_t end) {
        run_part<T, cell>(p, {0, p.batch, begin, end}, half, shared);
      });
    return;
  }
  run_tasks({parallel.run, cut.threads}, cut.tasks, [&](int64_t task, int64_t worker) {
    const Workspace<T, cell> own(p, parallel.threads, worker);
    const Part part{p.batch * task / cut.tasks, p.batch * (task + 1) / cut.tasks, 0, own.count};
    for (int64_t half = 0; half < 2 * p.steps; ++half) run_part<T, cell>(p, part, half, own);
  });
}

}  // namespace

int64_t recurrent_backward_scratch(const RecurrentParams& params, int64_t threads) {
  int64_t bytes = 0;
  RecurrentParams p = params;
  p.scratch = nullptr;
  dispatch(p,
           [&](auto type, auto cell) { bytes = Workspace<decltype(type), cell.value>(p, threads, 0).bytes; });
  return bytes;
}

void recurrent_backward(const RecurrentParams& p, const Parallel& parallel) {
  dispatch(p, [&](auto type, auto cell) { run<decltype(type), cell.value>(p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
