// recurrent_forward of kernels/recurrent.h.
//
// The weights are packed once a call, in groups of units: for each number of the input, and then of the state, the
// weights of all gates of a vector of units lie side by side. So one register tile sums both products of a few sequences
// for all gates of these units, and the cell's formula finishes the sums where they are. Weights that are used once or
// twice are read as they lie.
//
// Never stored: the products of the input with the weights.
#include "kernels/cpu/base/simd_transpose.h"
#include "kernels/cpu/gemm/pack.h"
#include "kernels/cpu/recurrent/steps.h"
#include "kernels/cpu/recurrent/tile.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

using namespace recurrent;

// ---- packing

// to[k * pitch + i] = from[i * stride + k] for i < rows; the lanes beyond become zero.
template <class T, class A>
void pack_transposed(const T* from, int64_t stride, int64_t rows, int64_t columns, A* to, int64_t pitch) {
  if constexpr (__is_same(A, float)) {
    transpose_in(from, stride, rows, columns, to, pitch);
  } else {
    for (int64_t k = 0; k < columns; ++k)
      for (int64_t i = 0; i < lanes<A>; ++i) to[k * pitch + i] = i < rows ? from[i * stride + k] : A(0);
  }
}

template <class A, Cell cell>
constexpr int64_t panel_numbers(const RecurrentParams& p) {
  return (p.features + p.units) * vectors_of(cell) * lanes<A>;
}

template <class A>
constexpr int64_t kBiasNumbers = 4 * lanes<A>;

// Unit with which vector v of a group begins, and the row of the weights.
template <class A, Cell cell>
struct VectorOfGroup {
  int64_t unit, row;
  VectorOfGroup(const RecurrentParams& p, int64_t group, int v) {
    const bool gated = gates_of(cell) > 1;
    unit = group * units_of<A>(cell) + (gated ? 0 : v * lanes<A>);
    row = (gated ? v * p.units : 0) + unit;
  }
};

template <class T, Cell cell>
void pack_group(const RecurrentParams& p, int64_t group, acc_t<T>* panel, acc_t<T>* bias) {
  using A = acc_t<T>;
  constexpr int vectors = vectors_of(cell);
  constexpr int64_t pitch = vectors * lanes<A>;
  const T *weight_ih = static_cast<const T*>(p.weight_ih), *weight_hh = static_cast<const T*>(p.weight_hh);
  const T *bias_ih = static_cast<const T*>(p.bias_ih), *bias_hh = static_cast<const T*>(p.bias_hh);
  for (int v = 0; v < vectors; ++v) {
    const VectorOfGroup<A, cell> at(p, group, v);
    const int64_t count = max_of(min_of(p.units - at.unit, lanes<A>), 0), row = count ? at.row : 0;
    if (panel) {
      pack_transposed(weight_ih + row * p.features, p.features, count, p.features, panel + v * lanes<A>,
                      pitch);
      pack_transposed(weight_hh + row * p.units, p.units, count, p.units,
                      panel + p.features * pitch + v * lanes<A>, pitch);
    }
    const vec<A> of_input = bias_ih ? load_n(bias_ih + row, count) : vec<A>{};
    const vec<A> of_state = bias_hh ? load_n(bias_hh + row, count) : vec<A>{};
    const bool apart = cell == Cell::gru && v == 2;
    store(bias + v * lanes<A>, apart ? of_input : of_input + of_state);
    if (apart) store(bias + 3 * lanes<A>, of_state);
  }
}

// ---- one task

// What all workers share, and what each has to itself.
template <class T, Cell cell>
struct Workspace {
  using A = acc_t<T>;
  static constexpr bool kWidens = !__is_same(T, A);
  A *panels, *biases;  // panels: null where weights are read as they lie
  A *cell_state, *input, *states[2], *saved;
  int64_t groups, state_pitch, input_pitch, worker_bytes, bytes;

