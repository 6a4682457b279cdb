"""GELU between the layers of a transformer, and the other functions of one number, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from runner import Case, forward_backward

import pydl.functional as PF


def case(op, shape, dtype=torch.float32, target=None, quick=False, **options):
    size = torch.Size(shape).numel() * dtype.itemsize

    def inputs():
        return [torch.randn(shape).to(dtype).requires_grad_(), torch.randn(shape).to(dtype)]

    def bound(library):
        return lambda x: getattr(library, op)(x, **options)

    # forward: x in, y out; backward: x or y and grad in, the gradient out
    return Case(
        "elementwise",
        " ".join([op, *options.values(), "×".join(map(str, shape))]),
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
    case("gelu", (2048, 512), target=(1.25, 1.25), quick=True),
    case("gelu", (32768, 256), target=(4, 1.6), quick=True),
    case("gelu", (32768, 256), torch.bfloat16),
    case("gelu", (2048, 512), approximate="tanh"),
    case("relu", (32768, 256), quick=True),
    case("sigmoid", (256, 6, 28, 28)),
    case("tanh", (2048, 512)),
    case("silu", (2048, 512)),
    case("softplus", (2048, 512)),
    case("gelu", (128, 64)),  # torch's own
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_elementwise(case, compare):
    compare(case)
