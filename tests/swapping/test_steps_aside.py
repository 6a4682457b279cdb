"""Replaced parts: whatever was put in the place of torch's code is honoured, on an instance, on a class, in a chain."""

import copy
import types

import pytest
import torch
import torch.nn.functional as F
from swap_models import LAYERS, reasons
from torch import nn

import pydl


@pytest.fixture(params=["alone", "in a Sequential"])
def put(request):
    """What puts a layer into a model: itself, or a Sequential in which it would be fused with its neighbours."""
    if request.param == "alone":
        return lambda layer: layer
    return lambda layer: nn.Sequential(nn.Identity(), layer, nn.LeakyReLU() if type(layer) is nn.ReLU else nn.ReLU())


def layer_in(net):
    return net[1] if isinstance(net, nn.Sequential) else net


def assert_as_torchs(net, x, seed=5):
    """A swapped model gives, bit for bit, what the same model without pydl gives."""
    plain = pydl.unswap(copy.deepcopy(net))
    torch.manual_seed(seed)
    expected = plain(x)
    torch.manual_seed(seed)
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_forward_replaced_on_the_class(name, when, training, put, monkeypatch):
    build, shape, _ = LAYERS[name]
    net = put(build()).train(training)
    if when == "after":
        pydl.swap(net)
        net(torch.randn(shape))
    monkeypatch.setattr(getattr(nn, name), "forward", lambda self, input: 3 * input - 1)
    pydl.swap(net)
    x = torch.randn(shape)
    expected = 3 * x - 1
    assert torch.equal(net(x), expected if net is layer_in(net) else net[2](expected))
    assert "forward was replaced on the class" in reasons(net)
    monkeypatch.undo()
    assert "replaced" not in reasons(net)


@pytest.mark.parametrize("name", LAYERS)
def test_a_function_replaced_in_torchs_namespace(name, put, monkeypatch):
    """As saliency tools do it with F.relu."""
    build, shape, function = LAYERS[name]
    net, x = pydl.swap(put(build())), torch.randn(shape)
    net(x)
    namespace = getattr(pydl.nn, name).own.namespace
    calls, original = [], getattr(namespace, function)
    monkeypatch.setattr(namespace, function, lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    assert_as_torchs(net, x)
    assert len(calls) == 2
    assert f"{namespace.__name__}.{function} was replaced" in reasons(net)


def circular(self, input, weight, bias):
    """What the diffusion community puts in the place of ``_conv_forward`` to make images that tile."""
    return F.conv2d(F.pad(input, (1, 1, 1, 1), mode="circular"), weight, bias, self.stride)


def only_images_of_seven(self, input):
    if input.shape[-1] != 7:
        raise ValueError("seven, please")


@pytest.mark.parametrize("where", ["instance", "class"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_inner_forward_of_a_convolution(training, when, where, monkeypatch):
    for net in (nn.Conv2d(4, 3, 3), nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU())):
        net.train(training)
        conv = net[0] if isinstance(net, nn.Sequential) else net
        x = torch.randn(2, 4, 7, 7)
        if when == "after":
            pydl.swap(net)(x)
        if where == "instance":
            conv._conv_forward = types.MethodType(circular, conv)
        else:
            monkeypatch.setattr(nn.Conv2d, "_conv_forward", circular)
        pydl.swap(net)
        y = net(x)
        assert y.shape[2:] == x.shape[2:]
        with torch.no_grad():
            expected = circular(conv, x, conv.weight, conv.bias)
            if isinstance(net, nn.Sequential):
                expected = F.relu(F.batch_norm(expected, *(None, None) if training else (torch.zeros(3), torch.ones(3)),
                                               training=training))  # fmt: skip
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        where_it_was = "on the instance" if where == "instance" else "on the class"
        assert f"_conv_forward was replaced {where_it_was}" in reasons(net)
        monkeypatch.undo()


@pytest.mark.parametrize("where", ["instance", "class"])
@pytest.mark.parametrize("fuse", [True, False])
def test_the_check_of_a_batch_norm(where, fuse, monkeypatch):
    net = pydl.swap(nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid()), fuse=fuse)
    net(torch.randn(2, 2, 5, 5))
    if where == "instance":
        net[1]._check_input_dim = types.MethodType(only_images_of_seven, net[1])
    else:
        monkeypatch.setattr(nn.BatchNorm2d, "_check_input_dim", only_images_of_seven)
    for training in (True, False):
        net.train(training)
        net(torch.randn(2, 2, 5, 7))
        with pytest.raises(ValueError, match="seven, please"), torch.no_grad():
            net(torch.randn(2, 2, 7, 5))


def test_monte_carlo_dropout(monkeypatch):
    net = pydl.swap(nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5))).eval()
    x = torch.randn(3, 6)
    assert torch.equal(net(x), net(x))
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, input: F.dropout(input, self.p, training=True))
    assert not torch.equal(net(x), net(x))
    ours = pydl.nn.Dropout(0.5).eval()  # which stands for torch's class, and is patched with it
    assert not torch.equal(ours(x), x)


