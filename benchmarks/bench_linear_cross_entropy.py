"""A linear layer and cross entropy in one, forward and backward, mean over the rows, beside torch's two calls.

A row of the table is rows × features → classes; operations are those of the three products. `bench_memory` holds the
rise of a process's peak, without the gradients, beside that of the two calls, each in a process of its own:

    python benchmarks/bench_linear_cross_entropy.py pydl 2048 128 10000      # bytes
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import pydl.functional as PF


def tensors(rows, features, classes, dtype=torch.float32):
    x, w, b = torch.randn(rows, features), torch.randn(classes, features) / features**0.5, torch.randn(classes)
    return [t.to(dtype).requires_grad_() for t in (x, w, b)] + [torch.randint(classes, (rows,))]


def ours(x, w, b, target):
    return PF.linear_cross_entropy(x, w, target, linear_bias=b)


def two_calls(x, w, b, target):
    return F.cross_entropy(F.linear(x, w, b), target)


def peak(function, sizes):
    """Bytes by which a forward and backward raise the process's peak, the gradients left out."""
    inputs = tensors(*sizes)
    small = tensors(8, 8, 8)
    torch.autograd.grad(function(*small), small[:3])  # code is loaded, threads are started
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmHWM")
    grads = torch.autograd.grad(function(*inputs), inputs[:3])
    return resident("VmHWM") - before - sum(t.nbytes for t in grads)


def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


if __name__ == "__main__":
    print(peak({"pydl": ours, "torch": two_calls}[sys.argv[1]], [int(size) for size in sys.argv[2:]]))
    sys.exit()

from runner import Case, forward_backward


def case(rows, features, classes, dtype=torch.float32, target=None, memory=None, quick=False):
    def inputs():
        return [*tensors(rows, features, classes, dtype), torch.ones((), dtype=dtype)]

    numbers = rows * features + classes * features + classes
    found = Case(
        "linear_cross_entropy",
        f"{rows} × {features} → {classes}",
        inputs,
        ours,
        two_calls,
        forward_backward,
        read=numbers * dtype.itemsize,
        written=numbers * dtype.itemsize,
        operations=6 * rows * features * classes,
        dtype=dtype,
        target=target,
        quick=quick,
        scale=30.0,
        seconds=4.0,
    )
    SIZES[found.id] = (rows, features, classes), memory
    return found


SIZES = {}  # id -> the three numbers, and the share of the two calls' memory that is aimed at, or None
CASES = [
    case(2048, 128, 10000, target=(3.8, 1), memory=1 / 8),  # a language model on words
    case(512, 256, 20256, target=(2.8, 1), memory=1 / 4, quick=True),
    case(1120, 256, 28, target=(1, 1), quick=True),  # and on characters
    case(2048, 128, 10000, torch.bfloat16, target=(1, 1)),
    case(512, 256, 20256, torch.bfloat16, target=(1, 1)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_linear_cross_entropy(case, compare):
    compare(case)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("case", [c for c in CASES if SIZES[c.id][1]], ids=lambda c: c.id)
def bench_memory(case, capsys):
    sizes, share = SIZES[case.id]
    # whatever the run without page faults asks of the allocator would be in the peak
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    rises = [
        int(subprocess.check_output([sys.executable, __file__, who, *map(str, sizes)], env=environment))
        for who in ("pydl", "torch")
    ]
    with capsys.disabled():
        print("\n{}: {:.1f} MB beside {:.1f}".format(case.id, *(rise / 1e6 for rise in rises)))
    assert rises[0] <= share * rises[1]
