"""Bags of embeddings, forward and backward: the gradient is the size of the table."""

import pytest
import torch
import torch.nn.functional as F
from runner import Case, forward_backward

import pydl.functional as PF


def case(rows, width, count, length, mode="mean", dtype=torch.float32, quick=False):
    row = width * dtype.itemsize

    def inputs():
        return [
            torch.randn(rows, width).to(dtype).requires_grad_(),
            torch.randint(rows, (count, length)),
            torch.randn(count, width).to(dtype),
        ]

    def bound(library):
        return lambda weight, ids: library.embedding_bag(ids, weight, mode=mode)

    # forward: rows in, bags out; backward: for each row its bag in, the table out
    return Case(
        "embedding_bag",
        f"{rows}×{width}, {count} {mode}s of {length}",
        inputs,
        bound(PF),
        bound(F),
        forward_backward,
        read=2 * count * length * row,
        written=(count + rows) * row,
        dtype=dtype,
        quick=quick,
        scale=10.0,
    )


CASES = [
    case(10_000, 128, 256, 32, quick=True),
    case(10_000, 64, 512, 20, "sum"),
    case(100_000, 32, 1024, 10),
    case(1000, 64, 256, 50),
    case(10_000, 128, 256, 32, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_embedding_bag(case, compare):
    compare(case)
