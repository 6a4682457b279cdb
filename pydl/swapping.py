"""``pydl.swap`` puts our kernels under an existing model, ``unswap`` takes them away, ``report`` says what serves what.

A swapped layer keeps its class, parameters, hooks and ``repr``. It gets three attributes on the instance, all of them
callable objects of classes of this module (a bound method would not survive ``torch.load``, nor a closure pickling):

* ``forward`` runs the forward of pydl.nn's class on the torch instance. ``Module.__call__`` reads ``self.forward`` and
  passes no ``self``, so the object has to know its module, and whatever copies the module's ``__dict__`` has to end
  with an object that knows the copy. The other two see to that:
* ``__reduce_ex__`` (copy.copy, copy.deepcopy, pickle, torch.save) builds a module that is bound to itself and then
  hands over the state without our attributes;
* ``_replicate_for_data_parallel`` binds DataParallel's replicas, which are shallow copies.

The module is held by a weak reference: a strong one would make a cycle, and ``del net`` would no longer free the
memory of its parameters at once.
"""

import weakref
from dataclasses import dataclass

import torch
from torch.nn.utils.parametrize import type_before_parametrizations

from pydl import backend, nn

# torch's class -> ours. Exact types only: a subclass may mean something else by the same attributes.
_SERVED = {getattr(torch.nn, name): getattr(nn, name) for name in nn.__all__}
_OURS = tuple(_SERVED.values())
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_CONTAINERS = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)


class _Bound:
    """A callable that knows its module, weakly, and copies itself together with that module."""

    def __init__(self, module):
        self._module = weakref.ref(module)

    def module(self):
        module = self._module()
        if module is None:
            raise ReferenceError(
                "swap: expected the swapped layer to be alive when its forward is called, got one that was deleted; "
                "keep the module, not only its forward"
            )
        return module

    def __reduce__(self):
        # Reached where the module's class copies its __dict__ itself (parametrised modules) or where another library
        # keeps this object under a name of its own.
        return type(self), (self.module(),)


class SwappedForward(_Bound):
    """The ``forward`` of a swapped layer: that of pydl.nn's class, on torch's instance."""

    def __init__(self, module):
        super().__init__(module)
        # by method resolution order: parametrised modules are instances of a subclass that torch makes on the fly
        self._function = next(_SERVED[cls] for cls in type(module).__mro__ if cls in _SERVED).forward

    def __call__(self, *args, **kwargs):
        module = self._module()  # not self.module(): a call less on every forward
        return self._function(self.module() if module is None else module, *args, **kwargs)

    @property
    def _torchscript_modifier(self):
        # the first thing that torch.jit.script and .trace ask of a forward, and nobody else does
        raise nn.no_torchscript("a layer swapped by pydl")


class _Reduce(_Bound):
    """``__reduce_ex__`` of a swapped layer."""

    def __call__(self, protocol):
        module = self.module()
        state = {key: value for key, value in module.__getstate__().items() if not isinstance(value, _Bound)}
        return rebuild, (type(module),), state


class _Replicate(_Bound):
    """``_replicate_for_data_parallel`` of a swapped layer."""

    def __call__(self):
        module = self.module()
        replica = type(module)._replicate_for_data_parallel(module)
        _bind(replica)
        return replica


def rebuild(cls):
    """An empty ``cls`` that is already swapped: what copies and pickles of a swapped layer start from."""
    module = cls.__new__(cls)
    _bind(module)
    return module


_ATTRIBUTES = {"forward": SwappedForward, "__reduce_ex__": _Reduce, "_replicate_for_data_parallel": _Replicate}


def _bind(module):
    # past Module.__setattr__, which needs an initialised module
    module.__dict__.update({name: bound(module) for name, bound in _ATTRIBUTES.items()})


def is_swapped(module):
    """Whether our forward is bound to this very layer: not to another, from which its ``__dict__`` was taken over."""
    forward = module.__dict__.get("forward")
    return isinstance(forward, SwappedForward) and forward._module() is module


def swap(module):
    """Puts pydl's kernels under the layers of ``module`` that they serve, in place.

    Types, parameters, ``state_dict`` keys, hooks and ``repr`` stay; copies, checkpoints, lazy layers and DataParallel
    replicas work. Layers that are left alone are named, with the reason, by :func:`report`. A second call changes
    nothing but to serve layers that were added or changed since.

    Args:
        module: a ``torch.nn.Module``: a model, one layer, or a loss.

    Returns:
        The same ``module``.

    Raises:
        TypeError: when it is no module, or one compiled by TorchScript.
    """
    _check("swap", module)
    for layer in module.modules():
        if not is_swapped(layer) and _why_left(layer) is None:
            _bind(layer)
    return module


