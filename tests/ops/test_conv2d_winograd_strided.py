"""Winograd convolution of stride 2 by phases, of 3×3 and 4×4 kernels, forced, against torch in float64."""

import pytest
import torch
import torch.nn.functional as F
from algorithms import asked
from test_conv2d_winograd import assert_near, gradients
from testing import assert_close

from pydl import _C
from pydl.functional import conv2d, conv_transpose2d

pytestmark = pytest.mark.cpu_kernels
BOTH = pytest.mark.parametrize("taps", [3, 4], ids=["3x3", "4x4"])

# (N, C, H, W, O, padding), of 4 taps one pixel higher and wider: a tile is 4x4 outputs, in the input gradient 8x8
# pixels. Each shape says why it is there.
SHAPES = {
    "one output": (1, 7, 4, 4, 2, 0),  # of an image as large as the kernel no convolution is left (reduced.h)
    "last row 1, last column 3": (2, 3, 9, 14, 5, 1),
    "last row 2, last column 1, odd size": (2, 17, 11, 17, 33, 1),
    "last row 3": (1, 16, 6, 16, 16, 1),
    "whole tiles": (2, 16, 16, 16, 32, 1),
    "no padding: the input gradient goes elsewhere": (1, 5, 9, 13, 4, 0),
    "padding 2": (1, 8, 12, 13, 9, 2),
    "padding 3: outputs of padding alone": (2, 20, 12, 11, 32, 3),
    "one channel": (2, 1, 9, 10, 3, 1),
    "a row wider than a strip": (1, 5, 6, 150, 7, 1),
    "more tiles than a block": (3, 20, 58, 57, 24, 1),
    "frequencies that no tile has": (3, 20, 5, 3, 33, 1),
    "weights transformed last, three parts of the sum": (2, 260, 13, 12, 90, 1),
    "weights transformed last, frequencies that no tile has": (5, 150, 6, 5, 160, 1),
    "weights transformed last, once for three blocks of tiles": (5, 160, 30, 30, 160, 1),
    "empty batch": (0, 3, 8, 8, 4, 1),
}


@pytest.fixture(autouse=True)
def _forced(request):
    if "device" in request.fixturenames:
        request.getfixturevalue("device")  # the instruction set, which may have no such algorithm
    with asked("winograd"):
        yield


def forced_but_for_even_padding(padding):
    """The phases of an input gradient want an odd padding."""
    odd = all(p % 2 for p in (padding if isinstance(padding, tuple) else (padding,)))
    _C.use_conv2d_algorithm("winograd" if odd else None, "backward_input")


