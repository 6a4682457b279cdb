// The register tile of a group of units: both products of a few sequences, all gates side by side, then the cell.
#pragma once

#include "kernels/cpu/gemm/few_rows.h"
#include "kernels/cpu/gemm/microkernel.h"
#include "kernels/cpu/recurrent/cells.h"

namespace pydl::cpu::PYDL_ISA::recurrent {
namespace {

// Vectors of a tile: the gates of a vector of units, or two vectors of units of a cell without gates.
constexpr int vectors_of(Cell cell) { return max_of(gates_of(cell), 2); }
template <class A>
constexpr int64_t units_of(Cell cell) {
  return lanes<A> * vectors_of(cell) / gates_of(cell);
}
// Sequences of a tile: as many as the registers hold. Of float64, which is for checks more than for speed, two.
template <class A>
constexpr int rows_of(int vectors) {
  if (sizeof(A) == 8) return 2;
#if defined(PYDL_AVX512)
  return vectors == 2 ? gemm::kMr : vectors == 3 ? 8 : 6;
#else
  return vectors == 2 ? gemm::kMr : vectors == 3 ? 4 : 3;
#endif
}

template <class A>
struct Tile {
  const A* x;  // features of each sequence, x_pitch apart
  int64_t x_pitch, features;
  const A* h;  // units, h_pitch apart
  int64_t h_pitch, units;
  const A* panel;  // features + units steps of the tile's vectors; null: weights are read as they lie
  const A *weight_ih, *weight_hh;  // all of them
  const A* bias;         // the tile's vectors; of gru b_r, b_z, that of the input's n and that of the state's
  int64_t first, count;  // units of the group, of which the last group may have fewer than vectors of them
  A* cell;               // c of lstm, replaced; cell_pitch apart
  int64_t cell_pitch;
  A* output;
  int64_t output_pitch;
  A* saved;  // or null
  int64_t saved_pitch;
  bool relu;

