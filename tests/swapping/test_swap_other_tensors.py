"""Tensors and modes that see torch's functions, other layouts, forward mode: torch's own forward serves them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from swap_models import LAYERS, Ops, Watching, reasons
from testing import assert_close
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

import pydl


def chain():
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 2), nn.Sigmoid())


def ours_and_torchs(build):
    """(the module swapped, the same by torch alone)."""
    net = build()
    return pydl.swap(copy.deepcopy(net)), net


MODELS = {name: (build, shape) for name, (build, shape, _) in LAYERS.items()} | {"chain": (chain, (2, 3, 9, 7))}


class Listening(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", MODELS)
def test_a_function_mode_sees_what_it_sees_with_torchs_layers(name, training):
    build, shape = MODELS[name]
    ours, theirs = (net.train(training) for net in ours_and_torchs(build))
    x, found = torch.randn(shape), []
    for net in (ours, theirs):
        torch.manual_seed(3)
        with Listening() as mode:
            output = net(x)
            found.append((mode.seen.copy(), output))
            assert net is theirs or "the function mode Listening is active" in reasons(net)
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", MODELS)
def test_an_input_that_overrides_torch_function(name):
    build, shape = MODELS[name]
    ours, theirs = ours_and_torchs(build)
    x, found = torch.randn(shape).as_subclass(Watching), []
    for net in (ours, theirs):
        Watching.seen.clear()
        torch.manual_seed(3)
        output = net(x)
        found.append(({getattr(f, "__name__", "") for f in Watching.seen}, output))
        assert type(output) is Watching
    assert found[1][0] <= found[0][0]
    assert torch.equal(found[0][1], found[1][1])
    assert "Watching overrides __torch_function__" in str(pydl.report(ours))


@pytest.mark.parametrize("name", ["Conv2d", "BatchNorm2d", "chain"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_weight_that_overrides_torch_function(name, when):
    """As quantised weights do it."""
    build, shape = MODELS[name]
    net, x = build(), torch.randn(shape)
    if when == "after":
        pydl.swap(net)(x)
    layer = net[0] if name == "chain" else net
    expected = pydl.unswap(copy.deepcopy(net))(x)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Watching))
    pydl.swap(net)
    Watching.seen.clear()
    output = net(x)
    assert {"conv2d", "batch_norm"} & {getattr(f, "__name__", "") for f in Watching.seen}
    assert_close(output.as_subclass(torch.Tensor), expected.double(), scale=10)
    assert "Watching overrides __torch_function__" in reasons(net)


def test_cross_entropy_with_a_target_or_a_weight_that_overrides():
    x, target, weight = torch.randn(4, 3), torch.tensor([0, 2, 1, 1]), torch.rand(3)
    for given, weighed in ((target.as_subclass(Watching), weight), (target, weight.as_subclass(Watching))):
        Watching.seen.clear()
        loss = pydl.swap(nn.CrossEntropyLoss(weight=weighed))(x, given)
        assert F.cross_entropy in Watching.seen
        assert_close(loss.as_subclass(torch.Tensor), F.cross_entropy(x.double(), target, weight.double()))


def test_a_default_device_is_no_reason_to_step_aside():
    """torch.set_default_device is a function mode, too: about functions that make tensors."""
    net = pydl.swap(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    with torch.device("cpu"), Ops() as ops:
        net(torch.randn(2, 3, 4, 4))
    assert "pydl::batch_norm_train" in ops.names
    with torch.device("cpu"):
        assert pydl.report(net).rows[0].reason == ""


# ---- layouts


def nested(layout):
    def make(x):
        return torch.nested.nested_tensor([*x[:, 1:], x[0]], layout=layout)

    return make


LAYOUTS = {
    "nested, strided": nested(torch.strided),
    "nested, jagged": nested(torch.jagged),
    "mkldnn": lambda x: x.to_mkldnn(),
    "sparse": lambda x: x.to_sparse(),
    "sparse csr": lambda x: x.flatten(1).to_sparse_csr(),
}


def outcome(net, x):
    """A dense copy of what comes out, or the kind of error."""
    torch.manual_seed(3)
    try:
        y = net(x)
    except Exception as error:
        return type(error)
    if y.is_nested:
        return [part.detach() for part in y.unbind()]
    return y.detach() if y.layout == torch.strided else y.detach().to_dense()


@pytest.mark.filterwarnings("ignore:.*nested tensors", "ignore:Sparse CSR", "ignore:.*Sparse invariant")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", MODELS)
def test_layouts_that_are_not_strided(name, layout, training):
    build, shape = MODELS[name]
    ours, theirs = (net.train(training) for net in ours_and_torchs(build))
    x = torch.randn(shape)
    with torch.no_grad():
        actual, expected = outcome(ours, LAYOUTS[layout](x)), outcome(theirs, LAYOUTS[layout](x))
    if isinstance(expected, list):
        assert all(torch.equal(p, q) for p, q in zip(actual, expected, strict=True))
    elif isinstance(expected, type):
        assert actual is expected
    else:
        assert torch.equal(actual, expected)
    assert "has stepped aside for its input" in str(pydl.report(ours)) or name == "chain"


@pytest.mark.parametrize("name", ["Conv2d", "chain"])
def test_a_weight_of_another_layout(name):
    build, shape = MODELS[name]
    net, x = build().eval(), torch.randn(shape)
    pydl.swap(net)(x)
    layer = net[0] if name == "chain" else net
    layer.weight = nn.Parameter(layer.weight.detach().to_mkldnn(), requires_grad=False)
    with torch.no_grad():
        actual, expected = outcome(net, x), outcome(pydl.unswap(copy.copy(layer)) if name != "chain" else layer, x)
    assert actual is expected if isinstance(expected, type) else torch.is_tensor(actual)
    assert "tensors of layout _mkldnn are torch's" in reasons(net)


@pytest.mark.parametrize("of", ["swapped", "pydl.nn"])
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_no_tensor_is_refused_as_torch_refuses_it(name, of):
    errors = []
    for layer in ours_and_torchs(LAYERS[name][0]):
        if of == "pydl.nn" and not errors:
            pydl.unswap(layer).__class__ = getattr(pydl.nn, name)
        with pytest.raises((TypeError, AttributeError)) as error:
            layer([1.0, 2.0])
        errors.append((type(error.value), str(error.value)))
    assert errors[0] == errors[1]


# ---- forward mode, and torch.jit.trace

SMOOTH = {
    "convolution": (lambda: nn.Conv2d(2, 3, 2), (2, 2, 4, 5)),
    "norm": (lambda: nn.BatchNorm2d(2).eval(), (2, 2, 4, 5)),
    "average": (lambda: nn.AvgPool2d(2), (2, 2, 4, 5)),
    "chain": (lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Sigmoid()).eval(), (2, 2, 4, 5)),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("kind", ["jvp", "dual numbers", "jacfwd", "hessian"])
def test_forward_mode(kind, name):
    build, shape = SMOOTH[name]
    ours, theirs = (net.double() for net in ours_and_torchs(build))
    x, tangent = torch.randn(shape).double(), torch.randn(shape).double()

    def run(net):
        def loss(x):
            return net(x).square().sum()

        if kind == "jvp":
            return torch.func.jvp(net, (x,), (tangent,))
        if kind == "dual numbers":
            with forward_ad.dual_level():
                return forward_ad.unpack_dual(net(forward_ad.make_dual(x, tangent)))
        return (getattr(torch.func, kind)(loss)(x),)

    for actual, expected in zip(run(ours), run(theirs), strict=True):
        assert expected.abs().max() > 0
        assert_close(actual, expected, scale=10)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("of", ["swapped", "pydl.nn"])
def test_traced_programs_are_of_torchs_ops(of):
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.4)).eval()
    if of == "swapped":
        pydl.swap(net)
    else:
        net = nn.Sequential(
            pydl.nn.Conv2d(2, 3, 2), pydl.nn.BatchNorm2d(3), nn.ReLU(), pydl.nn.MaxPool2d(2), pydl.nn.Dropout(0.4)
        ).eval()
    x = torch.randn(2, 2, 7, 7)
    program = torch.jit.trace(net, (x,))
    assert "pydl::" not in str(program.inlined_graph)
    assert_close(program(x), net(x).double(), scale=5)
    net.requires_grad_(False)
    program = torch.jit.trace(lambda x: net(x) + net[0].forward(x).sum(), (x,))
    assert "pydl::" not in str(program.graph)
    assert "_Eager" not in str(program.graph)
