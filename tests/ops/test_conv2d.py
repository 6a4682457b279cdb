"""conv2d against torch in float64: every pass, algorithm, option, dtype, memory format and instruction set."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from algorithms import forced
from testing import DTYPES, assert_close

from pydl import backend
from pydl.functional import conv2d

# (N, C, H, W), (O, kernel height, kernel width), options. Each shape says why it is there.
SHAPES = {
    "lenet 1": ((3, 1, 28, 28), (6, 5, 5), {"padding": 2}),
    "lenet 2": ((3, 6, 14, 14), (16, 5, 5), {}),
    "alexnet 1": ((1, 3, 39, 39), (10, 11, 11), {"stride": 4, "padding": 2}),
    "resnet 1": ((1, 3, 30, 30), (17, 7, 7), {"stride": 2, "padding": 3}),
    "3x3": ((2, 16, 12, 12), (32, 3, 3), {"padding": 1}),
    "3x3, odd everything": ((2, 5, 13, 11), (7, 3, 3), {"padding": 1}),
    "3x3 stride 2": ((2, 8, 14, 14), (16, 3, 3), {"stride": 2, "padding": 1}),
    "1x1": ((2, 19, 9, 7), (33, 1, 1), {}),
    "1x1 stride 2": ((2, 16, 8, 8), (32, 1, 1), {"stride": 2}),
    "one pixel, one number": ((1, 1, 1, 1), (1, 1, 1), {}),
    "deep: several blocks of the sum": ((1, 70, 6, 6), (40, 3, 3), {"padding": 1}),
    "many pixels, few channels": ((5, 2, 33, 35), (3, 3, 3), {"padding": 1}),
    "kernel as large as the image": ((2, 4, 5, 6), (3, 5, 6), {}),
    "kernel reaches over the image": ((2, 3, 2, 2), (4, 5, 5), {"padding": 3}),
    "padding 5": ((1, 3, 7, 6), (4, 3, 3), {"padding": 5}),
    "kernel as large as a large stride": ((2, 3, 40, 53), (7, 16, 16), {"stride": 16, "padding": 5}),
    "kernel of two strides, vectors and a part": (
        (2, 3, 50, 61),
        (5, 32, 40),
        {"stride": (16, 20), "padding": (8, 11)},
    ),
    "kernel of two strides, more images than one product fetches": (
        (9, 2, 24, 37),
        (3, 16, 32),
        {"stride": (8, 16), "padding": (4, 8)},
    ),
    "stride 3": ((2, 3, 17, 16), (4, 2, 5), {"stride": 3, "padding": (0, 2)}),
    "stride 4 over a kernel of 2: pixels nobody reads": ((2, 3, 11, 13), (4, 2, 2), {"stride": 4}),
    "stride (1, 2)": ((1, 4, 9, 10), (5, 3, 3), {"stride": (1, 2), "padding": (1, 0)}),
    "dilation": ((2, 4, 12, 13), (6, 3, 3), {"dilation": (2, 3), "padding": (2, 1)}),
    "dilation and stride share a factor": ((1, 3, 16, 15), (4, 3, 3), {"dilation": 2, "stride": 2, "padding": 2}),
    "dilation 2, stride 3": ((1, 3, 16, 15), (4, 4, 4), {"dilation": 2, "stride": 3, "padding": 2}),
    "groups": ((2, 12, 9, 9), (8, 3, 3), {"groups": 4, "padding": 1}),
    "depthwise": ((2, 20, 10, 11), (20, 3, 3), {"groups": 20, "padding": 1}),
    "depthwise stride 2": ((2, 20, 10, 11), (20, 3, 3), {"groups": 20, "padding": 1, "stride": 2}),
    "depthwise 5x5, two filters per channel": ((1, 9, 10, 11), (18, 5, 5), {"groups": 9, "padding": 2}),
    "depthwise 5x5 stride 2": ((2, 35, 11, 18), (35, 5, 5), {"groups": 35, "padding": 2, "stride": 2}),
    "depthwise 3x3 in rows of several vectors": ((2, 3, 6, 37), (3, 3, 3), {"groups": 3, "padding": 1}),
    "depthwise stride 2, odd and several vectors": ((1, 5, 7, 71), (5, 3, 3), {"groups": 5, "padding": 1, "stride": 2}),
    "depthwise, one pixel": ((2, 18, 1, 1), (18, 3, 3), {"groups": 18, "padding": 1}),
    "depthwise 7x7": ((2, 17, 9, 8), (17, 7, 7), {"groups": 17, "padding": 3}),
    "depthwise 7x7 stride 2, no padding": ((1, 16, 15, 16), (16, 7, 7), {"groups": 16, "stride": 2}),
    "depthwise 4x2 stride 3, dilated": ((2, 33, 14, 13), (33, 4, 2), {"groups": 33, "stride": 3, "dilation": (1, 2)}),
    "depthwise, padding beyond the kernel": ((1, 20, 5, 4), (40, 3, 3), {"groups": 20, "padding": 4, "stride": 2}),
    "rows of two vectors, seven channels": ((1, 2, 7, 29), (7, 5, 5), {"padding": 2}),
    "rows of one vector and a bit, images for a block": ((17, 1, 5, 18), (6, 3, 3), {"padding": 1}),
    "rows shorter than a vector, read as one": ((2, 6, 14, 14), (3, 5, 5), {"padding": (1, 0)}),
    "same": ((2, 3, 8, 9), (4, 3, 5), {"padding": "same"}),
    "same, even kernel: one more at the bottom and right": ((2, 3, 8, 9), (4, 4, 2), {"padding": "same"}),
    "as large as the image": ((5, 3, 4, 4), (7, 4, 4), {}),
    "as large as the image, stride 2": ((17, 20, 3, 2), (33, 3, 2), {"stride": 2}),
    "one row of few channels": ((3, 20, 1, 130), (20, 1, 3), {}),
    "long rows of a batch": ((16, 9, 1, 300), (20, 1, 5), {}),
    "depthwise 2x1, dilated beyond the image": (
        (3, 6, 3, 9),
        (12, 2, 1),
        {"groups": 6, "padding": "same", "dilation": (3, 1)},
    ),
    "same, dilated": ((1, 3, 8, 9), (4, 4, 3), {"padding": "same", "dilation": (1, 2)}),
    "valid": ((2, 3, 8, 9), (4, 3, 3), {"padding": "valid"}),
    "two tiles of channels and a rest, stride 2": ((3, 21, 15, 13), (70, 3, 3), {"stride": 2, "padding": 1}),
    "wide image: columns cut into regions": ((1, 40, 3, 700), (20, 3, 3), {"padding": 1, "stride": (1, 2)}),
    "tall image: rows cut into regions": ((1, 36, 90, 31), (17, 3, 3), {"padding": 1}),
    "several images per region, rows of three pixels": ((7, 48, 6, 6), (33, 3, 3), {"stride": 2, "padding": 1}),
    "1x1, pixels 4 KB apart": ((1, 1024, 3, 5), (20, 1, 1), {}),
    "1x1, several blocks of channels": ((2, 150, 5, 7), (40, 1, 1), {}),
    "1x1, several blocks of channels on both sides": ((2, 290, 9, 8), (300, 1, 1), {}),
    "1x1, many pixels, sums in blocks": ((2, 300, 23, 24), (34, 1, 1), {}),
    "1x1, many pixels of every other column": ((1, 21, 13, 27), (18, 1, 1), {"stride": (1, 2)}),
    "1x1 stride 3": ((2, 18, 13, 11), (33, 1, 1), {"stride": 3}),
    "1x1 in groups": ((2, 40, 9, 7), (72, 1, 1), {"groups": 2}),
    "5x5 valid: windows read in place": ((2, 34, 12, 11), (36, 5, 5), {}),
    "groups of many channels": ((2, 40, 7, 9), (72, 3, 3), {"groups": 2, "stride": 2, "padding": 1}),
    "ResNeXt: groups of 4, vectors overlap": ((2, 36, 9, 17), (36, 3, 3), {"groups": 9, "padding": 1}),
    "ResNeXt: groups of 4, stride 2": ((3, 32, 11, 16), (32, 3, 3), {"groups": 8, "padding": 1, "stride": 2}),
    "ResNeXt: groups of 4, less than a vector": ((2, 8, 5, 6), (8, 3, 3), {"groups": 2, "padding": 1}),
    "ResNeXt: groups of 8, 5x5": ((2, 24, 9, 10), (24, 5, 5), {"groups": 3, "padding": 2}),
    "ResNeXt: groups of 16, no padding": ((2, 48, 7, 8), (48, 3, 3), {"groups": 3}),
    "ResNeXt: groups of 2, dilated, stride 3": (
        (2, 18, 13, 14),
        (18, 3, 2),
        {"groups": 9, "padding": 2, "stride": (2, 3), "dilation": 2},
    ),
    "ResNeXt: groups of 4, 1x1": ((2, 40, 6, 7), (40, 1, 1), {"groups": 10}),
    "first layer of one channel, stride 4": ((2, 1, 39, 40), (20, 11, 11), {"stride": 4, "padding": 1}),
    "first layer in several regions": ((1, 3, 60, 91), (40, 5, 4), {"stride": 2, "padding": (2, 1)}),
    "first layer, several images per region": ((5, 2, 7, 9), (17, 3, 3), {"stride": (2, 3), "padding": 5}),
    "first layer of many channels": ((2, 3, 23, 26), (48, 7, 7), {"stride": 2, "padding": 3}),
    "stride larger than the image": ((2, 20, 2, 3), (24, 3, 3), {"stride": 5, "padding": 1}),
    "sums in pieces": ((2, 256, 5, 6), (33, 3, 3), {"stride": 2, "padding": 1}),
    "one pixel, one useful tap": ((18, 35, 1, 1), (37, 3, 3), {"padding": 1}),
    "one pixel, 1x1": ((5, 33, 1, 1), (18, 1, 1), {}),
    "2x2, stride 2: four useful taps": ((5, 20, 2, 2), (35, 3, 3), {"stride": 2, "padding": 1}),
    "2x2": ((9, 150, 2, 2), (170, 3, 3), {"padding": 1}),
    "3x3 of 3x3": ((3, 20, 3, 3), (21, 3, 3), {"padding": 1}),
    "one row: one useful row of taps": ((3, 17, 1, 5), (19, 3, 3), {"padding": 1}),
    "one useful tap of dilated ones": ((2, 18, 2, 2), (17, 3, 3), {"padding": 3, "dilation": 3}),
    "one useful tap in groups": ((4, 24, 1, 1), (36, 5, 5), {"padding": 2, "groups": 2}),
    "stride over a small image": ((2, 18, 2, 3), (20, 3, 3), {"padding": 4, "stride": 5}),
    "first layer, sixteen large images": ((16, 1, 92, 90), (34, 11, 11), {"stride": 4}),
    "empty batch": ((0, 3, 8, 9), (4, 3, 3), {"padding": 1}),
}


def make(name, dtype=torch.float32, bias=True):
    """input, weight, bias and options of a shape; weights scaled so that outputs are of size one."""
    input_size, (out_channels, *kernel), options = SHAPES[name]
    channels = input_size[1] // options.get("groups", 1)
    scale = (channels * kernel[0] * kernel[1]) ** -0.5
    x = torch.randn(input_size, dtype=torch.float64)
    w = torch.randn(out_channels, channels, *kernel, dtype=torch.float64) * scale
    b = torch.randn(out_channels, dtype=torch.float64) if bias else None
    return *(t.to(dtype) if t is not None else None for t in (x, w, b)), options


def passes(function, x, w, b, options, grad=None, **extra):
    """Output and the gradients of all tensors, for a gradient that is not all ones."""
    leaves = [
        t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, w, b) if t is not None
    ]
    y = function(*leaves, **options, **extra)
    if grad is None:
        grad = torch.linspace(-1, 1, max(y.numel(), 1), dtype=torch.float64)[: y.numel()].sin().reshape(y.shape)
    y.backward(grad.to(y.dtype))
    return y, *(t.grad for t in leaves)


def check(actual, expected, dtype, sizes):
    """Each result within the dtype's tolerance, relative to its own size (sums of thousands of terms cancel)."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.dtype == dtype
        size = max(1.0, e.abs().max().item()) if e.numel() else 1.0
        assert_close(a.detach().double() / size, e / size, dtype, scale=4)


