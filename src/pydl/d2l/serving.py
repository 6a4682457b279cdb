"""pydl's kernels under a net that the book's functions train, and what they brought."""

import contextlib
import copy
import statistics
import time

import torch
from torch import nn

import pydl
from pydl import memory
from pydl.backend import use

# The comparison with torch takes three steps of each, and goes on for so long, or for this share of the training.
LEAST, SHARE, ROUNDS = 0.1, 0.05, 200


def serve(net, swap):
    """Swaps ``net`` where that is wanted and possible: functions and TorchScript stay as they are. Returns whether."""
    if not swap or not isinstance(net, nn.Module) or isinstance(net, torch.jit.ScriptModule):
        return False
    pydl.swap(net)
    return True


@contextlib.contextmanager
def training(swapped, optimizer=None):
    """While a net that was swapped trains: our kernel under its optimizer, our pool under torch's tensors.

    The pool's memory goes back at the end; an optimizer that is no torch's, or has no kernel, stays as it is.
    """
    if swapped and isinstance(optimizer, torch.optim.Optimizer):
        pydl.swap(optimizer)
    with memory.serving_torch(swapped):
        yield


def tell(net, step, seconds):
    """Prints how many layers are ours, and the time of a step beside torch's.

    Args:
        net: a net that was swapped.
        step: a function of a net that computes one step of the training, without the optimizer's; it is called with
            copies of ``net``.
        seconds: that the training took.
    """
    report = pydl.report(net)
    if all(row.served_by == "torch" for row in report.rows):
        print(report.summary())
        return
    copies = _copies(net, step)
    if copies is None:
        print(report.summary())
        return
    ours, theirs = _compare(copies, step, max(LEAST, SHARE * seconds))
    print(f"{report.summary()}: a step takes {_time(ours)}, {_time(theirs)} by torch ({theirs / ours:.2f}×)")


def _copies(net, step):
    """Copies of the net, swapped and not; None of a net that cannot be copied."""
    for attempt in range(2):
        try:
            return pydl.swap(copy.deepcopy(net)), pydl.unswap(copy.deepcopy(net))
        except RuntimeError:  # it keeps tensors of the last step's graph, such as weights of attention
            if attempt == 0:
                modes = [(module, module.training) for module in net.modules()]
                with torch.no_grad(), torch.random.fork_rng():
                    step(net.eval())
                for module, training in modes:
                    module.training = training
    return None


def _compare(copies, step, seconds):
    """Median seconds of a step of each copy, by turns."""
    found = [], []
    began = time.perf_counter()
    with torch.random.fork_rng():
        while len(found[0]) < 3 or (time.perf_counter() - began < seconds and len(found[0]) < ROUNDS):
            for net, backend, times in zip(copies, (None, "torch"), found, strict=True):
                before = time.perf_counter()
                if backend is None:
                    _step(net, step)
                else:
                    with use(backend):  # layers of pydl.nn are ours without any swap
                        _step(net, step)
                times.append(time.perf_counter() - before)
    return [statistics.median(times[1:]) for times in found]  # the first ones fill caches


def _step(net, step):
    net.train()
    net.zero_grad()
    step(net).backward()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _time(seconds):
    return f"{1e3 * seconds:.3g} ms"
