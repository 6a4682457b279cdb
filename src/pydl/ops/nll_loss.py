"""The negative log likelihood of classes (d2l chapter "Softmax Regression"): ``-w[t] x[t]`` of each row.

On the CPU alone. Torch's own are: logarithms of so few numbers that it is done before a call of ours has begun
(``WORTH_A_CALL``), other dtypes than float32, float64 and the half types, and transforms of torch.func.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active
from pydl.aside import is_torchs
from pydl.ops import _library
from pydl.ops._options import REDUCTIONS

_library.define(
    "nll_loss_forward",
    "(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index) "
    "-> (Tensor output, Tensor total_weight)",
)
_library.define(
    "nll_loss_backward",
    "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, Tensor total_weight, int reduction, "
    "int ignore_index) -> Tensor",
)

SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WORTH_A_CALL = 1 << 22  # numbers of the input; measured, kernels/cpu/losses/NOTES.md


@_library.fake("nll_loss_forward")
def _(input, target, weight, reduction, ignore_index):
    return input.new_empty(target.shape if reduction == 0 else ()), input.new_empty((), dtype=torch.float64)


@_library.fake("nll_loss_backward")
def _(grad_output, input, *rest):
    return input.new_empty(input.shape)


def _context(ctx, inputs, output):
    input, target, weight, ctx.reduction, ctx.ignore_index = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, target, weight, output[1])


def _backward(ops, ctx, grad, *_):
    if ctx.needs_input_grad[2]:
        raise RuntimeError("nll_loss: expected weight to need no gradient, got one that does")
    if grad is None:
        return (None,) * 5
    input, target, weight, total_weight = ctx.saved_tensors
    found = ops.nll_loss_backward(grad, input, target, weight, total_weight, ctx.reduction, ctx.ignore_index)
    return found, None, None, None, None


_library.autograd("nll_loss_forward", _context, _backward)


# Double backward: the backward is linear in grad_output, and does not depend on the input.
def _again_context(ctx, inputs, output):
    _, _, target, weight, _, ctx.reduction, ctx.ignore_index = inputs
    ctx.save_for_backward(target, weight)


def _again(ops, ctx, grad):
    target, weight = ctx.saved_tensors
    found = ops.nll_loss_forward(grad, target, weight, ctx.reduction, ctx.ignore_index)[0]
    return found, *(None,) * 6


_library.autograd("nll_loss_backward", _again_context, _again)


class _Eager(torch.autograd.Function):
    """The op in eager mode with the fewest hops: it is called below the autograd layer of the dispatcher."""

    @staticmethod
    def forward(ctx, input, rest):
        # what needs no gradient comes as one tuple: each argument of its own costs on the way in and out
        ops, target, weight, reduction, ignore_index = rest
        ctx.rest = ops, reduction, ignore_index
        with below_autograd():
            output, total_weight = _library.quick(ops).nll_loss_forward(input, *rest[1:])
        ctx.to_save = input, target, weight, total_weight  # what ctx.save_for_backward sets
        return output

    @staticmethod
    def backward(ctx, grad):
        ops, *options = ctx.rest
        args = grad, *ctx.saved_tensors, *options
        if _library.transforms_active():  # torch.func.vmap over the gradient
            return _library.transformed(ops).nll_loss_backward(*args), None
        if torch.is_grad_enabled():
            return ops.nll_loss_backward(*args), None
        with below_autograd():
            return _library.quick(ops).nll_loss_backward(*args), None


_apply = _library.eager(_Eager)


def _is_served(input, target, weight, ignore_index, reduction):
    try:
        if (
            input.numel() < WORTH_A_CALL  # the most frequent reason, and the cheapest to see
            or input.dim() == 0
            or not input.is_contiguous()  # of which torch refuses the gradient
            or input.dtype not in SUPPORTED
            or target.dtype != torch.int64
            or target.device != input.device
            or functorch_active()
            or (input.dtype.itemsize == 2 and torch.is_autocast_enabled(input.device.type))
        ):
            return False
        if weight is not None:
            classes = input.shape[:1] if input.dim() == 1 else input.shape[1:2]
            fits = weight.dtype == input.dtype and weight.device == input.device and weight.shape == classes
            if not fits or weight.requires_grad:
                return False
    except AttributeError:  # no tensor: torch says so in its own words
        return False
    rows = input.shape[:0] if input.dim() == 1 else input.shape[:1] + input.shape[2:]
    plain = type(ignore_index) is int and isinstance(reduction, str) and reduction in REDUCTIONS
    return plain and target.shape == rows


def nll_loss(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean"):
    """The negative log likelihood, as :func:`torch.nn.functional.nll_loss`.

    Args:
        input: logarithms of probabilities, (C), (N, C) or (N, C, d1, ..., dk), contiguous; float32, float64,
            bfloat16 or float16 on the CPU, of 2^22 numbers or more. Others are served by torch.
        target: class indices, int64, of input's shape without C.
        weight: (C), a weight for each class, of input's dtype; needs no gradient.
        size_average, reduce: torch's deprecated spelling of ``reduction``.
        ignore_index: a class index whose rows have loss 0 and gradient 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. The mean divides by the sum of the weights of the targets that
            are not ignored (nan if there is none).

    Returns:
        A scalar, or of target's shape without reduction, of input's dtype. Sums are kept in float64, and do not depend
        on the number of threads.

    Raises:
        IndexError: a class index that is neither in [0, C) nor ``ignore_index``.
    """
    if size_average is not None or reduce is not None or is_torchs(input, target, weight):
        return F.nll_loss(input, target, weight, size_average, ignore_index, reduce, reduction)
    return nll_loss_unasked(input, target, weight, ignore_index, reduction)


def nll_loss_unasked(input, target, weight, ignore_index, reduction):
    """:func:`nll_loss` for who has asked whether it is torch's (aside.py)."""
    served = _is_served(input, target, weight, ignore_index, reduction)
    ops = backend.ops_for(input, "nll_loss") if served else None
    if ops is None:
        return F.nll_loss(input, target, weight, ignore_index=ignore_index, reduction=reduction)
    args = target, weight, REDUCTIONS[reduction], ignore_index
    if torch.compiler.is_compiling():
        return ops.nll_loss_forward(input, *args)[0]
    if torch.is_grad_enabled() and input.requires_grad:
        return _apply(alive(input), (ops, *args))
    with below_autograd():
        return _library.quick(ops).nll_loss_forward(input, *args)[0]
