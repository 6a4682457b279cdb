"""Pooling: values, places and gradients against torch in float64, over layouts, options, dtypes and remainders."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from testing import ALL_DTYPES, assert_close

import pydl
import pydl.functional as PF

pytestmark = pytest.mark.cpu_kernels

# one pixel; narrower and wider than a vector of 16, with and without a remainder; more than one chunk of 128 outputs;
# odd channels; channels of one vector, of one and a part, and of two at odd sizes
SHAPES = [(1, 1, 4, 4), (2, 3, 7, 9), (1, 2, 33, 35), (2, 16, 6, 32), (1, 1, 5, 300), (1, 37, 5, 5), (0, 3, 8, 8)]
SHAPES += [(2, 32, 5, 7)]

# the common ones; even and odd kernels with each stride by vectors, padding, dilation; strides that go pixel by pixel;
# kernels higher than the ring of 8 rows; windows that hang over the end; pixels between windows that nobody covers
MAX_OPTIONS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": 2, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0), "ceil_mode": True},
    {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 1)},
    {"kernel_size": 2, "stride": 1, "dilation": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": 2, "dilation": (1, 3), "padding": (1, 1)},
    {"kernel_size": 3, "stride": 3, "padding": 1},
    {"kernel_size": 2, "stride": 3, "ceil_mode": True},
    {"kernel_size": 4, "stride": 3},
]
TALL_OPTIONS = [
    {"kernel_size": (11, 2), "stride": 1, "padding": (5, 0)},
    {"kernel_size": (17, 16), "stride": (2, 1), "padding": (8, 8)},  # 272 taps: places no longer fit in a byte
    {"kernel_size": (9, 3), "stride": 2, "padding": (4, 1), "dilation": (2, 1)},
]
AVG_OPTIONS = [
    {"kernel_size": 2},
    {"kernel_size": 2, "ceil_mode": True},
    {"kernel_size": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 1), "divisor_override": 5},
    {"kernel_size": 2, "stride": 2, "divisor_override": -3},
    {"kernel_size": 4, "stride": 4, "padding": 1, "count_include_pad": False, "ceil_mode": True},
    {"kernel_size": 4, "stride": 3},
    {"kernel_size": 1, "stride": 2},
]

LAYOUTS = {
    "NCHW": lambda t: t.contiguous(),
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "columns sliced": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "every second column": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "channels_last, channels sliced": lambda t: torch.cat([t, t], 1).to(memory_format=torch.channels_last)[
        :, : t.shape[1]
    ],
}


def fits(shape, options):
    """Whether the kernel is no larger than the padded image."""
    pair = {k: (v, v) if isinstance(v, int) else v for k, v in options.items() if k not in ("ceil_mode",)}
    kernel, padding, dilation = pair["kernel_size"], pair.get("padding", (0, 0)), pair.get("dilation", (1, 1))
    return all((k - 1) * d + 1 <= n + 2 * p for n, k, p, d in zip(shape[2:], kernel, padding, dilation, strict=True))


def values(shape, dtype):
    """Few different ones, so that there are ties; some nan and -inf."""
    x = torch.randint(-8, 8, shape).to(dtype) / 4
    if x.numel() > 20:
        flat = x.view(-1)
        flat[torch.randint(0, x.numel(), (x.numel() // 40 + 1,))] = math.nan
        flat[: x.numel() // 4] = -math.inf
    return x


def max_outcome(function, x, options, grad):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output, indices = function(x, **options, return_indices=True)
    output.backward(grad[..., : output.shape[2], : output.shape[3]])
    return output.detach(), indices, x.grad


def strides(t):
    """Those that matter: a dimension of one may have any."""
    return [stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert strides(a) == strides(e)
        assert torch.equal(a.nan_to_num(77.0, 1e4, -1e4), e.nan_to_num(77.0, 1e4, -1e4))


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("options", MAX_OPTIONS, ids=str)
def test_maximum_places_and_gradient_are_torchs(device, options, dtype):
    for shape, last in itertools.product(SHAPES, (False, True)):
        if not fits(shape, options):
            continue
        x = values(shape, dtype)
        # multiples of a quarter: sums of them are exact in every dtype, so that torch's order of adding is no matter
        grad = torch.randint(-8, 8, (*shape[:2], shape[2] + 3, shape[3] + 3)).to(dtype) / 4
        if last:
            x = x.to(memory_format=torch.channels_last)
        assert_same(max_outcome(PF.max_pool2d, x, options, grad), max_outcome(F.max_pool2d, x, options, grad))
        with torch.no_grad():  # without places
            assert_same([PF.max_pool2d(x, **options)], [F.max_pool2d(x, **options)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", TALL_OPTIONS, ids=str)
def test_tall_kernels(device, options, dtype):
    for last in (False, True):
        x, grad = values((2, 3, 37, 41), dtype), torch.randint(-8, 8, (2, 3, 60, 60)).to(dtype) / 4
        x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        assert_same(max_outcome(PF.max_pool2d, x, options, grad), max_outcome(F.max_pool2d, x, options, grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_of_2x2_side_by_side_in_rows_of_any_length(device, dtype):
    for (height, ceil_mode), width in itertools.product(((2, False), (5, False), (5, True)), range(2, 70)):
        x = values((2, 3, height, width), dtype)
        grad = torch.randint(-8, 8, (2, 3, height, width)).to(dtype) / 4
        grad[grad == 1] = math.inf  # of a place, and none of its neighbours'
        options = {"kernel_size": 2, "ceil_mode": ceil_mode}
        assert_same(max_outcome(PF.max_pool2d, x, options, grad), max_outcome(F.max_pool2d, x, options, grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (1, 3), (5, 1)])
def test_small_planes_with_a_window_for_each_pixel(device, kernel, dtype):
    options = {"kernel_size": kernel, "stride": 1, "padding": tuple(k // 2 for k in kernel)}
    # of a part of a vector, a whole one, several; as many pixels as are small, and more
    for height, width in ((1, 1), (1, 7), (7, 1), (3, 3), (4, 4), (6, 6), (2, 17), (15, 17), (16, 16), (14, 19)):
        x = values((3, 4, height, width), dtype)
        grad = torch.randint(-8, 8, x.shape).to(dtype) / 4
        for image in (x, torch.cat([x, x], 1)[:, 2:6], x.transpose(2, 3).contiguous().transpose(2, 3)):
            grads = torch.cat([grad, grad], 1)[:, 1:5]
            for given in (grad, grads):
                assert_same(
                    max_outcome(PF.max_pool2d, image, options, given), max_outcome(F.max_pool2d, image, options, given)
                )


@pytest.mark.parametrize("width", [512, 520, 511])
def test_a_gradient_of_2x2_windows_that_leaves_the_caches(device, width):
    x = torch.randn(2, 6, 1024, width)
    grad = torch.randn(2, 6, 512, width // 2)
    options = {"kernel_size": 2}
    assert_same(max_outcome(PF.max_pool2d, x, options, grad), max_outcome(F.max_pool2d, x, options, grad))


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("stride", [1, 2, (3, 2)], ids=str)
def test_a_gradient_by_columns_that_leaves_the_caches(device, small_caches, stride, kernel, dtype):
    """A band of rows is gathered first: rows that end within a vector, bands that are cut, rows longer than a band."""
    options = {"kernel_size": kernel, "stride": stride, "padding": kernel // 2}
    for height, width in ((5, 31), (16, 64), (37, 240), (18, 700), (3, 8200)):
        x = values((2, 3, height, width), dtype)
        grad = torch.randint(-8, 8, (2, 3, height + 3, width + 3)).to(dtype) / 4
        assert_same(max_outcome(PF.max_pool2d, x, options, grad), max_outcome(F.max_pool2d, x, options, grad))


@pytest.mark.parametrize("channels", [16, 32, 20])  # of the last in no whole lines
def test_a_gradient_in_channels_last_that_leaves_the_caches(device, channels):
    for dtype in (torch.float32, torch.bfloat16):
        shape = (4, channels, 181, (17 << 20) // (4 * 181 * channels * dtype.itemsize) + 1)
        x = torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)
        grad = torch.randn(4, channels, shape[2] // 2, shape[3] // 2).to(dtype).to(memory_format=torch.channels_last)
        options = {"kernel_size": 2}
        assert_same(max_outcome(PF.max_pool2d, x, options, grad), max_outcome(F.max_pool2d, x, options, grad))


def avg_outcome(function, x, options, grad):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = function(x, **options)
    output.backward(grad[..., : output.shape[2], : output.shape[3]])
    return output.detach(), x.grad


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("options", AVG_OPTIONS, ids=str)
def test_average_and_its_gradient(device, options, dtype):
    for shape, last in itertools.product(SHAPES, (False, True)):
        if not fits(shape, options):
            continue
        x, grad = torch.randn(shape, dtype=dtype), torch.randn(*shape[:2], shape[2] + 3, shape[3] + 3, dtype=dtype)
        if last:
            x = x.to(memory_format=torch.channels_last)
        actual = avg_outcome(PF.avg_pool2d, x, options, grad)
        expected = avg_outcome(F.avg_pool2d, x.double(), options, grad.double())
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == dtype
            assert_close(a, e)
        assert [*map(strides, actual)] == [*map(strides, avg_outcome(F.avg_pool2d, x, options, grad))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_the_mean_of_2x2_in_channels_last_of_any_channels(device, dtype, ceil_mode):
    options = {"kernel_size": 2, "ceil_mode": ceil_mode}
    for channels, (height, width) in itertools.product((1, 3, 6, 7, 16, 21, 33), ((2, 2), (5, 3), (4, 9), (6, 28))):
        x = torch.randn(3, channels, height, width, dtype=dtype).to(memory_format=torch.channels_last)
        grad = torch.randn(3, channels, height, width, dtype=dtype)
        for layout in (torch.contiguous_format, torch.channels_last):  # the first: behind a layer that flattens
            given = grad[..., : (height + ceil_mode) // 2, : (width + ceil_mode) // 2].contiguous(memory_format=layout)
            actual = avg_outcome(PF.avg_pool2d, x, options, given)
            for a, e in zip(actual, avg_outcome(F.avg_pool2d, x.double(), options, given.double()), strict=True):
                assert_close(a, e)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", [*LAYOUTS, "expanded"])
def test_layouts_of_input_and_gradient(device, layout, grad_layout):
    for options in ({"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 2}, {"kernel_size": 3, "stride": 3}):
        x = LAYOUTS[layout](values((2, 19, 9, 11), torch.float32))
        shape = F.max_pool2d(x, **options).shape
        grad = torch.randint(-8, 8, shape).float() / 4
        grad = torch.tensor(2.0).expand(shape) if grad_layout == "expanded" else LAYOUTS[grad_layout](grad)
        for ours, theirs in ((PF.max_pool2d, F.max_pool2d), (PF.avg_pool2d, F.avg_pool2d)):
            x = x.nan_to_num(0.0, 0.0, 0.0) if ours is PF.avg_pool2d else x
            a, b = x.detach().requires_grad_(), x.detach().double().requires_grad_()
            y, z = ours(a, **options), theirs(b, **options)
            y.backward(grad)
            z.backward(grad.double())
            assert_close(y, z)
            assert_close(a.grad, b.grad)
            assert y.stride() == theirs(x, **options).stride()


def test_unbatched(device):
    x = torch.randn(3, 9, 8)
    for last in (False, True):
        x = x.permute(1, 2, 0).contiguous().permute(2, 0, 1) if last else x
        assert_same(PF.max_pool2d(x, 3, 2, 1, return_indices=True), F.max_pool2d(x, 3, 2, 1, return_indices=True))
        assert_close(PF.avg_pool2d(x, 3, 2, 1), F.avg_pool2d(x.double(), 3, 2, 1))
        assert PF.avg_pool2d(x, 2).stride() == F.avg_pool2d(x, 2).stride()


def test_window_without_a_pixel(device):
    # between two pixels of a dilated kernel the image may be stepped over: -inf, and a gradient for nobody. torch says
    # so too in the forward; its backward writes outside of the image, so that it cannot be asked
    for last in (False, True):
        x = torch.randn(1, 5, 3, 3).to(memory_format=torch.channels_last if last else torch.contiguous_format)
        x.requires_grad_()
        y, indices = PF.max_pool2d(x, 2, 1, 1, 4, return_indices=True)
        expected = F.max_pool2d(x.detach(), 2, 1, 1, 4, return_indices=True)
        assert torch.equal(y, expected[0])
        assert torch.equal(indices, expected[1])
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
        assert torch.equal(grad, torch.zeros_like(x))


def test_unpooling_takes_the_indices(device):
    x = torch.randn(2, 3, 8, 8)
    y, indices = PF.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(F.max_unpool2d(y, indices, 2), F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2))


def test_threads_change_nothing(device):
    x = torch.randn(3, 5, 40, 41)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found = []
            for t in (x, x.to(memory_format=torch.channels_last)):
                for function in (PF.max_pool2d, PF.avg_pool2d):
                    leaf = t.detach().requires_grad_()
                    y = function(leaf, 3, 2, 1)
                    y.backward(torch.sin(y.detach()))
                    found += [y.detach(), leaf.grad]
            results.append(found)
    finally:
        torch.set_num_threads(before)
    for found in results[1:]:
        assert all(map(torch.equal, found, results[0]))


def test_storage_offset_breaks_no_alignment(device):
    x = torch.randn(2 * 3 * 17 * 19 + 3)
    for offset in (1, 2, 3):
        image = x[offset : offset + 2 * 3 * 17 * 19].view(2, 3, 17, 19)
        assert torch.equal(PF.max_pool2d(image, 3, 2), F.max_pool2d(image, 3, 2))


@pytest.mark.slow
def test_more_than_two_to_the_31_elements(device):
    x = torch.zeros(
        1, 2, 32768, 32770, dtype=torch.bfloat16
    )  # the second plane begins beyond 2^30, and ends beyond 2^31
    x[0, 1, -1, -1] = 3
    y, indices = PF.max_pool2d(x, 2, return_indices=True)
    assert (y[0, 1, -1, -1], indices[0, 1, -1, -1]) == (3, 32768 * 32770 - 1)
    assert y.sum() == 3
    x = torch.zeros(1, 1, 2, 2**30 + 2, dtype=torch.bfloat16)
    x[..., -1] = 4
    assert PF.avg_pool2d(x, 2)[..., -1] == 2


# ---- what is left to torch, and what is refused


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integers_are_torchs(device, dtype):
    x = torch.randint(0, 9, (1, 2, 6, 6)).to(dtype)
    assert torch.equal(PF.max_pool2d(x, 2), F.max_pool2d(x, 2))
    if dtype == torch.int64:
        assert torch.equal(PF.avg_pool2d(x, 2), F.avg_pool2d(x, 2))


MISTAKES = [
    ({"kernel_size": 2, "padding": 2}, "padding to be at most half of the kernel's reach, got padding (2, 2)"),
    ({"kernel_size": 0, "stride": 1}, "kernel_size to be at least 1, got (0, 0)"),
    ({"kernel_size": 9}, "the kernel to be no larger than the padded input (6 x 6), got kernel_size (9, 9)"),
    ({"kernel_size": 2, "stride": 0}, "stride to be at least 1, got (0, 0)"),
    ({"kernel_size": 2, "stride": (1, 2, 3)}, "stride to be one number or 2, got (1, 2, 3)"),
    ({"kernel_size": ()}, "kernel_size to be one number or 2, got ()"),
    ({"kernel_size": 2, "padding": -1}, "padding to be at least 0, got (-1, -1)"),
    ({"kernel_size": 2.5}, "kernel_size to be an integer or two, got 2.5"),
    ({"kernel_size": "a"}, "kernel_size to be an integer or two, got 'a'"),
]


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize("options,message", MISTAKES, ids=lambda v: str(v)[:40])
def test_mistakes(name, options, message):
    x = torch.randn(2, 3, 6, 6)
    with pytest.raises((RuntimeError, TypeError)) as theirs:
        getattr(F, name)(x, **options)
    for image in (x, x.to("meta")):  # where the backend is torch's own
        with pytest.raises(theirs.type) as ours:
            getattr(PF, name)(image, **options)
        if not image.is_meta:
            assert str(ours.value) == f"{name}: expected {message}" or message in str(ours.value)
            assert str(ours.value).startswith(f"{name}: expected ")


@pytest.mark.parametrize("shape", [(3,), (4, 5), (1, 2, 3, 4, 5), (2, 0, 4, 4), (2, 3, 0, 4), (0, 4, 4)])
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_shapes_that_torch_refuses(name, shape):
    with pytest.raises(RuntimeError, match=rf"^{name}: expected input to be 3-D \(unbatched\) or 4-D \(batched\)"):
        getattr(PF, name)(torch.randn(shape), 2)


def test_other_mistakes():
    x = torch.randn(1, 1, 4, 4)
    with pytest.raises(RuntimeError, match=r"^avg_pool2d: expected divisor_override to be other than zero, got 0$"):
        PF.avg_pool2d(x, 2, divisor_override=0)
    with pytest.raises(TypeError, match=r"^avg_pool2d: expected divisor_override to be an integer, got 1.5$"):
        PF.avg_pool2d(x, 2, divisor_override=1.5)
    with pytest.raises(RuntimeError, match=r"^max_pool2d: expected dilation to be at least 1, got \(0, 0\)$"):
        PF.max_pool2d(x, 2, dilation=0)


def test_torch_serves_where_it_is_asked_for():
    x = torch.randn(1, 2, 6, 6)
    with pydl.backend.use("torch"):
        assert torch.equal(PF.max_pool2d(x, 2), F.max_pool2d(x, 2))
        assert torch.equal(PF.avg_pool2d(x, 3, 2, 1, True, False), F.avg_pool2d(x, 3, 2, 1, True, False))
