"""Embedding of a text's words and of characters, forward and backward: the gradient is the size of the table."""

import pytest
import torch
import torch.nn.functional as F
from runner import Case, forward_backward

import pydl.functional as PF


def case(rows, width, count, dtype=torch.float32, target=None, quick=False):
    row = width * dtype.itemsize

    def inputs():
        return [
            torch.randn(rows, width).to(dtype).requires_grad_(),
            torch.randint(rows, (count,)),
            torch.randn(count, width).to(dtype),
        ]

    def bound(library):
        return lambda weight, ids: library.embedding(ids, weight)

    # forward: rows in and out; backward: grad in, the table out
    return Case(
        "embedding",
        f"{rows}×{width}, {count} places",
        inputs,
        bound(PF),
        bound(F),
        forward_backward,
        read=2 * count * row,
        written=(count + rows) * row,
        dtype=dtype,
        target=target,
        quick=quick,
        scale=10.0,
    )


CASES = [
    case(10_000, 128, 4096, target=(3, 3), quick=True),
    case(28, 256, 1120, target=(3, 3), quick=True),
    case(10_000, 128, 4096, torch.bfloat16),
    case(50_257, 768, 2048),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_embedding(case, compare):
    compare(case)
