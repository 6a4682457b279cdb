"""What tools ask of the ``forward`` of a model: as of a bound method; FLOP counters, export, ONNX and scripting."""

import copy
import gc
import inspect
import types
import typing
import weakref

import pytest
import torch
from testing import assert_close
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pydl


def sequential():
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))


MODELS = {
    "layer": (lambda: nn.Conv2d(3, 2, 3), (2, 3, 6, 6)),
    "lazy layer": (lambda: nn.LazyConv2d(2, 3), (2, 3, 6, 6)),
    "norm": (lambda: nn.BatchNorm1d(4), (5, 4)),
    "loss": (nn.CrossEntropyLoss, (4, 3)),
    "container": (sequential, (2, 3, 8, 8)),
}


@pytest.fixture(params=MODELS)
def net(request):
    return pydl.swap(MODELS[request.param][0]())


def test_names_source_signature_and_hints(net):
    bound = getattr(type(net), "forward").__get__(net)  # noqa: B009 (what nn.Module.__call__ would find)
    ours = net.forward
    for name in ("__name__", "__qualname__", "__doc__", "__module__", "__defaults__", "__annotations__", "__code__"):
        assert getattr(ours, name) == getattr(bound, name), name
    assert inspect.getsource(ours) == inspect.getsource(bound)
    assert inspect.signature(ours) == inspect.signature(bound)
    assert typing.get_type_hints(ours) == typing.get_type_hints(bound)
    assert ours.__self__ is net
    assert not hasattr(ours, "no such name")


@pytest.mark.parametrize("name", [name for name in MODELS if name != "lazy layer"])
def test_a_method_made_from_the_function(name):
    build, shape = MODELS[name]
    net = pydl.swap(build())
    args = (torch.randn(shape),) if name != "loss" else (torch.randn(shape), torch.tensor([0, 2, 1, 1]))
    expected = net(*args)
    for forward in (types.MethodType(net.forward.__func__, net), weakref.WeakMethod(net.forward)()):
        assert_close(forward(*args), expected.double(), scale=10)
    assert weakref.WeakMethod(net.forward)() == net.forward
    assert hash(weakref.WeakMethod(net.forward)()) == hash(net.forward)
    assert net.forward != copy.deepcopy(net).forward
    assert net.forward != 3


def wrap(forward):
    """As libraries for mixed precision do it."""

    def wrapped(*args, **kwargs):
        return forward(*args, **kwargs)

    wrapped.__wrapped__ = forward
    return wrapped


@pytest.mark.parametrize("build", [lambda: nn.Conv2d(3, 2, 3), sequential])
def test_a_wrapped_forward_is_unwrapped_again(build):
    """accelerate keeps the forward, puts a wrapped one in its place, and later takes off what it put on."""
    net, x = pydl.swap(build()).eval(), torch.randn(2, 3, 6, 6)
    expected, original = net(x), net.forward
    net.forward = types.MethodType(wrap(original.__func__), net)
    assert_close(net(x), expected.double(), scale=10)
    forward = net.forward
    while hasattr(forward, "__wrapped__"):
        forward = forward.__wrapped__
        if forward == original:
            break
    net.forward = types.MethodType(forward, net)
    assert_close(net(x), expected.double(), scale=10)


def test_a_model_whose_forward_was_asked_for_is_freed_at_once():
    gc.collect()
    gc.disable()
    try:
        net = pydl.swap(sequential())
        net(torch.randn(2, 3, 8, 8))
        inspect.signature(net.forward), net.forward.__wrapped__, net.forward.__self__, hash(net.forward)
        weights = [weakref.ref(p) for p in net.parameters()]
        del net
        assert [weight() for weight in weights] == [None] * len(weights)
    finally:
        gc.enable()


# ---- FLOPs


@pytest.mark.parametrize("options", [{}, {"stride": 2, "groups": 2}, {"padding": 2, "dilation": 2}])
@pytest.mark.parametrize("fuse", [True, False])
def test_flops_are_those_that_torch_counts(fuse, options):
    net = nn.Sequential(nn.Conv2d(4, 6, (3, 2), **options), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.ReLU())
    plain = copy.deepcopy(net)
    pydl.swap(net, fuse=fuse)
    found = []
    for model in (net, plain):
        x = torch.randn(3, 4, 9, 8, requires_grad=True)
        with FlopCounterMode(display=False) as forward:
            y = model(x)
        with FlopCounterMode(display=False) as backward:
            y.square().sum().backward()
        found.append((forward.get_total_flops(), backward.get_total_flops()))
    forward, backward = found[0]
    assert forward == found[1][0] > 0
    assert backward == 2 * forward
    if "groups" not in options:  # of which torch takes no account in the gradient of the weight
        assert backward == found[1][1]


# ---- programs


def mixed():
    """Each kind of layer on (N, 3, 10, 10), one of them ours from the beginning."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), pydl.nn.AvgPool2d(2), nn.Dropout(0.1), nn.Flatten(),
        nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU())  # fmt: skip


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_export_gives_torchs_ops(training, strict):
    net, x = pydl.swap(mixed()).train(training), torch.randn(3, 3, 10, 10)
    program = torch.export.export(net, (x,), strict=strict)
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("pydl" in target for target in targets)
    assert any("conv2d" in target for target in targets)
    if not training:
        assert_close(program.module()(x), net(x).double(), scale=10)
    assert "exported" not in str(pydl.report(net))  # it is over


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_gives_torchs_ops(dynamo, tmp_path):
    onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
    pytest.importorskip("onnxscript", reason="the package onnxscript is not installed")
    net, path = pydl.swap(mixed()).eval(), tmp_path / "net.onnx"
    torch.onnx.export(net, (torch.randn(3, 3, 10, 10),), str(path), dynamo=dynamo)
    nodes = onnx.load(str(path)).graph.node
    assert "Conv" in {node.op_type for node in nodes}
    assert {node.domain for node in nodes} <= {"", "ai.onnx"}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("build", [lambda: nn.Dropout(0.5), mixed, lambda: nn.ModuleList([sequential()])])
def test_scripting_is_refused_in_words(build):
    net = pydl.swap(build())
    with pytest.raises(RuntimeError, match=r"TorchScript: expected every layer to be torch's own, got a layer swapped"):
        torch.jit.script(net)
