"""conv1d and conv_transpose1d with their layers beside torch: options, layouts, gradients of both orders, errors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from testing import DTYPES, assert_close, assert_transforms

import pydl
import pydl.functional as PF

pytestmark = pytest.mark.cpu_kernels

# name -> (input, weight, options), of the convolution and of its transpose
PLAIN = {
    "plain": ((2, 4, 15), (6, 4, 3), {}),
    "stride and padding": ((3, 5, 40), (7, 5, 4), {"stride": 2, "padding": 1}),
    "same": ((2, 4, 15), (6, 4, 4), {"padding": "same"}),
    "same, dilated": ((2, 4, 15), (6, 4, 3), {"padding": "same", "dilation": 3}),
    "unbatched, valid": ((4, 15), (6, 4, 3), {"padding": "valid"}),
    "groups": ((2, 4, 15), (6, 2, 3), {"groups": 2, "dilation": (2,)}),
    "depthwise": ((3, 8, 20), (8, 1, 3), {"groups": 8, "stride": (2,), "padding": (1,)}),
    "one number": ((2, 4, 1), (6, 4, 1), {}),
    "one channel": ((2, 1, 130), (5, 1, 7), {"padding": 3}),
    "words": ((3, 20, 70), (33, 20, 5), {}),
}
TRANSPOSED = {
    "plain": ((2, 3, 5), (3, 4, 3), {}),
    "odd everything": ((3, 5, 7), (5, 2, 5), {"stride": 3, "padding": 1, "output_padding": 2}),
    "numbers that no tap reaches": ((2, 3, 4), (3, 2, 2), {"stride": (3,), "output_padding": (2,)}),
    "dilation": ((2, 3, 5), (3, 4, 3), {"dilation": 2, "padding": 2, "output_padding": 1}),
    "groups": ((2, 6, 4), (6, 2, 3), {"groups": 3, "stride": 2}),
    "unbatched": ((3, 5), (3, 4, 3), {"stride": 2}),
    "cells": ((2, 3, 6), (3, 4, 16), {"stride": 8, "padding": 4}),
}
CASES = {f"conv1d, {k}": v for k, v in PLAIN.items()} | {f"conv_transpose1d, {k}": v for k, v in TRANSPOSED.items()}


def tensors(case, dtype=torch.float64, last=False):
    size, weight, options = CASES[case]
    features = weight[0] if case.startswith("conv1d") else weight[1] * options.get("groups", 1)
    x, w, b = torch.randn(size), torch.randn(weight), torch.randn(features)
    if last:
        x = x.mT.contiguous().mT
    return case.split(",")[0], [t.to(dtype) for t in (x, w, b)], options


def step(library, name, made, options):
    leaves = [t.detach().requires_grad_() for t in made]
    output = getattr(library, name)(*leaves, **options)
    grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


@pytest.mark.filterwarnings("ignore:Using padding")
@pytest.mark.parametrize("last", [False, True], ids=["NCL", "NLC"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_as_torch(device, case, dtype, last):
    name, made, options = tensors(case, dtype, last)
    exact = step(F, name, [t.double() for t in made], options)
    ours, theirs = (step(f, name, made, options) for f in (PF, F))
    for a, e, t in zip(ours, exact, theirs, strict=True):
        size = max(1.0, e.abs().max().item())
        assert_close(a.double() / size, e / size, dtype, 4.0)
        assert (a.dtype, a.stride()) == (dtype, t.stride())
    with torch.no_grad():
        assert getattr(PF, name)(*made, **options).stride() == ours[0].stride()


@pytest.mark.parametrize("case", ["conv1d, stride and padding", "conv1d, groups", "conv_transpose1d, odd everything"])
def test_differentiated_twice(case):
    name, made, options = tensors(case)
    leaves = [t[..., :9].requires_grad_() for t in made]
    assert torch.autograd.gradcheck(lambda *t: getattr(PF, name)(*t, **options), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: getattr(PF, name)(*t, **options), leaves, fast_mode=True)


@pytest.mark.parametrize("case", ["conv1d, stride and padding", "conv_transpose1d, odd everything"])
def test_transforms(case):
    name, (x, w, b), options = tensors(case)
    assert_transforms(*(lambda *t, f=f: getattr(f, name)(*t, **options) for f in (PF, F)), x, w, b)


@pytest.mark.parametrize("case", ["conv1d, stride and padding", "conv_transpose1d, groups"])
def test_compile(case):
    name, made, options = tensors(case, torch.float32)
    compiled = torch.compile(getattr(PF, name), fullgraph=True, dynamic=True, backend="aot_eager")
    for _ in range(2):
        leaves = [t.clone().requires_grad_() for t in made]
        output = compiled(*leaves, **options)
        expected = step(PF, name, made, options)
        grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).float()
        for a, e in zip((output, *torch.autograd.grad(output, leaves, grad)), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
        made[0] = torch.cat([made[0], made[0]], -1)


@pytest.mark.skipif("avx512" not in pydl.backend.isas(), reason="measured for vectors of 64 bytes")
def test_rows_of_channels_that_leave_panels_empty_have_positions_in_the_lanes():
    for channels, algorithm in ((100, "direct.rows"), (128, "implicit.slabs")):
        with pydl.backend.isa("avx512"):
            PF.conv1d(torch.randn(8, channels, 200), torch.randn(channels, channels, 3))
        assert pydl._C.conv2d_algorithm_served() == algorithm


def test_autocast():
    for case in ("conv1d, plain", "conv_transpose1d, plain"):
        name, made, options = tensors(case, torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = (getattr(f, name)(*made, **options) for f in (PF, F))
        assert ours.dtype == theirs.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("name", ["Conv1d", "ConvTranspose1d"])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"bias": False, "groups": 2, "dilation": 2}], ids=str
)
def test_layers(name, options):
    theirs = getattr(torch.nn, name)(4, 6, 3, **options)
    ours, lazy = getattr(pydl.nn, name)(4, 6, 3, **options), getattr(pydl.nn, f"Lazy{name}")(6, 3, **options)
    swapped, x = pydl.swap(copy.deepcopy(theirs)), torch.randn(2, 4, 15)
    lazy(x)
    assert type(lazy) is getattr(pydl.nn, name)
    for layer in (ours, lazy, swapped):
        layer.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(layer(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert pydl.report(swapped).rows[0].reason == ""


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes(padding_mode):
    for padding in (2, "same"):
        theirs = torch.nn.Conv1d(4, 6, 3, padding=padding, padding_mode=padding_mode)
        x = torch.randn(2, 4, 15)
        torch.testing.assert_close(pydl.swap(copy.deepcopy(theirs))(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_output_size():
    theirs = torch.nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1)
    ours, x = pydl.swap(copy.deepcopy(theirs)), torch.randn(2, 4, 5)
    for size in ((10,), (2, 6, 9)):
        torch.testing.assert_close(ours(x, output_size=size), theirs(x, output_size=size), rtol=1e-4, atol=1e-5)


def test_replaced_parts_are_called(monkeypatch):
    layer, calls = pydl.swap(torch.nn.Conv1d(4, 6, 3)), []
    x = torch.randn(2, 4, 5)
    layer._conv_forward = lambda *args: calls.append(args) or x
    assert layer(x) is x
    del layer._conv_forward
    monkeypatch.setattr(F, "conv1d", lambda *args: calls.append(args) or x)
    assert layer(x) is x
    assert len(calls) == 2


def ops_of(call):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call()
    return {event.key for event in profiler.key_averages() if event.key.startswith("pydl::")}


def test_what_is_torchs():
    x, w = torch.randn(2, 3, 9), torch.randn(4, 3, 3)
    for a, b in ((x.to(torch.complex64), w.to(torch.complex64)), (x[:0], w), (x, w.mT.contiguous().mT)):
        assert ops_of(lambda a=a, b=b: PF.conv1d(a, b)) == set()
        torch.testing.assert_close(PF.conv1d(a, b), F.conv1d(a, b))
        assert PF.conv1d(a, b).stride() == F.conv1d(a, b).stride()
    with pydl.swapped():
        assert ops_of(lambda: F.conv1d(x, w)) == {"pydl::conv2d_forward"}
        assert ops_of(lambda: F.conv_transpose1d(x, w.transpose(0, 1).contiguous())) == {"pydl::conv_transpose2d"}


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("conv1d", {"input": torch.ones(2, 4, 5)}, "input to be of 3 channels, got 4"),
        ("conv1d", {"input": torch.ones(5)}, r"input to be 2-D \(unbatched\) or 3-D \(batched\), got shape \(5,\)"),
        ("conv1d", {"weight": torch.ones(4, 3)}, r"weight to be 3-D, got shape \(4, 3\)"),
        ("conv1d", {"weight": torch.ones(4, 3, 3).double()}, "weight to be of the dtype of input, got torch.float64"),
        ("conv1d", {"bias": torch.ones(3)}, r"bias to be of shape \(4\), got \(3,\)"),
        ("conv1d", {"groups": 3, "weight": torch.ones(4, 1, 3)}, r"out_channels to be divisible by groups \(3\)"),
        ("conv1d", {"groups": 0}, "groups to be positive, got 0"),
        ("conv1d", {"stride": 0}, "stride to be positive, got 0"),
        ("conv1d", {"stride": (1, 1)}, r"stride to be one number, got \(1, 1\)"),
        ("conv1d", {"padding": -1}, "padding to be at least 0, got -1"),
        ("conv1d", {"padding": "full"}, "padding to be a number, 'same' or 'valid', got 'full'"),
        ("conv1d", {"padding": "same", "stride": 2}, "stride to be 1 with padding 'same', got 2"),
        ("conv1d", {"dilation": 3}, r"the kernel to be no larger than the padded input \(5\), got 7"),
        ("conv_transpose1d", {"input": torch.ones(2, 3, 5)}, "input to be of 4 channels, got 3"),
        ("conv_transpose1d", {"output_padding": 1}, "output_padding to be at least 0 and less than stride or"),
        ("conv_transpose1d", {"padding": 4}, "an output of at least one number, got -1"),
    ],
)  # fmt: skip
def test_bad_input(name, arguments, message):
    good = {"input": torch.ones(2, 3 if name == "conv1d" else 4, 5), "weight": torch.ones(4, 3, 3)}
    with pytest.raises((RuntimeError, ValueError)) as theirs:
        getattr(F, name)(**good | arguments)
    with pytest.raises(theirs.type, match=f"^{name}: expected {message}"):
        getattr(PF, name)(**good | arguments)
