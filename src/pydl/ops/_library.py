"""Registration in both op namespaces, ``pydl`` (compiled: CPU and CUDA) and ``pydl_triton``, from one description.

A namespace per implementation, rather than an argument, lets torch's dispatcher, torch.compile and profilers see which
kernel runs, and lets a backward call the implementation that its forward chose.
"""

import torch

from pydl._private import (
    forward_ad,
    functorch_active,
    op_under,
    set_backward,
    will_engine_execute_node,
)
from pydl.ops import _triton

NAMESPACES = ("pydl", "pydl_triton")
_namespaces_of = {}  # name of an op -> those that have it


def define(name, schema, triton=None):
    """Declares ``name`` with ``schema``, e.g. ``define("dropout", "(Tensor input, float p) -> Tensor")``.

    ``triton`` names the module below ``pydl.kernels.triton`` that has its launcher, ``"dropout.dropout"``; without it
    the op has kernels for the CPU alone, and is declared in ``pydl`` alone.
    """
    _namespaces_of[name] = NAMESPACES if triton else NAMESPACES[:1]
    for namespace in _namespaces_of[name]:
        torch.library.define(f"{namespace}::{name}", schema, tags=(torch.Tag.pt2_compliant_tag,))
    if triton:
        _triton.implement(
            name, triton
        )  # the compiled implementations of ``pydl`` register themselves, in csrc/<op>.cpp


def made_of(name, op):
    """Says that ``name`` has the kernels of ``op``, which computes it."""
    _namespaces_of[name] = _namespaces_of[op]


def on_cpu_alone(name):
    """Whether the op ``name`` has a kernel on the CPU alone: the other backends leave it to torch."""
    found = (_namespaces_of.get(f"{name}{of}") for of in ("", "_forward", "_backward"))
    return next(filter(None, found), None) == NAMESPACES[:1]


def fake(name):
    """Decorator: the shape, dtype and strides of ``name``'s outputs, for tracing without data."""

    def register(function):
        for namespace in _namespaces_of[name]:
            torch.library.register_fake(f"{namespace}::{name}", function)
        return function

    return register


def autograd(name, setup_context, backward):
    """Gives ``name`` a backward: ``backward(ops, ctx, *grads)``, ``ops`` being the namespace of the forward."""
    for namespace in _namespaces_of[name]:
        ops = getattr(torch.ops, namespace)

        def bound(ctx, *grads, _ops=ops):
            return backward(_ops, ctx, *grads)

        torch.library.register_autograd(f"{namespace}::{name}", bound, setup_context=setup_context)
        _transformed[ops][name] = (setup_context, backward)


class _TransformedOps:
    """The ops of one namespace in the form that torch.func takes: autograd.Functions with ``setup_context``.

    Each is made of the very formula that :func:`autograd` got, whose backward receives this object as its ``ops``: so
    a transform of a transform (grad of grad, vmap of grad) finds the same form at every level.
    """

    def __init__(self, ops):
        self._ops = ops
        self._formulas = {}

    def __setitem__(self, name, formula):
        self._formulas[name] = formula

    def __getattr__(self, name):
        op = getattr(self._ops, name)
        setup_context, backward_formula = self._formulas[name]

        def forward(*args):
            return op(*args)

        def backward(ctx, *grads):
            return backward_formula(self, ctx, *grads)

        def jvp(ctx, *tangents):
            raise NotImplementedError(f"{name}: expected gradients in reverse mode, got a forward-mode tangent")

        function = type(
            f"Transformed_{name}",
            (torch.autograd.Function,),
            {
                "generate_vmap_rule": True,
                "forward": staticmethod(forward),
                "setup_context": staticmethod(setup_context),
                "backward": staticmethod(backward),
                "jvp": staticmethod(jvp),
            },
        )
        setattr(self, name, function.apply)
        return function.apply


_transformed = {
    getattr(torch.ops, namespace): _TransformedOps(getattr(torch.ops, namespace)) for namespace in NAMESPACES
}


def transformed(ops):
    """``ops`` in the form for torch.func and forward-mode AD (which is refused): to be used while they are active."""
    return _transformed[ops]


class _QuickOps:
    """The ops of one namespace as the callables under torch's ``OpOverload``s: a Python frame less for each call.

    For eager mode below the autograd layer. The dispatcher, modes and profilers see these calls as they see others.
    """

    def __init__(self, ops):
        self._ops = ops

    def __getattr__(self, name):
        op = op_under(getattr(self._ops, name).default)
        setattr(self, name, op)
        return op


_quick = {getattr(torch.ops, namespace): _QuickOps(getattr(torch.ops, namespace)) for namespace in NAMESPACES}


def quick(ops):
    """``ops`` in the form for eager mode: see :class:`_QuickOps`."""
    return _quick[ops]


def eager(function):
    """The ``apply`` of an autograd.Function for eager mode, with three Python frames fewer than ``function.apply``.

    torch's ``Function.apply`` looks for ``setup_context`` and for tensors that outlived a transform of torch.func, and
    its node looks for ``vjp`` and ``boxed_grads_call`` before it calls ``backward``: 5 of the 25 µs of an empty
    function. ``function`` has none of those, is called outside transforms, and gets its tensors through
    :data:`alive`.
    """
    set_backward(function)
    return super(torch.autograd.Function, function).apply


def wanted(ctx, edge):
    """Whether the backward that runs now wants the gradient of ``ctx``'s tensor argument number ``edge``.

    ``ctx.needs_input_grad`` says whether it requires grad at all; ``torch.autograd.grad(y, x)`` may ask for less.
    """
    node = ctx.next_functions[edge][0]
    if node is None:
        return False
    try:
        return will_engine_execute_node(node)
    except RuntimeError:  # a leaf that torch.autograd.grad was asked for, or no engine at work
        return True


def vmap(name, rule):
    """Gives ``name`` a rule for torch.func.vmap: ``rule(ops, info, in_dims, *args) -> (outputs, out_dims)``."""
    for namespace in _namespaces_of[name]:
        ops = getattr(torch.ops, namespace)

        def bound(info, in_dims, *args, _ops=ops):
            return rule(_ops, info, in_dims, *args)

        torch.library.register_vmap(f"{namespace}::{name}", bound)


def samples(tensor, dim, size):
    """``tensor`` with its samples in front; repeated, where it has none."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def vmap_of_rows(*names):
    """The rule of ops along a dimension counted from the last one, or of each number by itself: samples are rows."""
    for name in names:

        def rule(ops, info, in_dims, *args, _name=name):
            found = (
                samples(t, dim, info.batch_size) if torch.is_tensor(t) else t
                for t, dim in zip(args, in_dims, strict=True)
            )
            return getattr(ops, _name)(*found), 0

        vmap(name, rule)


def transforms_active():
    """Whether torch.func (grad, vmap, jvp, ...) or forward-mode AD is at work.

    The autograd formula of :func:`autograd` is quick, but torch.func refuses it and forward-mode AD passes it by in
    silence, with a tangent of zero. An op that wants either goes through an ``autograd.Function`` of its own then.
    """
    return functorch_active() or forward_ad._current_level >= 0
