"""Instance norm of images, forward and backward with all gradients."""

import pytest
import torch
import torch.nn.functional as F
from runner import Case, forward_backward

import pydl.functional as PF


def case(shape, dtype=torch.float32, quick=False):
    def inputs():
        tensors = [torch.randn(shape), torch.rand(shape[1]) + 0.5, torch.randn(shape[1])]
        return [*(t.to(dtype).requires_grad_() for t in tensors), torch.randn(shape).to(dtype)]

    def bound(library):
        return lambda x, w, b: library.instance_norm(x, weight=w, bias=b)

    size = torch.Size(shape).numel() * dtype.itemsize
    # forward: x in, y out; backward: x and grad in, the gradient of x out
    return Case(
        "instance_norm",
        "×".join(map(str, shape)),
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
    case((8, 64, 64, 64), quick=True),
    case((8, 3, 256, 256)),
    case((8, 64, 64, 64), torch.bfloat16),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_instance_norm(case, compare):
    compare(case)
