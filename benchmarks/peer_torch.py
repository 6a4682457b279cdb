"""A training step in torch eager, in a process of its own: see peers.py, which gives MKL another idea of the CPU."""

import time

import torch
from peers import serve
from steps import Step, plain, trained

from pydl import models


def make(task):
    step = Step()
    step.net = plain(getattr(models, task["model"])())
    run = trained(step, task["learning_rate"])
    x, target = torch.randn(task["input"]), torch.randint(10, task["input"][:1])

    def steps(count):
        begin = time.perf_counter()
        for _ in range(count):
            run(x, target)
        return time.perf_counter() - begin

    return sum(p.numel() for p in step.parameters()), steps


if __name__ == "__main__":
    serve(make)
