"""Group norm of images, forward and backward with all gradients, in both memory formats."""

import pytest
import torch
import torch.nn.functional as F
from runner import Case, forward_backward

import pydl.functional as PF


def case(shape, groups, dtype=torch.float32, channels_last=False, quick=False):
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def inputs():
        tensors = [torch.randn(shape), torch.rand(shape[1]) + 0.5, torch.randn(shape[1])]
        x, weight, bias = (t.to(dtype) for t in tensors)
        grad = torch.randn(shape).to(dtype).to(memory_format=layout)
        return [*(t.requires_grad_() for t in (x.to(memory_format=layout), weight, bias)), grad]

    def bound(library):
        return lambda x, w, b: library.group_norm(x, groups, w, b)

    size = torch.Size(shape).numel() * dtype.itemsize
    # forward: x in, y out; backward: x and grad in, the gradient of x out
    return Case(
        "group_norm",
        f"{groups} groups of " + "×".join(map(str, shape)) + (", channels_last" if channels_last else ""),
        inputs,
        bound(PF),
        bound(F),
        forward_backward,
        read=3 * size,
        written=2 * size,
        dtype=dtype,
        quick=quick,
        scale=30.0 if dtype == torch.float32 else 10.0,  # gradients of the parameters are sums over all places
    )


CASES = [
    case((32, 64, 56, 56), 32, quick=True),
    case((32, 64, 56, 56), 32, channels_last=True),
    case((32, 256, 14, 14), 32, quick=True),
    case((32, 256, 14, 14), 32, channels_last=True),
    case((32, 512, 7, 7), 32),
    case((32, 512, 7, 7), 32, channels_last=True),
    case((2, 320, 64, 64), 32),
    case((256, 512), 32),
    case((16, 64, 56, 56), 32, torch.bfloat16),
    case((16, 64, 56, 56), 32, torch.bfloat16, channels_last=True),
    case((32, 512, 7, 7), 32, torch.bfloat16),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_group_norm(case, compare):
    compare(case)
