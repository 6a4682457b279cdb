"""Convolutions of bfloat16 over batch lanes, by the dot product of pairs, and as a CPU without that instruction
multiplies them. (test_conv2d_algorithms.py has the shapes that every algorithm is tested with.)
"""

import pytest
import torch
import torch.nn.functional as F
from algorithms import forced
from testing import AVX512_ALONE, BF16_DOT, assert_close, bf16_dot

from pydl import backend

pytestmark = AVX512_ALONE

# batch, channels in and out, image, kernel, options
CASES = {
    "LeNet, first": (32, 1, 6, (28, 28), (5, 5), {"padding": 2}),  # an odd row of taps: neighbours, the last alone
    "LeNet, second": (33, 6, 16, (14, 14), (5, 5), {}),  # channels; a single image in the last block
    "three channels": (40, 3, 8, (9, 21), (3, 3), {"padding": 1}),
    "three channels, even kernel": (16, 3, 7, (10, 9), (2, 4), {"padding": (1, 2)}),
    "odd channels, dilated": (17, 5, 3, (13, 11), (3, 5), {"padding": 2, "dilation": 2}),
    "strided": (48, 1, 5, (17, 35), (4, 3), {"stride": 2, "padding": 1}),
    "rows longer than a square": (16, 1, 2, (3, 70), (3, 7), {"padding": (1, 0)}),
    "no row of taps meets the image": (16, 2, 2, (1, 9), (3, 3), {"padding": 2}),
    "one pixel": (20, 4, 5, (3, 3), (3, 3), {}),
}
PASSES = ("forward", "backward_input", "backward_weight")


@pytest.fixture(params=BF16_DOT, ids=["pairs", "widened"], autouse=True)
def pairs(request):
    with backend.use("cpu"), backend.isa("avx512"), bf16_dot(request.param):
        yield request.param


def as_they_come(x):
    return x


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def every_second(x):
    return x.repeat_interleave(2, -1)[..., ::2]


LAYOUTS = (as_they_come, channels_last, every_second)


def both(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def make(name, layout, dtype=torch.bfloat16):
    torch.manual_seed(0)
    n, c, o, size, kernel, options = CASES[name]
    x, w, b = torch.randn(n, c, *size), torch.randn(o, c, *kernel) / 4, torch.randn(o)
    x, w, b = (t.to(dtype) for t in (x, w, b))
    y = F.conv2d(x.double(), w.double(), b.double(), **options)
    return layout(x), w, b, layout(torch.randn(y.shape).to(dtype)), options


def passes(x, w, b, g, options, activation="none"):
    """The three results, each by its op; None where direct kernels do not serve it."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    top, left = both(options.get("padding", 0))
    rest = (both(options.get("stride", 1)), (top, top, left, left), both(options.get("dilation", 1)), 1)
    ops = torch.ops.pydl
    calls = (
        ("direct.batch", lambda: ops.conv2d_forward(x, w, b, *rest, activation, last)),
        ("direct.batch", lambda: ops.conv2d_backward_input(g, w, x.shape, *rest, last)),
        ("direct.batch_weight", lambda: ops.conv2d_backward_weight(g, x, w.shape, *rest, False)),
    )
    results = []
    for algorithm, call in calls:
        results.append(None)
        with forced(algorithm):
            results[-1] = call()
    return results


def exact(x, w, b, g, options):
    x, w = (t.detach().double().contiguous().requires_grad_() for t in (x, w))
    y = F.conv2d(x, w, b.double(), **options)
    return [y.detach(), *torch.autograd.grad(y, (x, w), g.double())]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_each_pass_is_the_rounded_sum(name, layout):
    """Rounded once, from sums in float32: half a unit in the last place, and little more where a sum nearly cancels."""
    tensors = make(name, layout)
    served = 0
    for actual, expected in zip(passes(*tensors), exact(*tensors), strict=True):
        if actual is None:
            continue
        assert actual.shape == expected.shape
        size = expected.abs().max()
        error = (actual.double() - expected).abs() / torch.maximum(expected.abs(), size * 2.0**-8)
        assert error.max() <= 2.0**-8 * 1.02, name
        served += 1
    assert served == (2 if "strided" in name else 3)


@pytest.mark.parametrize("name", ["LeNet, first", "LeNet, second"])
def test_as_near_to_float64_as_torch(name):
    x, w, b, g, options = make(name, as_they_come)
    leaves = [t.clone().requires_grad_() for t in (x, w)]
    y = F.conv2d(*leaves, b, **options)
    theirs = [y.detach(), *torch.autograd.grad(y, leaves, g)]
    for actual, torchs, expected in zip(passes(x, w, b, g, options), theirs, exact(x, w, b, g, options), strict=True):
        error, of_torch = ((t.double() - expected).square().mean().sqrt() for t in (actual, torchs))
        assert error <= 1.05 * of_torch


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
def test_activations(activation, layout):
    functions = {None: lambda y: y, "relu": torch.relu, "sigmoid": torch.sigmoid}
    for name in ("LeNet, first", "LeNet, second"):
        tensors = make(name, layout)
        actual = passes(*tensors, activation or "none")[0]
        assert_close(actual, functions[activation](exact(*tensors)[0]), torch.bfloat16)


def test_what_the_instruction_flushes_shows_which_ran(pairs):
    """2^-130, which is subnormal, times 2^60: nothing by pairs; by widened numbers as in torch's float32."""
    for channels, kernel in ((2, 3), (1, 3)):  # pairs of channels, pairs of taps
        x = torch.full((32, channels, 3, 3), 2.0**-130).bfloat16()
        w = torch.full((1, channels, kernel, kernel), 2.0**60).bfloat16()
        g = torch.full((32, 1, 1, 1), 2.0**60).bfloat16()
        forward, _, grad_weight = passes(x, w, torch.zeros(1).bfloat16(), g, {})
        assert (forward == (0.0 if pairs else 9 * channels * 2.0**-70)).all()
        assert (grad_weight == (0.0 if pairs else 2.0**-65)).all()


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["LeNet, first", "three channels", "odd channels, dilated", "LeNet, second"])
def test_what_is_not_finite_spoils_what_it_reaches_alone(name, layout, value):
    """At every column of a row: that of a pair's other half, too."""
    x, w, b, g, options = make(name, as_they_come)
    for t in (x, g):
        for column in range(t.shape[-1]):
            t[column % len(t), column % t.shape[1], t.shape[2] // 2, column] = value
    tensors = (layout(x), w, b, layout(g), options)
    leaf = torch.zeros(x.shape, dtype=torch.float64)
    y = F.conv2d(x.double(), w.double(), b.double(), **options)
    kernel = w.double().requires_grad_()
    leaf.requires_grad_()
    grad_input = torch.autograd.grad(F.conv2d(leaf, kernel, **options), leaf, g.double())[0]
    for actual, expected in zip(passes(*tensors)[:2], (y, grad_input), strict=True):
        assert torch.equal(actual.isfinite(), expected.isfinite())


def test_the_number_of_threads_changes_no_bit():
    before = torch.get_num_threads()
    for name in ("LeNet, first", "LeNet, second"):
        tensors, results = make(name, as_they_come), []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(passes(*tensors))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(a, o) for a, o in zip(results[0], other, strict=True))
