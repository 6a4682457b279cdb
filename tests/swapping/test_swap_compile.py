"""Swapped models under torch.compile."""

import copy

import pytest
import torch
import torch.nn.functional as F
from swap_models import (
    Residual,
    d2l_lenet,
    image,
    small_net,
    small_sequential,
)
from testing import assert_close
from torch import nn

import pydl
from pydl.models.resnet import BasicBlock


@pytest.mark.parametrize("training", [True, False])
def test_compile_fullgraph(training):
    net = pydl.swap(d2l_lenet()).train(training)
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x, target = torch.randn(3, 1, 28, 28), torch.tensor([1, 5, 7])
    loss = pydl.swap(nn.CrossEntropyLoss())
    loss(net(x), target).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled(x), target).backward()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert_close(q.grad, p.grad.double(), scale=5)


def test_compile_notices_swap_and_unswap():
    torch._dynamo.reset()
    net, x = small_net().eval(), torch.randn(2, 1, 8, 8)
    served = []

    def backend(graph, inputs):
        served.append("pydl" in graph.code)
        return graph

    compiled = torch.compile(net, backend=backend)
    with torch.no_grad():
        compiled(x)
        pydl.swap(net)
        compiled(x)
        pydl.unswap(net)
        compiled(x)
    assert served[:2] == [False, True]
    assert not served[-1] or len(served) == 2  # the first graph is used again


def graphs_of(step, *runs):
    """The code of every graph that torch.compile makes of ``step`` called with each of ``runs``."""
    torch._dynamo.reset()
    found = []

    def backend(graph, inputs):
        found.append(graph.code)
        return graph

    dynamic = len({tuple(t.shape for t in run) for run in runs}) > 1
    compiled = torch.compile(step, fullgraph=True, backend=backend, dynamic=dynamic)
    return found, [compiled(*run) for run in runs]


@pytest.mark.parametrize(
    "build",
    [
        small_sequential,
        lambda: BasicBlock(3, 3, 1, "book"),
        lambda: nn.Sequential(small_sequential()[:3], BasicBlock(4, 5, 2, "torchvision")),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_one_fused_graph(build, training):
    net = pydl.swap(build()).train(training)
    net(image())
    graphs, _ = graphs_of(net, (image(),), (image(),), (image(),))
    assert len(graphs) == 1
    assert "relu" not in graphs[0]


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda net: net], ids=["copy", "itself"])
def test_compiled_before_any_call(copier):
    net = copier(pydl.swap(BasicBlock(3, 3, 1, "book")))
    graphs, (output,) = graphs_of(net, (image(),))
    assert len(graphs) == 1
    assert (output >= 0).all()


def test_new_batch_sizes_make_no_new_graph():
    net = pydl.swap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Residual(4, 4), nn.MaxPool2d(2)))
    graphs, _ = graphs_of(net, *((image(n, 3, 8, 8),) for n in (2, 3, 5, 8)))
    assert len(graphs) == 1


def test_the_graph_follows_hooks_modes_and_swaps():
    net = pydl.swap(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    seen, x = [], image()
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager")
    assert_close(compiled(x), net(x).double(), scale=10)
    net.eval()
    assert_close(compiled(x), net(x).double(), scale=10)
    net[0].register_forward_hook(lambda m, args, output: output * 0 + 3)
    torch._dynamo.reset()  # torch.compile itself does not look for new hooks
    compiled = torch.compile(net, backend="eager")
    assert (compiled(x) == 3).all()
    assert not seen


@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor_trains_a_fused_model_as_eager_does(dynamic):
    torch._dynamo.reset()
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Residual(4, 4),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 5),
    )
    oracle = copy.deepcopy(net).double()
    pydl.swap(net)
    criterion, target = pydl.swap(nn.CrossEntropyLoss()), torch.tensor([0, 1, 2, 3])
    step = torch.compile(lambda x: criterion(net(x), target[: len(x)]), fullgraph=True, dynamic=dynamic)
    for n in (4, 3) if dynamic else (4, 4):
        x = image(n, 3, 8, 8)
        net.zero_grad(), oracle.zero_grad()
        step(x).backward()
        F.cross_entropy(oracle(x.double()), target[:n]).backward()
        for (name, p), q in zip(net.named_parameters(), oracle.parameters(), strict=True):
            assert p.grad is not None, name
            assert_close(p.grad, q.grad, scale=200)
