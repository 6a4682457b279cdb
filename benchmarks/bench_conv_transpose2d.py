"""Transposed convolution: upsampling of segmentation networks, generators of images."""

import pytest
import torch
import torch.nn.functional as F
from runner import Case, forward_backward

import pydl.functional as PF


def forward(function):
    return lambda *inputs: (function(*inputs),)


def case(name, shape, weight, stride, padding, passes=forward_backward, channels_last=False, target=None, quick=False):
    n, _, *pixels = shape
    size = [(p - 1) * stride - 2 * padding + k for p, k in zip(pixels, weight[2:], strict=True)]

    def inputs():
        x, w, b = torch.randn(shape), torch.randn(weight) / 10, torch.randn(weight[1])
        if channels_last:
            x, w = (t.to(memory_format=torch.channels_last) for t in (x, w))
        if passes is forward:
            return [x, w, b]
        grad = torch.randn(n, weight[1], *size)
        grad = grad.contiguous(memory_format=torch.channels_last) if channels_last else grad
        return [*(t.requires_grad_() for t in (x, w, b)), grad]

    times = 1 if passes is forward else 3
    return Case(
        "conv_transpose2d",
        f"{name}{' channels_last' if channels_last else ''}{' forward' if passes is forward else ''}",
        inputs,
        lambda *t: PF.conv_transpose2d(*t, stride=stride, padding=padding),
        lambda *t: F.conv_transpose2d(*t, stride=stride, padding=padding),
        passes,
        operations=times * 2 * torch.Size(shape).numel() * torch.Size(weight[1:]).numel(),
        target=target,
        quick=quick,
    )


FCN = ("FCN 21→21, 64×64 stride 32, (8, 21, 10, 15)", (8, 21, 10, 15), (21, 21, 64, 64), 32, 16)
DCGAN = ("DCGAN 512→256, 4×4 stride 2, (64, 512, 8, 8)", (64, 512, 8, 8), (512, 256, 4, 4), 2, 1)
CASES = [
    case(*FCN, passes=forward, target=(8, 8)),
    case(*FCN, target=(6, 6)),
    case(*DCGAN, passes=forward, target=(1.05, 1.05)),
    case(*DCGAN, target=(1.05, 1.05)),
    case("DCGAN 64→3, 4×4 stride 2, (64, 64, 32, 32)", (64, 64, 32, 32), (64, 3, 4, 4), 2, 1, quick=True),
    case("DCGAN 100→512, 4×4 of one pixel, N 64", (64, 100, 1, 1), (100, 512, 4, 4), 1, 0),
    case("U-Net 128→64, 2×2 stride 2, (4, 128, 28, 28)", (4, 128, 28, 28), (128, 64, 2, 2), 2, 0),
    case("U-Net 128→64, 2×2 stride 2, (4, 128, 28, 28)", (4, 128, 28, 28), (128, 64, 2, 2), 2, 0, channels_last=True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_conv_transpose2d(case, compare):
    compare(case)