  Workspace(const RecurrentParams& p, int64_t threads, int64_t worker) {
    const Cut cut(p, threads);
    groups = ceil_div(p.units, units_of<A>(cell));
    state_pitch = ceil_div(p.units, lanes<A>) * lanes<A> + lanes<A>;
    input_pitch = ceil_div(p.features, lanes<A>) * lanes<A> + lanes<A>;
    Pieces pieces{static_cast<char*>(p.scratch)};
    panels = pieces.take<A>(cut.in_place ? 0 : groups * panel_numbers<A, cell>(p));
    biases = pieces.take<A>(groups * kBiasNumbers<A>);
    char* const first = pieces.next;
    cell_state = pieces.take<A>(cell == Cell::lstm ? cut.rows * state_pitch : 0);
    input = pieces.take<A>(kWidens ? cut.rows * input_pitch : 0);
    for (A*& state : states) state = pieces.take<A>(kWidens ? cut.rows * state_pitch : 0);
    saved = pieces.take<A>(kWidens && p.saved ? cut.rows * saved_of(cell) * p.units + lanes<A> : 0);
    worker_bytes = pieces.next - first + kApart;
    bytes = first - static_cast<char*>(p.scratch) + cut.sets() * worker_bytes;
    A** const own[] = {&cell_state, &input, &states[0], &states[1], &saved};
    for (A** piece : own)
      *piece = reinterpret_cast<A*>(reinterpret_cast<char*>(*piece) + worker * worker_bytes);
    if (cut.in_place) panels = nullptr;
  }

  void pack(const RecurrentParams& p, int64_t begin, int64_t end) const {
    for (int64_t group = begin; group < end; ++group)
      pack_group<T, cell>(p, group, panels ? panels + group * panel_numbers<A, cell>(p) : nullptr,
                          biases + group * kBiasNumbers<A>);
  }
};

// What a thread does of a step: groups of units, for sequences [first, end).
struct Part {
  int64_t first, end, group, groups_end;
};

// to[i] = from[i], rounded or not.
template <class From, class To>
void convert_row(const From* from, int64_t count, To* to) {
  constexpr int64_t L = lanes<acc_t<To>>;
  for (int64_t j = 0; j < count; j += L)
    store_n(to + j, load_n(from + j, min_of(L, count - j)), min_of(L, count - j));
}

// Rows of a state at the beginning.
template <class T, class A>
void begin_state(const void* from, int64_t first, int64_t rows, int64_t units, int64_t begin, int64_t end,
                 A* to, int64_t pitch) {
  for (int64_t i = 0; i < rows; ++i, to += pitch)
    convert_row(static_cast<const T*>(from) + (first + i) * units + begin, end - begin, to + begin);
}

// Groups of units for rows of one step, whose pointers are those of the first unit.
template <class A, Cell cell>
void run_step(const RecurrentParams& p, const Part& part, const A* panels, const A* biases, Tile<A> tile,
              int64_t rows) {
  for (int64_t group = part.group; group < part.groups_end; ++group) {
    tile.first = group * units_of<A>(cell);
    tile.count = min_of(p.units - tile.first, units_of<A>(cell));
    tile.panel = panels ? panels + group * panel_numbers<A, cell>(p) : nullptr;
    tile.bias = biases + group * kBiasNumbers<A>;
    run_rows<A, cell>(tile, rows);
  }
}

// Sequences that end with this step hand over their states, as far as units [begin, stop) go.
template <class T, Cell cell, class A>
void end_states(const RecurrentParams& p, const Step& step, int64_t number, const Part& part, int64_t begin,
                int64_t stop, const A* cell_state, int64_t pitch) {
  const int64_t first = part.first;
  int64_t going_on = 0;
  if (!p.reverse && step.t + 1 < p.steps) going_on = max_of(min_of(part.end, p.sizes[step.t + 1]) - first, 0);
  if (p.reverse && number + 1 < p.steps) return;
  const T* output = static_cast<const T*>(p.output) + (p.first_row[step.t] + first) * p.units;
  for (int64_t i = going_on; i < step.active; ++i) {
    const int64_t at = (first + i) * p.units + begin;
    convert_row(output + i * p.units + begin, stop - begin, static_cast<T*>(p.hidden_n) + at);
    if constexpr (cell == Cell::lstm)
      convert_row(cell_state + i * pitch + begin, stop - begin, static_cast<T*>(p.cell_n) + at);
  }
}

