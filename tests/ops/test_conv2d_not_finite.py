"""An inf or nan spoils the outputs and gradients of inputs that its windows reach, as in torch, and no others.

Winograd mixes the numbers of a tile, and phases of strided first layers and cells multiply some by zeros: where they
meet one, the pass is made again by products of each window alone. Loss scaling makes infs by design.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from algorithms import NAMES, asked
from test_conv2d_algorithms import conv2d_pass

import pydl.functional as PF
from pydl import _C

# (input, weight, stride, padding): one for each algorithm that is not local, and for what takes its place
SHAPES = {
    "3x3": ((2, 24, 13, 14), (20, 24, 3, 3), 1, 1),
    "3x3 of one row of tiles": ((1, 16, 3, 40), (33, 16, 3, 3), 1, 1),
    "5x5": ((2, 17, 11, 12), (16, 17, 5, 5), 1, 2),
    "3x3, stride 2": ((2, 32, 17, 16), (40, 32, 3, 3), 2, 1),
    "deep: weights transformed last": ((1, 260, 9, 9), (250, 260, 3, 3), 1, 1),
    "first layer of ResNet": ((2, 3, 30, 29), (16, 3, 7, 7), 2, 3),
    "cells": ((2, 3, 70, 90), (4, 3, 32, 32), 16, 8),
    "first layer of one channel": ((3, 1, 20, 21), (8, 1, 5, 5), 2, 2),
}
VALUES = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def tensors(name, channels_last, dtype=torch.float32):
    x_size, w_size, stride, padding = SHAPES[name]
    x, w = torch.randn(x_size).to(dtype), torch.randn(w_size).to(dtype) / 10
    g = torch.randn_like(F.conv2d(x.float(), w.float(), None, stride, padding)).to(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return *(t.contiguous(memory_format=layout) for t in (x, w, g)), stride, padding


def run(which, x, w, g, stride, padding, channels_last):
    return conv2d_pass(which, x, w, None, g, (stride,) * 2, (padding,) * 4, (1, 1), 1, channels_last)


def torchs(which, x, w, g, stride, padding):
    x, w = x.double().requires_grad_(), w.double().requires_grad_()
    y = F.conv2d(x, w, None, stride, padding)
    if which == "forward":
        return y.detach()
    return torch.autograd.grad(y, x if which == "backward_input" else w, g.double())[0]


def assert_same_kind(actual, expected):
    """nan where torch has nan, inf of the same sign where torch has that, and near it everywhere else."""
    assert torch.equal(actual.isnan(), expected.isnan())
    torch.testing.assert_close(actual.double(), expected, rtol=2e-4, atol=2e-4, equal_nan=True)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("value", VALUES.values(), ids=list(VALUES))
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("which", ["forward", "backward_input"])
@pytest.mark.parametrize("name", SHAPES)
def test_one_number_spoils_what_it_reaches(device, name, which, channels_last, value):
    x, w, g, stride, padding = tensors(name, channels_last)
    source = x if which == "forward" else g
    source[0, -1, source.shape[2] // 2, source.shape[3] // 3] = value
    expected = torchs(which, x, w, g, stride, padding)
    assert_same_kind(
        run(which, x.to(device), w.to(device), g.to(device), stride, padding, channels_last).cpu(), expected
    )


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("kernel", [(5, 5), (4, 3), (2, 1)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2])
def test_pairs_of_rows_of_bfloat16_keep_to_their_windows(device, kernel, dilation):
    """A pair's second weight may be missing: it must not meet the pixel there. Every pixel in turn is an inf."""
    size, options = (2, 1, 7, 19), {"stride": (2, 1), "padding": (2, 1), "dilation": dilation}
    x, w = torch.randn(size).bfloat16(), torch.randn(20, 1, *kernel).bfloat16()
    with asked("implicit.slabs", "forward"):
        for row in range(size[2]):
            spoiled = x.clone()
            spoiled[1, 0, row, 3 * row % 19] = math.inf
            actual = PF.conv2d(spoiled.to(device), w.to(device), **options).cpu()
            expected = F.conv2d(spoiled.double(), w.double(), **options)
            assert torch.equal(actual.isfinite(), expected.isfinite())
            reached = expected.isfinite()
            torch.testing.assert_close(actual.double()[reached], expected[reached], rtol=2e-2, atol=2e-2)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("algorithm", ["winograd", "implicit.phases", "implicit.cells"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_another_algorithm_makes_the_pass_again(device, algorithm, dtype):
    name = {"winograd": "3x3", "implicit.phases": "first layer of one channel", "implicit.cells": "cells"}[algorithm]
    x, w, g, stride, padding = tensors(name, False, dtype)
    with asked(algorithm, "backward_input"):
        run("backward_input", x, w, g, stride, padding, False)
        assert _C.conv2d_algorithm_served().startswith(algorithm)
        g[0, 0, 2, 3] = math.inf
        actual = run("backward_input", x, w, g, stride, padding, False)
        assert not _C.conv2d_algorithm_served().startswith(algorithm)
    expected = torchs("backward_input", x, w, g, stride, padding)
    assert torch.equal(actual.isfinite(), expected.isfinite())


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("leaf", [name for name in NAMES["backward_weight"] if name.startswith("winograd")])
def test_the_weight_gradient_is_that_of_direct_products(device, leaf):
    x, w, g, stride, padding = tensors("3x3", False)
    g[1, 3, 5, 5] = math.inf
    with asked(leaf, "backward_weight"):
        actual = run("backward_weight", x, w, g, stride, padding, False)
    with asked("implicit", "backward_weight"):
        expected = run("backward_weight", x, w, g, stride, padding, False)
    assert torch.equal(actual, expected) or torch.equal(actual.isnan(), expected.isnan())
    assert actual[[i for i in range(20) if i != 3]].isfinite().all()  # the channel of the inf, and it alone
    assert not actual[3].isfinite().all()


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_an_activation_hides_nothing(device, activation):
    """relu makes 0 of -inf and sigmoid 1 of inf: the outputs around them must be right nevertheless."""
    x, w, _, stride, padding = tensors("3x3", False)
    x[0, 0, 6, 6] = -math.inf
    w.abs_()  # outputs that it reaches are -inf, none is nan
    expected = getattr(torch, activation)(F.conv2d(x.double(), w.double(), None, stride, padding))
    assert_same_kind(PF.conv2d(x, w, None, stride, padding, activation=activation), expected)


@pytest.mark.cpu_kernels
def test_large_numbers_overflow_no_sooner_than_in_torch(device):
    x, w = torch.full((2, 16, 12, 12), 3e37), torch.full((16, 16, 3, 3), 1e-2)
    assert_same_kind(PF.conv2d(x, w, padding=1), F.conv2d(x.double(), w.double(), padding=1))


@pytest.mark.cpu_kernels
def test_a_tensor_of_nan_alone(device):
    x, w, _, stride, padding = tensors("3x3", False)
    y = PF.conv2d(torch.full_like(x, math.nan), w, None, stride, padding)
    assert y.isnan().all()
