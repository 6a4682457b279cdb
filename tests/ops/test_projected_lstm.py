"""LSTMs with projections (proj_size) beside torch in float64."""

import itertools

import pytest
import torch
from test_recurrent import compare
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import pydl

pytestmark = pytest.mark.best_isa  # how our LSTM is called; the instruction sets are its own tests'


def pair(features, units, **options):
    """(torch's in float64, ours), of the same weights."""
    theirs = nn.LSTM(features, units, **options).double()
    ours = pydl.nn.LSTM(features, units, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def states(count, batch, units, projected):
    return torch.randn(count, batch, projected), torch.randn(count, batch, units)


def names_of(call):
    with torch.profiler.profile() as profile:
        call()
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("layers, bidirectional", list(itertools.product((1, 2), (False, True))))
def test_options(layers, bidirectional):
    for batch_first, bias, begins in itertools.product((False, True), repeat=3):
        options = {"num_layers": layers, "bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
        nets = pair(5, 9, proj_size=4, **options)
        hx = states(layers * (1 + bidirectional), 3, 9, 4) if begins else None
        compare("lstm", nets, torch.randn((3, 6, 5) if batch_first else (6, 3, 5)), hx)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("projected", [1, 8])
def test_sizes(steps, projected):
    for batch in (2, 5):
        compare("lstm", pair(3, 17, proj_size=projected), torch.randn(steps, batch, 3), states(1, batch, 17, projected))


@pytest.mark.parametrize("lengths", [[4, 4, 4], [6, 4, 4, 1], [2, 6, 1, 5, 6], [1, 1]])
def test_packed_sequences(lengths):
    padded = torch.randn(max(lengths), len(lengths), 5)
    x = pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=False)
    for hx in (None, states(2, len(lengths), 9, 4)):
        compare("lstm", pair(5, 9, proj_size=4, num_layers=2), x, hx)


def test_served_and_left_to_torch():
    x = torch.randn(6, 3, 5)
    net = nn.LSTM(5, 9, proj_size=4)
    served = pydl.swap(net)
    assert "pydl::recurrent_forward" in names_of(lambda: served(x))
    assert pydl.report(served).rows[0].served_by.startswith("cpu")
    packed = pack_padded_sequence(x, torch.tensor([6, 4, 2]))
    both = pydl.swap(nn.LSTM(5, 9, proj_size=4, bidirectional=True))
    few = pydl.swap(nn.LSTM(5, 130, proj_size=40))
    for call in (lambda: both(packed), lambda: few(x), lambda: served.bfloat16()(x.bfloat16())):
        assert "pydl::recurrent_forward" not in names_of(call)


def test_state_goes_on():
    _, net = pair(5, 9, proj_size=4)
    x = torch.randn(8, 3, 5)
    whole, ended = net(x)
    first, state = net(x[:3])
    second, state = net(x[3:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    for part, end in zip(state, ended, strict=True):
        torch.testing.assert_close(part, end)


def test_gradients_of_first_and_second_order():
    net = pydl.nn.LSTM(2, 3, proj_size=2).double()
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    h, c = (t.double().requires_grad_() for t in states(1, 2, 3, 2))
    names = [name for name, _ in net.named_parameters()]

    def call(x, h, c, *weights):
        output, (hidden, cell) = torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (x, (h, c)))
        return output, hidden, cell

    leaves = x, h, c, *(p.detach().requires_grad_() for p in net.parameters())
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)