def test_another_class_after_the_swap():
    class Shifted(nn.Conv2d):
        def forward(self, input):
            return super().forward(input) + 100

    for net in (nn.Conv2d(1, 2, 2), nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU())):
        pydl.swap(net)(torch.randn(1, 1, 4, 4))
        (net[0] if isinstance(net, nn.Sequential) else net).__class__ = Shifted
        assert (net(torch.zeros(1, 1, 4, 4)) > 90).all()


def test_a_subclass_of_ours_with_its_own_inner_forward():
    class Doubled(pydl.nn.Conv2d):
        def _conv_forward(self, input, weight, bias):
            return 2 * super()._conv_forward(input, weight, bias)

    layer = Doubled(3, 2, 1)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), 2 * F.conv2d(x, layer.weight, layer.bias))
    assert "_conv_forward was replaced on the class" in reasons(layer)


# ---- in chains: activations, and the call itself


@pytest.mark.parametrize("head", [lambda: nn.Conv2d(3, 4, 2), lambda: nn.BatchNorm2d(3)], ids=["convolution", "norm"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
def test_an_activation_whose_forward_was_replaced(activation, head, monkeypatch):
    net = pydl.swap(nn.Sequential(head(), activation()))
    x = torch.randn(2, 3, 5, 4)
    net(x)
    monkeypatch.setattr(activation, "forward", lambda self, input: input.abs() + 7)
    assert (net(x) >= 7).all()
    assert pydl.report(net).rows[1].fused.startswith("not fused")
    monkeypatch.undo()
    assert (net(x) < 7).all()
    assert pydl.report(net).rows[1].fused == "in 0"


@pytest.mark.parametrize("namespace,name,layer", [(F, "relu", nn.ReLU), (torch, "sigmoid", nn.Sigmoid)])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_activations_function_that_was_replaced(namespace, name, layer, training, monkeypatch):
    net = pydl.swap(nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), layer())).train(training)
    x = torch.randn(2, 3, 5, 4)
    net(x)
    monkeypatch.setattr(namespace, name, lambda input, inplace=False: torch.full_like(input, 42.0))
    assert (net(x) == 42).all()


@pytest.mark.parametrize("name", ["__call__", "_call_impl"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_logger_around_the_call_of_every_module(name, when, monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 2, 1), nn.ReLU()))
    x = torch.randn(2, 3, 5, 4)
    if when == "after":
        pydl.swap(net)(x)
    seen, original = [], getattr(nn.Module, name)

    def logged(self, *args, **kwargs):
        seen.append(type(self).__name__)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, name, logged)
    pydl.swap(net)(x)
    assert sorted(seen) == sorted(type(module).__name__ for module in net.modules())
    assert "call was replaced" in str(pydl.report(net))


def test_the_forward_of_sequential_itself(monkeypatch):
    net = pydl.swap(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    x = torch.randn(2, 3, 5, 4)
    net(x)
    monkeypatch.setattr(nn.Sequential, "forward", lambda self, input: -self[0](input))
    assert (net(x) < 0).any()
    assert "Sequential's forward was replaced" in str(pydl.report(net))


def test_a_layer_compiled_by_itself_is_called_by_itself():
    net = pydl.swap(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    x = torch.randn(2, 3, 5, 4)
    net(x)
    graphs = []
    net[0].compile(backend=lambda graph, inputs: graphs.append(graph) or graph)
    net(x)
    assert len(graphs) == 1
    assert pydl.report(net).rows[0].fused == "not fused: compiled by itself"
