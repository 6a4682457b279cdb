"""Which function of ours serves a node of the graph, or why torch's does: the table of ``pydl.swapped()``."""

import functools
import inspect
import math
import operator
import sys

import torch
import torch.nn.functional as F

from pydl import functional
from pydl._private import HigherOrderOperator, OpOverload
from pydl.compiling.memory import name_of, tensor_of
from pydl.ops import embedding, embedding_bag
from pydl.swapping.mode import ours_of
from pydl.swapping.rules import RULES

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def called(node):
    """The function of torch's that a node calls, by a method or an operator too; None for other nodes."""
    if node.op == "call_function":
        return torch.matmul if node.target is operator.matmul else node.target
    if node.op == "call_method" and node.args and tensor_of(node.args[0]) is not None:
        return getattr(torch.Tensor, node.target, None)
    return None


# what our kernels apply as they store a result: a function of torch's -> our name of it
ACTIVATIONS = {}
for _rule in RULES:
    if _rule.role == "activation":
        _in_place = (getattr(torch, f"{_rule.name}_"), getattr(torch.Tensor, f"{_rule.name}_"))
        ACTIVATIONS |= dict.fromkeys((*_rule.calls, *_in_place), _rule.name)


def activation_of(node):
    """Our name of the activation that a node computes of its first argument, in place or not; None for others."""
    name = ACTIVATIONS.get(called(node)) if node is not None else None
    if name is None or len(node.args) not in (1, 2) or not node.kwargs.keys() <= {"inplace"}:
        return None
    return name


@functools.cache
def _signature(function):
    return inspect.signature(function)


def arguments(ours, node):
    """{name: value} of a node's call in the terms of a function of ours, or None where that has no such arguments."""
    try:
        bound = _signature(ours).bind(*node.args, **node.kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    return bound.arguments


def call_of(ours, given):
    """(args, kwargs) of a call of a function of ours with {name: value}: by position what may be, which is quicker."""
    bound = inspect.BoundArguments(_signature(ours), given)
    return bound.args, bound.kwargs


def _ours(function):
    try:
        return ours_of(function)
    except TypeError:  # not hashable
        return None


def is_served(node):
    """Whether a node calls a function that ours has, whatever its arguments."""
    return _ours(called(node)) is not None


def serving(node):
    """(what of ours serves a node, None), or (None, why torch's function does, in words)."""
    if node.op == "call_module":
        return None, "torch.compile did not look into it"
    function = called(node)
    if isinstance(function, OpOverload) and function.namespace.startswith("pydl"):
        return function, None
    if isinstance(function, HigherOrderOperator):
        return None, "it holds graphs of its own"
    ours = _ours(function)
    if ours is None:
        return None, f"pydl has no kernel for {name_of(node)}"
    given = arguments(ours, node)
    if given is None:
        return None, "pydl has no such arguments"
    reason = _why_torchs(ours.__name__, node, given)
    return (None, reason) if reason else (ours, None)


def _least_numbers(name):
    """Of how many numbers a tensor must be for our function ``name``: its module's ``WORTH_A_CALL``, if that has it."""
    ours = getattr(functional, name, None)
    worth = getattr(sys.modules[ours.__module__], "WORTH_A_CALL", None) if ours else None
    return worth.get(name, 0) if isinstance(worth, dict) else 0


def _why_torchs(name, node, given):
    """Why a call that ours has the arguments of is torch's all the same: by what the guards of the graph fix."""
    if given.get("inplace") is True and not name.startswith("dropout"):
        return "computed in place"
    inputs = [tensor_of(argument) for argument in (*node.args, *node.kwargs.values())]
    input = next((value for value in inputs if value is not None and value.dtype in _FLOATS), None)
    if input is None:
        known = next((value for value in inputs if value is not None), None)
        return None if known is None else f"{str(known.dtype).removeprefix('torch.')} numbers are torch's"
    tables = {"embedding": embedding.WORTH_A_CALL, "embedding_bag": embedding_bag.WORTH_A_CALL}
    least = tables[name] if name in tables else _least_numbers(name)
    values = math.prod(input.shape) if all(type(size) is int for size in input.shape) else least
    if name == "embedding_bag" and (given["mode"] == "max" or given["scale_grad_by_freq"]):
        return "maxima and gradients scaled by frequency are torch's"
    if name in tables:
        indices = inputs[0]
        values = least
        if indices is not None and all(type(size) is int for size in indices.shape):
            values = math.prod(indices.shape) * input.shape[-1]
    return f"fewer than {least} numbers, for which torch's call is quicker" if values < least else None


CONVOLUTION, TRANSPOSED, LINEAR, NORM, LOSS = F.conv2d, F.conv_transpose2d, F.linear, F.batch_norm, F.cross_entropy
OURS = {
    CONVOLUTION: functional.conv2d,
    TRANSPOSED: functional.conv_transpose2d,
    LINEAR: functional.linear,
    NORM: functional.batch_norm,
    LOSS: functional.cross_entropy,
}
