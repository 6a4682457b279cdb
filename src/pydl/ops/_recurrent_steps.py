"""One recurrent layer in one direction by torch's cells, step by step: for what differentiates a gradient again.

The same meaning as ``pydl::recurrent_forward``, in ops that have gradients of every order and rules for vmap.
"""

import torch

_CELLS = {"rnn_tanh": torch.rnn_tanh_cell, "rnn_relu": torch.rnn_relu_cell, "gru": torch.gru_cell}


def forward(kind, input, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, reverse):
    """(output, state after the last step), and c after the last step of an LSTM."""
    steps = input.unbind(0) if batch_sizes is None else input.split(batch_sizes.tolist())
    initial = [hidden] if cell is None else [hidden, cell]
    # of sequences that have ended (or have yet to begin, in reverse) the states wait behind those at work
    state, outputs = initial, [None] * len(steps)
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        size = steps[t].shape[0]
        now = [s[:size] for s in state]
        if kind == "lstm":
            now = torch.lstm_cell(steps[t], now, weight_ih, weight_hh, bias_ih, bias_hh)
        else:
            now = [_CELLS[kind](steps[t], *now, weight_ih, weight_hh, bias_ih, bias_hh)]
        outputs[t] = now[0]
        state = [torch.cat([n, s[size:]]) for n, s in zip(now, state, strict=True)]
    output = torch.stack(outputs) if batch_sizes is None else torch.cat(outputs)
    return output, *state


def gradients(kind, tensors, batch_sizes, reverse, needs, grads):
    """The gradients of those of ``tensors`` that ``needs`` names, differentiable where gradients are recorded.

    Args:
        kind: of the cell.
        tensors: input, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh; None where there is none.
        batch_sizes: or None.
        reverse: the direction.
        needs: for each of the tensors, whether its gradient is wanted.
        grads: of output, hidden and cell after the last step; None for zeros.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # each a node of its own: one tensor may have been made from another
        own = [t.view_as(t) if need else t for t, need in zip(tensors, needs, strict=True)]
        outputs = forward(kind, *own, batch_sizes, reverse)
        used = [(y, g) for y, g in zip(outputs, grads, strict=False) if g is not None and y.requires_grad]
        wanted = [t for t, need in zip(own, needs, strict=True) if need]
        outputs, grads = zip(*used, strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=again, allow_unused=True))
    return [next(found) if need else None for need in needs]
