"""Where the time of a model goes: how much of a step our kernels take, what holds the rest, and torch beside it."""

import contextlib
import copy
import os
import statistics
import sys
import time
from dataclasses import dataclass, field

import torch
from torch.profiler import ProfilerActivity, profile

from pydl._private import tree_leaves
from pydl.backend import use
from pydl.swapping.bound import is_bound
from pydl.swapping.container import FusedForward
from pydl.swapping.model import freeze, swap, unswap

_ROUNDS, _SECONDS = 5, 1.0  # at least this many rounds, and about this long in all
_LARGEST = 4  # of the others are named


@dataclass
class Timing:
    """Medians of one step (forward, and backward where the model is in training mode), in seconds."""

    seconds: dict  # contestant -> seconds: "swapped", "torch", and with compile "swapped compiled", "torch compiled"
    covered: float  # the share of our kernels in the swapped step, by the profiler
    others: list = field(default_factory=list)  # (name of torch's op, share), largest first
    step: str = "forward and backward"

    def __str__(self):
        ours, theirs = self.seconds["swapped"], self.seconds["torch"]
        lines = [
            f"{self.step}: {1e3 * ours:.3g} ms, {1e3 * theirs:.3g} ms by torch ({theirs / ours:.2f}×); pydl's kernels "
            f"take {100 * self.covered:.0f} % of it, then "
            + ", ".join(f"{name} {100 * share:.0f} %" for name, share in self.others)
        ]
        if "torch compiled" in self.seconds:
            ours, theirs = self.seconds["swapped compiled"], self.seconds["torch compiled"]
            better = "" if ours <= theirs else ": torch.compile does better without pydl here"
            lines.append(
                f"under torch.compile: {1e3 * ours:.3g} ms, {1e3 * theirs:.3g} ms by torch's own layers "
                f"({theirs / ours:.2f}×){better}"
            )
        return "\n".join(lines)


def measure(module, example, compile=False):
    """A :class:`Timing` of ``module`` on the tensors ``example``, measured on copies; nothing of it is changed."""
    forwards = [m.__dict__["forward"] for m in module.modules() if is_bound(m)]
    fused = [forward for forward in forwards if isinstance(forward, FusedForward)]
    swapped = swap(copy.deepcopy(module), fuse=bool(fused) or not forwards)
    plans = [forward.current for forward in fused if forward.current is not None]
    if any(chain.folded is not None for plan in plans for chain in plan.chains):
        freeze(swapped)  # copies are not
    contestants = {"swapped": swapped, "torch": unswap(copy.deepcopy(module))}
    if compile:
        for name in ("swapped", "torch"):
            contestants[f"{name} compiled"] = torch.compile(copy.deepcopy(contestants[name]))
    backward = module.training and any(p.requires_grad for p in module.parameters())
    devices = [example[0].device] if example[0].is_cuda else []
    with torch.random.fork_rng(devices):
        # under torch's backend, since layers of pydl.nn are ours without any swap
        steps = {
            name: _step(model, example, backward, "torch" if name.startswith("torch") else None)
            for name, model in contestants.items()
        }
        seconds = {name: [] for name in steps}
        for step in steps.values():
            step(), step()  # compiles, and fills caches
        start = time.perf_counter()
        while len(seconds["torch"]) < _ROUNDS or time.perf_counter() - start < _SECONDS:
            for name, step in steps.items():
                before = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - before)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        covered, others = _shares(steps["swapped"], devices)
    return Timing(medians, covered, others, "forward and backward" if backward else "forward")


def _step(model, example, backward, name=None):
    def step():
        with torch.set_grad_enabled(backward), use(name) if name else contextlib.nullcontext():
            output = model(*example)
            if backward:
                model.zero_grad()
                tensors = [t for t in _tensors(output) if t.requires_grad]
                torch.autograd.backward(tensors, [torch.ones_like(t) for t in tensors])
        if example[0].is_cuda:
            torch.cuda.synchronize(example[0].device)

    return step


def _tensors(output):
    leaves = tree_leaves(output) if not isinstance(output, torch.Tensor) else [output]
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


@contextlib.contextmanager
def _silent():
    """Keeps what the profiler's library writes of its own log to the file of stderr from being seen."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _nodes(cls=torch.autograd.Function):
    """The profiler's names of our autograd.Functions, forward and backward, wherever they stand in pydl."""
    names = set()
    for function in cls.__subclasses__():
        if function.__module__.partition(".")[0] == "pydl":
            names |= {function.__name__, f"{function.__name__}Backward"}
        names |= _nodes(function)
    return names


def _shares(step, devices):
    """(the share of our ops in the time of ``step``, the largest others)."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if devices else [])]
    profiler = profile(activities=activities)
    with _silent():
        profiler.start()
    for _ in range(_ROUNDS):
        step()
    with _silent():
        profiler.stop()
    nodes = _nodes()
    times = {}
    for event in profiler.key_averages():
        spent = event.self_device_time_total if devices else event.self_cpu_time_total
        # "autograd::engine::evaluate_function: _EagerConv2dBackward" is what the engine does around that node
        ours = "pydl" in event.key or event.key.rpartition(" ")[2] in nodes
        # "autograd::engine::evaluate_function: AddmmBackward0": a node of torch's by its own name
        name = "pydl" if ours else event.key.rpartition(": ")[2].removeprefix("aten::")
        times[name] = times.get(name, 0.0) + spent
    total = sum(times.values()) or 1.0
    others = sorted(((n, t / total) for n, t in times.items() if n != "pydl"), key=lambda pair: -pair[1])
    return times.get("pydl", 0.0) / total, others[:_LARGEST]
