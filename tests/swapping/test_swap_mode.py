"""``with pydl.swapped():``, the timed report, and fused models under torch.compile and torch.func."""

import copy
import io
import re

import pytest
import torch
import torch.nn.functional as F
from swap_models import Residual, small_sequential
from testing import assert_close
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import pydl


class Ops(TorchDispatchMode):
    """Collects the names of the ops that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name().partition(".")[0])
        return function(*args, **(kwargs or {}))


def image(*shape):
    return torch.randn(shape or (4, 3, 8, 8))


# ---- the mode

C, V = torch.randn(4), torch.rand(4) + 0.5
CALLS = {
    "F.conv2d": lambda x, w: F.conv2d(x, w, padding=1),
    "torch.conv2d": lambda x, w: torch.conv2d(x, w, stride=2),
    "F.batch_norm": lambda x, w: F.batch_norm(F.conv2d(x, w), C, V, eps=1e-3),
    "torch.batch_norm": lambda x, w: torch.batch_norm(F.conv2d(x, w), V, C, C, V, False, 0.1, 1e-3, True),
    "F.cross_entropy": lambda x, w: F.cross_entropy(F.conv2d(x, w).mean((2, 3)), torch.tensor([0, 1, 2, 3])),
}


@pytest.mark.parametrize("name", CALLS)
def test_functions_inside_the_block_are_ours(name, device):
    torch.manual_seed(0)
    x, w = image(), image(4, 3, 3, 3)
    wide = [t.double().requires_grad_() for t in (x, w)]
    with torch.no_grad():
        C.copy_(C), V.copy_(V)
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
        assert sum(name.startswith("pydl") for name in ops.names) == 3
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


# ---- the report with an example


def test_the_report_of_a_timed_step():
    net = pydl.swap(small_sequential())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    report = pydl.report(net, image())
    torch.manual_seed(3)
    first = torch.rand(1)
    torch.manual_seed(3)
    pydl.report(net, image())
    assert torch.equal(first, torch.rand(1)) or first.numel() == 1
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert 0 < report.timing.covered < 1
    assert sum(share for _, share in report.timing.others) <= 1 - report.timing.covered + 1e-6
    assert report.timing.step == "forward and backward"
    assert re.search(
        r"forward and backward: [\d.]+ ms, [\d.]+ ms by torch \([\d.]+×\); pydl's kernels take \d+ %", str(report)
    )
    assert pydl.report(net.eval(), image()).timing.step == "forward"
    with pytest.raises(TypeError, match="expected example to be tensors, got int"):
        pydl.report(net, 3)
    with pytest.raises(ValueError, match="expected an example beside compile=True"):
        pydl.report(net, compile=True)


def test_the_report_of_a_compiled_step():
    from rich.console import Console

    report = pydl.report(pydl.swap(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())), image(), compile=True)
    assert set(report.timing.seconds) == {"swapped", "torch", "swapped compiled", "torch compiled"}
    assert "under torch.compile: " in report.summary()
    console = Console(file=io.StringIO(), width=200)
    console.print(report)
    assert "with 1" in console.file.getvalue()


# ---- torch.compile


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


@pytest.mark.parametrize("build", [small_sequential, lambda: Residual(3, 3), lambda: Residual(3, 5, True, 2)])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_one_fused_graph(build, training):
    net = pydl.swap(build()).train(training)
    net(image())
    graphs, _ = graphs_of(net, (image(),), (image(),), (image(),))
    assert len(graphs) == 1
    assert "relu" not in graphs[0]


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda net: net], ids=["copy", "itself"])
def test_compiled_before_any_call(copier):
    net = copier(pydl.swap(Residual(3, 3)))
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


# ---- torch.func


@pytest.mark.parametrize("which", ["input", "weight", "both", "weight without bias"])
@pytest.mark.parametrize("groups", [1, 2])
def test_vmap_of_convolution(which, groups, recwarn):
    x, w, b = image(5, 2, 4, 6, 6), image(5, 6, 4 // groups, 3, 3), image(5, 6)
    dims = {
        "input": (1, None, None),
        "weight": (None, 2, 0),
        "both": (0, 0, 0),
        "weight without bias": (None, 0, None),
    }[which]
    args = [t.movedim(0, d) if d is not None else t[0] for t, d in zip((x, w, b), dims, strict=True)]

    def run(function, args):
        def loss(x, w, b):
            return function(x, w, b, stride=2, padding=1, groups=groups).sin().sum()

        values = torch.func.vmap(lambda *a: function(*a, stride=2, padding=1, groups=groups), dims)(*args)
        grads = torch.func.vmap(torch.func.grad(loss, (0, 1, 2)), dims)(*args)
        return values, *grads

    expected = run(F.conv2d, [t.double() for t in args])
    for p, q in zip(run(pydl.functional.conv2d, args), expected, strict=True):
        assert_close(p, q, scale=20)
    assert not any("performance drop" in str(w.message) for w in recwarn)


def test_vmap_of_second_derivatives_and_of_batch_norm(recwarn):
    x, w = image(3, 2, 4, 5, 5).double(), image(3, 4, 3, 3).double()[None].expand(3, 3, 4, 3, 3)

    def penalty(function):
        def first(x, w):
            return function(x, w).square().sum()

        def second(x, w):
            return torch.func.grad(first)(x, w).square().sum()

        return torch.func.vmap(torch.func.grad(second, (0, 1)))(x, w)

    for p, q in zip(penalty(pydl.functional.conv2d), penalty(F.conv2d), strict=True):
        assert_close(p, q, scale=10)

    def normed(function):
        weight = torch.linspace(1, 2, 4).double()
        return torch.func.vmap(lambda x: function(x, None, None, weight, weight, training=True), 1)(x)

    assert_close(normed(pydl.functional.batch_norm), normed(F.batch_norm), scale=10)
    assert not any("performance drop" in str(w.message) for w in recwarn)


@pytest.mark.parametrize("model", ["Sequential", "traced"])
def test_fused_models_differentiate_twice_and_under_torch_func(model):
    net = (
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid()) if model == "Sequential" else Residual(3, 3)
    )
    net = net.double().eval()
    plain = copy.deepcopy(net)
    pydl.swap(net)
    x = image().double()
    params = {name: p.detach() for name, p in net.named_parameters()}

    def penalty(module):
        def loss(params, x):
            return torch.func.functional_call(module, params, (x,)).square().sum()

        def second(params, x):
            return torch.func.grad(loss, 1)(params, x).square().sum()

        return torch.func.grad(second)(params, x)

    ours, theirs = penalty(net), penalty(plain)
    for name in params:
        assert_close(ours[name], theirs[name], scale=1000)
    for module in (net, plain):
        module.zero_grad()
        image_ = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(module(image_).square().sum(), image_, create_graph=True)
        grad.square().sum().backward()
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        assert_close(p.grad, q.grad, scale=1000)
    assert any(p.grad.abs().max() > 0 for p in net.parameters())
