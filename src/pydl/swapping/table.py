"""``pydl.report``: which kernel serves each layer of a model, what is fused into it, or why not."""

import textwrap
from dataclasses import dataclass, field

import torch

from pydl import aside, backend, optim
from pydl._brief import html_table
from pydl.ops import _library
from pydl.swapping.bound import is_bound
from pydl.swapping.container import FusedForward, could_fuse, why_layer_by_layer
from pydl.swapping.layer import is_swapped, why_aside, why_left, why_not_channels, why_not_dtype
from pydl.swapping.rules import OURS, class_of, rule_of
from pydl.swapping.timing import Timing

_COLUMNS = 80
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
    """What serves each layer of a model at this moment; made by :func:`pydl.report`, printed as a table."""

    rows: list
    left: dict = field(default_factory=dict)  # module -> what else is to be said of it, "is called layer by layer: ..."
    timing: Timing | None = None  # where the report was given an example
    unit: str = "layers"  # what a row is

    HEAD = ("name", "layer", "served by", "fused, or why not by pydl")

    def _cells(self):
        return [(r.name, r.layer, r.served_by, "; ".join(filter(None, (r.fused, r.reason)))) for r in self.rows]

    def __str__(self):
        rows = [self.HEAD, *self._cells()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        room = max(_COLUMNS - sum(widths) - 6, 20)
        rows.insert(1, tuple("-" * width for width in (*widths, min(room, max(len(row[3]) for row in rows)))))
        lines = []
        for row in rows:
            first, *more = textwrap.wrap(row[3], room) or [""]
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            lines += ["  ".join((*cells, first)), *(" " * (sum(widths) + 6) + text for text in more)]
        return "\n".join([line.rstrip() for line in lines] + ["", self.summary()])

    def __repr__(self):
        return str(self)

    def __rich__(self):
        from rich.table import Table
        from rich.text import Text

        table = Table(*self.HEAD, caption=self.summary(), caption_justify="left")
        for row in self._cells():
            table.add_row(*map(Text, row))
        return table

    def _repr_html_(self):
        return html_table(self.HEAD, self._cells(), self.summary())

    def summary(self):
        """How many layers pydl serves, what steps aside, and where the time goes if it is known."""
        ours = sum(not row.reason for row in self.rows)
        lines = [f"{name or 'the model'} {why}" for name, why in self.left.items()]
        if self.timing is not None:
            lines.append(str(self.timing))
        return "\n".join([*lines, f"pydl serves {ours} of {len(self.rows)} {self.unit}"])


def make_report(module):
    """The :class:`Report` of a module, without timing."""
    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    fused, inside, left = _fusing(module)
    rows = []
    for name, layer in module.named_modules():
        cls = class_of(layer)
        if (
            rule_of(cls) is not None
            or isinstance(layer, OURS)
            or (not any(layer.children()) and cls not in _CONTAINERS)
        ):
            served_by, reason = _status(layer, cls, device)
            if name in inside and reason:
                served_by, reason = serving_on(device)  # as part of another layer's kernel
            elif not reason and layer in aside.of_tensors:
                left[name] = f"has stepped aside for its input: {aside.of_tensors[layer]}"
            rows.append(Row(name, cls.__name__, served_by, reason, fused.get(name, "")))
    return Report(rows, left)


def report_optimizer(optimizer):
    """The :class:`Report` of an optimizer: one row."""
    reason = optim.why_torch(optimizer)
    served_by = serving_on(torch.device("cpu"))[0] if reason is None else "torch"
    return Report([Row("", type(optimizer).__name__, served_by, reason or "")], unit="optimizers")


def _fusing(module):
    """(what the column says by name, names of layers computed by another's kernel, what else is to be said)."""
    fused, inside, left = {}, set(), {}
    if backend._asked == "torch":
        return fused, inside, left
    names_of = {id(layer): name for name, layer in module.named_modules()}  # a shared layer has one row
    for name, container in module.named_modules():
        if not isinstance(container.__dict__.get("forward"), FusedForward):
            if could_fuse(container) and "forward" in container.__dict__:
                left[name] = f"is called layer by layer: {why_layer_by_layer(container)}"
            continue
        reason = why_layer_by_layer(container)
        if reason is not None:
            left[name] = f"is called layer by layer: {reason}"
            continue
        if not is_bound(container, FusedForward):
            continue
        plan = container.forward.plan(container)
        rows = {link: names_of[id(layer)] for link, layer in container._modules.items() if layer is not None}
        for chain in plan.chains:
            for links, remark in chain.kernels():
                head, *others = (rows[link] for link in links)
                if others:
                    _join(fused, head, f"with {', '.join(others)}{remark}")
                for other in others:
                    _join(fused, other, f"in {head}")
                    inside.add(other)
            if chain.not_frozen:
                _join(fused, rows[chain.names[1]], f"not frozen: {chain.not_frozen}")
        for link, reason in plan.left.items():
            _join(fused, rows[link], f"not fused: {reason}")
    return fused, inside, left


def _join(texts, name, text):
    known = texts.get(name)
    if known is None:
        texts[name] = text
    elif text not in known.split("; "):
        texts[name] = f"{known}; {text}"


def _status(layer, cls, model_device):
    if isinstance(layer, OURS):
        ours = next(base for base in cls.__mro__ if base in OURS)
        inherits = cls.forward is ours.forward and "forward" not in layer.__dict__
        reason = why_not_dtype(layer) or why_aside(layer) if inherits else "its forward is its own"
    else:
        reason = why_left(layer) or (why_aside(layer) if is_swapped(layer) else "not swapped")
    reason = reason or why_not_channels(layer)
    if reason is None:
        tensor = next(layer.parameters(), None)
        return serving_on(model_device if tensor is None else tensor.device, cls)
    return "torch", reason


def serving_on(device, cls=None):
    """What serves our layers (``cls`` among them) on ``device``, and why that is not pydl, if so."""
    rule = None if cls is None else rule_of(cls)
    op = None if rule is None else rule.name
    if _library.on_cpu_alone(op) and backend._asked is None and device.type not in ("cpu", "meta"):
        return "torch", f"pydl has no kernel for {cls.__name__} on {device.type}"
    try:
        name = backend.current(device)
    except RuntimeError as error:  # no backend for this device: a call would raise the same
        return "nothing", str(error)
    if _library.on_cpu_alone(op) and name not in ("cpu", "torch"):
        return "torch", f"the backend {name} has no kernel for {cls.__name__}"
    if name == "torch":
        return name, "meta tensors hold no data" if device.type == "meta" else "the backend torch was asked for"
    return (f"cpu {backend.current_isa()}" if name == "cpu" else name), ""
