"""Softmax of attention scores and of classes, and its logarithm, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from runner import Case, forward_backward

import pydl.functional as PF


def case(op, shape, dtype=torch.float32, target=None, quick=False, dim=-1):
    size = torch.Size(shape).numel() * dtype.itemsize

    def inputs():
        return [torch.randn(shape).to(dtype).requires_grad_(), torch.randn(shape).to(dtype)]

    def bound(library):
        return lambda x: getattr(library, op)(x, dim)

    # forward: x in, y out; backward: y and grad in, the gradient out
    return Case(
        "softmax",
        ("" if op == "softmax" else "log_softmax ")
        + "×".join(map(str, shape))
        + ("" if dim == -1 else f" along {dim}"),
        inputs,
        bound(PF),
        bound(F),
        forward_backward,
        read=3 * size,
        written=2 * size,
        dtype=dtype,
        target=target,
        quick=quick,
        scale=10.0,
    )


CASES = [
    case("softmax", (4096, 64), target=(1.9, 1.9), quick=True),
    case("softmax", (2048, 1000), target=(1.4, 1.4), quick=True),
    case("softmax", (128, 4, 9, 9)),
    case("softmax", (8, 8, 512, 512)),
    case("softmax", (2048, 1000), torch.bfloat16),
    case("log_softmax", (2048, 1000), quick=True),
    case("log_softmax", (256, 10)),
    case("softmax", (8, 21, 128, 128), dim=1, quick=True),
    case("log_softmax", (8, 21, 128, 128), dim=1),
    case("softmax", (32, 512, 64), dim=1),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_softmax(case, compare):
    compare(case)
