"""Recurrent layers over all steps, forward and backward with the gradients of input and weights."""

import pytest
import torch
from runner import Case

from pydl import nn

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def case(
    cls, steps, batch, units, features=28, target=None, quick=False, dtype=torch.float32, forward=False, **options
):
    layers, directions = options.get("num_layers", 1), 2 if options.get("bidirectional") else 1
    theirs = getattr(torch.nn, cls)(features, units, **options).to(dtype)
    projected = options.get("proj_size", 0)
    outputs = projected or units
    widths = [features] + [outputs * directions] * (layers - 1)
    numbers = sum((w + outputs) * GATES[cls] * units + projected * units for w in widths)
    products = numbers * directions * steps * batch

    def inputs():
        x = torch.randn(steps, batch, features, dtype=dtype).requires_grad_()
        grad = torch.randn(steps, batch, outputs * directions, dtype=dtype)
        weights = [p.detach().clone().requires_grad_() for p in theirs.parameters()]
        return [x, *weights, grad]

    names = [name for name, _ in theirs.named_parameters()]

    def bound(module):
        layer = getattr(module, cls)(features, units, **options)

        def run(x, *weights):
            # the weights as the caller has them, in float64 for the check
            return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))[0]

        return run

    def timed(function):
        def run(*tensors):
            *leaves, grad = tensors
            if forward:
                with torch.no_grad():
                    return (function(*leaves),)
            output = function(*leaves)
            return output, *torch.autograd.grad(output, leaves, grad)

        return run

    name = f"{cls} {steps}×{batch}×{units}"
    name += "".join(
        f" {k}" for k, v in {"2 layers": layers == 2, "2 directions": directions == 2, "forward": forward}.items() if v
    )
    name += f" to {projected}" if projected else ""
    return Case(
        "recurrent",
        name,
        inputs,
        bound(nn),
        bound(torch.nn),
        timed,
        operations=2 * products * (1 if forward else 3),
        dtype=dtype,
        compile=False,  # which leaves recurrent layers to eager mode
        target=target,
        quick=quick,
        scale=20.0,
    )


CASES = [
    case("GRU", 35, 32, 256, target=(2.0, 2.0), quick=True),
    case("GRU", 32, 1024, 32, target=(2.0, 2.0), quick=True),
    case("LSTM", 35, 32, 256, target=(0.95, 0.95), quick=True),
    case("LSTM", 32, 1024, 32, target=(0.95, 0.95), quick=True),
    case("RNN", 35, 32, 256, target=(2.0, 2.0), quick=True),
    case("RNN", 32, 1024, 32, target=(2.0, 2.0), quick=True),
    case("GRU", 10, 128, 256, features=256, num_layers=2, target=(2.0, 2.0)),
    case("LSTM", 500, 64, 100, features=100, num_layers=2, bidirectional=True, target=(0.95, 0.95)),
    case("GRU", 1, 1, 256, forward=True, target=(0.95, 0.95)),
    case("LSTM", 64, 1, 256, forward=True),
    case("LSTM", 35, 32, 256, proj_size=128, target=(0.95, 0.95)),
    case("LSTM", 32, 256, 64, proj_size=32, target=(0.95, 0.95)),
    case("GRU", 35, 32, 256, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_recurrent(case, compare):
    compare(case)
