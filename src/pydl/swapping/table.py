"""``pydl.report``: which kernel serves each layer of a model, what is fused into it, or why not."""

from dataclasses import dataclass, field

import torch
from torch.nn.utils.parametrize import type_before_parametrizations

from pydl import backend, nn
from pydl.ops import _library
from pydl.swapping import planning, served
from pydl.swapping.binding import is_bound, is_swapped
from pydl.swapping.fusing import FusedForward
from pydl.swapping.timing import Timing

_OPS = {
    cls: op
    for layer, op in (("MaxPool2d", "max_pool2d"), ("AvgPool2d", "avg_pool2d"))
    for cls in (getattr(torch.nn, layer), getattr(nn, layer))
}
_CONTAINERS = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)


@dataclass(frozen=True)
class Row:
    """One layer of a :class:`Report`."""

    name: str  # as in named_modules(); empty for the module itself
    layer: str  # the class
    served_by: str  # "cpu avx512", "cuda", "triton" or "torch"
    reason: str  # why torch serves it; empty where pydl does
    fused: str = ""  # "with 1, 2": these are computed in its kernel; "in 0"; or why it is in no chain


@dataclass
class Report:
    """What serves each layer of a model at this moment; made by :func:`report`, printed as a table."""

    rows: list
    left: dict = field(default_factory=dict)  # container -> why its forward is called layer by layer
    timing: Timing | None = None  # where the report was given an example

    HEAD = ("name", "layer", "served by", "fused", "why not by pydl")

    def __str__(self):
        lines = [self.HEAD] + [(row.name, row.layer, row.served_by, row.fused, row.reason) for row in self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.HEAD))]
        lines.insert(1, tuple("-" * width for width in widths))
        text = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
        return "\n".join([line.rstrip() for line in text] + ["", self.summary()])

    def __repr__(self):
        return str(self)

    def __rich__(self):
        from rich.table import Table
        from rich.text import Text

        table = Table(*self.HEAD, caption=self.summary(), caption_justify="left")
        for row in self.rows:
            table.add_row(Text(row.name), row.layer, row.served_by, Text(row.fused), Text(row.reason))
        return table

    def summary(self):
        """How many layers pydl serves, which forwards are not fused and why, and where the time goes if it is known."""
        ours = sum(not row.reason for row in self.rows)
        lines = [
            f"{name or 'the model'} is called layer by layer: its forward {why}" for name, why in self.left.items()
        ]
        if self.timing is not None:
            lines.append(str(self.timing))
        return "\n".join([*lines, f"pydl serves {ours} of {len(self.rows)} layers"])


def make_report(module):
    """The :class:`Report` of a module, without timing."""
    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    fused, inside, left = _fusing(module)
    rows = []
    for name, layer in module.named_modules():
        cls = type_before_parametrizations(layer)
        if (
            cls in served.OURS
            or isinstance(layer, served.PYDL_NN)
            or (not any(layer.children()) and cls not in _CONTAINERS)
        ):
            served_by, reason = _status(layer, cls, device)
            if name in inside and reason:
                served_by, reason = _serving(device)  # as part of another layer's kernel
            rows.append(Row(name, cls.__name__, served_by, reason, fused.get(name, "")))
    return Report(rows, left)


def _fusing(module):
    """(what the column says by name, names of layers computed by another's kernel, forwards left alone)."""
    fused, inside, left = {}, set(), {}
    if backend._asked == "torch":
        return fused, inside, left
    names_of = {id(layer): name for name, layer in module.named_modules()}  # a shared layer has one row
    for name, container in module.named_modules():
        if not is_bound(container, FusedForward):
            if planning.could_fuse(container) and any(map(is_bound, container.children())):
                reason = planning.why_never(container)
                if reason is not None:
                    left[name] = reason
            continue
        plan = container.forward.plan(container)
        if plan is None:
            left[name] = "sees hooks of all modules, or changes from call to call"
            continue

        def row(link, container=container):
            return link if _is_function(link) else names_of[id(container.get_submodule(link))]

        if plan.why_not:
            left[name] = plan.why_not
        for names, remark in (kernel for chain in plan.chains for kernel in chain.kernels()):
            head, *others = map(row, names)
            if others:
                _join(fused, head, f"with {', '.join(others)}{remark}")
            for other in others:
                if not _is_function(other):
                    _join(fused, other, f"in {head}")
                    inside.add(other)
        for link, reason in plan.left.items():
            _join(fused, row(link), f"not fused: {reason}")
    return fused, inside, left


def _is_function(name):
    return name == "+" or name.endswith("()")


def _join(texts, name, text):
    known = texts.get(name)
    if known is None:
        texts[name] = text
    elif text not in known.split("; "):
        texts[name] = f"{known}; {text}"


def _status(layer, cls, model_device):
    if isinstance(layer, served.PYDL_NN):
        ours = next(base for base in cls.__mro__ if base in served.PYDL_NN)
        inherits = cls.forward is ours.forward and "forward" not in layer.__dict__
        reason = served.why_not_dtype(layer) if inherits else "its forward is its own"
    else:
        reason = served.why_left(layer) or (None if is_swapped(layer) else "not swapped")
    if reason is None:
        tensor = next(layer.parameters(), None)
        return _serving(model_device if tensor is None else tensor.device, cls)
    return "torch", reason


def _serving(device, cls=None):
    """What serves our layers (``cls`` among them) on ``device``, and why that is not pydl, if so."""
    if _library.on_cpu_alone(_OPS.get(cls)) and backend._asked is None and device.type not in ("cpu", "meta"):
        return "torch", f"pydl has no kernel for {cls.__name__} on {device.type}"
    try:
        name = backend.current(device)
    except RuntimeError as error:  # no backend for this device: a call would raise the same
        return "nothing", str(error)
    if _library.on_cpu_alone(_OPS.get(cls)) and name not in ("cpu", "torch"):
        return "torch", f"the backend {name} has no kernel for {cls.__name__}"
    if name == "torch":
        return name, "meta tensors hold no data" if device.type == "meta" else "the backend torch was asked for"
    return (f"cpu {backend.current_isa()}" if name == "cpu" else name), ""
