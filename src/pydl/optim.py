"""torch's optimizers with one kernel for all parameters of a step, and clipping by norm (d2l "Optimization").

``SGD``, ``Adam``, ``AdamW``, ``RMSprop`` and ``Adadelta`` are subclasses of torch's classes: the same arguments,
parameter groups, closures, hooks and ``state_dict``, in torch's own keys, so that state moves both ways. Each number is
read once and written once, where torch's default (``foreach``) passes over all of them for each operation.
``pydl.swap(optimizer)`` puts the kernel under an existing optimizer, ``pydl.unswap`` takes it away, and
``pydl.report(optimizer)`` says whether it serves, or why not.

A step is served as a whole or left to torch as a whole: the first step, in which torch makes the state; parameters that
are not all dense tensors of float32 or float64 on the CPU, or share memory; gradients or state of another dtype, layout
or strides; ``capturable``, ``differentiable``, options that are tensors (``lr``), a ``GradScaler``'s ``grad_scale`` and
``found_inf``; torch.compile, autocast, modes and transforms around the step; replaced parts of torch's class; and where
``pydl._torch`` is not loaded (``pydl info`` says why). ``foreach`` and ``fused`` choose among torch's own loops, which
compute the same; they decide what takes the steps that are torch's, and change nothing in those that are ours.
"""

import functools
import sys
import weakref

import torch
from torch.nn.utils import clip_grad_norm_ as _torchs_clip_grad_norm_
from torch.optim import Optimizer

from pydl._private import optimizer_hooks, without_dynamo
from pydl.ops import _nodes

__all__ = ["SGD", "Adadelta", "Adam", "AdamW", "RMSprop", "clip_grad_norm_"]


_TORCHS_ZERO_GRAD = Optimizer.zero_grad
_HOOKED = Optimizer.profile_hook_step(lambda self: None).__code__


def _unhooked(step):
    """The step under what ``Optimizer`` puts around it when the first instance of a class is made."""
    return step.__wrapped__ if getattr(step, "__code__", None) is _HOOKED else step


class _Torchs:
    """One of torch's classes, and the parts of it that a step of ours takes the place of."""

    def __init__(self, cls):
        self.cls, self.name = cls, cls.__name__.lower()
        self.kernel = "adam" if issubclass(cls, torch.optim.Adam) else self.name
        self._found = _unhooked(cls.step), without_dynamo(cls._init_group), self._function()

    def _function(self):
        return getattr(sys.modules[self.cls._init_group.__module__], self.kernel)

    def why_changed(self, optimizer):
        """Which part was replaced, on the class or the instance, in words; None where all are torch's."""
        step, init_group, function = self._found
        if without_dynamo(type(optimizer)._init_group) is not init_group or "_init_group" in optimizer.__dict__:
            return "its _init_group was replaced"
        if _unhooked(self.cls.step) is not step:
            return "torch's step was replaced on the class"
        return None if self._function() is function else f"torch's function {self.kernel} was replaced"


def _serve(optimizer, launch=True, observed=True):
    """Takes a step by our kernel and returns None; or does nothing and returns why it is torch's, in words."""
    if torch.compiler.is_compiling():
        return "torch.compile"
    if _nodes.why_not is not None:
        return _nodes.why_not
    torchs, own = optimizer._torchs, optimizer.__dict__
    if own.get("grad_scale") is not None or own.get("found_inf") is not None:
        return "the gradients are scaled"
    if optimizer.defaults.get("differentiable"):
        return "differentiable"
    why = torchs.why_changed(optimizer) or _nodes.optimizer_step(
        torchs.kernel, optimizer.param_groups, optimizer.state, launch, observed
    )
    return "pydl._torch is not in use" if why is NotImplemented else why


@Optimizer.profile_hook_step
def _step_with_hooks(self, closure=None):
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    if _serve(self) is not None:
        _unhooked(self._torchs.cls.step)(self)
    return loss


class _Served:
    def step(self, closure=None):
        """One step; ``closure``, if given, is called first, to compute the loss again, which is returned."""
        if closure is None and not optimizer_hooks(self) and _serve(self, observed=False) is None:
            return None
        return _step_with_hooks(self, closure)

    step.hooked = True  # by profile_hook_step above

    def zero_grad(self, set_to_none=True):
        """Makes gradients None, or 0, as torch's does, which first asks as much as a kernel takes."""
        torchs = self._torchs.cls.zero_grad is _TORCHS_ZERO_GRAD and not torch.compiler.is_compiling()
        if not set_to_none or not torchs or _nodes.zero_grad(self.param_groups) is NotImplemented:
            super().zero_grad(set_to_none)


class SGD(_Served, torch.optim.SGD):
    """``torch.optim.SGD``: momentum, dampening, Nesterov, weight decay, maximize; by one kernel on the CPU.

    >>> net = nn.Linear(20, 5)
    >>> optimizer = pydl.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> net(torch.randn(4, 20)).sum().backward()
    >>> optimizer.step()
    """

    _torchs = _Torchs(torch.optim.SGD)


class Adam(_Served, torch.optim.Adam):
    """``torch.optim.Adam``, with ``amsgrad``; by one kernel on the CPU.

    >>> net = nn.Linear(20, 5)
    >>> optimizer = pydl.optim.Adam(net.parameters(), lr=1e-3)
    >>> net(torch.randn(4, 20)).sum().backward()
    >>> optimizer.step()
    """

    _torchs = _Torchs(torch.optim.Adam)


