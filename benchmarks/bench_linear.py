"""Fully connected layer: forward and each gradient alone, beside torch eager.

torch.compile takes no part: for a single product it calls the same library. A row of the table is rows × inputs ×
outputs; its share is of the multiply-adds of float32 that registers allow, for bfloat16 too, with packing and the
output's allocation in the time.
"""

import pytest
import torch
import torch.nn.functional as F
from runner import Case

import pydl.functional as PF

PASSES = {"forward": None, "input gradient": 0, "weight gradient": 1, "bias gradient": 2}


def forward(function):
    return lambda x, weight, bias, grad: (function(x, weight, bias),)


def gradient(of):
    """Times one gradient alone: the graph is built at the first call and kept."""

    def timed(function):
        graph = {}

        def run(*tensors):
            *tensors, grad = tensors
            if graph.get("weight") is not tensors[1]:
                graph.update(weight=tensors[1], output=function(*tensors))
            return torch.autograd.grad(graph["output"], tensors[of], grad, retain_graph=True)

        return run

    return timed


def case(what, shape, dtype=torch.float32, target=None, quick=False):
    rows, depth, features = shape
    sizes = (rows, depth), (features, depth), (features,), (rows, features)
    of = PASSES[what]

    def inputs():
        tensors = [torch.randn(size).to(dtype) for size in sizes]
        tensors[1] /= depth**0.5
        if of is not None:
            tensors[of].requires_grad_()
        return tensors

    size = {
        name: torch.Size(s).numel() * dtype.itemsize
        for name, s in zip(("x", "weight", "bias", "y"), sizes, strict=True)
    }
    read, written = {
        "forward": (size["x"] + size["weight"] + size["bias"], size["y"]),
        "input gradient": (size["y"] + size["weight"], size["x"]),
        "weight gradient": (size["y"] + size["x"], size["weight"]),
        "bias gradient": (size["y"], size["bias"]),
    }[what]
    return Case(
        "linear",
        f"{rows} × {depth} × {features}, {what}",
        inputs,
        PF.linear,
        F.linear,
        forward if of is None else gradient(of),
        read=read,
        written=written,
        operations=rows * features if of == 2 else 2 * rows * depth * features,
        dtype=dtype,
        compile=False,
        target=target and (target, target),
        quick=quick,
        scale=30.0,
        seconds=1.0,
    )


def of_shape(rows, depth, features, dtype=torch.float32, quick=False):
    """All passes, none of which is to be slower than torch's."""
    return [
        case(what, (rows, depth, features), dtype, target=1, quick=quick and what != "bias gradient") for what in PASSES
    ]


CASES = [
    *of_shape(256, 784, 256, quick=True),  # the book's mlp
    *of_shape(256, 256, 256),
    *of_shape(256, 400, 120),  # LeNet's
    *of_shape(256, 84, 10, quick=True),
    *of_shape(512, 512, 512),
    *of_shape(1024, 1024, 1024),
    *of_shape(2048, 2048, 2048),
    *of_shape(2048, 128, 512),  # a transformer's
    *of_shape(2048, 512, 128),
    *of_shape(32768, 128, 256),
    *of_shape(128, 9216, 4096),  # AlexNet's, larger than the caches
    *of_shape(1120, 28, 768),  # a recurrent cell's inputs
    *of_shape(32, 256, 1024),
    *of_shape(256, 784, 256, torch.bfloat16),
    *of_shape(512, 512, 512, torch.bfloat16, quick=True),
    *of_shape(1024, 1024, 1024, torch.bfloat16),
    *of_shape(128, 9216, 4096, torch.bfloat16),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_linear(case, compare):
    compare(case)
