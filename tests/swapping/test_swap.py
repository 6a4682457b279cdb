"""pydl.swap and unswap: one test per promise, mostly on the book's own LeNet, written with torch.nn."""

import copy

import pytest
import torch
from swap_models import (
    d2l_lenet,
    ops_of,
    small_net,
)
from testing import assert_close
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrizations, parametrize, prune

import pydl
from pydl.swapping import SwappedForward, is_swapped

SERVED = [
    nn.Conv2d(2, 4, 3),
    nn.BatchNorm1d(4),
    nn.BatchNorm2d(4),
    nn.BatchNorm3d(4),
    nn.Dropout(0.5),
    nn.Dropout1d(0.5),
    nn.Dropout2d(0.5),
    nn.Dropout3d(0.5),
    nn.MaxPool2d(2),
    nn.AvgPool2d(2),
    nn.CrossEntropyLoss(),
    nn.LazyConv2d(4, 3),
    nn.LazyBatchNorm1d(),
    nn.LazyBatchNorm2d(),
    nn.LazyBatchNorm3d(),
]


def test_types_keys_repr_and_hooks_stay():
    net = d2l_lenet()
    seen = []
    net[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    before = repr(net), list(net.state_dict()), [id(p) for p in net.parameters()], [type(m) for m in net.modules()]
    assert pydl.swap(net) is net
    assert before == (
        repr(net),
        list(net.state_dict()),
        [id(p) for p in net.parameters()],
        [type(m) for m in net.modules()],
    )
    assert type(net[0]) is nn.Conv2d
    net(torch.randn(2, 1, 28, 28))
    assert seen == [(2, 6, 28, 28)]


def test_init_by_type_still_acts():
    net = pydl.swap(d2l_lenet())

    def init_weights(m):
        if type(m) == nn.Linear or type(m) == nn.Conv2d:  # noqa: E721 (as in the book)
            nn.init.constant_(m.weight, 0.25)

    net.apply(init_weights)
    assert (net[0].weight == 0.25).all()
    assert (net[3].weight == 0.25).all()


def test_outputs_and_gradients_equal_torchs(device):
    oracle = d2l_lenet()
    net = pydl.swap(copy.deepcopy(oracle)).to(device)
    oracle.double()
    x, target = torch.randn(9, 1, 28, 28), torch.randint(10, (9,))
    loss = pydl.swap(nn.CrossEntropyLoss())
    expected, actual = oracle(x.double()), net(x.to(device))
    assert_close(actual, expected, scale=2)
    nn.functional.cross_entropy(expected, target).backward()
    loss(actual, target.to(device)).backward()
    for (name, p), q in zip(oracle.named_parameters(), net.parameters(), strict=True):
        assert q.grad is not None, name
        assert_close(q.grad, p.grad, scale=10)


@pytest.mark.parametrize("layer", SERVED, ids=lambda layer: type(layer).__name__)
def test_every_served_class_is_swapped(layer):
    assert is_swapped(pydl.swap(layer))
    assert not is_swapped(pydl.unswap(layer))


def test_our_ops_run_under_swap_and_not_under_the_torch_backend():
    net, x = small_net(), torch.randn(4, 1, 8, 8)
    assert ops_of(net, x) == []
    assert len(ops_of(pydl.swap(net), x)) >= 3
    with pydl.backend.use("torch"):
        assert ops_of(net, x) == []
    assert ops_of(pydl.unswap(net), x) == []


def test_each_layer_called_alone_gives_its_own_output():
    oracle = d2l_lenet()
    net = pydl.swap(copy.deepcopy(oracle))
    X = Y = image = torch.rand(1, 1, 28, 28)
    for layer, theirs in zip(net, oracle, strict=True):
        X, Y = layer(X), theirs(Y)
        assert_close(X, Y.double(), scale=2)
    assert_close(X, net(image).double())  # our sigmoid, in the convolution's kernel, rounds in its own way


def test_second_swap_changes_nothing():
    net = pydl.swap(small_net())
    before = [dict(m.__dict__) for m in net.modules()]
    pydl.swap(net)
    assert [dict(m.__dict__) for m in net.modules()] == before


def test_unswap_leaves_nothing_behind():
    net = small_net()
    before = [list(m.__dict__) for m in net.modules()]
    pydl.unswap(pydl.swap(net))
    assert [list(m.__dict__) for m in net.modules()] == before
    assert net[0].forward.__func__ is nn.Conv2d.forward


def test_hooks_weights_and_modes_act():
    layer = pydl.swap(nn.Conv2d(1, 2, 3))
    x = torch.randn(1, 1, 5, 5, requires_grad=True)
    expected = layer(x).detach()
    assert_close(layer(input=x), expected.double())  # by keyword
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    layer.register_full_backward_hook(lambda module, grad_input, grad_output: (grad_input[0] * 0 + 7,))
    doubled = layer(x)
    with torch.no_grad():
        assert_close(doubled, (2 * (expected - layer.bias.view(2, 1, 1)) + layer.bias.view(2, 1, 1)).double())
    doubled.sum().backward()
    assert (x.grad == 14).all()


def test_functional_call_and_parameters_that_are_replaced():
    layer = pydl.swap(nn.Conv2d(1, 2, 3, bias=False))
    x = torch.ones(1, 1, 3, 3)
    output = torch.func.functional_call(layer, {"weight": torch.ones(2, 1, 3, 3)}, x)
    assert_close(output, torch.full((1, 2, 1, 1), 9.0).double())
    layer.weight = nn.Parameter(torch.zeros(2, 1, 3, 3))
    assert (layer(x) == 0).all()


@pytest.mark.parametrize("first", ["swap", "parametrize"])
def test_parametrised_layers_are_served(first):
    layer = nn.Conv2d(2, 3, 3).double()
    oracle = copy.deepcopy(layer)
    parametrizations.weight_norm(oracle)
    if first == "swap":
        parametrizations.weight_norm(pydl.swap(layer))
    else:
        pydl.swap(parametrizations.weight_norm(layer))
    assert is_swapped(layer)
    x = torch.randn(2, 2, 5, 5).double()
    twin = copy.deepcopy(layer)
    assert twin.forward.module() is twin
    for net in (oracle, layer, twin):
        net(x).pow(2).sum().backward()
    for net in (layer, twin):
        for p, q in zip(oracle.parameters(), net.parameters(), strict=True):
            assert_close(q.grad, p.grad)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Conv2d
    assert_close(layer(x), oracle(x))
    assert pydl.report(twin).rows[0].reason == ""


def test_pruned_layers_are_served():
    layer = pydl.swap(prune.l1_unstructured(nn.Conv2d(1, 2, 3), "weight", amount=0.5))
    assert (layer.weight == 0).sum() == 9
    x = torch.randn(2, 1, 5, 5)
    weight, bias = layer.weight.double(), layer.bias.double()
    assert_close(layer(x), nn.functional.conv2d(x.double(), weight, bias))


class OwnForward(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) * 2


LEFT = {
    "own forward": (lambda: OwnForward(1, 1, 1), "a subclass of Conv2d"),
    "subclass of torch's": (lambda: NonDynamicallyQuantizableLinear(3, 3), "a subclass of Linear"),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3), "no kernel for LocalResponseNorm"),
    "complex": (lambda: nn.Conv2d(1, 1, 1).to(torch.complex64), "complex64"),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(1, 1, 1), "no kernel for ConvTranspose3d"),
    "quantized": (lambda: torch.ao.nn.quantized.Conv2d(1, 1, 1), "quantized"),
}


