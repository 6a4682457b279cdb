"""Adaptive and 1-D pooling: values, indices, gradients and strides beside torch, and what is left to torch."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from test_pooling import assert_same, max_outcome, strides, values
from testing import ALL_DTYPES, assert_close

import pydl
import pydl.functional as PF
from pydl.ops import _nodes

pytestmark = pytest.mark.cpu_kernels

# planes and channels of more and of less than a vector, more than a stretch of 512 channels; the last is one pixel
SIZES = [
    ((2, 3, 7, 7), [1, (1, 7), (7, 1)]),
    ((2, 37, 6, 8), [1, (1, 1), (3, 4), (2, 2), (None, 4), (6, 8), (1, 2)]),
    ((1, 5, 24, 36), [1, (3, 4), (2, None), (8, 9)]),
    ((1, 521, 5, 5), [1]),
    ((3, 1, 1, 1), [1, (None, None)]),
    ((0, 3, 4, 4), [2]),
]
LAYOUTS = {
    "NCHW": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "channels sliced": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
}
# 2 and 3 numbers at strides that go by vectors, at ones that do not; padding, dilation, windows over the end
ROWS = [
    {"kernel_size": 2},
    {"kernel_size": (3,), "stride": (2,), "padding": (1,)},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": 5, "stride": 4, "padding": 2, "ceil_mode": True},
    {"kernel_size": 4},
    {"kernel_size": 2, "stride": 5},
]
DILATED = [{"kernel_size": 3, "dilation": 2, "padding": 1}, {"kernel_size": 2, "stride": 3, "dilation": 3}]


def some(x):
    """A gradient whose sums are exact in every dtype."""
    return (torch.arange(x.numel()).view(x.shape) % 13 - 6).to(x.dtype) / 4


def compare_maxima(ours, theirs, x, *options):
    """Values, indices, gradients and strides, with indices and without."""
    assert_same(pooled(ours, x, *options, True), pooled(theirs, x, *options, True))
    assert_same(pooled(ours, x, *options, False), pooled(theirs, x, *options, False))
    with torch.no_grad():
        assert_same([ours(x, *options)], [theirs(x, *options)])


def pooled(function, x, *options):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = function(x, *options)
    output, *indices = output if isinstance(output, tuple) else [output]
    return [output.detach(), *torch.autograd.grad(output, x, some(output)), *indices]


def compare_means(ours, theirs, x, *options):
    actual, expected = (pooled(f, t, *options) for f, t in ((ours, x), (theirs, x.double())))
    for a, e, same in zip(actual, expected, pooled(theirs, x, *options), strict=True):
        assert_close(a, e)
        assert (a.dtype, strides(a)) == (same.dtype, strides(same))
    with torch.no_grad():
        assert strides(ours(x, *options)) == strides(theirs(x, *options))


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adaptive_pooling(device, layout, dtype):
    for shape, sizes in SIZES:
        x, y = LAYOUTS[layout](values(shape, dtype)), LAYOUTS[layout](torch.randn(shape).to(dtype))
        for size in sizes:
            compare_maxima(PF.adaptive_max_pool2d, F.adaptive_max_pool2d, x, size)
            compare_means(PF.adaptive_avg_pool2d, F.adaptive_avg_pool2d, y, size)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("last", [False, True], ids=["NCL", "NLC"])
def test_pooling_of_rows(device, last, dtype):
    for shape in ((2, 3, 40), (3, 17, 300), (1, 1, 9), (5, 8)):
        x, y = values(shape, dtype), torch.randn(shape).to(dtype)
        if last and len(shape) == 3:
            x, y = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, y))
        for options in (*ROWS, *DILATED):
            window = [options.get(k, d) for k, d in (("stride", None), ("padding", 0), ("dilation", 1))]
            rest = [options["kernel_size"], *window, options.get("ceil_mode", False)]
            compare_maxima(PF.max_pool1d, F.max_pool1d, x, *rest)
            if options in DILATED:
                continue
            for count_include_pad in (True, False):
                arguments = [*rest[:3], rest[-1], count_include_pad]
                arguments[1] = () if arguments[1] is None else arguments[1]
                compare_means(PF.avg_pool1d, F.avg_pool1d, y, *arguments)
        for size in (1, shape[-1] // 3, (shape[-1],)):
            compare_maxima(PF.adaptive_max_pool1d, F.adaptive_max_pool1d, x, size)
            compare_means(PF.adaptive_avg_pool1d, F.adaptive_avg_pool1d, y, size)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_rows_cut_into_wide_parts(device, dtype):
    """Windows of one row and 48 columns or more, side by side: of whole rows, of strided ones, that leave a rest."""
    for shape, window in (((2, 3, 192), 48), ((1, 5, 130), 65), ((2, 3, 7, 100), (1, 50)), ((3, 2, 900), 300)):
        x, y = values(shape, dtype), torch.randn(shape).to(dtype)
        dims = len(shape) - 2
        largest, mean = ([getattr(f, f"{kind}_pool{dims}d") for f in (PF, F)] for kind in ("max", "avg"))
        for of in (lambda t: t, lambda t: t.repeat_interleave(2, -1)[..., ::2], lambda t: t[..., 1:]):
            compare_maxima(*largest, of(x), window, window, 0, 1, False)
            compare_means(*mean, of(y), window)
    x = torch.randn(2, 3, 96, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: PF.max_pool1d(x, 48), x)
    assert torch.autograd.gradgradcheck(lambda x: PF.avg_pool1d(x, 48), x)


def test_rows_of_one_window_share_their_gradient(device):
    """Windows apart, as torch divides them: rows of a window are alike, rows between windows zero."""
    for kernel, stride, padding in (((3, 4), (3, 4), 0), ((2, 3), (4, 5), 1), ((4, 5), (5, 6), (2, 0))):
        for dtype in (torch.float32, torch.bfloat16):
            compare_means(PF.avg_pool2d, F.avg_pool2d, torch.randn(2, 3, 19, 23).to(dtype), kernel, stride, padding)


def test_the_largest_of_a_plane_is_torchs(device):
    """One window per plane: the first of equals and the last nan, wherever the lanes of a vector found them."""
    for pixels in (1, 5, 8, 49, 67):
        x = torch.randint(0, 3, (64, 3, 1, pixels)).float()
        x[torch.rand(x.shape) < 0.03] = torch.nan
        x[0] = -torch.inf
        assert_same(max_outcome(PF.max_pool2d, x, {"kernel_size": (1, pixels)}, some(x)),
                    max_outcome(F.max_pool2d, x, {"kernel_size": (1, pixels)}, some(x)))  # fmt: skip


def ops_of(call):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call()
    return {event.key for event in profiler.key_averages() if event.key.startswith("pydl::")}


@pytest.mark.parametrize("quick", [True, False], ids=["in C++", "in Python"])
def test_windows_of_unequal_size_are_torchs(monkeypatch, quick):
    if not quick:
        for name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
            monkeypatch.setattr(_nodes, name, lambda *args: NotImplemented)
    x = torch.randn(2, 3, 7, 9)
    for f, theirs in ((PF.adaptive_avg_pool2d, F.adaptive_avg_pool2d), (PF.adaptive_max_pool2d, F.adaptive_max_pool2d)):
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            assert_same(pooled(f, given, (3, 4)), pooled(theirs, given, (3, 4)))
    for size in (2, (7, 2), (14, 9)):
        assert ops_of(lambda s=size: PF.adaptive_avg_pool2d(x, s)) == set()
        assert torch.equal(PF.adaptive_avg_pool2d(x, size), F.adaptive_avg_pool2d(x, size))
        for actual, expected in zip(
            PF.adaptive_max_pool2d(x, size, True), F.adaptive_max_pool2d(x, size, True), strict=True
        ):
            assert torch.equal(actual, expected)
    assert torch.equal(PF.adaptive_avg_pool1d(x[0], 4), F.adaptive_avg_pool1d(x[0], 4))
    assert ops_of(lambda: PF.adaptive_avg_pool2d(x, (7, 3))) == {"pydl::avg_pool2d"}
    assert ops_of(lambda: PF.adaptive_max_pool1d(x[0], 3)) == {"pydl::max_pool2d"}


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)])
@pytest.mark.parametrize("size", [1, (2, 2, 2), "a", 2.5, (2, "a"), -1, 0, True, (), [2]])
def test_what_torch_refuses(shape, size):
    for name in ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d"):
        for x in (torch.randn(shape), torch.randn(2, 3, 4) if name.endswith("1d") else torch.randn(2, 3, 4, 4)):
            found = []
            for library in (F, PF):
                try:
                    found.append(getattr(library, name)(x, size).shape)
                except Exception as error:
                    found.append(type(error))
            assert found[0] == found[1], (name, x.shape)


MISTAKES = [
    ({"kernel_size": 2, "padding": 2}, "padding to be at most half of kernel_size, got padding 2"),
    ({"kernel_size": 0, "stride": 1}, "kernel_size to be at least 1, got 0"),
    ({"kernel_size": 9}, "the kernel to be no larger than the padded input (6), got kernel_size 9"),
    ({"kernel_size": 2, "stride": 0}, "stride to be at least 1, got 0"),
    ({"kernel_size": 2, "padding": -1}, "padding to be at least 0, got -1"),
    ({"kernel_size": (2, 2)}, "kernel_size to be one number, got (2, 2)"),
    ({"kernel_size": 2.5}, "kernel_size to be an integer, got 2.5"),
]


@pytest.mark.parametrize("name", ["max_pool1d", "avg_pool1d"])
@pytest.mark.parametrize("options, message", MISTAKES, ids=lambda v: str(v)[:40])
def test_mistakes(name, options, message):
    x = torch.randn(2, 3, 6)
    with pytest.raises((RuntimeError, TypeError)) as theirs:
        getattr(F, name)(x, **options)
    with pytest.raises(theirs.type) as ours:
        getattr(PF, name)(x, **options)
    assert str(ours.value).startswith(f"{name}: expected {message}")


@pytest.mark.parametrize("name", ["max_pool1d", "avg_pool1d"])
def test_shapes_that_torch_refuses(name):
    for shape in ((3,), (1, 2, 3, 4), (2, 0, 4), (2, 3, 0)):
        with pytest.raises(RuntimeError, match=rf"^{name}: expected input to be 2-D \(unbatched\) or 3-D \(batched\)"):
            getattr(PF, name)(torch.randn(shape), 2)


CALLS = [
    lambda f, x: f.adaptive_avg_pool2d(x, 1),
    lambda f, x: f.adaptive_avg_pool2d(x, (3, 2)),
    lambda f, x: f.adaptive_max_pool2d(x, 1),
    lambda f, x: f.adaptive_max_pool2d(x, (2, 4)),
    lambda f, x: f.adaptive_avg_pool1d(x[0], 2),
    lambda f, x: f.adaptive_max_pool1d(x[0], 4),
    lambda f, x: f.avg_pool1d(x[0], 3, 2, 1),
    lambda f, x: f.max_pool1d(x[0], 3, 3, 1),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
def test_gradients_of_first_and_second_order(call, last):
    x = (torch.randperm(2 * 3 * 6 * 8).double() / 7).view(2, 3, 6, 8)
    x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: call(PF, x), x)
    assert torch.autograd.gradgradcheck(lambda x: call(PF, x), x)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_in_one_graph(dynamic):
    def step(x):
        y, indices = PF.adaptive_max_pool2d(x, (4, 2), return_indices=True)
        row = PF.max_pool1d(PF.avg_pool1d(x.flatten(2), 2), 3, 2, 1)
        return PF.adaptive_avg_pool2d(y, 1).flatten() + indices.sum() + PF.adaptive_avg_pool1d(row, 1).flatten()

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((2, 3, 16, 18), (3, 3, 20, 16)):
        for last in (False, True):
            x = torch.randn(shape).to(memory_format=torch.channels_last if last else torch.contiguous_format)
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            y, z = compiled(a), step(b)
            assert torch.equal(y, z)
            for t in (y, z):
                t.backward(torch.cos(z.detach()))
            assert_close(a.grad, b.grad)


def test_threads_change_nothing(device):
    x = torch.randn(3, 50, 30, 41)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results = []
            for t, call in itertools.product((x, x.to(memory_format=torch.channels_last)), CALLS[:4:2]):
                results += pooled(lambda x, c=call: c(PF, x), t)
            found.append(results)
    finally:
        torch.set_num_threads(before)
    for results in found[1:]:
        assert all(map(torch.equal, results, found[0]))


def test_mode_serves_torchs_functions():
    x = torch.randn(1, 2, 6, 6)
    row = x[0]
    with_indices = {
        F.max_pool1d: (row, 2),
        F.max_pool1d_with_indices: (row, 2),
        F.adaptive_max_pool1d: (row, 2),
        F.adaptive_max_pool1d_with_indices: (row, 2),
        F.adaptive_max_pool2d: (x, 2),
        F.adaptive_max_pool2d_with_indices: (x, 2),
    }
    alone = {F.max_pool1d: (row, 2), torch.max_pool1d: (row, 2), F.adaptive_max_pool1d: (row, 3)}
    means = {F.avg_pool1d: (row, 2), F.adaptive_avg_pool1d: (row, 2), F.adaptive_avg_pool2d: (x, 1)}
    for function, arguments in with_indices.items():
        expected = function(*arguments, return_indices=True)
        with pydl.swapped():
            assert all(map(torch.equal, function(*arguments, return_indices=True), expected))
            assert "pydl::max_pool2d" in ops_of(lambda f=function, a=arguments: f(*a, return_indices=True))
    with pydl.swapped():
        for function, arguments in alone.items():
            assert ops_of(lambda f=function, a=arguments: f(*a)) == {"pydl::max_pool2d"}
        for function, arguments in means.items():
            assert ops_of(lambda f=function, a=arguments: f(*a)) == {"pydl::avg_pool2d"}
