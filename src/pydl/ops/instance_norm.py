"""Instance normalisation (Ulyanov, Vedaldi, Lempitsky, 2016): a norm of each channel of each sample.

A :func:`~pydl.functional.group_norm` whose groups are of one channel; with running statistics, as torch has it,
:func:`~pydl.functional.batch_norm` of one sample whose channels are all channels of all samples. On the CPU; elsewhere
it is torch's.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl.aside import is_torchs
from pydl.ops import _nodes
from pydl.ops._layer_norm_schema import HALF, SUPPORTED
from pydl.ops._nodes import is_compiling
from pydl.ops.batch_norm import batch_norm_unasked
from pydl.ops.group_norm import group_norm_unasked

__all__ = ["instance_norm"]

LEAST_PLACES = 1024  # of a channel, with running statistics; measured, kernels/cpu/norm/NOTES.md


def instance_norm(
    input,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
):
    """Normalises each channel of each sample, as :func:`torch.nn.functional.instance_norm`.

    Args:
        input: (N, C, ...); float32, float64, bfloat16 or float16 on the CPU.
        running_mean, running_var: (C) or None; updated in place with the mean over the samples of what batch norm would
            make of each, or used where ``use_input_stats`` is false.
        weight, bias: (C) or None for 1 and 0. They and the running statistics are of input's dtype, or float32 beside
            bfloat16 or float16. With other dtypes and sizes the call is torch's, and so is one with running
            statistics and fewer than 1024 places in a channel.
        use_input_stats: takes mean and (biased) variance from each sample.
        momentum: the part of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        Of input's shape and dtype, contiguous.

    Raises:
        ValueError: one place per channel with ``use_input_stats``.
        RuntimeError: for sizes or dtypes that do not fit, and for ``use_input_stats=False`` without statistics.

    >>> F.instance_norm(torch.tensor([[[1.0, 3.0], [10.0, 30.0]]]))
    tensor([[[-1.0000,  1.0000],
             [-1.0000,  1.0000]]])
    """
    args = input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    if is_torchs(input, running_mean, running_var, weight, bias):
        return F.instance_norm(*args)
    return instance_norm_unasked(*args)


def instance_norm_unasked(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps):
    """:func:`instance_norm` for who has asked whether it is torch's (aside.py)."""
    channels = running_mean, running_var, weight, bias
    if not _is_served(input, channels, use_input_stats, momentum, eps):
        return F.instance_norm(input, *channels, use_input_stats, momentum, eps)
    if use_input_stats and running_mean is None and (weight is not None or bias is None):
        return _by_groups(input.contiguous(), weight, bias, float(eps))
    if input.shape[2:].numel() < LEAST_PLACES:
        return F.instance_norm(input, *channels, use_input_stats, momentum, eps)
    samples = input.shape[0]
    mean, var, *affine = (None if t is None else t.repeat(samples) for t in channels)
    each = input.contiguous().view(1, -1, *input.shape[2:])
    rest = use_input_stats, float(momentum), float(eps), None, None, None
    output = NotImplemented if is_compiling() else _nodes.batch_norm(each, mean, var, *affine, *rest, _ANY_RANK)
    if output is NotImplemented:
        output = batch_norm_unasked(each, mean, var, *affine, *rest)
    if use_input_stats and mean is not None:
        with torch.no_grad():
            running_mean.copy_(mean.view(samples, -1).mean(0))
            running_var.copy_(var.view(samples, -1).mean(0))
    return output.view(input.shape)


def _by_groups(input, weight, bias, eps):
    rest = input.shape[1], weight, bias, eps
    output = NotImplemented if is_compiling() else _nodes.group_norm(input, *rest)
    return group_norm_unasked(input, *rest) if output is NotImplemented else output


_ANY_RANK = -1  # see pydl.nn.norm


def _is_served(input, channels, use_input_stats, momentum, eps):
    """Whether the call is ours; torch says in its own words what it does not take."""
    try:
        if input.dtype not in SUPPORTED or input.dim() < 2 or 0 in input.shape or not input.is_cpu:
            return False
        if type(use_input_stats) is not bool or any(type(t) not in (float, int) for t in (momentum, eps)):
            return False
        mean, var, *_ = channels
        if (mean is None) != (var is None) or not (use_input_stats or mean is not None) or not eps > 0:
            return False
        if use_input_stats and input.shape[2:].numel() == 1:
            return False
        given = [t for t in channels if t is not None]
        dtypes = {t.dtype for t in given}
        if len(dtypes) > 1 or not dtypes <= {input.dtype, *((torch.float32,) if input.dtype in HALF else ())}:
            return False
        if any(t.shape != input.shape[1:2] or not t.is_cpu for t in given):
            return False
        if mean is not None and (mean.requires_grad or var.requires_grad):
            return False
        return backend.ops_for(input, "batch_norm") is not None
    except AttributeError:  # no tensor
        return False