@pytest.fixture(autouse=True)
def _tensors_on_the_device(request):
    """Makes every tensor of a body on the device of its backend."""
    if "device" not in request.fixturenames:
        yield
        return
    with request.getfixturevalue("device"):
        yield


# auto takes Winograd and the depthwise kernels where they apply; test_conv2d_algorithms.py has each by its name
@pytest.fixture(params=["auto", "implicit", "direct.batch", "direct.rows"])
def algorithm(request):
    return request.param


def cases():
    """Shapes; those that only the CPU has kernels of its own for are left out on other backends."""
    cpu_alone = ("ResNeXt: ", "first layer in ", "first layer, ", "1x1, ", "rows ", "wide image: ", "tall image: ")
    cpu_alone += ("several images per region", "depthwise 3x3 in rows", "depthwise stride 2, odd and several vectors")
    large = "kernel as large as a large stride", "many pixels, few channels", "first layer of many channels"
    for name in SHAPES:
        marks = [pytest.mark.cpu_kernels] if name.startswith(cpu_alone) else []
        yield pytest.param(name, marks=marks + [pytest.mark.large] * (name in large))


@pytest.mark.parametrize("name", list(cases()))
@pytest.mark.parametrize("channels_last", [False, True])
def test_all_passes(name, channels_last, device):
    for dtype in DTYPES:
        x, w, b, options = make(name, dtype)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        expected = passes(F.conv2d, x.double(), w.double(), b.double(), options)
        check(passes(conv2d, x, w, b, options), expected, dtype, x.shape)


