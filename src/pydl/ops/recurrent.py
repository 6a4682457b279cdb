"""Recurrent layers (d2l chapters "Recurrent Neural Networks" and "Modern Recurrent Neural Networks").

    rnn_tanh, rnn_relu, gru, lstm        kernels/recurrent.h has the formulas

The op is one layer in one direction over all steps, on the CPU alone; layers, directions and dropout between the layers
are put together here. A gradient that is to be differentiated again, and a batch of gradients, go by torch's cells.
"""

import torch

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes, _recurrent_steps
from pydl.ops._nodes import is_compiling
from pydl.ops._projected_lstm import run_projected
from pydl.ops.dropout import dropout_unasked
from pydl.ops.linear import lies_in_columns

__all__ = ["gru", "lstm", "rnn_relu", "rnn_tanh"]

# input: (steps, batch, features), or with batch_sizes the rows of all steps, (rows, features), as in a PackedSequence.
# saved: what the backward needs beside output; empty without `save`.
_library.define(
    "recurrent_forward",
    "(Tensor input, Tensor hidden, Tensor? cell, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
    "Tensor? batch_sizes, str kind, bool reverse, bool save) "
    "-> (Tensor output, Tensor hidden_n, Tensor cell_n, Tensor saved)",
)
# Gradients that are not needed come back empty.
_library.define(
    "recurrent_backward",
    "(Tensor? grad_output, Tensor? grad_hidden_n, Tensor? grad_cell_n, Tensor input, Tensor hidden, Tensor? cell, "
    "Tensor weight_ih, Tensor weight_hh, Tensor output, Tensor saved, Tensor? batch_sizes, str kind, bool reverse, "
    "bool need_input, bool need_state, bool need_weight_ih, bool need_weight_hh, bool need_bias) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)

_SAVED = {"gru": 4, "lstm": 5}  # numbers for each unit and step


@_library.fake("recurrent_forward")
def _(input, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, kind, reverse, save):
    units = weight_hh.shape[1]
    saved = (input.numel() // input.shape[-1], _SAVED[kind], units) if save and kind in _SAVED else (0,)
    output = input.new_empty((*input.shape[:-1], units))
    states = hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape if kind == "lstm" else (0,))
    return output, *states, input.new_empty(saved)


@_library.fake("recurrent_backward")
def _(
    grad_output, grad_hidden_n, grad_cell_n, input, hidden, cell, weight_ih, weight_hh, output, saved, batch_sizes,
    kind, reverse, need_input, need_state, need_weight_ih, need_weight_hh, need_bias,
):  # fmt: skip
    bias = weight_ih.shape[:1]
    shapes = (
        (need_input, input.shape),
        (need_state, hidden.shape),
        (need_state and kind == "lstm", hidden.shape),
        (need_weight_ih, weight_ih.shape),
        (need_weight_hh, weight_hh.shape),
        (need_bias, bias),
        (need_bias, bias),
    )
    return tuple(input.new_empty(shape if need else (0,)) for need, shape in shapes)


def _flags(needs):
    """What recurrent_backward is asked for, by whether input, hidden, cell, both weights and both biases need it."""
    input, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh = needs
    return input, hidden or cell, weight_ih, weight_hh, bias_ih or bias_hh


def _context(ctx, inputs, output):
    input, hidden, cell, weight_ih, weight_hh, _, _, batch_sizes, ctx.kind, ctx.reverse, _ = inputs
    ctx.save_for_backward(input, hidden, cell, weight_ih, weight_hh, output[0], output[3], batch_sizes)


def _backward(ops, ctx, grad_output, grad_hidden_n, grad_cell_n, _):
    *tensors, batch_sizes = ctx.saved_tensors
    needs = ctx.needs_input_grad[:7]
    grad_cell_n = grad_cell_n if ctx.kind == "lstm" else None
    found = ops.recurrent_backward(
        grad_output, grad_hidden_n, grad_cell_n, *tensors, batch_sizes, ctx.kind, ctx.reverse, *_flags(needs)
    )
    found = _as_torchs(found, ctx.kind, tensors[0], tensors[3], needs)
    return *(g if need else None for g, need in zip(found, needs, strict=True)), None, None, None, None


def _as_torchs(found, kind, input, weight_ih, needs):
    """The gradients with the input's laid out as torch's, whose first op is a linear layer, but for an LSTM's."""
    if kind == "lstm" or not needs[0] or not lies_in_columns(input, weight_ih, None):
        return found
    rows = found[0].flatten(0, -2)
    columns = rows.new_empty((rows.shape[1], rows.shape[0])).t().copy_(rows)
    return columns.view(found[0].shape), *found[1:]


_library.autograd("recurrent_forward", _context, _backward)


def _again_context(ctx, inputs, output):
    pass


def _again(ops, ctx, *grads):
    raise NotImplementedError(
        "recurrent_backward: expected to be differentiated in eager mode, by torch's cells, got a compiled call"
    )


_library.autograd("recurrent_backward", _again_context, _again)


class _Eager(torch.autograd.Function):
    """One layer in one direction in eager mode: each op is called below the autograd layer of the dispatcher.

    The output is kept unchecked, since torch lets one write to it (``output += x``): its version is noted, and what was
    written to is computed once more. So it passes hooks of saved tensors by. Saved is what torch saves too: the input
    where the weight needs a gradient, that weight where the input does.
    """

    @staticmethod
    def forward(ctx, input, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh, rest):
        ctx.ops, ctx.kind, ctx.reverse, batch_sizes = rest
        tensors = input, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh
        with below_autograd():
            output, hidden_n, cell_n, saved = _library.quick(ctx.ops).recurrent_forward(
                *tensors, batch_sizes, ctx.kind, ctx.reverse, True
            )
        ctx.to_save = (  # what ctx.save_for_backward sets
            input if weight_ih.requires_grad else None,
            hidden,
            cell,
            weight_ih if input.requires_grad else None,
            weight_hh,
            saved,
            batch_sizes,
        )
        unchecked = (
            None if weight_ih.requires_grad else input,
            None if input.requires_grad else weight_ih,
            bias_ih,
            bias_hh,
        )
        ctx.unchecked = [(t, None if t is None else t._version) for t in unchecked]
        ctx.output, ctx.version = output.detach(), output._version
        ctx.set_materialize_grads(False)
        return (output, hidden_n, cell_n) if ctx.kind == "lstm" else (output, hidden_n)

    @staticmethod
    def backward(ctx, *grads):
        needs = ctx.needs_input_grad[:7]
        if all(g is None for g in grads):
            return (None,) * 8
        input, hidden, cell, weight_ih, weight_hh, saved, batch_sizes = ctx.saved_tensors
        (own_input, _), (own_weight, _), (bias_ih, _), (bias_hh, _) = ctx.unchecked
        input, weight_ih = own_input if input is None else input, own_weight if weight_ih is None else weight_ih
        tensors = input, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh
        if torch.is_grad_enabled() or _library.transforms_active():
            _check_unwritten(ctx)
            found = _recurrent_steps.gradients(ctx.kind, tensors, batch_sizes, ctx.reverse, needs, grads)
            return *found, None
        ops, output = _library.quick(ctx.ops), ctx.output
        with below_autograd():
            if output._version != ctx.version:
                _check_unwritten(ctx)
                output = ops.recurrent_forward(*tensors, batch_sizes, ctx.kind, ctx.reverse, False)[0]
            found = ops.recurrent_backward(
                grads[0], grads[1], grads[2] if ctx.kind == "lstm" else None, *tensors[:5], output, saved, batch_sizes,
                ctx.kind, ctx.reverse, *_flags(needs),
            )  # fmt: skip
            found = _as_torchs(found, ctx.kind, input, weight_ih, needs)
        return *(g if need else None for g, need in zip(found, needs, strict=True)), None


def _check_unwritten(ctx):
    for tensor, version in ctx.unchecked:
        if tensor is not None and tensor._version != version:
            raise RuntimeError(
                f"{ctx.kind}: expected no tensor that the forward is repeated from to be modified by an inplace "
                f"operation, got one of shape {tuple(tensor.shape)} at version {tensor._version} instead of {version}"
            )


_apply = _library.eager(_Eager)

SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PROJECTED = (torch.float32, torch.float64)  # the product of two weights would be rounded to 8 bits, or 11
MANY_UNITS = 128  # from where on a projection to a third of them saves more than our LSTM, which is not smaller for it
# Steps times sequences from which on ours is quicker; one row is little more than a call and its weights read once.
LEAST_ROWS = {"rnn_tanh": 2, "rnn_relu": 2, "gru": 2, "lstm": 1}
# Numbers of an LSTM's weights that stay in no cache of a core: each thread reads them at each step, oneDNN's once.
LARGE, ENOUGH_SEQUENCES = 1 << 21, 16


def run_layer(ops, kind, tensors, batch_sizes, reverse):
    """(output, states after the last step) of one layer in one direction; ``tensors`` as the op takes them."""
    if torch.compiler.is_compiling():
        found = ops.recurrent_forward(*tensors, batch_sizes, kind, reverse, True)
        return found[: 3 if kind == "lstm" else 2]
    found = _nodes.recurrent(*tensors, batch_sizes, kind, reverse)
    if found is not NotImplemented:
        return found
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _apply(*(None if t is None else alive(t) for t in tensors), (ops, kind, reverse, batch_sizes))
    with below_autograd():
        found = _library.quick(ops).recurrent_forward(*tensors, batch_sizes, kind, reverse, False)
    return found[: 3 if kind == "lstm" else 2]


def is_autocasts(input, keeps_float32):
    """Whether autocast decides in what dtype the call is computed.

    keeps_float32: whether torch's result is float32 all the same. It then rounds nothing but what the products read,
    and on a CPU without bfloat16 products takes up to thirty times as long for it.
    """
    return torch.is_autocast_enabled("cpu") and not (keeps_float32 and input.dtype == torch.float32)


class _Call:
    """The arguments of one of torch's functions, in either form: of a tensor, or of the data of a PackedSequence."""

    def __init__(self, kind, args, kwargs):
        names = _NAMES if not kwargs or "batch_first" in kwargs else _PACKED_NAMES
        values = (*args, *(kwargs[name] for name in names[len(args) :])) if kwargs else args
        packed = isinstance(values[1], torch.Tensor) and (kind == "lstm" or isinstance(values[2], torch.Tensor))
        if packed:
            self.input, self.batch_sizes, hx, *rest = values
            rest.append(False)
        else:
            self.input, hx, *rest = values
            self.batch_sizes = None
        self.params, self.has_biases, self.layers, self.dropout, self.train, bidirectional, self.batch_first = rest
        flags = self.has_biases, self.train, bidirectional, self.batch_first
        if {type(flag) for flag in flags} != {bool} or type(self.layers) is not int:
            raise TypeError  # what torch refuses, or takes in a form of its own
        if type(self.dropout) not in (float, int):
            raise TypeError
        self.states = tuple(hx) if kind == "lstm" else (hx,)
        self.kind, self.directions, self.each = kind, 2 if bidirectional else 1, 4 if self.has_biases else 2
        self.projected = kind == "lstm" and len(self.params) == self.layers * self.directions * (self.each + 1)
        self.each += self.projected

    def weights(self, i):
        """weight_ih, weight_hh, bias_ih, bias_hh of one layer in one direction, by number; then weight_hr, if any."""
        own = self.params[i * self.each : (i + 1) * self.each]
        return own if self.has_biases else (*own[:2], None, None, *own[2:])

    def is_served(self):
        """Whether the call is ours; what torch would refuse, it refuses in its own words."""
        input, states, count = self.input, self.states, self.layers * self.directions
        packed = self.batch_sizes is not None
        dtype, features = input.dtype, input.shape[-1]
        if dtype not in SUPPORTED or input.dim() != (2 if packed else 3) or input.numel() == 0:
            return False
        if len(self.params) != count * self.each or len(states) != (2 if self.kind == "lstm" else 1):
            return False
        batch = int(self.batch_sizes[0]) if packed else input.shape[0 if self.batch_first else 1]
        units = outputs = self.params[1].shape[-1]
        if self.projected:  # in the other direction a packed row's first step is not the first of all
            if dtype not in PROJECTED or (packed and self.directions == 2) or self.params[-1].dim() != 2:
                return False
            units = self.params[-1].shape[1]
            if units > MANY_UNITS and 3 * outputs < units:
                return False
        gates = {"gru": 3, "lstm": 4}.get(self.kind, 1) * units
        large = self.kind == "lstm" and dtype == torch.float32 and gates * (features + units) > LARGE
        if large and 1 < batch < ENOUGH_SEQUENCES and input.shape[:-1].numel() > 3 * batch:  # see NOTES of the kernels
            return False
        for i in range(count):
            weight_ih, weight_hh, *biases = self.weights(i)
            if self.projected and biases.pop().shape != (outputs, units):
                return False
            if weight_ih.shape != (gates, features) or weight_hh.shape != (gates, outputs):
                return False
            if any(b is not None and b.shape != (gates,) for b in biases):
                return False
            if (i + 1) % self.directions == 0:
                features = outputs * self.directions
        tensors = *states, *self.params
        return (
            units > 0
            and all(s.shape == (count, batch, n) for s, n in zip(states, (outputs, units), strict=False))
            and all(t.dtype == dtype and t.is_cpu for t in tensors)
        )

    def is_torchs(self):
        """Whether torch's own function is to get these tensors, or sees this moment (aside.py)."""
        if functorch_active() or is_autocasts(self.input, self.kind == "gru"):
            return True
        groups = range(self.layers * self.directions)
        return is_torchs(self.input, *self.states) or any(is_torchs(self.input, *self.weights(i)) for i in groups)

    def _lstm(self, ops):
        return lambda tensors, batch_sizes, reverse: run_layer(ops, "lstm", tensors, batch_sizes, reverse)

    def run(self, ops):
        """What torch's function returns."""
        input = self.input.transpose(0, 1) if self.batch_first else self.input
        initial = list(zip(*(s.unbind(0) for s in self.states), strict=True))
        final = []
        for layer in range(self.layers):
            outputs = []
            for direction in range(self.directions):
                i = layer * self.directions + direction
                states = initial[i] if self.kind == "lstm" else (*initial[i], None)
                tensors = input, *states, *self.weights(i)
                if self.projected:
                    output, *ended = run_projected(self._lstm(ops), tensors, self.batch_sizes, direction == 1)
                else:
                    output, *ended = run_layer(ops, self.kind, tensors, self.batch_sizes, direction == 1)
                outputs.append(output)
                final.append(ended)
            input = outputs[0] if self.directions == 1 else torch.cat(outputs, -1)
            if self.dropout and self.train and layer + 1 < self.layers:
                input = dropout_unasked("dropout", input, self.dropout, True, False)
        output = input.transpose(0, 1) if self.batch_first else input
        if len(final) == 1:
            return output, *(state.unsqueeze(0) for state in final[0])
        return output, *(torch.stack(states) for states in zip(*final, strict=True))


_NAMES = ("input", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first")
_PACKED_NAMES = ("data", "batch_sizes", *_NAMES[1:-1])


def _serve(kind, torchs, args, kwargs):
    try:
        input = args[0]  # torch's own layers give it by position
        if input.numel() < LEAST_ROWS[kind] * input.shape[-1]:
            return torchs(*args, **kwargs)
        if len(args) == 9 and not kwargs and not is_compiling():
            found = _nodes.recurrent_stack(*args, kind)
            if found is not NotImplemented:
                return found
        call = _Call(kind, args, kwargs)
        theirs = call.is_torchs() or not call.is_served()
        ops = None if theirs else backend.ops_for(call.input, "recurrent")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # torch says so in its own words
        ops = None
    return torchs(*args, **kwargs) if ops is None else call.run(ops)


def rnn_tanh(*args, **kwargs):
    """``h' = tanh(W_ih x + b_ih + W_hh h + b_hh)`` over all steps, as ``torch.rnn_tanh``.

    ``rnn_tanh(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)``, or of a
    PackedSequence ``rnn_tanh(data, batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional)``.

    Args:
        input: (steps, batch, features), or (batch, steps, features) with batch_first; float32, float64, bfloat16 or
            float16, with any strides. float16 is copied to float32 and back.
        hx: (layers * directions, batch, units), the states before the first step; of :func:`lstm` a pair, h and c.
        params: for each layer and direction weight_ih, weight_hh and, with has_biases, bias_ih and bias_hh.
        dropout: the probability with which the outputs of all layers but the last are dropped, if train says so.

    Returns:
        (output, states after the last step), of :func:`lstm` (output, h, c); output is (steps, batch, directions *
        units), or (batch, steps, ...) with batch_first. Nothing depends on the number of threads.

    Torch's own function serves other devices and dtypes, projections in 16 bits, to less than a third of more than
    128 units, or of packed sequences in two directions, one step of one sequence (but of :func:`lstm`), empty
    tensors, an input given by name, calls under transforms of torch.func, LSTMs of more than two million weights in
    float32 for 2 to 15 sequences of more than three steps, and whatever it refuses; and calls under autocast, but
    for :func:`gru` of float32: torch's keeps the states in float32 there, and rounds to bfloat16 what the products
    read, which ours need not.

    >>> rnn = nn.RNN(3, 4)
    >>> x, state = torch.randn(5, 2, 3), torch.zeros(1, 2, 4)
    >>> F.rnn_tanh(x, state, rnn._flat_weights, True, 1, 0.0, True, False, False)[0].shape
    torch.Size([5, 2, 4])
    """
    return _serve("rnn_tanh", torch.rnn_tanh, args, kwargs)


def rnn_relu(*args, **kwargs):
    """``h' = relu(W_ih x + b_ih + W_hh h + b_hh)`` over all steps, as ``torch.rnn_relu``; see :func:`rnn_tanh`.

    >>> rnn = nn.RNN(3, 4, nonlinearity="relu")
    >>> x, state = torch.randn(5, 2, 3), torch.zeros(1, 2, 4)
    >>> F.rnn_relu(x, state, rnn._flat_weights, True, 1, 0.0, True, False, False)[0].shape
    torch.Size([5, 2, 4])
    """
    return _serve("rnn_relu", torch.rnn_relu, args, kwargs)


def gru(*args, **kwargs):
    """Gated recurrent units over all steps, as ``torch.gru``; see :func:`rnn_tanh`.

    >>> gru = nn.GRU(3, 4)
    >>> x, state = torch.randn(5, 2, 3), torch.zeros(1, 2, 4)
    >>> F.gru(x, state, gru._flat_weights, True, 1, 0.0, True, False, False)[0].shape
    torch.Size([5, 2, 4])
    """
    return _serve("gru", torch.gru, args, kwargs)


def lstm(*args, **kwargs):
    """Long short-term memory over all steps, as ``torch.lstm``; see :func:`rnn_tanh`.

    >>> lstm, state = nn.LSTM(3, 4), (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
    >>> F.lstm(torch.randn(5, 2, 3), state, lstm._flat_weights, True, 1, 0.0, True, False, False)[0].shape
    torch.Size([5, 2, 4])
    """
    return _serve("lstm", torch.lstm, args, kwargs)
