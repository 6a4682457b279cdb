"""Group normalisation (Wu, He, ECCV 2018): (x - mean) / sqrt(var + eps) * weight + bias.

mean and var are of each sample's channels by groups; weight and bias are of the channels. Forward and backward are ops
of our own (_group_norm_autograd.py), on the CPU alone.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active, suggest_memory_format
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes
from pydl.ops._group_norm_autograd import gradients
from pydl.ops._layer_norm_schema import HALF, SUPPORTED
from pydl.ops._nodes import is_compiling

__all__ = ["group_norm"]


class _Eager(torch.autograd.Function):
    """In eager mode with the fewest hops: each op is called below the autograd layer of the dispatcher."""

    @staticmethod
    def forward(ctx, input, weight, bias, rest):
        ctx.ops, ctx.groups, ctx.eps, ctx.channels_last = rest
        with below_autograd():
            output, stats = _library.quick(ctx.ops).group_norm_forward(input, weight, bias, *rest[1:])
        ctx.to_save = input, weight, stats  # what ctx.save_for_backward sets
        return output

    @staticmethod
    def backward(ctx, grad):
        if _library.transforms_active():  # torch.func.vmap over the gradient
            return *gradients(_library.transformed(ctx.ops), ctx, grad), None
        if torch.is_grad_enabled():
            return *gradients(ctx.ops, ctx, grad), None
        with below_autograd():
            return *gradients(_library.quick(ctx.ops), ctx, grad), None


_apply = _library.eager(_Eager)


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` by groups, as :func:`torch.nn.functional.group_norm`.

    Args:
        input: (N, C, ...); float32, float64, bfloat16 or float16 on the CPU, with any strides (other dtypes and devices
            are served by torch). float32 keeps its digits where the mean is much larger than the deviation.
        num_groups: how many groups the C channels are, one after the other.
        weight: (C), or None for 1; of input's dtype, or float32 beside bfloat16 or float16.
        bias: (C), or None for 0; of weight's dtype. One without a weight is torch's.
        eps: added to the (biased) variance.

    Returns:
        Of input's shape and dtype, in its memory format. The result does not depend on the number of threads.

    Raises:
        RuntimeError: sizes or dtypes that do not fit.
        ValueError: one value in a group of the only sample.

    >>> F.group_norm(torch.tensor([[1.0, 3.0, 10.0, 30.0]]), 2)
    tensor([[-1.0000,  1.0000, -1.0000,  1.0000]])
    """
    if not is_compiling():
        output = _nodes.group_norm(input, num_groups, weight, bias, eps)
        if output is not NotImplemented:
            return output
    if is_torchs(input, weight, bias):
        return F.group_norm(input, num_groups, weight, bias, eps)
    return group_norm_unasked(input, num_groups, weight, bias, eps)


def group_norm_unasked(input, num_groups, weight, bias, eps):
    """:func:`group_norm` for who has asked whether it is torch's (aside.py)."""
    served = _is_served(input, num_groups, weight, bias, eps)
    ops = backend.ops_for(input, "group_norm") if served else None
    if ops is None:
        return F.group_norm(input, num_groups, weight, bias, eps)
    return _call(ops, input, num_groups, weight, bias, eps)


def _call(ops, input, num_groups, weight, bias, eps):
    rest = num_groups, float(eps), suggest_memory_format(input) is not torch.contiguous_format
    transforms = functorch_active()
    if transforms:
        ops = _library.transformed(ops)
    if transforms or is_compiling():
        return ops.group_norm_forward(input, weight, bias, *rest)[0]
    if torch.is_grad_enabled():
        weight, bias = (None if t is None else alive(t) for t in (weight, bias))
        return _apply(alive(input), weight, bias, (ops, *rest))
    with below_autograd():
        return _library.quick(ops).group_norm_forward(input, weight, bias, *rest)[0]


def _is_served(input, groups, weight, bias, eps):
    """Whether the call is ours; torch says in its own words what it does not take."""
    try:
        if input.dtype not in SUPPORTED or input.dim() < 2 or type(groups) is not int or type(eps) not in (float, int):
            return False
        channels = input.shape[1]
        if groups <= 0 or channels % groups or 0 in input.shape or input.shape.numel() == groups:
            return False
        if weight is None and bias is not None:  # torch gives that bias no gradient
            return False
        given = [t for t in (weight, bias) if t is not None]
        dtypes = {t.dtype for t in given}
        if len(dtypes) > 1 or not dtypes <= {input.dtype, *((torch.float32,) if input.dtype in HALF else ())}:
            return False
        return all(t.shape == (channels,) and t.device == input.device for t in given)
    except AttributeError:  # no tensor
        return False