def unswap(module):
    """Undoes :func:`swap` completely, in place: no attribute is left behind. Returns the same ``module``."""
    _check("unswap", module)
    for layer in module.modules():
        for name in _ATTRIBUTES:
            if isinstance(layer.__dict__.get(name), _Bound):
                del layer.__dict__[name]
    return module


def _check(name, module):
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"{name}: expected module to be a torch.nn.Module, got {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(f"{name}: expected module to be an ordinary torch.nn.Module, got one compiled by TorchScript")


def _why_left(layer):
    """Why swap leaves ``layer`` to torch, in words; None where it is served."""
    cls = type_before_parametrizations(layer)
    if cls not in _SERVED:
        return _why_not_served(layer, cls)
    if not isinstance(layer.__dict__.get("forward"), SwappedForward | None):
        return "its forward was replaced on the instance"
    return _why_not_dtype(layer)


def _why_not_served(layer, cls):
    if isinstance(layer, torch.jit.ScriptModule):
        return "compiled by TorchScript"
    if ".quantized" in cls.__module__:
        return "quantized"
    for base in _SERVED:
        if issubclass(cls, base):
            return f"a subclass of {base.__name__}, which may compute something else"
    return f"pydl has no kernel for {cls.__name__}"


def _why_not_dtype(layer):
    # the parameters themselves, not layer.weight: a parametrised weight would be computed here
    dtypes = {tensor.dtype for tensor in layer.parameters()} - set(_DTYPES)
    return f"{str(dtypes.pop()).removeprefix('torch.')} parameters are served by torch" if dtypes else None


@dataclass(frozen=True)
class Row:
    """One layer of a :class:`Report`."""

    name: str  # as in named_modules(); empty for the module itself
    layer: str  # the class
    served_by: str  # "cpu avx512", "cuda", "triton" or "torch"
    reason: str  # why torch serves it; empty where pydl does


class Report:
    """What serves each layer of a model at this moment; made by :func:`report`, printed as a table."""

    HEAD = ("name", "layer", "served by", "why not by pydl")

    def __init__(self, rows):
        self.rows = rows

    def __str__(self):
        lines = [self.HEAD] + [(row.name, row.layer, row.served_by, row.reason) for row in self.rows]
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
            table.add_row(Text(row.name), row.layer, row.served_by, Text(row.reason))
        return table

    def summary(self):
        """One line: how many layers pydl serves."""
        ours = sum(not row.reason for row in self.rows)
        return f"pydl serves {ours} of {len(self.rows)} layers"


def report(module):
    """A table of the layers of ``module``: what serves each now, or why torch does.

    Args:
        module: a ``torch.nn.Module``, swapped, built from ``pydl.nn``, or neither.

    Returns:
        A :class:`Report` with ``rows`` of (name, layer, served_by, reason).
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"report: expected module to be a torch.nn.Module, got {type(module).__name__}")
    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    rows = []
    for name, layer in module.named_modules():
        cls = type_before_parametrizations(layer)
        if cls in _SERVED or isinstance(layer, _OURS) or (not any(layer.children()) and cls not in _CONTAINERS):
            served_by, reason = _status(layer, cls, device)
            rows.append(Row(name, cls.__name__, served_by, reason))
    return Report(rows)


def _status(layer, cls, model_device):
    if isinstance(layer, _OURS):
        ours = next(base for base in cls.__mro__ if base in _OURS)
        inherits = cls.forward is ours.forward and "forward" not in layer.__dict__
        reason = _why_not_dtype(layer) if inherits else "its forward is its own"
    else:
        reason = _why_left(layer) or (None if is_swapped(layer) else "not swapped")
    if reason is None:
        tensor = next(layer.parameters(), None)
        name, reason = _serving(model_device if tensor is None else tensor.device)
        return name, reason
    return "torch", reason


def _serving(device):
    """What serves our layers on ``device``, and why that is not pydl, if so."""
    try:
        name = backend.current(device)
    except RuntimeError as error:  # no backend for this device: a call would raise the same
        return "nothing", str(error)
    if name == "torch":
        return name, "meta tensors hold no data" if device.type == "meta" else "the backend torch was asked for"
    return (f"cpu {backend.current_isa()}" if name == "cpu" else name), ""
