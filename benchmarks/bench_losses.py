"""Losses of regression, detection, and segmentation, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from runner import Case, forward_backward

import pydl.functional as PF


def case(op, shape, dtype=torch.float32, quick=False, weights=False):
    size = torch.Size(shape).numel() * dtype.itemsize

    def inputs():
        x = torch.randn(shape).to(dtype).requires_grad_()
        weight = [torch.full(shape[-1:], 2.0, dtype=dtype)] if weights else []
        return [x, torch.rand(shape).to(dtype), *weight, torch.ones((), dtype=dtype)]

    def bound(library):
        function = getattr(library, op)
        if weights:
            return lambda x, target, weight: function(x, target, pos_weight=weight)
        return lambda x, target: function(x, target)

    # forward: x and target in; backward: both in, the gradient out
    return Case(
        "losses",
        " ".join([op, *(["with weights"] if weights else []), "×".join(map(str, shape))]),
        inputs,
        bound(PF),
        bound(F),
        forward_backward,
        read=4 * size,
        written=size,
        dtype=dtype,
        quick=quick,
        scale=10.0,
    )


CASES = [
    case("mse_loss", (256, 1024), quick=True),
    case("mse_loss", (4096, 2048)),
    case("l1_loss", (4096, 2048)),
    case("smooth_l1_loss", (32, 5444, 4)),
    case("huber_loss", (256, 1024)),
    case("binary_cross_entropy_with_logits", (256, 1024), quick=True),
    case("binary_cross_entropy_with_logits", (256, 1024), weights=True),
    case("binary_cross_entropy_with_logits", (8, 1, 512, 512)),
    case("binary_cross_entropy_with_logits", (8, 1, 512, 512), torch.bfloat16),
    case("mse_loss", (64, 1)),  # torch's own
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_losses(case, compare):
    compare(case)
