"""A convolution and the batch norm after it as one node of the graph, beside the two layers in float64."""

import copy

import pytest
import torch
from testing import assert_close
from torch import nn

import pydl
from pydl.swapping.chains import normalised


def block(**options):
    """Convolution, batch norm and ReLU; ``options`` of the convolution."""
    net = nn.Sequential(nn.Conv2d(4, 6, 3, **{"padding": 1} | options), nn.BatchNorm2d(6), nn.ReLU())
    nn.init.normal_(net[1].weight)
    nn.init.normal_(net[1].bias)
    return net


def is_one_node(output):
    return type(output.grad_fn).__name__ == "_ConvolutionBatchNormBackward"


def derivatives(net, x, second):
    """Gradients of everything; ``second``: of the squares of the gradients."""
    x = x.clone().requires_grad_()
    inputs = [x, *(p for p in net.parameters() if p.requires_grad)]
    output = net(x)
    value = (output * torch.linspace(-1, 2, output.numel()).view(output.shape).to(x)).sum()
    if second:
        value = sum(g.square().sum() for g in torch.autograd.grad(value, inputs, create_graph=True))
    found = torch.autograd.grad(value, inputs, allow_unused=True)
    return output, [torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs, strict=True)]


@pytest.mark.best_isa
@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("frozen", [(), ("0.weight",), ("0.weight", "0.bias"), ("1.weight", "1.bias")])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "groups": 2}, {"bias": False, "padding": "same"}])
def test_derivatives(options, frozen, second, device):
    net = block(**options)
    for name in frozen:
        if name != "0.bias" or net[0].bias is not None:
            net.get_parameter(name).requires_grad_(False)
    x = torch.randn(5, 4, 6, 7)
    swapped = pydl.swap(copy.deepcopy(net)).to(device)
    output, found = derivatives(swapped, x.to(device), second)
    assert is_one_node(output)
    expected_output, expected = derivatives(net.double(), x.double(), second)
    assert_close(output, expected_output, scale=10)
    for actual, value in zip(found, expected, strict=True):
        assert_close(actual, value, scale=300 if second else 100)
    for actual, value in zip(swapped.buffers(), net.buffers(), strict=True):
        assert_close(actual.double(), value.double(), torch.float32)


def test_only_what_is_asked_for_is_computed(monkeypatch):
    from pydl.ops import _library

    net = pydl.swap(nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)))
    x = torch.randn(8, 16, 20, 20, requires_grad=True)
    quick, names = _library.quick(torch.ops.pydl), []
    for name in ("conv2d_backward_input", "conv2d_backward_weight", "conv2d_backward_bias"):
        op = getattr(quick, name)
        monkeypatch.setattr(quick, name, lambda *args, op=op, name=name: names.append(name) or op(*args))
    torch.autograd.grad(net(x).square().sum(), x)
    assert names == ["conv2d_backward_input"]
    names.clear()
    net(x.detach()).square().sum().backward()
    assert names == ["conv2d_backward_weight"]


def test_counts_and_versions():
    net = pydl.swap(block())
    norm = net[1]
    versions = [b._version for b in norm.buffers()]
    for _ in range(3):
        net(torch.randn(2, 4, 5, 5))
    assert norm.num_batches_tracked.item() == 3
    assert [b._version - v for b, v in zip(norm.buffers(), versions, strict=True)] == [3, 3, 3]


def test_a_result_that_was_written_over_is_refused():
    net = pydl.swap(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Sigmoid()))
    output = net(torch.randn(2, 4, 5, 5))
    assert is_one_node(output)
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize(
    "make",
    [
        lambda: block().eval(),
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, momentum=None)),
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(6)),
    ],
    ids=["evaluation", "cumulative", "untracked", "circular"],
)
def test_layers_that_are_called_one_by_one(make):
    net = make()
    x = torch.randn(4, 4, 6, 6)
    swapped = pydl.swap(copy.deepcopy(net))
    output, found = derivatives(swapped, x, False)
    assert not is_one_node(output)
    expected_output, expected = derivatives(net.double(), x.double(), False)
    assert_close(output, expected_output, scale=10)
    for actual, value in zip(found, expected, strict=True):
        assert_close(actual, value, scale=100)


class Named(nn.Module):
    """A residual by name, as in our own models."""

    def __init__(self, activation):
        super().__init__()
        self.conv, self.norm, self.activation = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), activation

    def forward(self, x):
        return normalised(self.conv, self.norm, x, x, self.activation)


@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", None])
def test_residuals_are_part_of_it(activation, second):
    net, x = Named(activation).double(), torch.randn(4, 3, 6, 6).double()
    output, found = derivatives(pydl.swap(copy.deepcopy(net)), x, second)
    assert is_one_node(output)
    expected_output, expected = derivatives(net, x, second)
    assert not is_one_node(expected_output)
    assert_close(output, expected_output, scale=10)
    for actual, value in zip(found, expected, strict=True):
        assert_close(actual, value, scale=300 if second else 100)


def test_a_hook_sees_its_layer_of_a_named_chain():
    net, x, seen = pydl.swap(Named("relu")), torch.randn(4, 3, 6, 6), []
    handle = net.norm.register_forward_hook(lambda module, args, output: seen.append(output.min().item()))
    expected = net(x)
    assert seen[0] < 0
    handle.remove()
    assert_close(net(x), expected.double(), scale=10)
    assert len(seen) == 1


def test_one_image_of_one_pixel_is_refused_as_torch_does():
    net = pydl.swap(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(torch.randn(1, 4, 3, 3))
