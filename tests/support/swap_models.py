"""Modules and layers that the tests of swapping share."""

import copy
import functools
from typing import ClassVar

import torch
from grid import ROWS
from testing import assert_close
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import pydl


def small_sequential():
    """A chain of three, dropout and an affine layer on (N, 3, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(144, 5),
        nn.BatchNorm1d(5),
    )


class Residual(nn.Module):
    """d2l's listing ("Residual Networks"), word for word but for the lazy layers."""

    def __init__(self, in_channels, num_channels, use_1x1conv=False, strides=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, num_channels, kernel_size=3, padding=1, stride=strides)
        self.conv2 = nn.Conv2d(num_channels, num_channels, kernel_size=3, padding=1)
        if use_1x1conv:
            self.conv3 = nn.Conv2d(in_channels, num_channels, kernel_size=1, stride=strides)
        else:
            self.conv3 = None
        self.bn1 = nn.BatchNorm2d(num_channels)
        self.bn2 = nn.BatchNorm2d(num_channels)

    def forward(self, X):
        Y = F.relu(self.bn1(self.conv1(X)))
        Y = self.bn2(self.conv2(Y))
        if self.conv3:
            X = self.conv3(X)
        Y += X
        return F.relu(Y)


# name of the class -> (layer, shape of its input, the function that torch's forward ends in)
LAYERS = {
    row.layer: (functools.partial(getattr(nn, row.layer), **row.of_layer), (3, 5, 6), name)
    for name, row in ROWS.items()
} | {
    "Conv2d": (lambda: nn.Conv2d(5, 7, (3, 2), padding=1), (3, 5, 9, 6), "conv2d"),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(5, 4, (3, 2), stride=2), (3, 5, 4, 6), "conv_transpose2d"),
    "Linear": (lambda: nn.Linear(6, 4), (3, 5, 6), "linear"),
    "LayerNorm": (lambda: nn.LayerNorm((5, 6)), (3, 5, 6), "layer_norm"),
    "RMSNorm": (lambda: nn.RMSNorm(6), (3, 5, 6), "rms_norm"),
    "Softmax2d": (nn.Softmax2d, (3, 5, 6, 2), "softmax"),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), (3, 4, 5), "group_norm"),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(4, affine=True), (3, 4, 5), "instance_norm"),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True), (3, 4, 5, 2), "instance_norm"),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(4, affine=True), (3, 4, 5, 2, 2), "instance_norm"),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), (4, 6, 5), "batch_norm"),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6), (4, 6, 5, 3), "batch_norm"),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(2), (3, 2, 5, 3, 4), "batch_norm"),
    "Dropout": (lambda: nn.Dropout(0.3), (11, 13), "dropout"),
    "Dropout1d": (lambda: nn.Dropout1d(0.3), (5, 6, 7), "dropout1d"),
    "Dropout2d": (lambda: nn.Dropout2d(0.3), (5, 6, 7, 2), "dropout2d"),
    "Dropout3d": (lambda: nn.Dropout3d(0.3), (5, 6, 3, 2, 4), "dropout3d"),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, 1), (2, 3, 11, 8), "max_pool2d"),
    "AvgPool2d": (lambda: nn.AvgPool2d((2, 3)), (2, 3, 11, 8), "avg_pool2d"),
    "Conv1d": (lambda: nn.Conv1d(5, 4, 3), (3, 5, 9), "conv1d"),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(5, 4, 3, stride=2), (3, 5, 4), "conv_transpose1d"),
    "MaxPool1d": (lambda: nn.MaxPool1d(3, 2, 1), (2, 3, 11), "max_pool1d"),
    "AvgPool1d": (lambda: nn.AvgPool1d(2), (2, 3, 11), "avg_pool1d"),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(4), (2, 3, 12), "adaptive_avg_pool1d"),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(2), (2, 3, 12, 8), "adaptive_avg_pool2d"),
    "AdaptiveMaxPool1d": (lambda: nn.AdaptiveMaxPool1d(4), (2, 3, 12), "adaptive_max_pool1d"),
    "Conv3d": (lambda: nn.Conv3d(5, 7, (3, 2, 3), padding=1), (3, 5, 4, 9, 6), "conv3d"),
    "MaxPool3d": (lambda: nn.MaxPool3d(3, 2, 1), (2, 3, 4, 11, 8), "max_pool3d"),
    "AvgPool3d": (lambda: nn.AvgPool3d((1, 2, 3)), (2, 3, 4, 11, 8), "avg_pool3d"),
    "AdaptiveAvgPool3d": (lambda: nn.AdaptiveAvgPool3d(2), (2, 3, 4, 12, 8), "adaptive_avg_pool3d"),
    "AdaptiveMaxPool3d": (lambda: nn.AdaptiveMaxPool3d(2), (2, 3, 4, 12, 8), "adaptive_max_pool3d"),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(2), (2, 3, 12, 8), "adaptive_max_pool2d"),
}


