"""3-D pooling beside torch: options, layouts, indices, gradients of both orders, what is torch's, errors."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from testing import assert_close

import pydl.functional as PF
import pydl.ops.pool3d
from pydl.ops import _nodes

pytestmark = pytest.mark.cpu_kernels
LAST = torch.channels_last_3d
WINDOWS = {
    "2": {"kernel_size": 2},
    "3 stride 2": {"kernel_size": 3, "stride": 2, "padding": 1},
    "odd everything": {"kernel_size": (1, 3, 2), "stride": (2, 1, 3), "padding": (0, 1, 1)},
    "hanging over": {"kernel_size": (3, 2, 3), "stride": (2, 3, 2), "padding": (1, 0, 1), "ceil_mode": True},
}
MEANS = {
    "without the padding": {"count_include_pad": False},
    "sums of 5": {"divisor_override": 5},
}
# name -> (function, options)
CALLS = {f"max_pool3d, {k}": ("max_pool3d", v) for k, v in WINDOWS.items()}
CALLS["max_pool3d, dilated"] = "max_pool3d", {"kernel_size": (2, 2, 3), "dilation": (2, 1, 2), "padding": (1, 0, 1)}
CALLS |= {f"avg_pool3d, {k}": ("avg_pool3d", v) for k, v in WINDOWS.items()}
CALLS |= {
    f"avg_pool3d, {k}, {m}": ("avg_pool3d", v | options)
    for (k, v), (m, options) in itertools.product(WINDOWS.items(), MEANS.items())
}
for _size in (1, (2, 4, 3), (None, 1, 2)):
    CALLS |= {
        f"{name}, {_size}": (name, {"output_size": _size}) for name in ("adaptive_avg_pool3d", "adaptive_max_pool3d")
    }
INPUTS = {
    "NCDHW": torch.randn(2, 3, 6, 8, 9),
    "ties": torch.randint(-2, 3, (2, 3, 6, 8, 9)).float(),
    "nan": torch.where(torch.rand(2, 3, 6, 8, 9) < 0.1, torch.nan, torch.randn(2, 3, 6, 8, 9)),
    "NDHWC": torch.randn(2, 3, 6, 8, 9).to(memory_format=LAST),
    "unbatched": torch.randn(3, 6, 8, 9),
    "unbatched, channels inside": torch.randn(6, 8, 9, 3).movedim(-1, 0),
    "one channel": torch.randn(2, 1, 6, 8, 9),
    "other strides": torch.randn(2, 3, 8, 6, 9).transpose(2, 3),
}


def step(f, call, x):
    name, options = CALLS[call]
    x = x.detach().requires_grad_()
    output = getattr(f, name)(x, **options)
    grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output.dtype)
    return output.detach(), torch.autograd.grad(output, x, grad)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("call", CALLS)
def test_as_torch(device, call, kind, dtype):
    x = INPUTS[kind].to(dtype)
    name, options = CALLS[call]
    try:
        expected = step(F, call, x)
    except NotImplementedError:  # torch has no mean of halves in most layouts
        with pytest.raises(NotImplementedError):
            step(PF, call, x)
        return
    for a, e in zip(step(PF, call, x), expected, strict=True):
        assert_close(a, e, dtype, 4.0)
        assert (a.dtype, a.stride()) == (e.dtype, e.stride())
    with torch.no_grad():
        assert getattr(PF, name)(x, **options).stride() == expected[0].stride()


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("call", [c for c in CALLS if "max" in c])
def test_indices(device, call, kind):
    name, options = CALLS[call]
    (ours, where), (theirs, there) = (getattr(f, name)(INPUTS[kind], **options, return_indices=True) for f in (PF, F))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(where, there)
    assert (where.dtype, where.stride(), ours.stride()) == (there.dtype, there.stride(), theirs.stride())


@pytest.mark.parametrize("call", ["max_pool3d, hanging over", "avg_pool3d, hanging over", "adaptive_max_pool3d, 1"])
def test_differentiated_twice(call):
    name, options = CALLS[call]
    x = torch.randn(1, 2, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: getattr(PF, name)(x, **options), x)
    assert torch.autograd.gradgradcheck(lambda x: getattr(PF, name)(x, **options), x)


@pytest.mark.parametrize("kind", ["NCDHW", "NDHWC"])
@pytest.mark.parametrize("call", ["max_pool3d, 3 stride 2", "avg_pool3d, 3 stride 2", "adaptive_avg_pool3d, (2, 4, 3)"])
def test_compile(call, kind):
    name, options = CALLS[call]
    compiled = torch.compile(getattr(PF, name), fullgraph=True, dynamic=True, backend="aot_eager")
    x = INPUTS[kind].clone().requires_grad_()
    expected = step(PF, call, x)
    output = compiled(x, **options)
    grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).float()
    torch.testing.assert_close((output, *torch.autograd.grad(output, x, grad)), expected)


@pytest.mark.parametrize("call", ["max_pool3d, 2", "avg_pool3d, 2"])
def test_per_sample(call):
    name, options = CALLS[call]
    x = INPUTS["NCDHW"]
    ours = torch.func.vmap(torch.func.grad(lambda x: getattr(PF, name)(x, **options).square().sum()))(x)
    torch.testing.assert_close(ours, torch.func.grad(lambda x: getattr(F, name)(x, **options).square().sum())(x))


def test_who_pools(monkeypatch):
    """Ours where they are faster: not small volumes, not one channel, not maxima of channels_last_3d."""

    def ops(call, x):
        name, options = CALLS[call]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            getattr(PF, name)(x, **options)
        return {event.key for event in profile.key_averages() if event.key.startswith("pydl::")}

    assert ops("max_pool3d, 2", INPUTS["NCDHW"]) == {"pydl::max_pool3d"}
    for kind in ("NCDHW", "NDHWC", "unbatched"):
        assert ops("avg_pool3d, 2", INPUTS[kind]) == {"pydl::avg_pool3d"}
        assert ops("adaptive_max_pool3d, (2, 4, 3)", INPUTS[kind]) == {"pydl::max_pool3d"}
    assert ops("adaptive_max_pool3d, 1", INPUTS["NDHWC"]) == {"pydl::max_pool3d"}
    assert ops("adaptive_max_pool3d, 1", INPUTS["NCDHW"]) == {"pydl::max_pool2d"}
    for kind in ("NDHWC", "one channel"):
        assert ops("max_pool3d, 2", INPUTS[kind]) == set()
    monkeypatch.setattr(pydl.ops.pool3d, "WORTH_A_CALL", 1 << 16)
    assert ops("max_pool3d, 2", INPUTS["NCDHW"]) == set()


@pytest.mark.parametrize("kind", ["NCDHW", "NDHWC"])
def test_opcheck(kind):
    x = INPUTS[kind].clone().requires_grad_()
    window = (2, 3, 2), (2, 1, 2), (1, 1, 0), (1, 1, 2), False
    output, *places = torch.ops.pydl.max_pool3d(x, *window, True)
    for name, args in (
        ("max_pool3d", (x, *window, True)),
        ("max_pool3d_backward", (output.detach().requires_grad_(), *places, x.shape, *window)),
        ("max_pool3d_gather", (x, *places, *window)),
    ):
        torch.library.opcheck(getattr(torch.ops.pydl, name).default, args)
    mean = (2, 3, 2), (2, 1, 2), (1, 1, 0), True, False, 0
    output = torch.ops.pydl.avg_pool3d(x, *mean)
    torch.library.opcheck(torch.ops.pydl.avg_pool3d.default, (x, *mean))
    grad = output.detach().requires_grad_()
    torch.library.opcheck(torch.ops.pydl.avg_pool3d_backward.default, (grad, x.shape, *mean))


def _no_call(*args):
    return NotImplemented


UPSTREAM = {
    "contiguous": lambda t: t,
    "channels_last_3d": lambda t: t.contiguous(memory_format=LAST),
    "expanded": lambda t: t[:1, :, :1].expand(t.shape),
    "transposed": lambda t: t.transpose(3, 4).contiguous().transpose(3, 4),
}


@pytest.mark.parametrize("quick", [True, False], ids=["in C++", "in Python"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("call", ["avg_pool3d, 2", "avg_pool3d, hanging over", "adaptive_max_pool3d, (2, 4, 3)"])
def test_gradients_that_lie_in_any_way(device, monkeypatch, call, kind, dtype, quick):
    if not quick:
        monkeypatch.setattr(_nodes, "avg_pool3d", _no_call)
        monkeypatch.setattr(_nodes, "max_pool3d", _no_call)
    name, options = CALLS[call]
    x = INPUTS[kind].to(dtype)
    given, exact = (t.detach().requires_grad_() for t in (x, x.double()))
    ours, theirs = getattr(PF, name)(given, **options), getattr(F, name)(exact, **options)
    grad = torch.randn(theirs.shape, dtype=dtype)
    for lies in UPSTREAM.values() if ours.dim() == 5 else [UPSTREAM["contiguous"]]:
        found = torch.autograd.grad(ours, given, lies(grad), retain_graph=True)[0]
        wanted = torch.autograd.grad(theirs, exact, lies(grad).double(), retain_graph=True)[0]
        assert_close(found, wanted, dtype)
        assert found.is_contiguous()


MISTAKES = {
    "kernel_size to be at least 1, got (0, 0, 0)": {"kernel_size": 0, "stride": 1},
    "padding to be at most half of the kernel's reach, got padding (2, 2, 2)": {"kernel_size": 2, "padding": 2},
    "padding to be at most half of the kernel's reach, got padding (0, 1, 0)": {"kernel_size": 1, "padding": (0, 1, 0)},
    "the kernel to be no larger than the padded input (": {"kernel_size": 9},
    "kernel_size to be one number or 3, got (2, 2)": {"kernel_size": (2, 2)},
    "stride to be at least 1, got (0, 0, 0)": {"kernel_size": 2, "stride": 0},
}


@pytest.mark.parametrize("message", MISTAKES)
@pytest.mark.parametrize("name", ["max_pool3d", "avg_pool3d"])
def test_errors(name, message):
    for f, match in ((F, None), (PF, f"^{re.escape(f'{name}: expected {message}')}")):
        with pytest.raises(RuntimeError, match=match):
            getattr(f, name)(INPUTS["NCDHW"], **MISTAKES[message])


@pytest.mark.parametrize("name", ["max_pool3d", "avg_pool3d"])
def test_shapes_that_torch_refuses(name):
    for x in (torch.randn(3, 4, 5), torch.randn(2, 0, 4, 4, 4)):
        for f in (PF, F):
            with pytest.raises(RuntimeError):
                getattr(f, name)(x, 2)
