"""A training step in torch eager, in a process of its own: see peers.py, which gives MKL another idea of the CPU."""

import time

import bert
import gpt
import torch
from peers import serve
from steps import Language, Step, plain, trained

from pydl import models


def make(task):
    step = Step()
    if task["model"] == "GPT":
        step.net = gpt.of_torch(task["dropout"])
        x, target = gpt.tokens(task["rows"])
    elif task["model"] == "BERT":
        step = bert.BertStep()
        step.net = bert.OfTorch(task["dropout"])
        x, target = bert.inputs(task["rows"])
    elif "tokens" in task:
        step.net = Language(task["model"], task["characters"], task["units"])
        x, target = (torch.randint(task["characters"], task["tokens"]) for _ in range(2))
        target = target.flatten()
    else:
        step.net = plain(getattr(models, task["model"])())
        x, target = torch.randn(task["input"]), torch.randint(10, task["input"][:1])
    run = trained(step, task["learning_rate"])

    def steps(count):
        begin = time.perf_counter()
        for _ in range(count):
            run(x, target)
        return time.perf_counter() - begin

    return sum(p.numel() for p in step.parameters()), steps


if __name__ == "__main__":
    serve(make)
