"""``pydl.swap`` puts our kernels under an existing model, ``unswap`` takes them away, ``report`` says what serves what.

In this order, each importing from those above it alone:

rules.py       the one table: torch's layers, ours, and their parts in a chain
bound.py       what is bound to a module's instance, and what it answers to tools
layer.py       the forward of a layer, and why some layers are left to torch
chains.py      what one kernel computes in the place of several layers
container.py   the forward of a Sequential, and when its plan still holds
bind.py        puts all that on a module, and on its copies
model.py       swap, unswap and freeze: all that on the layers of a model
mode.py        ``with pydl.swapped():``
timing.py      where the time goes; table.py: the report
"""

import torch

from pydl.swapping import timing
from pydl.swapping.bind import rebuild
from pydl.swapping.container import FusedForward
from pydl.swapping.layer import SwappedForward, is_swapped
from pydl.swapping.mode import swapped
from pydl.swapping.model import freeze, swap, unswap
from pydl.swapping.table import Report, Row, make_report, report_optimizer

__all__ = [
    "FusedForward",
    "Report",
    "Row",
    "SwappedForward",
    "freeze",
    "is_swapped",
    "rebuild",
    "report",
    "swap",
    "swapped",
    "unswap",
]

rebuild.__module__ = __name__  # the name that stands in saved models, wherever the function is


def report(module, *example, compile=False):
    """A table of the layers of ``module``: what serves each now and what is fused into it, or why torch does.

    Args:
        module: a ``torch.nn.Module``, swapped, built from ``pydl.nn``, or neither; or an optimizer, of which one row
            says what takes its next step.
        example: tensors to call the model with. With them a step (forward, and backward in training mode) is timed on
            copies of the model, swapped and not, for a second or two; the last lines say what share of it pydl's
            kernels take, and which of torch's ops hold the rest.
        compile: times ``torch.compile`` of both, too, which takes as long as compiling does.

    Returns:
        A :class:`~pydl.swapping.Report` with ``rows`` of (name, layer, served_by, reason, fused), and ``timing``.

    >>> with pydl.backend.isa("baseline"):
    ...     print(pydl.report(pydl.swap(torch.nn.Sequential(torch.nn.Linear(20, 5), torch.nn.Flatten()))))
    name  layer    served by     fused, or why not by pydl
    ----  -------  ------------  ------------------------------
    0     Linear   cpu baseline
    1     Flatten  torch         pydl has no kernel for Flatten
    <BLANKLINE>
    pydl serves 1 of 2 layers
    """
    if isinstance(module, torch.optim.Optimizer):
        return report_optimizer(module)
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"report: expected module to be a torch.nn.Module, got {type(module).__name__}")
    for tensor in example:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"report: expected example to be tensors, got {type(tensor).__name__}")
    found = make_report(module)
    if example:
        found.timing = timing.measure(module, example, compile)
    elif compile:
        raise ValueError("report: expected an example beside compile=True, got none")
    return found
