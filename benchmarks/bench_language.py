"""One training step of three language models, of GPT and of BERT, beside torch, JAX and TensorFlow (peers.py)."""

import copy

import bert
import gpt
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


def check_gpt(_run, x, label):
    """A few steps without dropout, beside torch in float64."""
    ours, theirs = Step(), Step()
    theirs.net = gpt.of_torch(0.0)
    ours.net = gpt.Ours(pydl.models.gpt(**gpt.SIZES, dropout=0.0))
    ours.net.model.load_state_dict(theirs.net.state_dict())
    of_ours, of_torch = trained(pydl.swap(ours)), trained(theirs.double())
    for _ in range(3):
        torch.testing.assert_close(of_ours(x, label)[0].double(), of_torch(x, label)[0], rtol=1e-5, atol=0)


def gpt_case(rows, dropout, target):
    ours, theirs = Step(), Step()

    def inputs():
        theirs.net = gpt.of_torch(dropout)
        ours.net = gpt.Ours(pydl.models.gpt(**gpt.SIZES, dropout=dropout))
        pydl.swap(ours)
        return list(gpt.tokens(rows))

    task = {"model": "GPT", "rows": rows, "dropout": dropout, "libraries": ["mkl", "jax"]}
    return Case(
        "language",
        f"GPT 4 blocks of 128, {rows}×128, dropout {dropout:g}",
        inputs,
        ours,
        theirs,
        trained,
        target=(target, target),
        check=check_gpt,
        peers=lambda: (theirs.net, task | {"learning_rate": LEARNING_RATE}),
    )


def check_bert(_run, x, label):
    """A few steps without dropout on some rows, beside torch in float64."""
    x, label = tuple(part[:32] for part in x), label[:32]
    ours, theirs = bert.BertStep(), bert.BertStep()
    theirs.net, ours.net = bert.OfTorch(0.0), bert.Ours(0.0)
    ours.net.load_state_dict(theirs.net.state_dict())
    of_ours, of_torch = trained(pydl.swap(ours)), trained(theirs.double())
    for _ in range(3):
        torch.testing.assert_close(of_ours(x, label)[0].double(), of_torch(x, label)[0], rtol=1e-5, atol=0)


def bert_case(rows, dropout, target):
    ours, theirs = bert.BertStep(), bert.BertStep()

    def inputs():
        theirs.net, ours.net = bert.OfTorch(dropout), bert.Ours(dropout)
        pydl.swap(ours)
        return list(bert.inputs(rows))

    task = {"model": "BERT", "rows": rows, "dropout": dropout, "masked": bert.MASKED}
    return Case(
        "language",
        f"BERT 2 layers of 128, {rows}×64, dropout {dropout:g}",
        inputs,
        ours,
        theirs,
        trained,
        target=(target, target),
        check=check_bert,
        peers=lambda: (theirs.net, task | {"learning_rate": LEARNING_RATE}),
    )


CASES = [
    case(kind, *sizes, target)
    for kind, target in (("RNN", 1.5), ("GRU", 2.0), ("LSTM", 0.95))
    for sizes in ((35, 32, 256), (32, 1024, 32))
] + [gpt_case(16, 0.1, 1.5), gpt_case(16, 0.0, 1.3), bert_case(512, 0.1, 2.0), bert_case(512, 0.0, 2.0)]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_language(case, compare):
    compare(case)
