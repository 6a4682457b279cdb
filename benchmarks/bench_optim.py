"""A step of each optimizer, and clipping by norm, over parameters of models; beside torch's default and fused loops.

Nothing but the step is timed; the gradients stay. Lists of parameters: LeNet's ten small ones, the MLP's, forty of one
size, and ten million numbers.
"""

import pytest
import torch
from runner import Case

import pydl.optim

LENET = [(6, 1, 5, 5), (6,), (16, 6, 5, 5), (16,), (120, 400), (120,), (84, 120), (84,), (10, 84), (10,)]
LISTS = {
    "LeNet, 62 k": LENET,
    "MLP, 655 k": [(512, 784), (512,), (450, 512), (450,), (50, 450), (50,)],
    "40 tensors, 655 k": [(128, 128)] * 40,
    "10 M": [(1000, 1000)] * 10,
}
STATES = {"Adam": 2, "AdamW": 2, "SGD": 1, "RMSprop": 1, "Adadelta": 2}


def parameters(name):
    found = [torch.nn.Parameter(torch.randn(shape)) for shape in LISTS[name]]
    for p in found:
        p.grad = torch.randn(p.shape) * 0.01
    return found


def count(name):
    return sum(torch.Size(shape).numel() for shape in LISTS[name])


def stepper(library, optimizer, name, **options):
    """Makes the timed function, with parameters of its own, which are the same for both libraries."""

    def make():
        torch.manual_seed(0)
        params = parameters(name)
        step = getattr(library, optimizer)(params, **options).step
        step()  # in which the state is made

        def run():
            step()
            return tuple(params)

        return run

    return make


def clipper(clip, name, shrinks):
    """shrinks: the largest norm becomes smaller at each call, so that the gradients are multiplied each time."""

    def make():
        torch.manual_seed(0)
        params = parameters(name)
        largest = [0.5 if shrinks else 1e9]

        def run():
            largest[0] *= 0.9999 if shrinks else 1.0
            return (clip(params, largest[0]), *(p.grad for p in params))

        return run

    return make


def agrees(ours, torchs):
    def check(_):
        for mine, theirs in zip(ours()(), torchs()(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)

    return check


def case(name, ours, torchs, read, written, target=None, quick=False):
    return Case(
        "optim",
        name,
        list,
        ours,
        torchs,
        lambda make: make(),
        read=read,
        written=written,
        compile=False,
        target=target and (target, target),
        quick=quick,
        check=agrees(ours, torchs),
    )


def step_case(optimizer, name, fused=False, target=None, quick=False, **options):
    size, states = 4 * count(name), STATES[optimizer]
    rival = {**options, "fused": True} if fused else options
    return case(
        f"{optimizer} {name}, {'fused' if fused else 'default'}",
        stepper(pydl.optim, optimizer, name, **options),
        stepper(torch.optim, optimizer, name, **rival),
        (states + 2) * size,
        (states + 1) * size,
        target,
        quick,
    )


def clip_case(name, shrinks, target=None, quick=False):
    size = 4 * count(name)
    return case(
        f"clip {name}, {'scaled' if shrinks else 'norm small enough'}",
        clipper(pydl.optim.clip_grad_norm_, name, shrinks),
        clipper(torch.nn.utils.clip_grad_norm_, name, shrinks),
        size,
        size if shrinks else 0,
        target,
        quick,
    )


CASES = [
    step_case("Adam", "LeNet, 62 k", fused=True, quick=True),
    step_case("Adam", "LeNet, 62 k"),
    step_case("Adam", "MLP, 655 k", fused=True, target=3.5, quick=True),
    step_case("Adam", "MLP, 655 k", target=12, quick=True),
    step_case("Adam", "40 tensors, 655 k", fused=True, target=3.5),
    step_case("Adam", "40 tensors, 655 k", target=12),
    step_case("Adam", "10 M", fused=True, target=0.95),
    step_case("Adam", "10 M", target=2),
    step_case("AdamW", "MLP, 655 k"),
    step_case("SGD", "LeNet, 62 k", fused=True, momentum=0.9),
    step_case("SGD", "MLP, 655 k", fused=True, momentum=0.9),
    step_case("SGD", "MLP, 655 k", momentum=0.9),
    step_case("SGD", "10 M", momentum=0.9),
    step_case("RMSprop", "MLP, 655 k"),
    step_case("Adadelta", "MLP, 655 k"),
    clip_case("LeNet, 62 k", True),
    clip_case("MLP, 655 k", True, quick=True),
    clip_case("MLP, 655 k", False, target=8, quick=True),
    clip_case("10 M", True),
    clip_case("10 M", False, target=3),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_optim(case, compare):
    compare(case)
