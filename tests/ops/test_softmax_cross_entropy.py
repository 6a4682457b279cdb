"""Softmax cross entropy against float64 torch: every option, layout and dtype."""

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_oracle import REDUCTIONS, compare, make
from testing import DTYPES, assert_close

import pydl.functional as pf

# (N, C, *positions), each with its reason; lanes are 4, 8 or 16 floats, class blocks 8192
SHAPES = [
    (5, 3),  # fewer classes than lanes
    (3, 16),  # one whole vector
    (4, 17),  # and one more
    (37, 10),  # short rows: whole tiles of them and a rest
    (16, 1),
    (35, 128),  # the most classes that count as short
    (18, 129),  # and one more
    (2, 255),  # chunks, vectors and a remainder
    (3, 8200),  # two class blocks, the second of 8
    (64, 40),  # rows shared by threads
    (2, 5, 3),  # classes apart, three rows side by side
    (2, 9, 4, 5),
    (1, 6, 37, 29),  # more rows than a block holds
    (2, 3, 2, 2, 3),
]


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_float64(device, dtype, shape, kind):
    input, target = make(shape, kind, dtype, device)
    for reduction in REDUCTIONS:
        compare(input, target, reduction=reduction)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("shape", [(7, 21), (5, 140), (3, 9, 5)], ids=str)
def test_options(device, shape, kind, smoothing, weighted):
    for reduction in REDUCTIONS:
        for z_loss in (0.0, 0.01):
            input, target = make(shape, kind, device=device, ignored=True)
            weight = torch.rand(shape[1], device=device) if weighted else None
            compare(input, target, weight=weight, reduction=reduction, label_smoothing=smoothing, z_loss=z_loss)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options_in_every_dtype(device, dtype):
    for kind in ("classes", "probabilities"):
        input, target = make((6, 33), kind, dtype, device, ignored=True)
        weight = torch.rand(33, device=device).to(dtype)
        compare(input, target, weight=weight, label_smoothing=0.1, z_loss=1e-3, reduction="none")


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_unbatched(device, kind):
    input = torch.randn(11, device=device)
    target = torch.tensor(3, device=device) if kind == "classes" else torch.rand(11, device=device)
    for reduction in REDUCTIONS:
        assert compare(input, target, reduction=reduction, label_smoothing=0.1).shape == ()
    if kind == "classes":  # torch also takes a target of one element here
        assert pf.cross_entropy(input, target.view(1)).shape == ()
        assert compare(input, torch.tensor(-100, device=device), reduction="sum") == 0


LAYOUTS = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed space": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "class step 2": lambda t: torch.stack([t, t], 2).flatten(1, 2)[:, ::2],
    "space step 2": lambda t: torch.stack([t, t], -1).flatten(3)[..., ::2],
    "slice of a wider row": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "batch last": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "offset by one element": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_layouts(device, layout, kind):
    input, target = make((3, 19, 6, 7), kind, device=device)
    strided = LAYOUTS[layout](input)
    for reduction in ("none", "mean"):
        for smoothing in (0.0, 0.1):
            compare(strided, target, reduction=reduction, label_smoothing=smoothing)
        if kind == "probabilities":  # the target in the other layout, and the input in the plain one
            compare(input, LAYOUTS[layout](target), reduction=reduction)


def test_transposed_matrix(device):
    input, target = make((300, 12), "classes", device=device)
    compare(input.t().contiguous().t(), target)
    for reduction in REDUCTIONS:
        compare(input[::3], target[::3], reduction=reduction)
        compare(torch.cat([input, input], 1)[:, 12:], target, reduction=reduction)
    compare(input, target.repeat_interleave(2)[::2], reduction="none")


def test_channels_last_gradient_keeps_the_layout(device):
    input, target = make((2, 5, 4, 3), "classes", device=device)
    input = input.contiguous(memory_format=torch.channels_last).requires_grad_()
    pf.cross_entropy(input, target).backward()
    assert input.grad.is_contiguous(memory_format=torch.channels_last)


def test_expanded_upstream_gradient(device):
    """sum() hands down a gradient of stride 0."""
    for shape in [(6, 10), (2, 10, 3)]:
        input, target = make(shape, "classes", device=device)
        input.requires_grad_()
        (grad,) = torch.autograd.grad(pf.cross_entropy(input, target, reduction="none").sum() * 3.0, input)
        input64 = input.detach().double().requires_grad_()
        (expected,) = torch.autograd.grad(F.cross_entropy(input64, target, reduction="sum") * 3.0, input64)
        assert_close(grad, expected)
