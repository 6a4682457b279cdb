"""One training step of whole models: forward, loss, backward, SGD; swapped and fused, beside torch's two ways.

Also by our own backend of torch.compile (the ratio is that of eager mode), and beside the same step in JAX and
TensorFlow where they are installed, and torch's with MKL's own path (peers.py).
"""

import copy

import pytest
import torch
from runner import Case
from steps import LEARNING_RATE, Step, plain, trained
from torch import nn

import pydl
from pydl import models


def case(name, batch, channels, size, target, quick=False):
    ours, theirs = Step(), Step()

    def inputs():
        theirs.net = plain(getattr(models, name)())
        ours.net = copy.deepcopy(theirs.net)
        pydl.swap(ours)
        return [torch.randn(batch, channels, size, size), torch.randint(10, (batch,))]

    def check(run, x, label):
        """A few steps on copies, dropout off, beside torch in float64; the tests do fifty."""
        reference, twin = copy.deepcopy(theirs).double(), copy.deepcopy(ours)
        for layer in [*reference.modules(), *twin.modules()]:
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        steps = trained(twin), trained(reference)
        for tolerance in (1e-5, 1e-3, 1e-2):  # a deep network multiplies what rounding leaves
            loss, expected = steps[0](x, label)[0].double(), steps[1](x.double(), label)[0]
            close = abs(loss - expected) < tolerance * abs(expected)
            assert close, f"{name}: loss {loss:.8g}, torch in float64 {expected:.8g}"

    return Case(
        "models",
        f"{name}, N {batch}",
        inputs,
        ours,
        theirs,
        trained,
        target=(target, target),
        quick=quick,
        check=check,
        backend=True,
        peers=lambda: (
            theirs.net,
            {"model": name, "input": [batch, channels, size, size], "learning_rate": LEARNING_RATE},
        ),
    )


CASES = [
    case("lenet", 256, 1, 28, 1.5, quick=True),
    case("lenet_bn", 256, 1, 28, 1.8),
    case("cifar_net", 64, 3, 32, 1.4),
    case("resnet18", 32, 1, 96, 1.8),
    case("mlp", 256, 1, 28, 1.2, quick=True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_models(case, compare):
    compare(case)
