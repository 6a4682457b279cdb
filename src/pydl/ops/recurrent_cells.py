"""Recurrent cells: one step of one layer (d2l chapter "Recurrent Neural Networks").

rnn_tanh_cell, rnn_relu_cell, gru_cell, lstm_cell        by the op of recurrent.py, with one step
"""

import torch

from pydl import backend
from pydl._private import functorch_active
from pydl.aside import is_torchs
from pydl.ops import _nodes
from pydl.ops._nodes import is_compiling
from pydl.ops.recurrent import SUPPORTED, is_autocasts, run_layer

__all__ = ["gru_cell", "lstm_cell", "rnn_relu_cell", "rnn_tanh_cell"]

LEAST_BATCH = 2  # rows from which on ours is quicker


def _is_served(kind, input, states, weight_ih, weight_hh, bias_ih, bias_hh):
    """Whether the call is ours; what torch would refuse, it refuses in its own words."""
    if input.dim() != 2 or input.dtype not in SUPPORTED or input.numel() == 0 or weight_hh.dim() != 2:
        return False
    batch, units = input.shape[0], weight_hh.shape[1]
    gates = {"gru": 3, "lstm": 4}.get(kind, 1) * units
    biases = [b for b in (bias_ih, bias_hh) if b is not None]
    return (
        units > 0
        and len(states) == (2 if kind == "lstm" else 1)
        and weight_ih.shape == (gates, input.shape[1])
        and weight_hh.shape[0] == gates
        and len(biases) != 1
        and all(b.shape == (gates,) for b in biases)
        and all(s.shape == (batch, units) for s in states)
        and all(t.dtype == input.dtype and t.is_cpu for t in (*states, weight_ih, weight_hh, *biases))
    )


def _serve(kind, torchs, input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    try:
        ops = None
        small = input.shape[0] < LEAST_BATCH
        if not small and not is_compiling():
            found = _nodes.recurrent_cell(input, hx, w_ih, w_hh, b_ih, b_hh, kind)
            if found is not NotImplemented:
                return found if kind == "lstm" else found[0]
        if not small and not functorch_active():
            states, weights = tuple(hx) if kind == "lstm" else (hx,), (w_ih, w_hh, b_ih, b_hh)
            theirs = is_autocasts(input, kind in ("gru", "lstm")) or is_torchs(input, *states) or is_torchs(*weights)
            if not theirs and _is_served(kind, input, states, *weights):
                ops = backend.ops_for(input, "recurrent")
    except (AttributeError, IndexError, TypeError, ValueError):  # torch says so in its own words
        ops = None
    if ops is None:
        return torchs(input, hx, w_ih, w_hh, b_ih, b_hh)
    hidden, cell = states if kind == "lstm" else (hx, None)
    _, *found = run_layer(ops, kind, (input.unsqueeze(0), hidden, cell, *weights), None, False)
    return tuple(found) if kind == "lstm" else found[0]


def rnn_tanh_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """``tanh(W_ih x + b_ih + W_hh h + b_hh)``, as ``torch.rnn_tanh_cell``.

    Args:
        input: (batch, features); float32, float64, bfloat16 or float16, with any strides. float16 is copied to float32
            and back.
        hx: (batch, units), the state; of :func:`lstm_cell` a pair, h and c.
        w_ih, w_hh: (gates * units, features) and (gates * units, units).
        b_ih, b_hh: (gates * units,), or both None.

    Returns:
        The state after the step, (batch, units), of :func:`lstm_cell` a pair. Nothing depends on the number of threads.

    Torch's own function serves other devices and dtypes, batches of fewer than 2, empty tensors, calls under transforms
    of torch.func, and whatever it refuses; and under autocast all but :func:`gru_cell` and :func:`lstm_cell` of
    float32, whose result is float32 there as well.

    >>> F.rnn_tanh_cell(torch.ones(1, 2), torch.zeros(1, 1), torch.ones(1, 2), torch.ones(1, 1))
    tensor([[0.9640]])
    """
    return _serve("rnn_tanh", torch.rnn_tanh_cell, input, hx, w_ih, w_hh, b_ih, b_hh)


def rnn_relu_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """``relu(W_ih x + b_ih + W_hh h + b_hh)``, as ``torch.rnn_relu_cell``; see :func:`rnn_tanh_cell`.

    >>> F.rnn_relu_cell(torch.ones(1, 2), torch.zeros(1, 1), torch.ones(1, 2), torch.ones(1, 1))
    tensor([[2.]])
    """
    return _serve("rnn_relu", torch.rnn_relu_cell, input, hx, w_ih, w_hh, b_ih, b_hh)


def gru_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """One step of gated recurrent units, as ``torch.gru_cell``; see :func:`rnn_tanh_cell`.

    >>> F.gru_cell(torch.ones(1, 2), torch.zeros(1, 1), torch.ones(3, 2), torch.ones(3, 1))
    tensor([[0.1149]])
    """
    return _serve("gru", torch.gru_cell, input, hx, w_ih, w_hh, b_ih, b_hh)


def lstm_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """One step of long short-term memory, as ``torch.lstm_cell``; see :func:`rnn_tanh_cell`.

    >>> state = torch.zeros(1, 1), torch.zeros(1, 1)
    >>> F.lstm_cell(torch.ones(1, 2), state, torch.ones(4, 2), torch.ones(4, 1))
    (tensor([[0.6083]]), tensor([[0.8491]]))
    """
    return _serve("lstm", torch.lstm_cell, input, hx, w_ih, w_hh, b_ih, b_hh)