def make(name, channels_last, dtype=torch.float32, taps=3):
    """input, weight, bias, gradient of the output and the padding of a shape."""
    n, c, h, w, o, padding = SHAPES[name]
    h, w = h + taps - 3, w + taps - 3
    layout = torch.channels_last if channels_last else torch.contiguous_format
    g = torch.randn(n, o, (h + 2 * padding - taps) // 2 + 1, (w + 2 * padding - taps) // 2 + 1)
    x, weight = torch.randn(n, c, h, w), torch.randn(o, c, taps, taps) * (taps * taps * c) ** -0.5
    x, weight, g = (t.to(dtype).contiguous(memory_format=layout) for t in (x, weight, g))
    return x, weight, torch.randn(o).to(dtype), g, padding


def exact(x, weight, bias, g, padding):
    return gradients(F.conv2d, x.double(), weight.double(), bias.double(), g.double(), padding, stride=2)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("name", SHAPES)
@BOTH
def test_three_passes(device, taps, name, channels_last):
    case = make(name, channels_last, taps=taps)
    forced_but_for_even_padding(case[-1])
    for actual, expected in zip(gradients(conv2d, *case, stride=2), exact(*case), strict=True):
        assert_near(actual, expected)


@BOTH
def test_phases_serve_where_they_are_forced(taps):
    case = make("more tiles than a block", False, taps=taps)
    by_phases = gradients(conv2d, *case, stride=2)
    assert _C.conv2d_algorithm_served().startswith("winograd.")
    _C.use_conv2d_algorithm("implicit")
    for one, other in zip(by_phases, gradients(conv2d, *case, stride=2), strict=True):
        assert not torch.equal(one, other)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_bfloat16(device, channels_last):
    case = make("last row 2, last column 1, odd size", channels_last, torch.bfloat16)
    for actual, expected in zip(gradients(conv2d, *case, stride=2), exact(*case), strict=True):
        assert_near(actual, expected)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@BOTH
def test_bias_and_activation(device, taps, activation):
    x, weight, bias, _, padding = make("last row 1, last column 3", True, taps=taps)
    bias[0], bias[1] = float("nan"), float("inf")
    expected = F.conv2d(x.double(), weight.double(), bias.double(), stride=2, padding=padding)
    actual = conv2d(x, weight, bias, stride=2, padding=padding, activation=activation)
    assert_close(actual, getattr(torch, activation)(expected), scale=4.0)


@BOTH
def test_strided_and_expanded_tensors(device, taps):
    _, weight, bias, g, padding = make("whole tiles", False, taps=taps)
    # neither channels nor columns are adjacent
    wide = torch.randn(2, 16, 26 + 2 * taps, 39 + 3 * taps)[:, :, ::2, ::3]
    case = (wide, weight.transpose(2, 3), bias, g[:1, :, :1, :1].expand_as(g), padding)
    for actual, expected in zip(gradients(conv2d, *case, stride=2), exact(*case), strict=True):
        assert_near(actual, expected)


@BOTH
def test_unequal_padding(device, taps):
    x, weight, bias, _, _ = make("last row 1, last column 3", False, taps=taps)
    for padding in [(1, 3), (0, 1), (3, 2)]:
        case = (x, weight, bias)
        forced_but_for_even_padding(padding)
        y = F.conv2d(*(t.double() for t in case), stride=2, padding=padding)
        g = torch.randn_like(y)
        expected = gradients(F.conv2d, *(t.double() for t in case), g, padding, stride=2)
        actual = gradients(conv2d, *case, g.float(), padding, stride=2)
        for one, other in zip(actual, expected, strict=True):
            assert_near(one, other)


@pytest.mark.parametrize("name", ["more tiles than a block", "weights transformed last, three parts of the sum"])
@BOTH
def test_result_does_not_depend_on_the_number_of_threads(taps, name):
    case = make(name, False, taps=taps)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(gradients(conv2d, *case, stride=2))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert torch.equal(one, same)


@pytest.mark.parametrize("relu", [False, True], ids=["normal", "after relu"])
@pytest.mark.parametrize("n, c, o, size", [(2, 16, 16, 28), (2, 64, 128, 28), (4, 256, 32, 14)])
@BOTH
def test_as_accurate_as_a_direct_convolution(taps, n, c, o, size, relu):
    """The largest error over the rms of the result: as for stride 1 (test_conv2d_winograd.py), but for input gradients.

    Of the input gradient's pixels a quarter sum four taps and are 4/3 times as large as the rms of all; 6.0e-6 was the
    largest error of eight runs, where torch had 1.1e-6 to 3.6e-6.
    """
    x = torch.randn(n, c, size, size)
    case = x.relu() if relu else x, torch.randn(o, c, taps, taps) * (taps * taps * c) ** -0.5, torch.zeros(o)
    g = torch.randn(n, o, size // 2, size // 2)
    truth, actual = exact(*case, g, 1), gradients(conv2d, *case, g, 1, stride=2)
    for i, (name, bound) in enumerate([("forward", 4.5e-6), ("input gradient", 7.5e-6), ("weight gradient", 4.5e-6)]):
        error = ((actual[i].double() - truth[i]).abs().max() / truth[i].pow(2).mean().sqrt()).item()
        assert error <= bound, f"{name}: {error:.1e}"


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@BOTH
def test_a_transposed_convolution_stores_its_bias_and_activation(device, taps, activation):
    for name in ("last row 2, last column 1, odd size", "whole tiles", "padding 3: outputs of padding alone"):
        _, weight, _, g, padding = make(name, False, taps=taps)
        bias, more = torch.randn(weight.shape[1]), 1 if taps == 3 else 0
        expected = F.conv_transpose2d(*(t.double() for t in (g, weight, bias)), 2, padding, more)
        expected = expected if activation is None else getattr(torch, activation)(expected)
        for layout in (torch.contiguous_format, torch.channels_last):
            x = g.contiguous(memory_format=layout)
            assert_near(conv_transpose2d(x, weight, bias, 2, padding, more, activation=activation), expected)


def test_4x4_in_half_precision_is_not_winograds():
    x, weight = torch.randn(16, 32, 16, 16).bfloat16(), torch.randn(32, 32, 4, 4).bfloat16()
    _C.use_conv2d_algorithm(None)
    conv2d(x, weight, stride=2, padding=1)
    assert not _C.conv2d_algorithm_served().startswith("winograd")


def test_4x4_of_many_channels_is():
    x, weight = torch.randn(16, 32, 16, 16), torch.randn(32, 32, 4, 4)
    _C.use_conv2d_algorithm(None)
    conv2d(x, weight, stride=2, padding=1)
    assert _C.conv2d_algorithm_served() == "winograd.tiles"
