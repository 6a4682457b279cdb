"""``pydl.swap`` puts our kernels under an existing model, ``unswap`` takes them away, ``report`` says what serves what.

served.py      which layers, and why the others are left to torch
binding.py     what is bound to a module's instance, and how it survives copies
chains.py      what one kernel computes in the place of several layers
planning.py    finds the chains: among neighbours of a Sequential, and in the graph (tracing.py) of a module's forward
fusing.py      a container's forward, and when its plan still holds
table.py       the report; timing.py: where the time goes
mode.py        ``with pydl.swapped():``
"""

import torch

from pydl.swapping import binding, planning, served, timing
from pydl.swapping.binding import SwappedForward, is_swapped, rebuild
from pydl.swapping.fusing import FusedForward
from pydl.swapping.mode import swapped
from pydl.swapping.table import Report, Row, make_report

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


def swap(module, fuse=True):
    """Puts pydl's kernels under the layers of ``module`` that they serve, in place.

    Types, parameters, ``state_dict`` keys, hooks and ``repr`` stay; copies, checkpoints, lazy layers and DataParallel
    replicas work. Layers that are left alone are named, with the reason, by :func:`report`. A second call changes
    nothing but to serve layers that were added or changed since.

    Args:
        module: a ``torch.nn.Module``: a model, one layer, or a loss.
        fuse: also computes chains of layers, such as batch norm and ReLU, by one kernel: between the neighbours of a
            ``Sequential``, and inside the forward of a module that can be traced. A layer that is called by itself, or
            that has hooks, still gives its own output.

    Returns:
        The same ``module``.

    Raises:
        TypeError: when it is no module, or one compiled by TorchScript.
    """
    _check("swap", module)
    for layer in module.modules():
        if not is_swapped(layer) and served.why_left(layer) is None:
            binding.bind(layer)
    for container in module.modules():
        if not fuse:
            if binding.is_bound(container, FusedForward):
                binding.unbind(container)
        elif (
            not binding.is_bound(container) and planning.could_fuse(container) and planning.why_never(container) is None
        ):
            binding.bind(container)
        if binding.is_bound(container, FusedForward):
            container.forward.changes = 0
            container.forward.plan(container)
    return module


def unswap(module):
    """Undoes :func:`swap` completely, in place: no attribute is left behind. Returns the same ``module``."""
    _check("unswap", module)
    for layer in module.modules():
        binding.unbind(layer)
    return module


def freeze(module):
    """Prepares a swapped model for prediction: each batch norm is folded into the convolution before it, once.

    The model is put into evaluation mode. What is folded is kept beside the model, not in its ``state_dict``, and is
    used in evaluation without gradients, as long as the parameters and running statistics are the same tensors and have
    not been written to (``tensor.data`` writes past that check: freeze again after it; and freeze copies of the model
    again). ``train()`` goes on as ever.

    Args:
        module: a ``torch.nn.Module`` that :func:`swap` has been called on; it is swapped if not.

    Returns:
        The same ``module``.

    Raises:
        TypeError: when it is no module, or one compiled by TorchScript.
    """
    _check("freeze", module)
    swap(module).eval()
    for container in module.modules():
        if binding.is_bound(container, FusedForward):
            plan = container.forward.plan(container)
            for chain in plan.chains if plan is not None else ():
                chain.freeze()
    return module


def report(module, *example, compile=False):
    """A table of the layers of ``module``: what serves each now and what is fused into it, or why torch does.

    Args:
        module: a ``torch.nn.Module``, swapped, built from ``pydl.nn``, or neither.
        example: tensors to call the model with. With them a step (forward, and backward in training mode) is timed on
            copies of the model, swapped and not, for a second or two; the last lines say what share of it pydl's
            kernels take, and which of torch's ops hold the rest.
        compile: times ``torch.compile`` of both, too, which takes as long as compiling does.

    Returns:
        A :class:`Report` with ``rows`` of (name, layer, served_by, reason, fused), and ``timing``.
    """
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


def _check(name, module):
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"{name}: expected module to be a torch.nn.Module, got {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(f"{name}: expected module to be an ordinary torch.nn.Module, got one compiled by TorchScript")
