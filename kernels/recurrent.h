// Recurrent cells over all steps of a batch of sequences, one layer in one direction (d2l "Recurrent Neural Networks",
// "Gated Recurrent Units (GRU)", "Long Short-Term Memory (LSTM)"; Elman, 1990; Cho et al., 2014; Hochreiter and
// Schmidhuber, 1997), forward and backward.
//
// With a = W_ih x + b_ih and b = W_hh h + b_hh, of which each gate has its rows, and h, c the states of the step before:
//
//   tanh, relu   h' = f(a + b)
//   gru          r = sigmoid(a_r + b_r)   z = sigmoid(a_z + b_z)   n = tanh(a_n + r b_n)   h' = n + z (h - n)
//   lstm         i = sigmoid(a_i + b_i)   f = sigmoid(a_f + b_f)   g = tanh(a_g + b_g)     o = sigmoid(a_o + b_o)
//                c' = f c + i g           h' = o tanh(c')
//
// The backward gives the gradients of the sums, step by step, from the last one on:
//
//   gru          dn = dh (1 - z) (1 - n^2)   dz = dh (h - n) z (1 - z)   dr = dn b_n r (1 - r)   db_n = dn r
//   lstm         dc' += dh o (1 - tanh(c')^2)   di = dc' g i (1 - i)   df = dc' c f (1 - f)   dg = dc' i (1 - g^2)
//                do = dh tanh(c') o (1 - o)     dc = dc' f
//   dh of the step before += W_hh^T (the gradients of b)
//
// The gradients of the input and of the weights are products with them, over all steps at once: of small weights by
// recurrent_products, else kernels/matmul.h's.
#pragma once

#include "kernels/common.h"
#include "kernels/isa.h"

namespace pydl {

enum class Cell : int32_t { tanh, relu, gru, lstm };

// Rows of the weights, in units.
static constexpr int gates_of(Cell cell) { return cell == Cell::gru ? 3 : cell == Cell::lstm ? 4 : 1; }
// Numbers that the backward is left for each unit and step: r, z, n, b_n; or i, f, g, o, c'.
static constexpr int saved_of(Cell cell) { return cell == Cell::gru ? 4 : cell == Cell::lstm ? 5 : 0; }
// Gradients for each unit and step: db_n, dr, dz, dn, of which the first three are those of b and the last three those
// of a; or the gates' own.
static constexpr int gradients_of(Cell cell) { return cell == Cell::gru ? 4 : gates_of(cell); }

// Sequences lie step by step: those that have a step t are the first sizes[t] of the batch, in rows first_row[t] on.
struct RecurrentParams {
  DType dtype;  // not f16, which arrives as f32
  Cell cell;
  bool reverse;  // from the last step to the first
  int64_t steps, batch, rows, features, units;
  const int64_t *sizes, *first_row;   // sizes do not grow
  const void* input;                  // rows x features; all tensors are contiguous
  const void *hidden, *cell_state;    // batch x units, before the first step; the second of lstm alone
  const void *weight_ih, *weight_hh;  // gates * units x features, or units
  const void *bias_ih, *bias_hh;      // gates * units; null for zeros
  void* output;                       // rows x units: h' of each step, which the backward reads
  void* saved;                        // rows x saved_of(cell) x units; null where no backward follows
  void *hidden_n, *cell_n;            // batch x units, after the last step; the second of lstm alone
  void* scratch;                      // as many bytes as the entry's own _scratch() says, 64-byte aligned

  const void *grad_output, *grad_hidden_n, *grad_cell_n;  // null for zeros
  void* gradients;  // rows x gradients_of(cell) x units, `pitch` numbers from row to row
  int64_t pitch;
  void *grad_hidden, *grad_cell;  // batch x units; null where not wanted, both or none

  // Of recurrent_products; null where not wanted, of the biases both or none.
  const void* before;  // rows x units: the state before each step; null: the output's, a step away
  void* grad_input;    // rows x features
  void *grad_weight_ih, *grad_weight_hh, *grad_bias_ih, *grad_bias_hh;
};

namespace cpu {
PYDL_CPU_ENTRY(int64_t recurrent_forward_scratch(const RecurrentParams& params, int64_t threads))
PYDL_CPU_ENTRY(int64_t recurrent_backward_scratch(const RecurrentParams& params, int64_t threads))
PYDL_CPU_ENTRY(void recurrent_forward(const RecurrentParams& params, const Parallel& parallel))
PYDL_CPU_ENTRY(void recurrent_backward(const RecurrentParams& params, const Parallel& parallel))
PYDL_CPU_ENTRY(bool recurrent_products_serves(const RecurrentParams& params))
PYDL_CPU_ENTRY(int64_t recurrent_products_scratch(const RecurrentParams& params, int64_t threads))
PYDL_CPU_ENTRY(void recurrent_products(const RecurrentParams& params, const Parallel& parallel))
}  // namespace cpu

}  // namespace pydl
