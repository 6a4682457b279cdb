"""Swapped recurrent layers: their results are tuples, and torch's own forward runs over our functions."""

import copy
import inspect
import pickle

import pytest
import torch
from swap_models import Ops, Watching, reasons
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence
from torch.overrides import TorchFunctionMode

import pydl

LAYERS = {
    "RNN": lambda **options: nn.RNN(5, 9, **options),
    "RNN relu": lambda **options: nn.RNN(5, 9, nonlinearity="relu", **options),
    "GRU": lambda **options: nn.GRU(5, 9, **options),
    "LSTM": lambda **options: nn.LSTM(5, 9, **options),
}
X = torch.linspace(-1, 1, 4 * 3 * 5).sin().view(4, 3, 5)
OUR_OP = "pydl::recurrent_forward"


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in flat(v)]


def names_of(call):
    with Ops() as ops, torch.no_grad():
        call()
    return ops.names


@pytest.mark.parametrize("name", LAYERS)
def test_swap_serves_it(name):
    net = LAYERS[name](num_layers=2, bidirectional=True)
    theirs = copy.deepcopy(net)
    keys, words = list(net.state_dict()), repr(net)
    assert pydl.swap(net) is net
    assert (type(net), list(net.state_dict()), repr(net)) == (type(theirs), keys, words)
    assert inspect.signature(net.forward) == inspect.signature(theirs.forward)
    assert names_of(lambda: net(X)).count(OUR_OP) == 4
    (row,) = pydl.report(net).rows
    assert row.served_by.startswith("cpu")
    assert row.reason == ""
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), pydl.unswap(net)):
        for p, q in zip(flat(other(X)), flat(theirs(X)), strict=True):
            torch.testing.assert_close(p, q)
    assert OUR_OP not in names_of(lambda: net(X))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_same_face_as_torch(name):
    theirs, ours = getattr(nn, name), getattr(pydl.nn, name)
    assert issubclass(ours, theirs)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert repr(ours(5, 9, num_layers=2)) == repr(theirs(5, 9, num_layers=2))
    with pydl.backend.use("torch"):
        net = ours(5, 9)
        reference = theirs(5, 9)
        reference.load_state_dict(net.state_dict())
        assert all(map(torch.equal, flat(net(X)), flat(reference(X))))


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_replaced_shared_frozen_and_parametrised(name):
    for change in (
        lambda net: setattr(net, "weight_hh_l0", nn.Parameter(net.weight_hh_l0.detach() * 2)),
        lambda net: setattr(net, "weight_ih_l1", net.weight_hh_l1),
        lambda net: net.weight_ih_l0.requires_grad_(False),
        lambda net: parametrizations.weight_norm(net, "weight_hh_l0"),
        lambda net: net.bias_ih_l0.data.mul_(3),
    ):
        theirs = LAYERS[name](num_layers=2)
        if theirs.weight_ih_l1.shape != theirs.weight_hh_l1.shape:
            continue
        ours = copy.deepcopy(theirs)
        change(theirs), change(ours)
        pydl.swap(ours)
        results = []
        for net in (theirs, ours):
            output = net(X)[0]
            leaves = [p for p in net.parameters() if p.requires_grad]
            results.append([output, *torch.autograd.grad(output.sin().sum(), leaves)])
        for p, q in zip(*results, strict=True):
            torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-5)
        assert OUR_OP in names_of(lambda n=ours: n(X))


@pytest.mark.parametrize("name", LAYERS)
def test_steps_aside(name, monkeypatch):
    class Listening(TorchFunctionMode):
        seen = ()

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.seen = (*self.seen, function)
            return function(*args, **(kwargs or {}))

    net = LAYERS[name]()
    theirs, (x, state) = copy.deepcopy(net), (X, torch.zeros(1, 3, 9))
    pydl.swap(net)
    function = {"RNN": torch.rnn_tanh, "RNN relu": torch.rnn_relu, "GRU": torch.gru, "LSTM": torch.lstm}[name]
    with Listening() as mode:
        names = names_of(lambda: net(x))
    assert function in mode.seen
    assert OUR_OP not in names
    Watching.seen.clear()
    watched = state.as_subclass(Watching)
    for call in (
        lambda: net(x.as_subclass(Watching)),
        lambda: net(x, (watched, state) if name == "LSTM" else watched),
    ):
        assert OUR_OP not in names_of(call)
        assert function in Watching.seen
        Watching.seen.clear()
    monkeypatch.setattr(type(net), "forward", lambda self, input, hx=None: (3 * input, hx))
    assert torch.equal(net(x)[0], 3 * x)
    assert "forward was replaced on the class" in reasons(net)
    monkeypatch.undo()
    monkeypatch.setattr(net, "check_forward_args", lambda *args: (_ for _ in ()).throw(KeyError("mine")))
    with pytest.raises(KeyError, match="mine"):
        net(x)
    monkeypatch.undo()
    assert torch.equal(torch.export.export(net, (x,)).module()(x)[0], theirs(x)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_swapped_block(name):
    """The functions, whoever calls them: torch's own layers too."""
    net = LAYERS[name]()
    with pydl.swapped():
        assert OUR_OP in names_of(lambda: net(X))
        packed = pack_sequence([X[:, i] for i in range(3)])
        assert OUR_OP in names_of(lambda: net(packed))
    assert OUR_OP not in names_of(lambda: net(X))


@pytest.mark.parametrize("name", LAYERS)
def test_compile(name):
    """torch.compile leaves recurrent layers to eager mode, which is ours."""
    net, linear = pydl.swap(LAYERS[name]()), nn.Linear(9, 2)
    compiled = torch.compile(lambda x: linear(net(x)[0]), backend="aot_eager")
    torch.testing.assert_close(compiled(X), linear(net(X)[0]))
    assert OUR_OP in names_of(lambda: compiled(X))


def test_one_step_of_one_sequence_is_torchs():
    """Where the weights are used once, packing them costs more than it saves."""
    net = pydl.swap(LAYERS["GRU"]())
    assert OUR_OP not in names_of(lambda: net(X[:1, :1]))
    assert OUR_OP in names_of(lambda: net(X))


def test_a_few_sequences_of_a_large_lstm_are_torchs():
    """Whose weights each of our threads would read at each step; of one sequence or many they are ours."""
    net = pydl.swap(nn.LSTM(4, 750))
    for batch, is_ours in ((1, True), (2, False), (15, False), (16, True)):
        assert (OUR_OP in names_of(lambda b=batch: net(torch.ones(9, b, 4)))) == is_ours
