"""rnn_tanh_cell, rnn_relu_cell, gru_cell and lstm_cell against torch in float64: sizes, dtypes, states, gradients."""

import copy

import pytest
import torch
from swap_models import Ops
from testing import assert_close
from torch import nn

import pydl

pytestmark = pytest.mark.cpu_kernels

KINDS = {
    "rnn_tanh_cell": (nn.RNNCell, {}),
    "rnn_relu_cell": (nn.RNNCell, {"nonlinearity": "relu"}),
    "gru_cell": (nn.GRUCell, {}),
    "lstm_cell": (nn.LSTMCell, {}),
}
OUR_OP = "pydl::recurrent_forward"


def pair(kind, *sizes, dtype=torch.float32, **options):
    """torch's cell in float64, and ours of ``dtype`` with the same weights."""
    cls, own = KINDS[kind]
    theirs = cls(*sizes, **own, **options).to(dtype).double()
    ours = getattr(pydl.nn, cls.__name__)(*sizes, **own, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours.to(dtype)


def flat(state):
    return [state] if isinstance(state, torch.Tensor) else list(state)


def unroll(kind, net, inputs, states):
    """The states after each step, from ``states``: h, of an LSTM h and c."""
    found, state = [], tuple(states) if kind == "lstm_cell" else states[0]
    for x in inputs:
        state = net(x, state)
        found += flat(state)
    return found


def outcome(kind, net, inputs, states):
    dtype = next(net.parameters()).dtype
    leaves = [t.to(dtype).requires_grad_() for t in (*inputs, *states)]
    found = unroll(kind, net, leaves[: len(inputs)], leaves[len(inputs) :])
    loss = sum((y * torch.linspace(-1, 2, y.numel()).sin().view(y.shape).to(dtype)).sum() for y in found)
    return found + list(torch.autograd.grad(loss, [*leaves, *net.parameters()]))


def compare(kind, nets, batch, features, units, steps=2, dtype=torch.float32, scale=5.0):
    inputs = [torch.randn(batch, features).to(dtype) for _ in range(steps)]
    states = [torch.randn(batch, units).to(dtype) / 2 for _ in range(2 if kind == "lstm_cell" else 1)]
    expected, actual = (outcome(kind, net, inputs, states) for net in nets)
    for p, q in zip(expected, actual, strict=True):
        assert q.dtype == dtype
        assert q.stride() == p.stride()
        size = max(p.square().mean().sqrt().item(), 1.0)
        assert_close(q / size, p / size, dtype, scale=scale)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes(kind, device):
    for features, units, batch in ((1, 1, 1), (5, 7, 2), (3, 8, 9), (8, 16, 1), (4, 17, 8), (15, 33, 5), (6, 32, 13)):
        compare(kind, pair(kind, features, units), batch, features, units)
    compare(kind, pair(kind, 5, 9, bias=False), 3, 5, 9)


@pytest.mark.best_isa
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind, dtype, device):
    compare(kind, pair(kind, 6, 11, dtype=dtype), 5, 6, 11, dtype=dtype, scale=3.0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    _, net = pair(kind, 2, 3, dtype=torch.float64)
    tensors = [torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (2, 3, 3)]
    tensors = tensors if kind == "lstm_cell" else tensors[:2]

    def call(x, *states):
        return tuple(unroll(kind, net, [x, x.sin()], states))

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_thread_count_changes_no_bit(kind):
    before, found = torch.get_num_threads(), []
    _, net = pair(kind, 40, 96)
    x, states = torch.randn(9, 40), [torch.randn(9, 96)] * (2 if kind == "lstm_cell" else 1)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(outcome(kind, net, [x[:3], x[3:6]], [s[:3] for s in states]))
            found[-1] += outcome(kind, net, [x], states)
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_a_cell_are_the_layer(kind):
    cls, own = KINDS[kind]
    _, cell = pair(kind, 5, 9)
    layer = getattr(pydl.nn, cls.__name__.removesuffix("Cell"))(5, 9, **own)
    layer.load_state_dict({f"{name}_l0": p for name, p in cell.state_dict().items()})
    x = torch.randn(6, 12, 5)
    states = [torch.zeros(12, 9)] * (2 if kind == "lstm_cell" else 1)
    with torch.no_grad():
        steps = unroll(kind, cell, x, states)[:: len(states)]
        assert_close(torch.stack(steps), layer(x)[0].double(), torch.float32, scale=5)


@pytest.mark.parametrize("written", ["weight_ih", "weight_hh", "bias_ih", "input", "state", "output"])
@pytest.mark.parametrize("kind", KINDS)
def test_written_to_between_forward_and_backward(kind, written):
    found = []
    for net in pair(kind, 4, 4, dtype=torch.float64):
        leaves = [torch.linspace(-1, 1, 12).double().view(3, 4).requires_grad_() for _ in range(2)]
        x, state = (t * 1.0 for t in leaves)
        output = flat(net(x, (state, state * 1.0) if kind == "lstm_cell" else state))[0]
        with torch.no_grad():
            {"input": x, "state": state, "output": output, **dict(net.named_parameters())}[written].mul_(2)
        try:
            found.append(torch.autograd.grad(output.sum(), [*leaves, *net.parameters()]))
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            found.append(None)
    if found[0] is None and not written.startswith(("weight", "bias")):
        return  # ours may know the gradient where torch refuses
    assert (found[0] is None) == (found[1] is None)
    for p, q in zip(*(f or () for f in found), strict=True):
        assert_close(q, p)


TORCHS = {
    "no rows": lambda net, s: net(torch.randn(0, 5)),
    "another width": lambda net, s: net(torch.randn(9, 6)),
    "another state": lambda net, s: net(torch.randn(9, 5), s(8, 7)),
    "three dimensions": lambda net, s: net(torch.randn(9, 2, 5)),
    "another dtype": lambda net, s: net(torch.randn(9, 5).double()),
    "a state of another dtype": lambda net, s: net(torch.randn(9, 5), s(9, 7, torch.float64)),
    "a list": lambda net, s: net([1.0]),
}


@pytest.mark.parametrize("case", TORCHS)
@pytest.mark.parametrize("kind", KINDS)
def test_torchs_to_serve_or_to_refuse(kind, case):
    def state(*shape_and_dtype):
        *shape, dtype = (*shape_and_dtype, torch.float32)[:3]
        return (torch.zeros(shape, dtype=dtype),) * 2 if kind == "lstm_cell" else torch.zeros(shape, dtype=dtype)

    found = []
    for net in pair(kind, 5, 7):
        try:
            found.append([(y.shape, y.dtype) for y in flat(TORCHS[case](net.float(), state))])
        except Exception as error:
            found.append((type(error), str(error)))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_swap(kind, monkeypatch):
    """Served batched and unbatched, with and without a state, and by the functions' names; small calls are torch's."""
    theirs = KINDS[kind][0](5, 9, **KINDS[kind][1])
    ours = pydl.swap(copy.deepcopy(theirs))
    (row,) = pydl.report(ours).rows
    assert row.served_by.startswith("cpu")
    x = torch.randn(4, 5)
    for input in (x, x[0]):
        with Ops() as ops:
            found = flat(ours(input))
        assert OUR_OP in ops.names
        for p, q in zip(flat(theirs(input)), found, strict=True):
            torch.testing.assert_close(q, p)
    with pydl.swapped(), Ops() as ops:
        theirs(x)
    assert OUR_OP in ops.names
    monkeypatch.undo()
    with Ops() as ops:
        ours(x[:1])
    assert OUR_OP not in ops.names
    x = x.repeat(9, 1)
    with torch.autocast("cpu", torch.bfloat16), Ops() as ops:
        found = flat(ours(x))
    assert (OUR_OP in ops.names) == (kind in ("gru_cell", "lstm_cell"))
    with torch.autocast("cpu", torch.bfloat16):
        for p, q in zip(flat(theirs(x)), found, strict=True):
            assert p.dtype == q.dtype
            torch.testing.assert_close(q, p, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_compile(kind):
    _, net = pair(kind, 5, 9)
    x = torch.randn(12, 5)
    found = []
    for call in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        y = flat(call(x))
        found.append([*y, *torch.autograd.grad(y[0].sin().sum(), list(net.parameters()))])
    for p, q in zip(*found, strict=True):
        torch.testing.assert_close(q, p)
