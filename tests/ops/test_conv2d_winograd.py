"""Winograd convolution, forced, against torch in float64: every remainder of a tile, of a vector and of a panel."""

import pytest
import torch
import torch.nn.functional as F
from algorithms import asked
from testing import assert_close

from pydl import backend
from pydl.functional import conv2d

pytestmark = pytest.mark.cpu_kernels

# (N, C, H, W, O, padding of a 3x3 kernel); a 5x5 kernel is padded by one more, so that the output is as large. The
# tile is 4x4 outputs of 3x3 taps and 2x2 of 5x5. Each shape says why it is there.
SHAPES = {
    "smaller than a tile": (2, 3, 4, 4, 5, 0),
    "last row 1, last column 2": (1, 5, 5, 6, 4, 1),
    "last row 2, last column 3": (2, 4, 6, 7, 6, 1),
    "last row 3, last column 1": (2, 17, 7, 9, 33, 1),
    "last column only": (1, 16, 8, 11, 32, 1),
    "last row only": (3, 16, 10, 8, 16, 1),
    "whole tiles": (2, 16, 8, 8, 32, 1),
    "no padding": (2, 8, 12, 13, 40, 0),
    "padding 2: tiles that see padding alone": (1, 9, 6, 3, 20, 2),
    "one channel": (2, 1, 9, 10, 3, 1),
    "a part of the sum and one more": (1, 33, 5, 5, 2, 1),
    "a row wider than a strip": (1, 5, 3, 75, 7, 1),
    "more tiles than a block": (3, 20, 30, 29, 24, 1),
    "frequencies that no tile has, in columns": (2, 20, 9, 3, 33, 1),
    "frequencies that no tile has, in rows": (2, 33, 3, 8, 20, 1),
    "weights transformed last, two parts of the sum": (2, 260, 7, 6, 90, 1),
    "weights transformed last, frequencies that no tile has": (5, 260, 3, 3, 90, 1),
    "weights transformed last, for each of two blocks of tiles": (144, 300, 2, 2, 292, 1),
    "weights transformed last, once for three blocks of tiles": (3, 160, 29, 28, 150, 1),
    "empty batch": (0, 3, 8, 8, 4, 1),
}
PASSES = ["forward", "input", "weight"]


@pytest.fixture(autouse=True)
def _forced(request):
    if "device" in request.fixturenames:
        request.getfixturevalue("device")  # the instruction set, which may have no such algorithm
    with asked("winograd"):
        yield


def make(name, dtype, channels_last, taps=3):
    """input, weight, bias, gradient of the output and the padding of a shape."""
    n, c, h, w, o, padding = SHAPES[name]
    g = torch.randn(n, o, h + 2 * padding - 2, w + 2 * padding - 2)
    padding += (taps - 3) // 2
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(n, c, h, w).to(dtype).contiguous(memory_format=layout)
    weight = (torch.randn(o, c, taps, taps) * (taps * taps * c) ** -0.5).to(dtype).contiguous(memory_format=layout)
    bias = torch.randn(o).to(dtype)
    return x, weight, bias, g.to(dtype).contiguous(memory_format=layout), padding


