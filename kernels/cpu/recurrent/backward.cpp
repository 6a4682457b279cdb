// recurrent_backward of kernels/recurrent.h: the gradients of the sums, step by step from the last one on.
//
// Each step is a walk along its sequences, which turns dh into the gradients of the sums, and a product of those with
// W_hh, packed once a call in panels, which gives dh of the step before.
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
  A *panels, *dh, *dc, *gradients;  // the latter two have dh's pitch, and p.pitch
  int64_t count, depth, panel_numbers, pitch, worker_bytes, bytes;

  Workspace(const RecurrentParams& p, int64_t threads, int64_t worker) {
    const Cut cut(p, threads);
    count = ceil_div(p.units, gemm::kNr<A>);
    depth = gates_of(cell) * p.units;
    panel_numbers = depth * gemm::kNr<A>;
    pitch = (count + 1) * gemm::kNr<A>;  // no power of two for the sizes that are
    Pieces pieces{static_cast<char*>(p.scratch)};
    panels = pieces.take<A>(count * panel_numbers);
    char* const first = pieces.next;
    dh = pieces.take<A>(cut.rows * pitch);
    dc = pieces.take<A>(cell == Cell::lstm ? cut.rows * pitch : 0);
    gradients = pieces.take<A>(kWidens ? cut.rows * p.pitch : 0);
    worker_bytes = pieces.next - first;
    bytes = first - static_cast<char*>(p.scratch) + cut.threads * worker_bytes;
    A** const own[] = {&dh, &dc, &gradients};
    for (A** piece : own)
      *piece = reinterpret_cast<A*>(reinterpret_cast<char*>(*piece) + worker * worker_bytes);
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

template <class T, Cell cell>
void walk(const RecurrentParams& p, const Row<T>& row) {
  using A = acc_t<T>;
  constexpr int L = lanes<A>;
  const int64_t units = p.units;
  for (int64_t u = 0; u < units; u += L) {
    const int64_t n = min_of(L, units - u);
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

// dh of `rows` sequences: (+)= gradients · W_hh
template <class T, Cell cell>
void multiply_state(const RecurrentParams& p, const Workspace<T, cell>& space, const acc_t<T>* gradients,
                    int64_t rows) {
  using A = acc_t<T>;
  for (int64_t panel = 0; panel < space.count; ++panel) {
    gemm::PanelProduct<A> product{};
    product.rows = rows;
    product.columns = min_of(gemm::kNr<A>, p.units - panel * gemm::kNr<A>);
    product.depth = space.depth;
    product.left = gradients;
    product.left_pitch = p.pitch;
    product.right = space.panels + panel * space.panel_numbers;
    product.right_pitch = gemm::kNr<A>;
    product.add = cell == Cell::gru;
    product.result = space.dh + panel * gemm::kNr<A>;
    product.result_pitch = space.pitch;
    gemm::multiply_in_parts(product);
  }
}

template <class T>
void read_state(const void* from, int64_t first, int64_t rows, int64_t units, acc_t<T>* to, int64_t pitch) {
  constexpr int64_t L = lanes<acc_t<T>>;
  for (int64_t i = 0; i < rows; ++i, to += pitch)
    for (int64_t j = 0; j < units; j += L)
      store(to + j, from ? load_n(static_cast<const T*>(from) + (first + i) * units + j, min_of(L, units - j))
                         : vec<acc_t<T>>{});
}
template <class T>
void write_state(const acc_t<T>* from, int64_t pitch, int64_t first, int64_t rows, int64_t units, void* to) {
  constexpr int64_t L = lanes<acc_t<T>>;
  for (int64_t i = 0; i < rows; ++i, from += pitch)
    for (int64_t j = 0; j < units; j += L)
      store_n(static_cast<T*>(to) + (first + i) * units + j, load(from + j), min_of(L, units - j));
}

// Sequences [first, end) from their last step to their first.
template <class T, Cell cell>
void run_task(const RecurrentParams& p, int64_t first, int64_t end, const Workspace<T, cell>& space) {
  using A = acc_t<T>;
  constexpr int kSaved = saved_of(cell);
  const T *grad_output = static_cast<const T*>(p.grad_output), *output = static_cast<const T*>(p.output);
  const T *saved = static_cast<const T*>(p.saved), *hidden = static_cast<const T*>(p.hidden);
  const T* cell_state = static_cast<const T*>(p.cell_state);
  read_state<T>(p.grad_hidden_n, first, end - first, p.units, space.dh, space.pitch);
  if constexpr (cell == Cell::lstm)
    read_state<T>(p.grad_cell_n, first, end - first, p.units, space.dc, space.pitch);
  for (int64_t number = p.steps - 1; number >= 0; --number) {
    const Step step(p, number, first, end);
    if (step.active == 0) continue;
    T* const to = static_cast<T*>(p.gradients) + (p.first_row[step.t] + first) * p.pitch;
    A* gradients = space.gradients;
    if constexpr (!space.kWidens) gradients = to;
    for (int64_t i = 0; i < step.active; ++i) {
      const int64_t at = p.first_row[step.t] + first + i;
      Row<T> row{};
      if (grad_output) row.grad_output = grad_output + at * p.units;
      row.output = output + at * p.units;
      if constexpr (kSaved > 0) row.saved = saved + at * kSaved * p.units;
      if (i < step.known) {
        const int64_t before = p.first_row[step.before] + first + i;
        row.hidden = output + before * p.units;
        if constexpr (cell == Cell::lstm) row.cell_state = saved + (before * kSaved + 4) * p.units;
      } else {
        row.hidden = hidden + (first + i) * p.units;
        if constexpr (cell == Cell::lstm) row.cell_state = cell_state + (first + i) * p.units;
      }
      row.dh = space.dh + i * space.pitch;
      row.dc = space.dc + i * space.pitch;
      row.gradients = gradients + i * p.pitch;
      row.rounded = to + i * p.pitch;
      walk<T, cell>(p, row);
    }
    if (const int64_t rows = p.grad_hidden ? step.active : step.known; rows > 0)
      multiply_state<T, cell>(p, space, gradients, rows);
  }
  if (p.grad_hidden) write_state<T>(space.dh, space.pitch, first, end - first, p.units, p.grad_hidden);
  if (p.grad_cell) write_state<T>(space.dc, space.pitch, first, end - first, p.units, p.grad_cell);
}

template <class T, Cell cell>
void run(const RecurrentParams& p, const Parallel& parallel) {
  const Cut cut(p, parallel.threads);
  const Workspace<T, cell> shared(p, parallel.threads, 0);
  parallel(shared.count, ceil_div(shared.count, cut.threads), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      pack_state_panel<T, cell>(p, panel, shared.panels + panel * shared.panel_numbers);
  });
  run_tasks({parallel.run, cut.threads}, cut.tasks, [&](int64_t task, int64_t worker) {
    run_task<T, cell>(p, p.batch * task / cut.tasks, p.batch * (task + 1) / cut.tasks,
                      Workspace<T, cell>(p, parallel.threads, worker));
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
