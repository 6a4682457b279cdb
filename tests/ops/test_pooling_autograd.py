"""Pooling's derivatives of any order, opcheck, torch.compile, torch.func, autocast, modules and what serves them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from testing import assert_close
from torch import nn
from torch.func import grad, jacrev, vmap

import pydl
import pydl.functional as PF

pytestmark = pytest.mark.cpu_kernels

OPTIONS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": (3, 2), "stride": 1, "padding": (1, 0)},
    {"kernel_size": 3, "stride": 3},
]


def image(last=False, dtype=torch.float64):
    """Values that lie apart, so that a small step changes no maximum."""
    x = (torch.randperm(2 * 3 * 7 * 8).to(dtype) / 7).view(2, 3, 7, 8)
    return x.to(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_of_first_and_second_order(options, last):
    for function in (PF.max_pool2d, PF.avg_pool2d):
        assert torch.autograd.gradcheck(lambda x, f=function: f(x, **options), image(last))
        assert torch.autograd.gradgradcheck(lambda x, f=function: f(x, **options), image(last))


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_third_derivative(device, options, last):
    """Of pooling's own ops: cubing its output makes every order matter."""
    results, leaf = [], image(last)
    for max_pool, avg_pool in ((PF.max_pool2d, PF.avg_pool2d), (F.max_pool2d, F.avg_pool2d)):
        x = leaf.detach().requires_grad_()
        y = (max_pool(x, **options) ** 3).sum() + (avg_pool(x, **options) ** 3).sum()
        for _ in range(3):
            (y,) = torch.autograd.grad(y, x, create_graph=True)
            results.append(y)
            y = (y * torch.linspace(0, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum()
    for ours, theirs in zip(results[:3], results[3:], strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
def test_opcheck(last):
    ops = torch.ops.pydl
    x = image(last, torch.float32)
    window = (3, 2), (2, 1), (1, 0), (1, 2)
    plain = x.detach()
    y, places = ops.max_pool2d(plain, *window, True, last, True)
    torch.library.opcheck(ops.max_pool2d, (x, *window, True, last, True))
    torch.library.opcheck(ops.max_pool2d, (plain, *window, True, last, False))
    torch.library.opcheck(
        ops.max_pool2d_backward, (torch.randn_like(y).requires_grad_(), places, [2, 3, 7, 8], *window, last)
    )
    torch.library.opcheck(ops.max_pool2d_gather, (x, places, *window, last))
    big = (17, 16), (1, 1), (8, 8), (1, 1)
    torch.library.opcheck(ops.max_pool2d, (x, *big, False, last, True))
    options = (3, 2), (2, 1), (1, 0), True, False, 0, last, last
    y = ops.avg_pool2d(plain, *options)
    torch.library.opcheck(ops.avg_pool2d, (x, *options))
    torch.library.opcheck(ops.avg_pool2d_backward, (torch.randn_like(y).requires_grad_(), [2, 3, 7, 8], *options))


def test_ops_refuse_what_does_not_belong_together():
    ops, x = torch.ops.pydl, image(dtype=torch.float32)
    window = (2, 2), (2, 2), (0, 0), (1, 1)
    y, places = ops.max_pool2d(x.detach(), *window, False, False, True)
    with pytest.raises(RuntimeError, match=r"^max_pool2d: expected grad_output to be of shape \(2, 3, 4, 4\), got"):
        ops.max_pool2d_backward(y[..., :2], places, [2, 3, 7, 8], *window, False)
    with pytest.raises(RuntimeError, match=r"^max_pool2d: expected places to be of shape"):
        ops.max_pool2d_backward(y, places[:1], [2, 3, 7, 8], *window, False)
    with pytest.raises(RuntimeError, match=r"^max_pool2d: expected places to be of the dtype that the forward gives"):
        ops.max_pool2d_backward(y, places.int(), [2, 3, 7, 8], *window, False)
    with pytest.raises(RuntimeError, match=r"^avg_pool2d: expected grad_output to be of shape"):
        ops.avg_pool2d_backward(y[:1], [2, 3, 7, 8], *window[:3], False, True, 0, False, False)
    with pytest.raises(RuntimeError, match=r"^max_pool2d: expected wants_places to be True where a gradient"):
        ops.max_pool2d(x, *window, False, False, False)[0].sum().backward()


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_in_one_graph(dynamic):
    def step(x):
        y, indices = PF.max_pool2d(x, 3, 2, 1, ceil_mode=True, return_indices=True)
        return PF.avg_pool2d(PF.max_pool2d(y, 2, 1), 2, count_include_pad=False) + indices.sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((2, 3, 16, 18), (3, 3, 20, 17)):
        for last in (False, True):
            x = torch.randn(shape).to(memory_format=torch.channels_last if last else torch.contiguous_format)
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            y, z = compiled(a), step(b)
            assert torch.equal(y, z)
            assert y.stride() == z.stride()
            y.backward(torch.cos(z.detach()))
            z.backward(torch.cos(z.detach()))
            assert torch.equal(a.grad, b.grad)


TRANSFORMS = {
    "grad": grad,
    "jacobian of grad": lambda f: jacrev(grad(f)),
    "grad of grad": lambda f: grad(lambda x: grad(f)(x).square().sum()),
    "vmap of grad": lambda f: lambda x: vmap(lambda one: grad(f)(one[None]))(x),
    "grad of vmap": lambda f: grad(lambda x: vmap(lambda one: f(one[None]))(x).prod()),
    "vmap of unbatched": lambda f: vmap(f, in_dims=1),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name):
    def loss(max_pool, avg_pool):
        return lambda x: (max_pool(x, 3, 2, 1).square().sum() + avg_pool(x, 2).pow(3).sum()) / 100

    x = image().detach()
    actual = TRANSFORMS[name](loss(PF.max_pool2d, PF.avg_pool2d))(x)
    expected = TRANSFORMS[name](loss(F.max_pool2d, F.avg_pool2d))(x)
    assert expected.abs().max() > 0
    assert_close(actual, expected, scale=10)


def test_vmap_of_indices():
    x = image().detach()
    actual = vmap(lambda one: PF.max_pool2d(one, 2, return_indices=True))(x)
    expected = F.max_pool2d(x, 2, return_indices=True)
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_leaves_the_dtype(dtype):
    x = torch.randn(1, 2, 4, 4, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        for ours, theirs in ((PF.max_pool2d, F.max_pool2d), (PF.avg_pool2d, F.avg_pool2d)):
            assert ours(x, 2).dtype == theirs(x, 2).dtype == dtype


# ---- modules, swap and mode

LAYERS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.MaxPool2d((3, 2), (1, 2), (1, 0), dilation=(1, 2)),
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, 2, 1, True, False),
    nn.AvgPool2d((2, 3), divisor_override=4),
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveMaxPool2d((3, 5)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_modules_and_swap(device, layer):
    ours = getattr(pydl.nn, type(layer).__name__)(**{name: getattr(layer, name) for name in layer.__constants__})
    assert repr(ours) == repr(layer)
    swapped = pydl.swap(copy.deepcopy(layer))
    assert type(swapped) is type(layer)
    x = torch.randn(2, 3, 9, 10)
    expected = layer(x)
    for module in (ours, swapped, copy.deepcopy(swapped)):
        assert_close(module(x), expected)
        (row,) = pydl.report(module).rows
        assert (row.served_by, row.reason, row.fused) == (f"cpu {pydl.backend.current_isa()}", "", "")
    (row,) = pydl.report(layer).rows
    assert (row.served_by, row.reason) == ("torch", "not swapped")
    (row,) = pydl.report(pydl.unswap(swapped)).rows
    assert (row.served_by, row.reason) == ("torch", "not swapped")


def test_indices_through_a_module():
    x = torch.randn(2, 3, 8, 8)
    expected = nn.MaxPool2d(2, return_indices=True)(x)
    for layer in (pydl.nn.MaxPool2d(2, return_indices=True), pydl.swap(nn.MaxPool2d(2, return_indices=True))):
        assert all(map(torch.equal, layer(x), expected))


def test_report_says_who_serves_other_devices(monkeypatch):
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2), pydl.nn.AvgPool2d(2))
    pydl.swap(net)
    assert [row.reason for row in pydl.report(net).rows] == ["", "", ""]
    monkeypatch.setattr(pydl.backend, "current", lambda device="cpu": "triton")
    assert [(row.served_by, row.reason) for row in pydl.report(net).rows][1:] == [
        ("torch", "the backend triton has no kernel for MaxPool2d"),
        ("torch", "the backend triton has no kernel for AvgPool2d"),
    ]


def test_ops_are_declared_where_they_can_run():
    for name in ("max_pool2d", "max_pool2d_backward", "max_pool2d_gather", "avg_pool2d", "avg_pool2d_backward"):
        assert hasattr(torch.ops.pydl, name)
        assert not hasattr(torch.ops.pydl_triton, name)


def calls(function):
    """Names of pydl's ops that a call reaches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        function()
    return {event.key for event in profiler.key_averages() if event.key.startswith("pydl::")}


def test_mode_serves_torchs_functions():
    x = torch.randn(1, 2, 6, 6)
    expected = F.max_pool2d(x, 2, return_indices=True)
    with pydl.swapped():
        for function in (F.max_pool2d, torch.max_pool2d, nn.MaxPool2d(2)):
            arguments = () if isinstance(function, nn.Module) else (2,)
            assert calls(lambda f=function, a=arguments: f(x, *a)) == {"pydl::max_pool2d"}
        for function in (F.max_pool2d, F.max_pool2d_with_indices, nn.MaxPool2d(2, return_indices=True)):
            extra = {} if isinstance(function, nn.Module) else {"kernel_size": 2, "return_indices": True}
            assert all(map(torch.equal, function(x, **extra), expected))
            assert calls(lambda f=function, e=extra: f(x, **e)) == {"pydl::max_pool2d"}
        for function in (lambda t: F.avg_pool2d(t, 2), nn.AvgPool2d(2)):
            assert calls(lambda f=function: f(x)) == {"pydl::avg_pool2d"}
