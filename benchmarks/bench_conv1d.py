"""1-D convolution: texts as rows of embedded words, and signals."""

import pytest
import torch
import torch.nn.functional as F
from runner import Case, forward_backward

import pydl.functional as PF


def forward(function):
    return lambda *inputs: (function(*inputs),)


def case(name, shape, weight, passes=forward_backward, target=None, quick=False):
    length = shape[2] - weight[2] + 1

    def inputs():
        x, w, b = torch.randn(shape), torch.randn(weight) / 10, torch.randn(weight[0])
        if passes is forward:
            return [x, w, b]
        return [*(t.requires_grad_() for t in (x, w, b)), torch.randn(shape[0], weight[0], length)]

    times = 1 if passes is forward else 3
    return Case(
        "conv1d",
        f"{name}{' forward' if passes is forward else ''}",
        inputs,
        PF.conv1d,
        F.conv1d,
        passes,
        operations=times * 2 * shape[0] * length * torch.Size(weight).numel(),
        target=target,
        quick=quick,
    )


TEXTS = [(f"TextCNN 100→100, {k} of (64, 100, 500)", (64, 100, 500), (100, 100, k)) for k in (3, 4, 5)]
CASES = [
    *(case(*text, target=(1.4, 1.4)) for text in TEXTS),
    *(case(*text, passes=forward) for text in TEXTS),
    case("64→128, 3 of (32, 64, 128)", (32, 64, 128), (128, 64, 3), quick=True),
    case("1→32, 7 of (16, 1, 1000)", (16, 1, 1000), (32, 1, 7)),
    case("16→16, 3 of (8, 16, 50)", (8, 16, 50), (16, 16, 3)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_conv1d(case, compare):
    compare(case)
