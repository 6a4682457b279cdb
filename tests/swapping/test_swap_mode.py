"""``with pydl.swapped():`` serves torch's functions, whoever calls them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from swap_models import (
    Ops,
    image,
    small_sequential,
)
from testing import assert_close
from torch import nn

import pydl

C, V = torch.randn(4), torch.rand(4) + 0.5
CALLS = {
    "F.conv2d": lambda x, w: F.conv2d(x, w, padding=1),
    "torch.conv2d": lambda x, w: torch.conv2d(x, w, stride=2),
    "F.batch_norm": lambda x, w: F.batch_norm(F.conv2d(x, w), C, V, eps=1e-3),
    "torch.batch_norm": lambda x, w: torch.batch_norm(F.conv2d(x, w), V, C, C, V, False, 0.1, 1e-3, True),
    "F.cross_entropy": lambda x, w: F.cross_entropy(F.conv2d(x, w).mean((2, 3)), torch.tensor([0, 1, 2, 3])),
}


@pytest.mark.best_isa
@pytest.mark.parametrize("name", CALLS)
def test_functions_inside_the_block_are_ours(name, device):
    torch.manual_seed(0)
    x, w = image(), image(4, 3, 3, 3)
    wide = [t.double().requires_grad_() for t in (x, w)]
    expected = CALLS[name](wide[0], wide[1]) if "batch_norm" not in name else None
    ours = [t.clone().requires_grad_() for t in (x, w)]
    with pydl.swapped(), Ops() as ops:
        actual = CALLS[name](*ours)
    assert any(op.startswith("pydl") for op in ops.names)
    if expected is None:
        expected = CALLS[name](x, w).double()
        assert_close(actual, expected, scale=20)
        return
    assert_close(actual, expected, scale=20)
    actual.square().sum().backward()
    expected.square().sum().backward()
    for p, q in zip(ours, wide, strict=True):
        assert_close(p.grad, q.grad, scale=100)


def test_dropouts_inside_the_block_are_ours():
    x = torch.ones(64, 8, 4, 4)
    for function in (F.dropout, F.dropout2d, lambda x, p: torch.dropout(x, p, True), nn.Dropout(0.5).forward):
        with pydl.swapped(), Ops() as ops:
            y = function(x, 0.5) if not hasattr(function, "__self__") else function(x)
        assert "pydl::dropout" in ops.names
        assert set(y.unique().tolist()) == {0.0, 2.0}


def test_modules_that_were_not_swapped_are_served_inside_the_block_and_only_there():
    net = small_sequential().eval()
    x = image()
    with torch.no_grad():
        expected = net(x)
        with pydl.swapped(), Ops() as ops:
            actual = net(x)
        assert sum(name.startswith("pydl") for name in ops.names) == 5
        with Ops() as ops:
            net(x)
        assert not any(name.startswith("pydl") for name in ops.names)
    assert_close(actual, expected.double(), scale=10)
    with pydl.swapped(), pydl.backend.use("torch"), Ops() as ops:
        net(x)
    assert not any(name.startswith("pydl") for name in ops.names)
    with pydl.swapped(), pydl.swapped():  # a second one changes nothing, nor a swapped model, nor another dtype
        assert_close(pydl.swap(copy.deepcopy(net))(x), expected.double(), scale=10)
        assert F.conv2d(x.to(torch.complex64), torch.ones(1, 3, 1, 1).to(torch.complex64)).is_complex()


def test_training_inside_the_block_updates_the_statistics():
    net, plain = small_sequential()[:3], None
    plain = copy.deepcopy(net).double()
    x = image()
    with pydl.swapped():
        net(x).sum().backward()
    plain(x.double()).sum().backward()
    for (name, p), (_, q) in zip(net.state_dict().items(), plain.state_dict().items(), strict=True):
        assert_close(p, q, torch.float32) if p.is_floating_point() else p.equal(q), name
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        assert_close(p.grad, q.grad, scale=1000)


def test_the_mode_under_compile():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.code)
        return graph

    def loss(x, w, target):
        return F.cross_entropy(F.conv2d(x, w).flatten(1), target)

    x, w, target = image(), image(4, 3, 3, 3), torch.tensor([0, 1, 2, 3])
    with pydl.swapped():
        actual = torch.compile(loss, fullgraph=True, backend=backend)(x, w, target)
    assert len(graphs) == 1
    assert "pydl" in graphs[0]
    assert_close(actual, loss(x.double(), w.double(), target), scale=10)
