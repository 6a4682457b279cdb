"""Cross entropy of logits, forward and backward, mean over the rows."""

import pytest
import torch
import torch.nn.functional as F
from runner import Case, forward_backward

import pydl.functional as PF


def case(rows, columns, dtype=torch.float32, target=None, quick=False, **options):
    def inputs():
        logits = torch.randn(rows, columns).to(dtype).requires_grad_()
        labels = torch.randint(0, columns, (rows,))
        return [logits, labels, torch.ones((), dtype=dtype)]

    def bound(function):
        return lambda logits, labels: function(logits, labels, **options)

    size = rows * columns * dtype.itemsize
    name = f"{rows} × {columns}" + "".join(f", {k} {v}" for k, v in options.items())
    # the logits are read and the gradient is written once where the gradient is made in the forward
    return Case(
        "softmax_cross_entropy",
        name,
        inputs,
        bound(PF.cross_entropy),
        bound(F.cross_entropy),
        forward_backward,
        read=size,
        written=size,
        dtype=dtype,
        target=target,
        quick=quick,
    )


CASES = [
    case(256, 10, target=(1, 1), quick=True),
    case(4096, 1000, target=(2, 2), quick=True),
    case(4096, 1000, torch.bfloat16, target=(2, 2)),
    case(2048, 32000, target=(6, 2.2)),
    case(2048, 32000, torch.bfloat16, target=(6, 2.2)),
    case(512, 128000, target=(6, 2.2)),
    case(512, 128000, torch.bfloat16, target=(6, 2.2)),
    case(4096, 1000, label_smoothing=0.1),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_softmax_cross_entropy(case, compare):
    compare(case)
