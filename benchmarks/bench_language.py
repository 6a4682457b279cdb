"""One training step of the book's three language models, beside torch, JAX and TensorFlow (peers.py)."""

import copy

import pytest
import torch
from runner import Case
from steps import LEARNING_RATE, Language, Step, trained

import pydl

CHARACTERS = 28


def case(kind, steps, batch, units, target):
    ours, theirs = Step(), Step()

    def inputs():
        theirs.net = Language(kind, CHARACTERS, units)
        ours.net = copy.deepcopy(theirs.net)
        pydl.swap(ours)
        return [torch.randint(CHARACTERS, (steps, batch)), torch.randint(CHARACTERS, (steps * batch,))]

    def check(run, x, label):
        """A few steps on copies, beside torch in float64."""
        reference, twin = copy.deepcopy(theirs).double(), copy.deepcopy(ours)
        of_ours, of_torch = trained(twin), trained(reference)
        for _ in range(3):
            torch.testing.assert_close(of_ours(x, label)[0].double(), of_torch(x, label)[0], rtol=1e-5, atol=0)

    task = {"model": kind, "tokens": [steps, batch], "characters": CHARACTERS, "units": units}
    return Case(
        "language",
        f"{kind} {steps}×{batch}×{units}",
        inputs,
        ours,
        theirs,
        trained,
        compile=False,  # which leaves recurrent layers to eager mode
        target=(target, target),
        check=check,
        peers=lambda: (theirs.net, task | {"learning_rate": LEARNING_RATE}),
    )


CASES = [
    case(kind, *sizes, target)
    for kind, target in (("RNN", 1.5), ("GRU", 2.0), ("LSTM", 0.95))
    for sizes in ((35, 32, 256), (32, 1024, 32))
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_language(case, compare):
    compare(case)