@pytest.mark.filterwarnings("ignore:Complex modules", "ignore:.*quantized tensor creation")
@pytest.mark.parametrize("name", LEFT)
def test_left_alone_with_the_reason(name):
    build, reason = LEFT[name]
    layer = build()
    before = list(layer.__dict__)
    net = pydl.swap(nn.Sequential(layer, nn.Dropout(0.1)))
    assert list(layer.__dict__) == before
    left, served = pydl.report(net).rows
    assert reason in left.reason
    assert left.served_by == "torch"
    assert served.reason == ""


def test_a_forward_replaced_on_the_instance_is_kept():
    layer = nn.Conv2d(1, 1, 1)
    layer.forward = lambda input: input + 1
    pydl.swap(layer)
    assert (layer(torch.zeros(1)) == 1).all()
    assert "replaced" in pydl.report(layer).rows[0].reason
    # replaced after the swap, as libraries do that wrap a forward: theirs stays, also through unswap and copies
    layer = pydl.swap(nn.Dropout(0.5)).eval()
    inner = layer.forward
    layer.forward = lambda input: inner(input) + 1
    for net in (layer, copy.deepcopy(layer), pydl.unswap(layer)):
        assert (net(torch.zeros(1)) == 1).all()
    assert not any(isinstance(value, SwappedForward) for value in layer.__dict__.values())


def test_layers_added_later_are_reported_and_swapped_by_a_second_call():
    net = pydl.swap(nn.Sequential(nn.Conv2d(1, 2, 3)))
    net.append(nn.BatchNorm2d(2))
    assert pydl.report(net).rows[1].reason == "not swapped"
    assert pydl.report(pydl.swap(net)).rows[1].reason == ""


def test_symbolic_trace_keeps_swapped_layers():
    net = pydl.swap(d2l_lenet())
    traced = torch.fx.symbolic_trace(net)
    assert is_swapped(traced.get_submodule("0"))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_bad_input():
    for function in (pydl.swap, pydl.unswap, pydl.report):
        with pytest.raises(TypeError, match=r"expected module to be a torch\.nn\.Module, got list"):
            function([nn.Conv2d(1, 1, 1)])
    with pytest.raises(TypeError, match="compiled by TorchScript"):
        pydl.swap(torch.jit.script(nn.Dropout(0.5)))
