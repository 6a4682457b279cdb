"""Each of conv2d's algorithms by its name: what it serves is right, that it ran, and that the rest is refused."""

import functools

import pytest
import torch
from algorithms import NAMES, PASSES, REFUSED, asked, forced
from test_conv2d import SHAPES, check, make

from pydl import _C, backend
from pydl.functional import conv2d
from pydl.ops._convolution import padding_of

pytestmark = pytest.mark.cpu_kernels
EVERY = list(dict.fromkeys(name for which in PASSES for name in NAMES[which]))
# How many (shape, pass) pairs of SHAPES each serves at least, in NCHW and in channels_last: fewer would mean that a
# condition has become narrower, and that this file tests less than it says.
SERVED = {
    "depthwise.planes_3x3": (0, 0),  # for vectors of 64 bytes alone: see the test below
    "depthwise.pixels": (3, 39),
    "depthwise.planes": (63, 63),
    "winograd.tiles": (40, 40),
    "winograd.weight_chunks": (20, 20),
    "winograd.weight_passes": (20, 20),
    "direct.rows": (57, 2),
    "direct.batch": (83, 83),
    "direct.batch_weight": (53, 53),
    "direct.rows_weight": (0, 0),  # for vectors of 64 bytes alone: see the tests below
    "implicit.phases": (1, 1),
    "implicit.cells": (4, 0),  # rows of pixels alone
    "implicit.weight_cells": (2, 0),
    "implicit.gathered": (5, 5),  # FLOAT32_ALONE
    "implicit.product": (9, 9),
    "implicit.slabs": (150, 150),
    "implicit.panels": (150, 150),
    "implicit.weight_pointwise": (15, 15),
    "implicit.weight_slabs": (75, 75),
}
FLOAT32_ALONE = {"implicit.gathered"}


def conv2d_pass(which, x, w, b, g, stride, padding, dilation, groups, channels_last):
    """One pass by its op; the result's memory format is the input's."""
    options = (stride, padding, dilation, groups)
    if which == "forward":
        return torch.ops.pydl.conv2d_forward(x, w, b, *options, "none", channels_last)
    if which == "backward_input":
        return torch.ops.pydl.conv2d_backward_input(g, w, x.shape, *options, channels_last)
    return torch.ops.pydl.conv2d_backward_weight(g, x, w.shape, *options, channels_last)


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