@pytest.mark.parametrize("x_last, w_last, g_last", list(itertools.product([False, True], repeat=3)))
def test_mixed_memory_formats(x_last, w_last, g_last, algorithm, device):
    x, w, b, options = make("3x3, odd everything")
    last = torch.channels_last
    x = x.contiguous(memory_format=last) if x_last else x
    w = w.contiguous(memory_format=last) if w_last else w
    grad = torch.randn(2, 7, 13, 11).contiguous(memory_format=last if g_last else torch.contiguous_format)
    expected = passes(F.conv2d, x.double(), w.double(), b.double(), options, grad)
    with forced(algorithm):
        actual = passes(conv2d, x, w, b, options, grad)
        check(actual, expected, torch.float32, x.shape)
        like_torch = F.conv2d(x, w, b, **options)
        assert actual[0].stride() == like_torch.stride()


# an image of one channel or one pixel is both formats at once; torch's own rule decides
@pytest.mark.parametrize("size", [(2, 1, 8, 8), (2, 4, 1, 1), (1, 1, 1, 1), (0, 4, 8, 8), (2, 4, 8, 1), (1, 4, 8, 8)])
@pytest.mark.parametrize("x_last", [False, True])
@pytest.mark.parametrize("w_last", [False, True])
def test_memory_format_of_ambiguous_strides(size, x_last, w_last):
    formats = {False: torch.contiguous_format, True: torch.channels_last}
    x = torch.randn(size).contiguous(memory_format=formats[x_last])
    w = torch.randn(6, size[1], 3, 3).contiguous(memory_format=formats[w_last])
    expected = F.conv2d(x, w, padding=1)
    actual = conv2d(x, w, padding=1)
    assert_close(actual, expected.double())
    assert actual.stride() == expected.stride()


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.transpose(2, 3),
        lambda t: t[:, :, ::2, 1:],
        lambda t: t.flip(0)[:, 1:2].expand(-1, 5, -1, -1),
        lambda t: t.permute(0, 2, 1, 3)[:, :5],
    ],
    ids=["transposed", "strided", "expanded channels", "permuted"],
)
def test_input_of_any_strides(view, algorithm, device):
    x = view(torch.randn(3, 5, 12, 9))
    w = torch.randn(4, x.shape[1], 3, 3)
    expected = passes(F.conv2d, x.double(), w.double(), None, {"padding": 1})
    with forced(algorithm):
        check(passes(conv2d, x, w, None, {"padding": 1}), expected, torch.float32, x.shape)


