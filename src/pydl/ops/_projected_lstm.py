"""LSTMs whose hidden state is projected (Sak et al., "Long Short-Term Memory Based Recurrent Neural Network
Architectures", 2014), by those whose is not.

    h = W_hr m,  m = o tanh(c), and so  W_hh h = (W_hh W_hr) m

So all steps but the first, whose state need not be a projection of anything, are an LSTM of ``m`` with the recurrent
weight ``W_hh W_hr``; the states before it join the first step's input. The outputs are then one product.
"""

import torch

from pydl.ops.linear import linear_unasked


def run_projected(run, tensors, batch_sizes, reverse):
    """(output, hidden state, cell state) of one layer in one direction.

    Args:
        run: an LSTM without projections, (tensors, batch_sizes, reverse) to (output, hidden state, cell state).
        tensors: input, hidden (batch, projected), cell (batch, units), weight_ih, weight_hh (4 · units, projected),
            bias_ih, bias_hh, weight_hr (projected, units).
        batch_sizes: of a PackedSequence, whose input is rows; None for an input of (steps, batch, features).
        reverse: last step first; not with ``batch_sizes``.
    """
    input, hidden, cell, weight_ih, weight_hh, *biases, weight_hr = tensors
    recurrent = torch.mm(weight_hh, weight_hr)
    if batch_sizes is not None:
        begin, rest, sizes = input[: len(hidden)], input[len(hidden) :], batch_sizes[1:]
    else:
        begin, rest = (input[-1], input[:-1]) if reverse else (input[0], input[1:])
        sizes = None
    # times 1, a weight's gradient lies as the weight does, and not in a part of the gradient of both
    weights = (weight_ih, weight_hh) if len(rest) else (weight_ih * 1, weight_hh)
    joined, weight = torch.cat([begin, hidden], 1).unsqueeze(0), torch.cat(weights, 1)
    first, made, cell = run((joined, torch.zeros_like(cell), cell, weight, recurrent, *biases), None, False)
    first = first if sizes is None else first.squeeze(0)
    if len(rest):
        going = len(made) if sizes is None else int(sizes[0])  # sequences that are longer than a step
        later, now, cell_now = run((rest, made[:going], cell[:going], weight_ih, recurrent, *biases), sizes, reverse)
        first = torch.cat([later, first] if reverse else [first, later])
        made, cell = (torch.cat(pair) for pair in ((now, made[going:]), (cell_now, cell[going:])))
    return linear_unasked(first, weight_hr, None), linear_unasked(made, weight_hr, None), cell
