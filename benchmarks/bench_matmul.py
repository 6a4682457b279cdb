"""Products of matrices as programs write them (``X @ W``, ``torch.bmm``) beside torch eager: forward, all gradients.

torch.compile takes no part: for a single product it calls the same library. The share is of the multiply-adds of
float32 that registers allow, with packing and the output's allocation in the time.
"""

import pytest
import torch
from runner import Case

import pydl.functional as PF


def seen(tensors, transposed):
    """What is multiplied: ``k`` of attention lies as ``q`` does, and is read transposed."""
    left, right = tensors
    return (left, right.mT) if transposed else (left, right)


def forward(transposed):
    return lambda function: lambda left, right, grad: (function(*seen((left, right), transposed)),)


def with_gradients(transposed):
    def timed(function):
        def run(left, right, grad):
            output = function(*seen((left, right), transposed))
            return output, *torch.autograd.grad(output, (left, right), grad)

        return run

    return timed


def cases(name, left, right, transposed=False, dtype=torch.float32, quick=False):
    rows, depth, columns = left[-2], left[-1], right[-2] if transposed else right[-1]
    batch = torch.broadcast_shapes(left[:-2], right[:-2])
    output = (*batch, rows, columns)

    def inputs(gradients):
        tensors = [torch.randn(size).to(dtype) for size in (left, right, output)]
        tensors[1] /= depth**0.5
        if gradients:
            tensors[0].requires_grad_(), tensors[1].requires_grad_()
        return tensors

    read, written = (torch.Size(left).numel() + torch.Size(right).numel()), torch.Size(output).numel()
    for what, made, gradients in (("forward", forward, False), ("all passes", with_gradients, True)):
        yield Case(
            "matmul",
            f"{name}, {what}",
            lambda gradients=gradients: inputs(gradients),
            PF.matmul,
            torch.matmul,
            made(transposed),
            read=(read + (read + written) * gradients * 2) * dtype.itemsize,
            written=(written + read * gradients) * dtype.itemsize,
            operations=2 * torch.Size(output).numel() * depth * (3 if gradients else 1),
            dtype=dtype,
            compile=False,
            target=(1, 1),
            quick=quick,
            scale=30.0,
            seconds=1.0,
        )


CASES = [
    *cases("the book's mlp, 256×784 @ 784×256", (256, 784), (784, 256), quick=True),
    *cases("softmax regression, 256×784 @ 784×10", (256, 784), (784, 10)),
    *cases("512³", (512, 512), (512, 512)),
    *cases("2048³", (2048, 2048), (2048, 2048)),
    *cases("a stack times a matrix, 64×32×128 @ 128×256", (64, 32, 128), (128, 256)),
    *cases("scores of 9 tokens, 512×(9×64 @ 64×9)", (512, 9, 64), (512, 9, 64), transposed=True),
    *cases("values of 9 tokens, 512×(9×9 @ 9×64)", (512, 9, 9), (512, 9, 64)),
    *cases("scores of 64 tokens, 128×(64×64 @ 64×64)", (128, 64, 64), (128, 64, 64), transposed=True, quick=True),
    *cases("scores of 512 tokens, 8×8×(512×64 @ 64×512)", (8, 8, 512, 64), (8, 8, 512, 64), transposed=True),
    *cases("values of 512 tokens, 8×8×(512×512 @ 512×64)", (8, 8, 512, 512), (8, 8, 512, 64)),
    *cases("scores of 64 tokens", (128, 64, 64), (128, 64, 64), transposed=True, dtype=torch.bfloat16),
    *cases("512³", (512, 512), (512, 512), dtype=torch.bfloat16),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_matmul(case, compare):
    compare(case)