class AdamW(_Served, torch.optim.AdamW):
    """``torch.optim.AdamW``, with ``amsgrad``; by one kernel on the CPU.

    >>> net = nn.Linear(20, 5)
    >>> optimizer = pydl.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1)
    >>> net(torch.randn(4, 20)).sum().backward()
    >>> optimizer.step()
    """

    _torchs = _Torchs(torch.optim.AdamW)


class RMSprop(_Served, torch.optim.RMSprop):
    """``torch.optim.RMSprop``, centered and with momentum; by one kernel on the CPU.

    >>> net = nn.Linear(20, 5)
    >>> optimizer = pydl.optim.RMSprop(net.parameters(), lr=1e-3, centered=True)
    >>> net(torch.randn(4, 20)).sum().backward()
    >>> optimizer.step()
    """

    _torchs = _Torchs(torch.optim.RMSprop)


class Adadelta(_Served, torch.optim.Adadelta):
    """``torch.optim.Adadelta``; by one kernel on the CPU.

    >>> net = nn.Linear(20, 5)
    >>> optimizer = pydl.optim.Adadelta(net.parameters(), lr=1.0)
    >>> net(torch.randn(4, 20)).sum().backward()
    >>> optimizer.step()
    """

    _torchs = _Torchs(torch.optim.Adadelta)


_OURS = {cls._torchs.cls: cls for cls in (SGD, Adam, AdamW, RMSprop, Adadelta)}


def why_left(optimizer):
    """Why :func:`swap` leaves an optimizer to torch, in words; None where it takes it."""
    cls = type(optimizer)
    if cls not in _OURS:
        base = next((base.__name__ for base in _OURS if issubclass(cls, base)), None)
        return f"a subclass of {base}" if base else f"pydl has no kernel for {cls.__name__}"
    return _why_patched(optimizer)


def _why_patched(optimizer):
    step = optimizer.__dict__.get("step")
    return None if step is None or _is_counted(step, type(optimizer)) else "its step was replaced on the instance"


def _is_counted(step, cls):
    """Whether a scheduler of learning rates put ``step`` around that of the class, to see that it is called."""
    return getattr(step, "_wrapped_by_lr_sched", False) and getattr(step, "__wrapped__", None) is cls.step


def why_torch(optimizer):
    """Why the next step of an optimizer is torch's, in words; None where our kernel takes it."""
    if not isinstance(optimizer, _Served):
        return why_left(optimizer) or "not swapped"
    if type(optimizer).step is not _Served.step:
        return "its step is its own"
    return _why_patched(optimizer) or _serve(optimizer, launch=False)


def swap(optimizer):
    """What :func:`pydl.swap` does to an optimizer: it becomes an instance of our subclass of its class."""
    if why_left(optimizer) is None:
        _become(optimizer, _OURS[type(optimizer)])
    return optimizer


def unswap(optimizer):
    """Undoes :func:`swap`; an instance of a class of ours becomes one of torch's."""
    if type(optimizer) in _OURS.values():
        _become(optimizer, type(optimizer)._torchs.cls)
    return optimizer


def _become(optimizer, cls):
    counted = _is_counted(optimizer.__dict__.get("step"), type(optimizer))
    optimizer.__class__ = cls
    optimizer._patch_step_function()
    if counted:
        optimizer.step = _counted(optimizer)


def _counted(optimizer):
    """The step of the optimizer's class as a scheduler wraps it."""
    found = weakref.ref(optimizer)
    function = type(optimizer).step

    @functools.wraps(function)
    def step(*args, **kwargs):
        optimizer = found()
        optimizer._opt_called = True
        return function(optimizer, *args, **kwargs)

    step._wrapped_by_lr_sched = True
    return step


def clip_grad_norm_(parameters, max_norm, norm_type=2.0, error_if_nonfinite=False, foreach=None):
    """Scales gradients in place so that their norm, taken together, is at most ``max_norm``; returns the norm before.

    As :func:`torch.nn.utils.clip_grad_norm_`, which serves what is not dense gradients of one dtype, float32 or
    float64, on the CPU, with ``norm_type`` 2, none of which share memory. Gradients are multiplied only where the norm
    exceeds ``max_norm``; torch multiplies them by 1 elsewhere.

    Args:
        parameters: a tensor, or an iterable of tensors; those without a gradient are passed over.
        max_norm: the largest norm, a number.
        norm_type: 2; any other is torch's.
        error_if_nonfinite: raises where the norm is nan or infinite, and changes nothing.
        foreach: which of torch's own loops serves what is torch's; ``True`` and ``False`` change nothing else.

    Returns:
        The norm of all gradients, a tensor without dimensions, of their dtype. As in torch, squares that overflow make
        it infinite.

    Raises:
        RuntimeError: by ``error_if_nonfinite``.

    >>> weight = torch.zeros(2, requires_grad=True)
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> pydl.optim.clip_grad_norm_([weight], max_norm=1.0)
    tensor(5.)
    >>> weight.grad
    tensor([0.6000, 0.8000])
    """
    if isinstance(parameters, torch.Tensor):
        parameters = [parameters]
    elif not isinstance(parameters, list):
        parameters = list(parameters) or parameters  # an empty generator is torch's to warn of
    listed = isinstance(parameters, list) and len(parameters) > 0
    if listed and norm_type == 2 and _nodes.why_not is None and not torch.compiler.is_compiling():
        norm = _nodes.clip_grad_norm(parameters, float(max_norm), bool(error_if_nonfinite))
        if norm is not NotImplemented:
            return norm
    return _torchs_clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
