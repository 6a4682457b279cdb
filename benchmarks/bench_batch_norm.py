"""Batch normalisation in training, with ReLU and a residual where networks have them, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from runner import Case, forward_backward

import pydl.functional as PF


def theirs(x, weight, bias, mean, var, residual=None, activation=None):
    y = F.batch_norm(x, mean, var, weight, bias, training=True)
    if residual is not None:
        y = y + residual
    return F.relu(y) if activation == "relu" else y


def ours(x, weight, bias, mean, var, residual=None, activation=None):
    return PF.batch_norm(x, mean, var, weight, bias, training=True, residual=residual, activation=activation)


def case(shape, dtype=torch.float32, relu=True, residual=False, channels_last=False, target=None, quick=False):
    channels = shape[1]

    def inputs():
        def image():
            t = torch.randn(shape).to(dtype)
            return t.to(memory_format=torch.channels_last) if channels_last else t

        weight, bias = torch.rand(channels) + 0.5, torch.randn(channels)
        tensors = [image(), weight, bias]
        if residual:
            tensors.append(image())
        for t in tensors:
            t.requires_grad_()
        statistics = [torch.zeros(channels), torch.ones(channels)]
        return [*tensors[:3], *statistics, *tensors[3:], image()]

    def bound(function):
        return lambda *tensors: function(*tensors, activation="relu" if relu else None)

    size = torch.Size(shape).numel() * dtype.itemsize
    layout = "" if len(shape) == 2 else " channels_last" if channels_last else " NCHW"
    name = f"BN{' + residual' if residual else ''}{' + ReLU' if relu else ''} {shape}{layout}".replace(", ", ",")
    # forward: x and the residual in, y out; backward: x, y's sign and grad in (y is recomputed), gradients out
    return Case(
        "batch_norm",
        name,
        inputs,
        bound(ours),
        bound(theirs),
        forward_backward,
        read=size * (3 + 2 * residual),
        written=size * (2 + residual),
        dtype=dtype,
        target=target,
        quick=quick,
        scale=10.0 if dtype == torch.float32 else 1.0,
    )


IMAGE = (64, 64, 56, 56)
CASES = [
    case(IMAGE, target=(8, 3)),
    case(IMAGE, channels_last=True, target=(8, 2)),
    case(IMAGE, residual=True, target=(8, 3)),
    case(IMAGE, residual=True, channels_last=True, target=(8, 2)),
    case(IMAGE, torch.bfloat16),
    case((256, 6, 24, 24), target=(3, 2), quick=True),
    case((32, 256, 14, 14), target=(2, 2)),
    case((32, 256, 14, 14), channels_last=True),
    case((256, 120), relu=False, target=(1, 1), quick=True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_batch_norm(case, compare):
    compare(case)