  void advance(int64_t sequences) {
    x += sequences * x_pitch;
    h += sequences * h_pitch;
    cell += sequences * cell_pitch;
    output += sequences * output_pitch;
    if (saved) saved += sequences * saved_pitch;
  }
};

// Four vectors of sums a sequence: of gru the fourth is the input's part of n, of a cell without gates there are two.
template <class A>
constexpr int kSums = 4 * lanes<A>;

template <class A, int vectors, int rows>
void sum_tile(const Tile<A>& t, A* sums) {
  constexpr int L = lanes<A>;
  vec<A> sum[rows][vectors];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    const vec<A> start = load(t.bias + v * L);
#pragma GCC unroll 14
    for (int m = 0; m < rows; ++m) sum[m][v] = start;
  }
  const A* right = t.panel;
  gemm::NoPrefetch nothing;
  gemm::Pitched<A, rows> x(t.x, t.x_pitch);
  gemm::accumulate(t.features, x, right, vectors * L, nothing, sum);
  if constexpr (vectors == 3) {  // r is to multiply the state's part of n alone
    const vec<A> start = load(t.bias + 3 * L);
#pragma GCC unroll 14
    for (int m = 0; m < rows; ++m) {
      store(sums + m * kSums<A> + 3 * L, sum[m][2]);
      sum[m][2] = start;
    }
  }
  gemm::Pitched<A, rows> h(t.h, t.h_pitch);
  gemm::accumulate(t.units, h, right, vectors * L, nothing, sum);
#pragma GCC unroll 14
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store(sums + m * kSums<A> + v * L, sum[m][v]);
}

// to[j] = row · right[j], for rows as they lie: once in the text for all cells.
template <class A>
__attribute__((noinline)) void dots(const A* row, const A* right, int64_t numbers, int64_t count, A* to) {
  gemm::row_times_transposed(row, right, numbers, count, numbers, A(1), to);
}

// The same of weights as they lie.
template <class A, Cell cell>
void sum_in_place(const Tile<A>& t, int64_t rows, A* sums) {
  constexpr int L = lanes<A>;
  for (int v = 0; v < vectors_of(cell); ++v) {
    const bool gated = gates_of(cell) > 1, apart = cell == Cell::gru && v == 2;
    const int64_t row = t.first + (gated ? v * t.units : v * L);
    const int64_t count = max_of(min_of(gated ? t.count : t.count - v * L, L), 0);
    const vec<A> start = load(t.bias + v * L);
    for (int64_t m = 0; m < rows; ++m) {
      alignas(64) A of_input[L] = {}, of_state[L] = {};
      dots(t.x + m * t.x_pitch, t.weight_ih + row * t.features, t.features, count, of_input);
      dots(t.h + m * t.h_pitch, t.weight_hh + row * t.units, t.units, count, of_state);
      A* const to = sums + m * kSums<A>;
      if (apart) {
        store(to + 3 * L, start + load(of_input));
        store(to + 2 * L, load(t.bias + 3 * L) + load(of_state));
      } else {
        store(to + v * L, start + load(of_input) + load(of_state));
      }
    }
  }
}

template <class A>
PYDL_INLINE void put(A* to, vec<A> x, int64_t count) {
  if (count >= lanes<A>)
    store(to, x);
  else
    store_n(to, x, count);
}

// The states after this step from the sums; saved(k) of a unit lies k * units after saved(0).
template <class A, Cell cell>
void finish_rows(const Tile<A>& t, const A* sums, int64_t rows) {
  constexpr int L = lanes<A>;
  for (int64_t i = 0; i < rows; ++i, sums += kSums<A>) {
    A* output = t.output + i * t.output_pitch + t.first;
    A* saved = t.saved ? t.saved + i * t.saved_pitch + t.first : nullptr;
    const auto save = [&](int64_t k, vec<A> x) PYDL_INLINE_LAMBDA { put(saved + k * t.units, x, t.count); };
    if constexpr (cell == Cell::gru) {
      const vec<A> state_n = load(sums + 2 * L);
      const GruGates<A> gate(load(sums), load(sums + L), load(sums + 3 * L), state_n);
      const vec<A> h = load_n(t.h + i * t.h_pitch + t.first, min_of(t.count, L));
      put(output, gate.n + gate.z * (h - gate.n), t.count);
      if (saved) {
        save(0, gate.r);
        save(1, gate.z);
        save(2, gate.n);
        save(3, state_n);
      }
    } else if constexpr (cell == Cell::lstm) {
      const LstmGates<A> gate({load(sums), load(sums + L), load(sums + 2 * L), load(sums + 3 * L)});
      A* at = t.cell + i * t.cell_pitch + t.first;
      const vec<A> c = gate.f * load(at) + gate.i * gate.g;
      store(at, c);
      put(output, gate.o * tanh_one<A>(c), t.count);
      if (saved) {
        save(0, gate.i);
        save(1, gate.f);
        save(2, gate.g);
        save(3, gate.o);
        save(4, c);
      }
    } else {
      vec<A> h[2] = {load(sums), load(sums + L)};
      if (t.relu) {
        for (vec<A>& x : h) x = x < vec<A>{} ? vec<A>{} : x;  // nan stays nan
      } else {
        tanh_group<A>(h);
      }
      put(output, h[0], t.count);
      if (t.count > L) put(output + L, h[1], t.count - L);
    }
  }
}

// of[rows - 1]
template <class A, int vectors>
struct Tiles {
  void (*of[rows_of<A>(vectors)])(const Tile<A>&, A*);

  constexpr Tiles() : of{} { fill<1>(); }
  template <int rows>
  constexpr void fill() {
    of[rows - 1] = &sum_tile<A, vectors, rows>;
    if constexpr (rows < rows_of<A>(vectors)) fill<rows + 1>();
  }
};

// Sequences are cut into tiles of equal size, as far as that goes.
template <class A, Cell cell>
void run_rows(Tile<A> tile, int64_t rows) {
  static constexpr Tiles<A, vectors_of(cell)> tiles;
  constexpr int kRows = rows_of<A>(vectors_of(cell));
  alignas(64) A sums[kRows * kSums<A>];
  for (int64_t blocks = ceil_div(rows, kRows); blocks > 0; --blocks) {
    const int64_t n = ceil_div(rows, blocks);
    if (tile.panel)
      tiles.of[n - 1](tile, sums);
    else
      sum_in_place<A, cell>(tile, n, sums);
    finish_rows<A, cell>(tile, sums, n);
    tile.advance(n);
    rows -= n;
  }
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::recurrent