@functools.cache
def case(name, dtype):
    """Tensors of a shape in ``dtype``, its options, and torch's three results in float64 for these tensors."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, w, b, options = make(name, dtype)
    stride, dilation = pair(options.get("stride", 1)), pair(options.get("dilation", 1))
    groups = options.get("groups", 1)
    padding = padding_of("conv2d", options.get("padding", 0), w, stride, dilation)
    leaves = [t.double().requires_grad_() for t in (x, w)]
    y = torch.nn.functional.conv2d(*leaves, b.double(), **options)
    g = torch.linspace(-1, 1, max(y.numel(), 1), dtype=torch.float64)[: y.numel()].sin().reshape(y.shape).to(dtype)
    expected = (y.detach(), *torch.autograd.grad(y, leaves, g.double()))
    return (x, w, b, g), (stride, padding, dilation, groups), dict(zip(PASSES, expected, strict=True))


def formatted(tensors, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return [t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in tensors]


def count_served(algorithm, channels_last, dtype):
    """Checks all that an algorithm or a family serves of SHAPES; returns how many (shape, pass) pairs these were."""
    served = 0
    for name in SHAPES:
        tensors, options, expected = case(name, dtype)
        if tensors[0].numel() == 0:
            continue  # an empty batch asks no algorithm
        x, w, b, g = formatted(tensors, channels_last)
        for which in PASSES:
            if not any(known == algorithm or known.startswith(algorithm + ".") for known in NAMES[which]):
                continue
            actual = None
            with forced(algorithm):
                actual = conv2d_pass(which, x, w, b, g, *options, channels_last)
            if actual is None:
                continue
            ran = _C.conv2d_algorithm_served()
            assert ran == algorithm or ran.startswith(algorithm + "."), (name, which)
            check([actual], [expected[which]], dtype, x.shape)
            served += 1
    return served


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", sorted({name.split(".")[0] for name in EVERY}))
def test_a_family_is_right_in_what_it_serves(family, dtype, channels_last, device):
    assert count_served(family, channels_last, dtype) > 0


# the whole grid on one instruction set: what differs between them is the width of vectors, which the families cover
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("algorithm", EVERY)
def test_an_algorithm_is_right_in_what_it_serves(algorithm, dtype, channels_last):
    with backend.isa("avx2" if "avx2" in backend.isas() else "baseline"):
        least = SERVED[algorithm][channels_last] if dtype == torch.float32 or algorithm not in FLOAT32_ALONE else 0
        assert count_served(algorithm, channels_last, dtype) >= least


def test_planes_of_3x3_serve_on_wide_vectors():
    if "avx512" not in backend.isas():
        pytest.skip("this CPU has no vectors of 64 bytes")
    x, w = torch.randn(2, 20, 9, 11), torch.randn(20, 1, 3, 3)
    with backend.isa("avx512"):
        conv2d(x, w, padding=1, groups=20)
        assert _C.conv2d_algorithm_served() == "depthwise.planes_3x3"


def test_deep_sums_over_planes_on_wide_vectors():
    if "avx512" not in backend.isas():
        pytest.skip("this CPU has no vectors of 64 bytes")
    x, w = torch.randn(2, 1024, 8, 8), torch.randn(32, 1024, 1, 1)
    with backend.isa("avx512"):
        actual = conv2d(x, w)
        assert _C.conv2d_algorithm_served() == "implicit.slabs"
    check([actual], [torch.nn.functional.conv2d(x.double(), w.double())], torch.float32, x.shape)


@pytest.mark.parametrize(
    "size, kernel, padding, dilation",
    [
        ((3, 3, 70, 64), 3, 1, 1),  # several pieces an image
        ((0, 3, 70, 64), 3, 1, 1),  # no image
        ((1, 4, 9, 32), (5, 7), (2, 3), 1),  # more taps than a tile
        ((2, 1, 11, 20), 3, 0, (1, 2)),
        ((2, 2, 9, 22), 7, 0, 1),
    ],
    ids=str,
)
def test_the_weight_gradient_over_pixels_of_rows(size, kernel, padding, dilation):
    if "avx512" not in backend.isas():
        pytest.skip("this CPU has no vectors of 64 bytes")
    x, w = torch.randn(size), torch.randn(6, size[1], *pair(kernel), requires_grad=True)
    with backend.isa("avx512"), forced("direct.rows_weight"):
        y = conv2d(x, w, padding=padding, dilation=dilation)
        g = torch.randn_like(y)
        (got,) = torch.autograd.grad(y, w, g)
        assert _C.conv2d_algorithm_served() == "direct.rows_weight"
    expected = torch.nn.grad.conv2d_weight(x.double(), w.shape, g.double(), padding=padding, dilation=dilation)
    torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize(
    "channels, outputs",
    [
        *((24, 144), (32, 16), (48, 96)),  # both sides where they lie, swapped or not
        *((128, 48), (20, 144), (48, 20)),  # pixels 512 bytes apart; parts of vectors
    ],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_weight_gradients_where_pixels_lie(channels, outputs, stride):
    x = torch.randn(3, channels, 14, 15).contiguous(memory_format=torch.channels_last)  # chunks cross images
    w = torch.randn(outputs, channels, 1, 1, requires_grad=True)
    with forced("implicit.weight_pointwise"):
        y = conv2d(x, w, stride=stride)
        g = torch.randn_like(y)
        (got,) = torch.autograd.grad(y, w, g)
        assert _C.conv2d_algorithm_served() == "implicit.weight_pointwise"
    expected = torch.nn.grad.conv2d_weight(x.double(), w.shape, g.double(), stride=stride)
    torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-4)


def test_long_rows_of_few_channels_take_pixels_of_rows():
    if "avx512" not in backend.isas():
        pytest.skip("this CPU has no vectors of 64 bytes")
    w = torch.randn(16, 3, 3, 3, requires_grad=True)
    with backend.isa("avx512"):
        conv2d(torch.randn(2, 3, 128, 128), w, padding=1).square().sum().backward()
        assert _C.conv2d_algorithm_served() == "direct.rows_weight"


def test_an_algorithm_that_cannot_serve_is_refused():
    x, w = torch.randn(2, 4, 9, 9), torch.randn(4, 4, 7, 7)
    with asked("winograd"), pytest.raises(RuntimeError, match=REFUSED + ", got winograd, which does not"):
        conv2d(x, w)
    conv2d(x, w)


def test_a_pass_without_such_an_algorithm_takes_the_best():
    x, w = torch.randn(2, 4, 9, 9, requires_grad=True), torch.randn(4, 4, 3, 3, requires_grad=True)
    with forced("direct.rows"):
        conv2d(x, w).sum().backward()
        assert _C.conv2d_algorithm_served() in NAMES["backward_weight"]


def test_a_family_is_a_name_too():
    x, w = torch.randn(2, 16, 9, 9), torch.randn(16, 16, 3, 3)
    for family in ("implicit", "winograd", "direct"):
        with forced(family):
            conv2d(x, w)
            assert _C.conv2d_algorithm_served().startswith(family + ".")


def test_unknown_algorithm():
    with pytest.raises(ValueError, match=r"conv2d: expected the algorithm to be one of .*winograd.tiles.*, got fft"):
        _C.use_conv2d_algorithm("fft")
    with pytest.raises(ValueError, match=r"conv2d: expected the pass to be forward, .*, got sideways"):
        _C.conv2d_algorithms("sideways")


def test_every_pass_ends_with_one_that_serves_everything():
    x, w = torch.randn(1, 3, 5, 5, dtype=torch.float64), torch.randn(2, 3, 2, 4, dtype=torch.float64)
    with forced(NAMES["forward"][-1]):
        conv2d(x, w, stride=(3, 2), dilation=(2, 1))
        assert _C.conv2d_algorithm_served() == NAMES["forward"][-1]


def test_exact_leaves_winograd_out():
    x, w = torch.randn(4, 32, 20, 20, requires_grad=True), torch.randn(32, 32, 3, 3, requires_grad=True)
    y = conv2d(x, w)
    assert _C.conv2d_algorithm_served() == "winograd.tiles"
    with backend.exact():
        conv2d(x, w)
        assert not _C.conv2d_algorithm_served().startswith("winograd")
        y.sum().backward()  # of a forward from before
        assert not _C.conv2d_algorithm_served().startswith("winograd")
        with backend.exact(False):
            conv2d(x, w)
            assert _C.conv2d_algorithm_served() == "winograd.tiles"
    assert not _C.is_exact()
    ones = torch.ones(2, 16, 12, 12), torch.ones(16, 16, 3, 3)
    with backend.exact():
        assert torch.equal(conv2d(*ones), torch.nn.functional.conv2d(*ones))  # whole numbers


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
def test_a_gradient_that_is_mostly_border_goes_direct(last):
    """5x5 without padding: most products at the border of the input gradient are with nothing."""

    def served(channels, size, padding):
        g, w = torch.randn(16, channels, *[size - 4 + 2 * padding] * 2), torch.randn(channels, 20, 5, 5)
        g = g.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        rest = (1, 1), (padding,) * 4, (1, 1), 1, last
        torch.ops.pydl.conv2d_backward_input(g, w, (16, 20, size, size), *rest)
        return _C.conv2d_algorithm_served()

    for name in backend.isas()[1:]:  # x86 without AVX2 has neither
        with backend.isa(name):
            # measured with vectors of 64 bytes, and chosen for them alone
            direct = "direct.batch" if name == "avx512" else "winograd.tiles"
            assert served(50, 12, 0) == served(50, 14, 0) == direct
            assert served(64, 12, 0) == served(50, 12, 2) == "winograd.tiles"


def test_a_plan_holds_for_its_shape_alone():
    """Plans are kept by all that they depend on: sizes, strides, options, dtype, threads, instruction set."""
    calls = []
    for size in (9, 8):
        for stride in (1, 2):
            for last in (False, True):
                x = torch.randn(3, 5, size, size)
                x = x.contiguous(memory_format=torch.channels_last) if last else x
                calls.append((x, torch.randn(7, 5, 3, 3), stride))
    for _ in range(2):  # made, and found
        for x, w, stride in calls:
            expected = torch.nn.functional.conv2d(x.double(), w.double(), stride=stride, padding=1)
            check([conv2d(x, w, stride=stride, padding=1)], [expected], torch.float32, x.shape)