// One step of one part; numbers are in the type that sums are in.
template <class T, Cell cell>
__attribute__((noinline)) void run_part(const RecurrentParams& p, const Part& part, int64_t number,
                                        const Workspace<T, cell>& space) {
  using A = acc_t<T>;
  constexpr int kSaved = saved_of(cell);
  const int64_t first = part.first, sequences = part.end - first;
  const int64_t begin = part.group * units_of<A>(cell),
                end = min_of(part.groups_end * units_of<A>(cell), p.units);
  if constexpr (cell == Cell::lstm)
    if (number == 0)
      begin_state<T>(p.cell_state, first, sequences, p.units, begin, end, space.cell_state,
                     space.state_pitch);
  if constexpr (space.kWidens)
    if (number == 0)
      for (A* state : space.states)
        begin_state<T>(p.hidden, first, sequences, p.units, begin, end, state, space.state_pitch);
  const Step step(p, number, first, part.end);
  if (step.active == 0) return;
  Tile<A> tile{};
  tile.features = p.features;
  tile.units = p.units;
  tile.cell = space.cell_state;
  tile.cell_pitch = space.state_pitch;
  tile.output_pitch = p.units;
  tile.saved_pitch = kSaved * p.units;
  tile.relu = p.cell == Cell::relu;
  const int64_t row = p.first_row[step.t] + first;
  const T* input = static_cast<const T*>(p.input) + row * p.features;
  T* output = static_cast<T*>(p.output) + row * p.units;
  T* saved = static_cast<T*>(p.saved) + (p.saved ? row * kSaved * p.units : 0);
  if constexpr (space.kWidens) {
    A *from = space.states[number % 2], *to = space.states[(number + 1) % 2];
    for (int64_t i = 0; i < step.active; ++i)
      convert_row(input + i * p.features, p.features, space.input + i * space.input_pitch);
    tile.x = space.input;
    tile.x_pitch = space.input_pitch;
    tile.h = from;
    tile.h_pitch = tile.output_pitch = space.state_pitch;
    tile.output = to;
    tile.saved = p.saved ? space.saved : nullptr;
    run_step<A, cell>(p, part, space.panels, space.biases, tile, step.active);
    for (int64_t i = 0; i < step.active; ++i) {
      convert_row(to + i * space.state_pitch, p.units, output + i * p.units);
      if (p.saved)
        convert_row(space.saved + i * kSaved * p.units, kSaved * p.units, saved + i * kSaved * p.units);
    }
  } else {
    tile.weight_ih = static_cast<const A*>(p.weight_ih);
    tile.weight_hh = static_cast<const A*>(p.weight_hh);
    tile.x = input;
    tile.x_pitch = p.features;
    tile.output = output;
    tile.saved = saved;
    tile.h_pitch = p.units;
    if (step.known > 0) {
      tile.h = static_cast<const A*>(p.output) + (p.first_row[step.before] + first) * p.units;
      run_step<A, cell>(p, part, space.panels, space.biases, tile, step.known);
    }
    if (step.known < step.active) {
      tile.advance(step.known);
      tile.h = static_cast<const A*>(p.hidden) + (first + step.known) * p.units;
      run_step<A, cell>(p, part, space.panels, space.biases, tile, step.active - step.known);
    }
  }
  end_states<T, cell>(p, step, number, part, begin, end, space.cell_state, space.state_pitch);
}

template <class T, Cell cell>
void run(const RecurrentParams& p, const Parallel& parallel) {
  const Cut cut(p, parallel.threads);
  const Workspace<T, cell> shared(p, parallel.threads, 0);
  const int64_t share = ceil_div(shared.groups, cut.threads);
  parallel(shared.groups, share, [&](int64_t begin, int64_t end) { shared.pack(p, begin, end); });
  if (cut.in_place) {
    for (int64_t number = 0; number < p.steps; ++number)
      parallel(shared.groups, share, [&](int64_t begin, int64_t end) {
        run_part<T, cell>(p, {0, p.batch, begin, end}, number, shared);
      });
    return;
  }
  run_tasks({parallel.run, cut.threads}, cut.tasks, [&](int64_t task, int64_t worker) {
    const Workspace<T, cell> own(p, parallel.threads, worker);
    const Part part{p.batch * task / cut.tasks, p.batch * (task + 1) / cut.tasks, 0, own.groups};
    for (int64_t number = 0; number < p.steps; ++number) run_part<T, cell>(p, part, number, own);
  });
}

}  // namespace

int64_t recurrent_forward_scratch(const RecurrentParams& params, int64_t threads) {
  int64_t bytes = 0;
  RecurrentParams p = params;
  p.scratch = nullptr;
  dispatch(p,
           [&](auto type, auto cell) { bytes = Workspace<decltype(type), cell.value>(p, threads, 0).bytes; });
  return bytes;
}

void recurrent_forward(const RecurrentParams& p, const Parallel& parallel) {
  dispatch(p, [&](auto type, auto cell) { run<decltype(type), cell.value>(p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