class Watching(torch.Tensor):
    """A tensor that notes the functions of torch that it is given to."""

    seen: ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(function)
        return super().__torch_function__(function, types, args, kwargs or {})


def reasons(net):
    """All that the report says of why layers are not served, or not fused."""
    return " / ".join(f"{row.reason} {row.fused}" for row in pydl.report(net).rows)


def fused(net):
    """{name: what the report says is computed with it or where it is computed} of the layers that are fused."""
    return {row.name: row.fused for row in pydl.report(net).rows if row.fused.startswith(("with", "in "))}


def outcome(net, *inputs):
    """Output, gradients of inputs and parameters for a gradient that is not all ones, buffers: everything by name."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    net.zero_grad()
    output = net(*inputs)
    found = {"output": output.detach().clone()}
    if output.requires_grad:
        output.backward(torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view(output.shape).to(output.device))
        found |= {f"input {i}": x.grad for i, x in enumerate(inputs)}
        found |= {f"gradient of {name}": p.grad for name, p in net.named_parameters()}
    return found | {f"buffer {name}": b.clone() for name, b in net.named_buffers()}


def assert_as_unfused(net, *inputs, dtype=torch.float64, device="cpu", scale=100):
    """The model, swapped, computes what torch computes in float64; both are copies."""
    oracle = copy.deepcopy(net).double()
    swapped = pydl.swap(copy.deepcopy(net).to(device, dtype))
    expected = outcome(oracle, *(x.double() for x in inputs))
    actual = outcome(swapped, *(x.to(device, dtype) for x in inputs))
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert (actual[name] is None) == (value is None), name
        if value is not None:
            assert_close(actual[name], value, dtype, scale=scale)
    return swapped


def image(*shape):
    return torch.randn(shape or (4, 3, 8, 8))


class Ops(TorchDispatchMode):
    """Collects the names of the ops that run inside a ``with`` block."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name().partition(".")[0])
        return function(*args, **(kwargs or {}))


def ops_of(net, x):
    """The names of our ops that a call without gradients runs."""
    with Ops() as ops, torch.no_grad():
        net(x)
    return [name for name in ops.names if name.startswith("pydl::")]


def d2l_lenet():
    """The book's listing, word for word."""
    return nn.Sequential(
        nn.Conv2d(1, 6, kernel_size=5, padding=2), nn.Sigmoid(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Conv2d(6, 16, kernel_size=5), nn.Sigmoid(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120), nn.Sigmoid(),
        nn.Linear(120, 84), nn.Sigmoid(),
        nn.Linear(84, 10))  # fmt: skip


def small_net():
    """One of each kind of layer, on (N, 1, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Flatten(),
        nn.Linear(108, 4),
        nn.BatchNorm1d(4),
    )


def torchs(model):
    """A model of pydl.nn's layers, in place, as one of torch's own."""
    for layer in model.modules():
        if type(layer).__module__.startswith("pydl.nn."):
            layer.__class__ = getattr(nn, type(layer).__name__)
    return model