@pytest.mark.parametrize("channels_last", [False, True])
def test_expanded_gradient(channels_last, algorithm, device):
    x, w, b, options = make("3x3, odd everything")
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    grad = torch.tensor(1.5).expand(2, 7, 13, 11)  # stride 0 everywhere, as sum() gives
    expected = passes(F.conv2d, x.double(), w.double(), b.double(), options, grad.double())
    with forced(algorithm):
        check(passes(conv2d, x, w, b, options, grad), expected, torch.float32, x.shape)


@pytest.mark.parametrize(
    "name", ["lenet 1", "3x3", "1x1", "depthwise", "ResNeXt: groups of 4, vectors overlap", "stride 3"]
)
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_fused_activation(name, activation, channels_last, algorithm, device):
    x, w, b, options = make(name)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    act = getattr(torch, activation)
    expected = passes(lambda *a, **k: act(F.conv2d(*a, **k)), x.double(), w.double(), b.double(), options)
    with forced(algorithm):
        check(passes(conv2d, x, w, b, options, activation=activation), expected, torch.float32, x.shape)


def test_relu_keeps_nan_as_torch_does(device):
    x = torch.tensor([float("nan"), -1.0, 2.0, float("inf"), -float("inf")]).reshape(1, 1, 1, 5)
    assert_close(conv2d(x, torch.ones(1, 1, 1, 1), activation="relu"), torch.relu(x))


