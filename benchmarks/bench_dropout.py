"""Dropout, forward and backward: torch draws and stores a mask, pydl recomputes it."""

import pytest
import torch
import torch.nn.functional as F
from runner import Case, forward_backward

import pydl.functional as PF

P = 0.5


def check(function, input, grad):
    """Random, so no oracle: each element is 0 or doubled, forward and backward alike, and half are kept."""
    output, grad_input = function(input, grad)
    kept = output != 0
    assert torch.equal(output[kept], (input / (1 - P))[kept])
    assert torch.equal(grad_input, torch.where(kept, grad / (1 - P), torch.zeros((), dtype=grad.dtype)))
    assert abs(kept.double().mean() - (1 - P)) < 0.05


def case(name, shape, dtype=torch.float32, channels_last=False, function="dropout", target=None, quick=False):
    def inputs():
        x, grad = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
        if channels_last:
            x, grad = (t.to(memory_format=torch.channels_last) for t in (x, grad))
        return [x.requires_grad_(), grad]

    ours, theirs = getattr(PF, function), getattr(F, function)
    size = torch.Size(shape).numel() * dtype.itemsize
    return Case(
        "dropout",
        name,
        inputs,
        lambda x: ours(x, P),
        lambda x: theirs(x, P),
        forward_backward,
        read=2 * size,
        written=2 * size,
        dtype=dtype,
        target=target,
        quick=quick,
        check=check,
    )


CASES = [
    case("65,536", (65536,), target=(5, 5), quick=True),
    case("4 M", (1 << 22,), target=(15, 10), quick=True),
    case("4 M", (1 << 22,), torch.bfloat16),
    case("32 M", (1 << 25,), target=(15, 10)),
    case("MLP (256, 256)", (256, 256)),
    case("(64,64,56,56)", (64, 64, 56, 56)),
    case("(64,64,56,56) channels_last", (64, 64, 56, 56), channels_last=True),
    case("dropout2d (64,64,56,56)", (64, 64, 56, 56), function="dropout2d"),
    case("dropout2d (64,64,56,56) channels_last", (64, 64, 56, 56), channels_last=True, function="dropout2d"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_dropout(case, compare):
    compare(case)
