"""One case: the result is checked, then pydl, torch eager and torch.compile are timed in turns in the same run.

Outputs are allocated inside the timed region, as a user's are. Each round times every contestant once, so that a slow
spell of the machine hits all alike; what is reported is the median.
"""

import dataclasses
import time
from collections.abc import Callable

import peers
import torch

# (relative, absolute) tolerance of the check against torch in float64
TOLERANCE = {
    torch.float32: (1e-4, 1e-5),
    torch.bfloat16: (4e-2, 4e-2),
    torch.float16: (4e-3, 4e-3),
}


@dataclasses.dataclass
class Case:
    """What is timed: a function of tensors, once with pydl's ops and once with torch's.

    Args:
        op: the op's name; one table per op is printed.
        name: the row of the table.
        inputs: makes the list of tensors; leaves that need a gradient have ``requires_grad``.
        ours, torch: the forward, a function of these tensors but the last.
        timed: makes the timed function of all tensors out of a forward; it returns a tuple, which the check compares.
        read, written: bytes that no implementation can avoid to read and to write.
        operations: floating-point operations of the direct method.
        dtype: shown, and picks the tolerance.
        compile: whether torch.compile takes part (for single convolutions it calls the same library).
        quick: whether the case is part of the quick run.
        target: the ratios aimed at, (as it comes, without page faults), or None.
        check: replaces the comparison with float64 (random ops): called with the timed function and the inputs.
        scale: multiplies the absolute tolerance, for outputs that are sums of many terms.
        oracle: the dtype in which torch's result is computed for the check.
        seconds: how long the case is timed (but for the quick run).
        network: for one of many layers of a network, {"name", "pass", "channels_last"}: such cases are reported by
            network, as a geometric mean and the worst of them.
        backend: whether ``torch.compile(backend="pydl")`` of ours takes part, beside swapped in eager mode.
        peers: for a whole training step, what processes of other libraries need to take it too: returns the model and
            their task (peers.Peer).
    """

    op: str
    name: str
    inputs: Callable
    ours: Callable
    torch: Callable
    timed: Callable
    read: int = 0
    written: int = 0
    operations: int = 0
    dtype: torch.dtype = torch.float32
    compile: bool = True
    quick: bool = False
    target: tuple | None = None
    check: Callable | None = None
    scale: float = 1.0
    oracle: torch.dtype = torch.float64
    seconds: float = 2.5
    network: dict | None = None
    backend: bool = False
    peers: Callable | None = None

    @property
    def id(self):
        dtype = str(self.dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "f")
        return f"{self.name} {dtype}"


def forward_backward(function):
    """Of (*inputs, grad): the output, and the gradients of the inputs that need one."""

    def run(*tensors):
        *inputs, grad = tensors
        output = function(*inputs)
        return output, *torch.autograd.grad(output, [t for t in inputs if t.requires_grad], grad)

    return run


def check(case, inputs):
    """Compares ours with torch in ``case.oracle``; AssertionError names the first tensor that differs."""
    if case.check is not None:
        case.check(case.timed(case.ours), *inputs)
        return

    def copies(dtype=None):
        detached = [t.detach().to(dtype) if dtype and t.is_floating_point() else t.detach().clone() for t in inputs]
        return [t.requires_grad_(before.requires_grad) for t, before in zip(detached, inputs, strict=True)]

    relative, absolute = TOLERANCE[case.dtype]
    expected = case.timed(case.torch)(*copies(case.oracle))
    words = str(case.oracle).removeprefix("torch.")
    for i, (ours, theirs) in enumerate(zip(case.timed(case.ours)(*copies()), expected, strict=True)):
        error = (ours.double() - theirs).abs()
        allowed = relative * theirs.abs() + absolute * case.scale * theirs.square().mean().sqrt()
        # where ReLU's input is 0 within rounding, its gradient may fall on either side
        wrong = (error > allowed).double().mean().item()
        assert wrong <= 1e-5, f"{case.id}: result {i} differs from torch in {words} by up to {error.max().item():.3g}"


def time_once(function, inputs, calls):
    if isinstance(function, peers.Peer):  # which times itself
        return function.seconds(calls)
    start = time.perf_counter()
    for _ in range(calls):
        function(*inputs)
    return (time.perf_counter() - start) / calls


def contestants(case):
    """The timed functions by name; pydl first."""
    found = {"pydl": case.timed(case.ours), "eager": case.timed(case.torch)}
    if case.compile:
        torch._dynamo.reset()
        found["compile"] = case.timed(torch.compile(case.torch, dynamic=False))
    if case.backend:
        found["pydl_compiled"] = case.timed(torch.compile(case.ours, backend="pydl", dynamic=False))
    if case.peers is not None:
        model, task = case.peers()
        able = task.get("libraries", peers.present())  # not every peer has every model
        found |= {name: peers.Peer(name, model, task) for name in peers.present() if name in able}
    return found


def plan(seconds, budget, least=0.0):
    """(calls per round, rounds) for contestants that take ``seconds`` together, within a budget of seconds.

    A round takes ``least`` seconds, and 2 ms, so that the clock's grain does not count.
    """
    calls = max(1, int(max(2e-3, least) / seconds))
    return calls, max(3, min(200, int(budget / (seconds * calls))))


def figures(case, seconds, ceilings, cache):
    """The figures of a case from its median seconds by contestant."""
    record = {f"{name}_us": value * 1e6 for name, value in seconds.items()}
    ours, best = seconds["pydl"], min(value for name, value in seconds.items() if not name.startswith("pydl"))
    record["ratio"] = best / ours
    moved = case.read + case.written
    if moved:
        record["gbps"] = moved / ours / 1e9
    if case.operations:
        record["gflops"] = case.operations / ours / 1e9
    if ceilings:
        both = min(case.read, case.written)
        floor = 0.0
        if moved > cache:  # in the caches, memory's bandwidth is no limit
            floor = 2e-9 * both / ceilings["copy"] + 1e-9 * max(case.read - both, 0) / ceilings["read"]
        floor = max(floor, 1e-9 * case.operations / ceilings["fma"])
        if floor:
            record["share"] = floor / ours
    return record