def test_unbatched(device):
    x, w, b, options = make("3x3, odd everything")
    expected = passes(F.conv2d, x[0].double(), w.double(), b.double(), options)
    check(passes(conv2d, x[0], w, b, options), expected, torch.float32, x.shape)
    assert conv2d(x[0], w).stride() == F.conv2d(x[0], w).stride()


def test_only_needed_gradients_are_computed(device):
    x, w, b, options = make("3x3")
    for needed in itertools.product([False, True], repeat=3):
        leaves = [t.clone().requires_grad_(need) for t, need in zip((x, w, b), needed, strict=True)]
        y = conv2d(*leaves, **options)
        assert y.requires_grad == any(needed)
        if not any(needed):
            continue
        with torch.profiler.profile() as profile:
            y.sum().backward()
        ran = {event.name.replace("pydl_triton::", "pydl::") for event in profile.events()}
        ran = {name for name in ran if name.startswith("pydl::")}
        names = ("input", "weight", "bias")
        assert ran == {f"pydl::conv2d_backward_{name}" for name, need in zip(names, needed, strict=True) if need}
        assert [t.grad is not None for t in leaves] == list(needed)


def test_complex_and_integer_go_to_torch():
    x, w = torch.randn(1, 2, 5, 5, dtype=torch.complex64), torch.randn(3, 2, 3, 3, dtype=torch.complex64)
    torch.testing.assert_close(conv2d(x, w), F.conv2d(x, w))
    x, w = torch.arange(50).reshape(1, 2, 5, 5), torch.ones(3, 2, 3, 3, dtype=torch.int64)
    torch.testing.assert_close(conv2d(x, w, activation="relu"), F.conv2d(x, w).relu())


def test_zero_channels_go_to_torch():
    x, w = torch.randn(2, 0, 5, 5), torch.randn(3, 0, 3, 3)
    assert conv2d(x, w).shape == F.conv2d(x, w).shape