def gradients(function, x, weight, bias, g, padding, **options):
    """output, and the gradients of input and weight."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = function(x, weight, bias, padding=padding, **options)
    return y.detach(), *torch.autograd.grad(y, (x, weight), g)


def exact(x, weight, bias, g, padding):
    return gradients(F.conv2d, x.double(), weight.double(), bias.double(), g.double(), padding)


def assert_near(actual, expected):
    """Sums of random numbers: the error is measured by the size of the whole, not of an element that cancelled."""
    size = expected.pow(2).mean().sqrt().clamp_min(1e-3).item() if expected.numel() else 1.0
    assert_close(actual / size, expected / size, dtype=actual.dtype, scale=4.0)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize("name", SHAPES)
def test_three_passes(device, name, taps, channels_last):
    case = make(name, torch.float32, channels_last, taps)
    for actual, expected in zip(gradients(conv2d, *case), exact(*case), strict=True):
        assert_near(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["last row 3, last column 1", "weights transformed last, two parts of the sum"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("taps", [3, 5])
def test_half_types(device, name, dtype, taps, channels_last):
    case = make(name, dtype, channels_last, taps)
    for actual, expected in zip(gradients(conv2d, *case), exact(*case), strict=True):
        assert_near(actual, expected)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_bias_and_activation(device, activation):
    x, weight, bias, _, padding = make("last row 3, last column 1", torch.float32, True)
    bias[0], bias[1] = float("nan"), float("inf")
    expected = getattr(torch, activation)(F.conv2d(x.double(), weight.double(), bias.double(), padding=padding))
    assert_close(conv2d(x, weight, bias, padding=padding, activation=activation), expected, scale=4.0)


def test_mixed_memory_formats(device):
    x, weight, bias, g, padding = make("last row 3, last column 1", torch.float32, False)
    mixed = (x, weight.contiguous(memory_format=torch.channels_last), bias, g, padding)
    for actual, expected in zip(gradients(conv2d, *mixed), exact(*mixed), strict=True):
        assert_near(actual, expected)


def test_strided_and_expanded_tensors(device):
    _, weight, bias, g, padding = make("whole tiles", torch.float32, False)
    wide = torch.randn(2, 16, 16, 24)[:, :, ::2, ::3]  # neither channels nor columns are adjacent
    swapped = weight.transpose(2, 3)  # taps are not in order
    constant = g[:1, :, :1, :1].expand_as(g)
    case = (wide, swapped, bias, constant, padding)
    for actual, expected in zip(gradients(conv2d, *case), exact(*case), strict=True):
        assert_near(actual, expected)


def test_padding_same_and_unequal(device):
    x, weight, bias, _, _ = make("last row 2, last column 3", torch.float32, False)
    for padding in ["same", "valid", (0, 2), (2, 1)]:
        expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=padding)
        assert_near(conv2d(x, weight, bias, padding=padding), expected)


@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize("name", ["more tiles than a block", "weights transformed last, two parts of the sum"])
def test_result_does_not_depend_on_the_number_of_threads(name, taps):
    case = make(name, torch.float32, False, taps)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(gradients(conv2d, *case))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert torch.equal(one, same)


def test_result_does_not_depend_on_the_memory_format():
    plain, last = (make("last row 3, last column 1", torch.float32, False) for _ in range(2))
    last = tuple(
        t.contiguous(memory_format=torch.channels_last) if isinstance(t, torch.Tensor) and t.dim() == 4 else t
        for t in plain
    )
    for one, same in zip(gradients(conv2d, *plain), gradients(conv2d, *last), strict=True):
        assert torch.equal(one, same)


# (taps, N, C, O, size): the length of the sum decides the error
@pytest.mark.parametrize(
    "taps, n, c, o, size",
    [
        (3, 2, 16, 16, 28),
        (3, 2, 64, 64, 28),
        (3, 2, 128, 64, 14),
        (3, 4, 256, 32, 14),
        (3, 4, 512, 32, 7),
        (5, 16, 32, 32, 16),
        (5, 16, 32, 64, 8),
        (5, 2, 96, 64, 14),
    ],
)
@pytest.mark.parametrize("relu", [False, True], ids=["normal", "after relu"])
def test_as_accurate_as_a_direct_convolution(taps, n, c, o, size, relu):
    """The largest error over the rms of the result is at most twice that of torch's float32 convolution, or 4.5e-6.

    torch's own error depends on the memory format: it sums NCHW images' outputs and channels_last images' weight
    gradients in shorter parts than the others. The yardstick is the larger of the two. 4.5e-6 is where the transforms'
    own rounding stands, which is above the yardstick where sums are short: 16 channels, or 16 tiles as in the weight
    gradient of 512 channels here. kernels/cpu/conv2d/winograd/NOTES.md has the errors of each.
    """
    x = torch.randn(n, c, size, size)
    x = x.relu() if relu else x
    weight = torch.randn(o, c, taps, taps) * (taps * taps * c) ** -0.5
    case = (x, weight, torch.zeros(o), torch.randn(n, o, size, size), taps // 2)
    last = [
        t.contiguous(memory_format=torch.channels_last) if isinstance(t, torch.Tensor) and t.dim() == 4 else t
        for t in case
    ]
    with backend.use("torch"):
        direct = gradients(F.conv2d, *case), gradients(F.conv2d, *last)
    truth = exact(*case)

    def errors(results):
        return [
            ((r.double() - t).abs().max() / t.pow(2).mean().sqrt()).item() for r, t in zip(results, truth, strict=True)
        ]

    ours, allowed = errors(gradients(conv2d, *case)), [max(pair) for pair in zip(*map(errors, direct), strict=True)]
    for name, error, yardstick in zip(PASSES, ours, allowed, strict=True):
        assert error <= max(2 * yardstick, 4.5e-6), f"{name}: {error:.1e}, direct {yardstick:.1e}"
