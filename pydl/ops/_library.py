"""Registration in both op namespaces, ``pydl`` (compiled: CPU and CUDA) and ``pydl_triton``, from one description.

A namespace per implementation, rather than an argument, lets torch's dispatcher, torch.compile and profilers see which
kernel runs, and lets a backward call the implementation that its forward chose.
"""

import torch
from torch.autograd import forward_ad

from pydl.ops import _triton

NAMESPACES = ("pydl", "pydl_triton")


def define(name, schema):
    """Declares ``name`` with ``schema``, e.g. ``define("dropout", "(Tensor input, float p) -> Tensor")``."""
    for namespace in NAMESPACES:
        torch.library.define(f"{namespace}::{name}", schema, tags=(torch.Tag.pt2_compliant_tag,))
    _triton.implement(name)  # the compiled implementations of ``pydl`` register themselves, in csrc/<op>.cpp


def fake(name):
    """Decorator: the shape, dtype and strides of ``name``'s outputs, for tracing without data."""

    def register(function):
        for namespace in NAMESPACES:
            torch.library.register_fake(f"{namespace}::{name}", function)
        return function

    return register


def refuse_forward_ad(op, *tensors):
    """Raises if a tensor carries a forward-mode tangent, which the ops would drop in silence."""
    for tensor in tensors:
        if tensor is not None and torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{op}: expected gradients in reverse mode, got a forward-mode tangent")


def autograd(name, setup_context, backward):
    """Gives ``name`` a backward: ``backward(ops, ctx, *grads)``, ``ops`` being the namespace of the forward."""
    for namespace in NAMESPACES:
        ops = getattr(torch.ops, namespace)

        def bound(ctx, *grads, _ops=ops):
            return backward(_ops, ctx, *grads)

        torch.library.register_autograd(f"{namespace}::{name}", bound, setup_context=setup_context)


def vmap(name, rule):
    """Gives ``name`` a rule for torch.func.vmap: ``rule(ops, info, in_dims, *args) -> (outputs, out_dims)``."""
    for namespace in NAMESPACES:
        ops = getattr(torch.ops, namespace)

        def bound(info, in_dims, *args, _ops=ops):
            return rule(_ops, info, in_dims, *args)

        torch.library.register_vmap(f"{namespace}::{name}", bound)


def transforms_active():
    """Whether torch.func (grad, vmap, jvp, ...) or forward-mode AD is at work.

    The autograd formula of :func:`autograd` is quick, but torch.func refuses it and forward-mode AD passes it by in
    silence, with a tangent of zero. An op that wants either goes through an ``autograd.Function`` of its own then.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