def test_torch_backend():
    x, w, b, options = make("3x3")
    with backend.use("torch"):
        torch.testing.assert_close(conv2d(x, w, b, **options, activation="relu"), F.conv2d(x, w, b, **options).relu())


@pytest.mark.cpu_kernels
@pytest.mark.parametrize(
    "name",
    [
        "lenet 2",
        "3x3",
        "1x1",
        "3x3 stride 2",
        "depthwise",
        "ResNeXt: groups of 4, stride 2",
        "first layer in several regions",
        "deep: several blocks of the sum",
        "one pixel, one useful tap",
        "2x2",
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_thread_count_changes_no_bit(name, channels_last, algorithm, device):
    x, w, b, options = make(name)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            with forced(algorithm):
                results.append(passes(conv2d, x, w, b, options))
    finally:
        torch.set_num_threads(before)
    assert len(results) in (0, 4)  # served with every number of threads, or with none
    for result in results[1:]:
        for a, e in zip(result, results[0], strict=True):
            assert torch.equal(a, e)


# ---- what torch refuses

X, W, B = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3), torch.randn(6)
REFUSED = {
    "rank of weight": ((X, W[0]), {}, "expected weight to be 4-D, got shape (4, 3, 3)"),
    "rank 5": ((X[None], W), {}, "expected input to be 3-D (unbatched) or 4-D (batched), got shape (1, 2, 4, 8, 8)"),
    "rank 2": ((X[0, 0], W), {}, "expected input to be 3-D (unbatched) or 4-D (batched), got shape (8, 8)"),
    "channels": ((X[:, :3], W), {}, "expected input to be of 4 channels"),
    "groups 0": ((X, W), {"groups": 0}, "expected groups to be positive, got 0"),
    "groups": ((X, W[:, :1]), {"groups": 4}, "expected out_channels to be divisible by groups (4), got 6"),
    "stride 0": ((X, W), {"stride": 0}, "expected stride to be positive, got (0, 0)"),
    "stride": ((X, W), {"stride": (1, -2)}, "expected stride to be positive, got (1, -2)"),
    "three strides": ((X, W), {"stride": (1, 1, 1)}, "expected stride to be one number or 2, got (1, 1, 1)"),
    "padding": ((X, W), {"padding": -1}, "expected padding to be at least 0, got (-1, -1, -1, -1)"),
    "padding word": ((X, W), {"padding": "full"}, "expected padding to be numbers, 'same' or 'valid', got 'full'"),
    "same": ((X, W), {"padding": "same", "stride": 2}, "expected stride to be 1 with padding 'same', got (2, 2)"),
    "dilation": ((X, W), {"dilation": 0}, "expected dilation to be positive, got (0, 0)"),
    "kernel": ((X, W), {"dilation": 4}, "expected the kernel to be no larger than the padded input (8 x 8), got 9 x 9"),
    "bias size": ((X, W, B[:3]), {}, "expected bias to be of shape (6), got (3)"),
    "bias rank": ((X, W, B[None]), {}, "expected bias to be of shape (6), got (1, 6)"),
    "dtype of weight": ((X, W.double()), {}, "expected weight to be of the dtype of input"),
    "dtype of bias": ((X, W, B.double()), {}, "expected bias to be of the dtype of input"),
    "no filters": ((X, W[:0]), {}, "expected weight to be without empty dimensions, got shape (0, 4, 3, 3)"),
    "empty image": ((X[:, :, :0], W), {"padding": 2}, "expected input to be empty in its batch alone"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    args, options, message = REFUSED[case]
    with pytest.raises(RuntimeError) as torchs:
        F.conv2d(*args, **options)
    with pytest.raises(RuntimeError) as ours:
        conv2d(*args, **options)
    assert ours.type is torchs.type
    assert str(ours.value).startswith("conv2d: ")
    assert message in str(ours.value)


@pytest.mark.parametrize("options", [{"stride": 1.0}, {"padding": None}, {"groups": "2"}, {"dilation": (1.5, 1)}])
def test_options_of_wrong_type(options):
    with pytest.raises(TypeError):
        F.conv2d(X, W, **options)
    with pytest.raises(TypeError):
        conv2d(X, W, **options)


def test_unknown_activation():
    with pytest.raises(ValueError, match=r"conv2d: expected activation to be None, 'relu' or 'sigmoid', got 'tanh'"):
        conv2d(X, W, activation="tanh")


# ---- torch's own machinery

TRACED = ["3x3, odd everything", "stride (1, 2)", "dilation and stride share a factor", "groups", "same, dilated"]


@pytest.mark.parametrize("name", TRACED)
def test_gradcheck(name):
    x, w, b, options = make(name, torch.float64)
    x, w = x[:1, :, :6, :5].clone().requires_grad_(), w.requires_grad_()
    b = b.requires_grad_()
    for activation in (None, "sigmoid"):
        assert torch.autograd.gradcheck(
            lambda *t, act=activation: conv2d(*t, **options, activation=act), (x, w, b), fast_mode=True
        )
        assert torch.autograd.gradgradcheck(
            lambda *t, act=activation: conv2d(*t, **options, activation=act), (x, w, b), fast_mode=True
        )


def test_double_backward_equals_torch():
    x, w, b, options = make("3x3, odd everything", torch.float64)

    def second(function, activation):
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        y = activation(function(*leaves, **options))
        first = torch.autograd.grad((y**3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), leaves)

    for theirs, ours in ((lambda y: y, None), (torch.relu, "relu"), (torch.sigmoid, "sigmoid")):
        expected = second(F.conv2d, theirs)
        actual = second(lambda *a, act=ours, **k: conv2d(*a, **k, activation=act), lambda y: y)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last):
    x, w, b, _ = make("3x3, odd everything")
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    grad, options = torch.randn(2, 7, 7, 6), ((2, 2), (1, 1, 1, 1), (1, 1), 1)
    leaves = [t.clone().requires_grad_() for t in (x, w, b, grad)]
    x, w, b, grad = leaves
    ops = torch.ops.pydl
    for activation in ("none", "relu", "sigmoid"):
        torch.library.opcheck(ops.conv2d_forward, (x, w, b, *options, activation, channels_last))
    torch.library.opcheck(ops.conv2d_forward, (x.detach(), w, None, *options, "none", channels_last))
    torch.library.opcheck(ops.conv2d_backward_input, (grad, w, x.shape, *options, channels_last))
    torch.library.opcheck(ops.conv2d_backward_weight, (grad, x, w.shape, *options, channels_last))
    torch.library.opcheck(ops.conv2d_backward_bias, (grad,))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_compile(dynamic, channels_last):
    def step(x, w, b):
        y = conv2d(x, w, b, stride=2, padding=1, activation="relu")
        return conv2d(y, w[:, :1].expand(-1, 7, -1, -1), padding="same")

    # by inductor, whose compilation takes seconds, each value of both once
    compiler = "inductor" if channels_last != dynamic else "aot_eager"
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=compiler)
    for batch in (2, 3) if dynamic else (2,):  # static: a second one compiles the same once more
        _, w, b, _ = make("3x3, odd everything")
        x = torch.randn(batch, 5, 12 + batch, 11)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        expected = passes(step, x, w, b, {})
        actual = passes(compiled, x, w, b, {})
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e)
        assert actual[0].stride() == expected[0].stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    x, w, b, options = make("3x3")
    with torch.autocast("cpu", dtype):
        expected, actual = F.conv2d(x, w, b, **options), conv2d(x, w, b, **options)
        assert conv2d(x.double(), w.double()).dtype == F.conv2d(x.double(), w.double()).dtype
    assert actual.dtype == expected.dtype == dtype
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)
    leaf = w.clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        conv2d(x, leaf, b, **options).sum().backward()
    assert leaf.grad.dtype == torch.float32
