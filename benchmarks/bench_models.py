"""One training step of whole models: forward, loss, backward, SGD; swapped and fused, beside torch's two ways."""

import copy

import pytest
import torch
from runner import Case
from torch import nn

import pydl
from pydl import models

LEARNING_RATE = 0.01


def plain(model):
    """``pydl.models`` are built from ``pydl.nn``; the same model of torch's classes."""
    for layer in model.modules():
        if type(layer).__module__.startswith("pydl.nn."):
            layer.__class__ = getattr(nn, type(layer).__name__)
    return model


class Step(nn.Module):
    """A model and its loss, built when its case comes up."""

    def __init__(self):
        super().__init__()
        self.net, self.loss = nn.Identity(), nn.CrossEntropyLoss()

    def forward(self, x, target):
        return self.loss(self.net(x), target)


def trained(step):
    """The timed function: one step of ``step``, which returns the loss."""
    # a compiled module shares its parameters with the one that it was made from, which is trained on
    optimizer = torch.optim.SGD(step.parameters(), lr=LEARNING_RATE)

    def run(x, target):
        optimizer.zero_grad()
        loss = step(x, target)
        loss.backward()
        optimizer.step()
        return (loss.detach(),)

    return run


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
