"""conv_transpose2d and its layer beside torch in float64: options, layouts, gradients of both orders, errors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from algorithms import NAMES, forced
from testing import DTYPES, assert_close

import pydl
import pydl.functional as PF
from pydl import _C

# name -> (input, weight, options)
CASES = {
    "plain": ((2, 3, 4, 5), (3, 4, 3, 3), {}),
    "stride and padding": ((2, 4, 5, 4), (4, 3, 4, 4), {"stride": 2, "padding": 1}),
    "odd everything": ((3, 5, 3, 7), (5, 2, 2, 5), {"stride": (3, 2), "padding": (1, 2), "output_padding": (2, 1)}),
    "rows that no tap reaches": ((2, 3, 4, 3), (3, 2, 2, 3), {"stride": 3, "output_padding": (2, 1)}),
    "dilation": ((2, 3, 5, 4), (3, 4, 3, 2), {"dilation": (2, 3), "padding": 2, "output_padding": (1, 2)}),
    "groups": ((2, 6, 4, 4), (6, 2, 3, 3), {"groups": 3, "stride": 2}),
    "depthwise": ((2, 8, 5, 5), (8, 1, 3, 3), {"groups": 8, "padding": 1}),
    "one by one": ((2, 5, 4, 4), (5, 7, 1, 1), {"stride": 2}),
    "disjoint cells": ((2, 3, 3, 2), (3, 3, 8, 8), {"stride": 8}),
    "kernel over cells": ((1, 4, 3, 3), (4, 4, 16, 16), {"stride": 8, "padding": 4}),
    "unbatched": ((3, 4, 5), (3, 4, 3, 3), {"stride": 2}),
    "of one pixel": ((3, 16, 1, 1), (16, 8, 4, 4), {}),
}


def tensors(name, dtype=torch.float64, bias=True):
    size, weight, options = CASES[name]
    features = weight[1] * options.get("groups", 1)
    made = torch.randn(size), torch.randn(weight), torch.randn(features) if bias else None
    return [None if t is None else t.to(dtype) for t in made], options


def step(f, made, options, weights=None):
    """Output and gradients of a call, of a gradient that is not all ones and whose sums do not cancel."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in made]
    output = f(*leaves, **options)
    grad = torch.linspace(-0.5, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output.dtype)
    output.backward(grad)
    return [output.detach(), *(t.grad for t in leaves if t is not None)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_torch(device, name, dtype):
    made, options = tensors(name, dtype, bias=name != "groups")
    exact = step(F.conv_transpose2d, [None if t is None else t.double() for t in made], options)
    ours = step(PF.conv_transpose2d, [None if t is None else t.to(device) for t in made], options)
    for a, e in zip(ours, exact, strict=True):
        assert a.dtype == dtype
        assert_close(a, e, dtype, 4.0)
    with torch.no_grad():
        assert torch.equal(PF.conv_transpose2d(*made, **options).to(device), ours[0])


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", [name for name in CASES if name != "unbatched"])
def test_activations(device, name, layout, bias, activation):
    (x, *rest), options = tensors(name, torch.float32, bias)
    x, finish = x.to(memory_format=layout), getattr(torch, activation)
    exact = step(lambda *t, **o: finish(F.conv_transpose2d(*t, **o)), [*map(_double, (x, *rest))], options)
    made = [None if t is None else t.to(device) for t in (x, *rest)]
    for a, e in zip(step(PF.conv_transpose2d, made, options | {"activation": activation}), exact, strict=True):
        assert_close(a, e, torch.float32, 4.0)


def _double(t):
    return None if t is None else t.double()


OF_ALGORITHMS = [  # (input, weight, options)
    ((16, 3, 6, 6), (3, 8, 3, 3), {"padding": 1}),
    ((2, 40, 9, 7), (40, 36, 3, 3), {"stride": 2, "padding": 1}),
    ((2, 40, 9, 7), (40, 36, 3, 3), {"padding": 1}),
    ((2, 8, 4, 4), (8, 2, 2, 2), {"stride": 3, "output_padding": 2, "padding": 2}),
    ((2, 16, 6, 6), (16, 3, 4, 4), {"stride": 2, "padding": 1}),
    ((2, 24, 8, 8), (24, 40, 1, 1), {}),
    ((4, 16, 1, 1), (16, 8, 4, 4), {}),
    ((2, 4, 4, 4), (4, 4, 16, 16), {"stride": 16}),
    ((2, 8, 6, 6), (8, 1, 3, 3), {"groups": 8, "padding": 1}),
    ((2, 32, 6, 6), (32, 1, 3, 3), {"groups": 32, "padding": 1}),
]


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("algorithm", ["auto", *NAMES["backward_input"]])
def test_every_algorithm_adds_the_bias_and_applies_the_activation_once(algorithm, activation):
    served = 0
    for size, weight, options in OF_ALGORITHMS:
        x, w = torch.randn(size), torch.randn(weight)
        b = torch.randn(weight[1] * options.get("groups", 1))
        expected = F.conv_transpose2d(x.double(), w.double(), b.double(), **options)
        expected = expected if activation is None else getattr(torch, activation)(expected)
        for layout in (torch.contiguous_format, torch.channels_last):
            found = None
            with forced(algorithm):
                found = PF.conv_transpose2d(x.to(memory_format=layout), w, b, **options, activation=activation)
            if found is not None:
                served += 1
                assert_close(found, expected, torch.float32, 10.0)
    assert served


@pytest.mark.cpu_kernels
def test_cells_serve_large_strides_with_their_bias(device):
    x, w, b, options = torch.randn(1, 4, 3, 3), torch.randn(4, 4, 32, 32), torch.randn(4), {"stride": 16, "padding": 8}
    found = PF.conv_transpose2d(x, w, b, **options)
    if pydl.backend.current_isa() != "baseline":
        assert _C.conv2d_algorithm_served() == "implicit.cells"
    assert_close(found, F.conv_transpose2d(x.double(), w.double(), b.double(), **options), scale=4.0)
    x[0, 0, 1, 1] = torch.inf  # spoils what it reaches, and no more
    theirs = F.conv_transpose2d(x, w, b, **options)
    assert torch.equal(PF.conv_transpose2d(x, w, b, **options).isfinite(), theirs.isfinite())


def test_op(device):
    x, w, b = torch.randn(2, 3, 4, 5), torch.randn(3, 4, 3, 3), torch.randn(4)
    rest = [2, 4, 9, 11], (2, 2), (0, 0, 0, 0), (1, 1), 1
    for last in (("none", False), ("relu", True)):
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        torch.library.opcheck(torch.ops.pydl.conv_transpose2d, (*leaves, *rest, *last))
    with pytest.raises(RuntimeError, match=r"^conv_transpose2d: expected bias to be of shape \(4\), got \(3\)$"):
        torch.ops.pydl.conv_transpose2d(x, w, b[:3], *rest, "none", False)


@pytest.mark.parametrize("layout", ["row-major", "channels_last", "channels_last weight", "sliced", "transposed"])
@pytest.mark.parametrize("name", ["stride and padding", "rows that no tap reaches", "groups"])
def test_layouts_and_strides(name, layout):
    (x, w, b), options = tensors(name, torch.float32)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "channels_last weight":
        w = w.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = torch.randn(x.shape[0], x.shape[1] + 2, *x.shape[2:])[:, 1:-1]
    elif layout == "transposed":
        x, w = x.mT.contiguous().mT, w.mT.contiguous().mT
    theirs, ours = step(F.conv_transpose2d, (x, w, b), options), step(PF.conv_transpose2d, (x, w, b), options)
    for a, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
        assert a.stride() == e.stride()


@pytest.mark.parametrize("name", ["odd everything", "rows that no tap reaches", "groups", "dilation", "unbatched"])
def test_differentiated_twice(name):
    made, options = tensors(name)
    leaves = [t.requires_grad_() for t in made]
    assert torch.autograd.gradcheck(lambda *t: PF.conv_transpose2d(*t, **options), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: PF.conv_transpose2d(*t, **options), leaves)


@pytest.mark.parametrize("name", ["stride and padding", "rows that no tap reaches"])
def test_transforms(name):
    (x, w, b), options = tensors(name)

    def loss(f):
        return lambda x, w, b: f(x, w, b, **options).square().sum()

    for argnums in (0, 1, 2):
        ours = torch.func.grad(loss(PF.conv_transpose2d), argnums)(x, w, b)
        torch.testing.assert_close(ours, torch.func.grad(loss(F.conv_transpose2d), argnums)(x, w, b))
    per_sample = torch.func.vmap(torch.func.grad(loss(PF.conv_transpose2d), 1), (0, None, None))(x[:, None], w, b)
    for i in range(len(x)):
        torch.testing.assert_close(per_sample[i], torch.func.grad(loss(F.conv_transpose2d), 1)(x[i : i + 1], w, b))
    biases = torch.stack([b, b + 1])
    batched = torch.func.vmap(lambda b: PF.conv_transpose2d(x, w, b, **options))(biases)
    torch.testing.assert_close(batched[1], F.conv_transpose2d(x, w, b + 1, **options))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    (_, w, b), options = tensors("rows that no tap reaches", torch.float32)
    compiled = torch.compile(PF.conv_transpose2d, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (2, 3) if dynamic else (2,):
        made = torch.randn(batch, 3, 4 + batch, 3), w, b
        for a, e in zip(step(compiled, made, options), step(F.conv_transpose2d, made, options), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_autocast():
    made, options = tensors("stride and padding", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = PF.conv_transpose2d(*made, **options), F.conv_transpose2d(*made, **options)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=5e-2)


def test_a_frozen_weight_and_one_gradient_alone():
    (x, w, b), options = tensors("stride and padding")
    x.requires_grad_()
    y = PF.conv_transpose2d(x, w, b, **options)
    y.backward(torch.ones_like(y))
    exact = x.detach().clone().requires_grad_()
    F.conv_transpose2d(exact, w, b, **options).sum().backward()
    torch.testing.assert_close(x.grad, exact.grad)
    assert w.grad is None


def test_a_saved_tensor_that_was_written_to_is_refused():
    made, options = tensors("plain")
    x, w, b = (t.requires_grad_() for t in made)
    y = PF.conv_transpose2d(x, w, b, **options)
    with torch.no_grad():
        w.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_layers():
    torch.manual_seed(0)
    for options in ({}, {"stride": 2, "padding": 1, "output_padding": 1}, {"bias": False, "groups": 2, "dilation": 2}):
        theirs = torch.nn.ConvTranspose2d(4, 6, 3, **options)
        ours, lazy = pydl.nn.ConvTranspose2d(4, 6, 3, **options), pydl.nn.LazyConvTranspose2d(6, 3, **options)
        swapped = pydl.swap(copy.deepcopy(theirs))
        x = torch.randn(2, 4, 5, 6)
        lazy(x)
        assert type(lazy) is pydl.nn.ConvTranspose2d
        expected = theirs(x)
        for layer in (ours, lazy, swapped):
            layer.load_state_dict(theirs.state_dict())
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_output_size():
    theirs = torch.nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1)
    ours = pydl.swap(copy.deepcopy(theirs))
    x = torch.randn(2, 4, 5, 6)
    for size in ((10, 12), (9, 12), (2, 6, 10, 11)):
        expected = theirs(x, output_size=size)
        torch.testing.assert_close(ours(x, output_size=size), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="requested an output size"):
        ours(x, output_size=(12, 12))


def test_replaced_parts_are_called(monkeypatch):
    layer = pydl.swap(torch.nn.Sequential(torch.nn.ConvTranspose2d(4, 6, 3)))[0]
    x, calls = torch.randn(2, 4, 5, 6), []
    layer._output_padding = lambda *args: calls.append(args) or [0, 0]
    layer(x)
    assert len(calls) == 1
    del layer._output_padding
    theirs = F.conv_transpose2d
    monkeypatch.setattr(F, "conv_transpose2d", lambda *args: calls.append(args) or theirs(*args))
    layer(x)
    assert len(calls) == 2


def test_a_report_names_it():
    net = torch.nn.Sequential(
        torch.nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
    )
    rows = pydl.report(pydl.swap(net)).rows
    assert [row.served_by.startswith("cpu") for row in rows] == [True] * 3


def test_what_is_torchs():
    x, w = torch.randn(2, 3, 4, 4), torch.randn(3, 2, 3, 3)
    for a, b in ((x.to(torch.complex64), w.to(torch.complex64)), (x[:0], w)):
        torch.testing.assert_close(PF.conv_transpose2d(a, b), F.conv_transpose2d(a, b))
    options = {"stride": 3, "padding": 1, "output_padding": 2}  # no pixel of the input reaches the output
    of_one = torch.randn(1, 2, 1, 1), torch.randn(2, 3, 1, 1), torch.randn(3)
    torch.testing.assert_close(PF.conv_transpose2d(*of_one, **options), F.conv_transpose2d(*of_one, **options))
    with pydl.swapped():
        torch.testing.assert_close(torch.conv_transpose2d(x, w), PF.conv_transpose2d(x, w))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"input": torch.ones(2, 4, 5, 5)}, r"expected input to be of 3 channels, got 4"),
        ({"input": torch.ones(5, 5)}, r"expected input to be 3-D \(unbatched\) or 4-D \(batched\), got shape \(5, 5\)"),
        ({"weight": torch.ones(3, 4, 3)}, r"expected weight to be 4-D, got shape \(3, 4, 3\)"),
        (
            {"weight": torch.ones(3, 4, 3, 3).double()},
            r"expected weight to be of the dtype of input, got torch.float64",
        ),
        ({"bias": torch.ones(3)}, r"expected bias to be of shape \(4\), got \(3,\)"),
        ({"groups": 2}, r"expected in_channels to be divisible by groups \(2\), got 3"),
        ({"stride": 0}, r"expected stride to be positive, got \(0, 0\)"),
        ({"padding": -1}, r"expected padding to be at least 0, got \(-1, -1\)"),
        ({"output_padding": 1}, r"expected output_padding to be at least 0 and less than stride or dilation, got 1"),
        ({"groups": 0}, r"expected groups to be positive, got 0"),
        ({"dilation": 0}, r"expected dilation to be positive, got \(0, 0\)"),
    ],
)
def test_bad_input(arguments, message):
    good = {"input": torch.ones(2, 3, 5, 5), "weight": torch.ones(3, 4, 3, 3), "bias": torch.ones(4)}
    with pytest.raises(RuntimeError, match=f"conv_transpose2d: {message}"):
        PF.conv_transpose2d(**good | arguments)
    with pytest.raises((RuntimeError, ValueError)):
        F.conv_transpose2d(**good | arguments)
