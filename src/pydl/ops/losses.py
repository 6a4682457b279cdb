"""Losses of two tensors number by number (d2l chapters "Linear Regression" and "Single Shot Multibox Detection").

    mse_loss          d², d = input - target
    l1_loss           abs d
    smooth_l1_loss    d² / (2 beta) where abs d < beta, abs d - beta / 2 elsewhere
    huber_loss        d² / 2 where abs d < delta, delta (abs d - delta / 2) elsewhere
    binary_cross_entropy_with_logits    w ((1 - t) x + (1 + (pos_weight - 1) t) log(1 + exp(-x)))

On the CPU alone. The sum is made in the pass that computes the losses, in a fixed order, and nothing of the tensors'
size is stored. Torch's own are: calls of so few numbers that it is done before ours has begun (``WORTH_A_CALL``);
tensors that are not contiguous, of two shapes or two dtypes; gradients of target and weights; transforms of torch.func.
"""

import math

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active
from pydl.aside import is_torchs
from pydl.ops import _library, _losses_autograd, _nodes  # noqa: F401  (which defines the ops)
from pydl.ops._memory_format import product_strides, row_major
from pydl.ops._nodes import is_compiling
from pydl.ops._options import REDUCTIONS

__all__ = ["binary_cross_entropy_with_logits", "huber_loss", "l1_loss", "mse_loss", "smooth_l1_loss"]

SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Numbers below which the time is that of the call; measured, kernels/cpu/losses/NOTES.md.
WORTH_A_CALL = {
    "mse_loss": 1 << 18,
    "l1_loss": 1 << 18,
    "smooth_l1_loss": 1 << 18,
    "huber_loss": 1 << 18,
    "binary_cross_entropy_with_logits": 1 << 18,
}


L1 = (-1.0, 0.0, 1.0, 0.0)  # the absolute error as kernels/losses.h has it


def _as_a_product(grad, found):
    """The gradient of the absolute error has the strides of a product with the sign, which torch computes it by."""
    strides = row_major(found.shape) if grad.is_contiguous() else product_strides(grad, found)
    return found if found.stride() == strides else found.new_empty_strided(found.shape, strides).copy_(found)


class _Eager(torch.autograd.Function):
    """All of them in eager mode with the fewest hops: each op is called below the autograd layer of the dispatcher."""

    @staticmethod
    def forward(ctx, input, rest):
        # what needs no gradient comes as one tuple: each argument of its own costs on the way in and out
        ops, name, target, reduction, options = rest
        of_tensors = name != "difference_loss"
        ctx.rest = ops, name, reduction, None if of_tensors else options
        with below_autograd():
            output = getattr(_library.quick(ops), f"{name}_forward")(input, target, reduction, *options)
        ctx.to_save = (input, target, *options) if of_tensors else (input, target)  # what ctx.save_for_backward sets
        return output

    @staticmethod
    def backward(ctx, grad):
        ops, name, reduction, options = ctx.rest
        input, target, *weights = ctx.saved_tensors
        args = grad, input, target, reduction, *(weights if options is None else options)
        name = f"{name}_backward"
        if _library.transforms_active():  # torch.func.vmap over the gradient
            return getattr(_library.transformed(ops), name)(*args), None
        if torch.is_grad_enabled():
            return getattr(ops, name)(*args), None
        with below_autograd():
            found = getattr(_library.quick(ops), name)(*args)
            return (_as_a_product(grad, found) if options == L1 and reduction == 0 else found), None


_apply = _library.eager(_Eager)


def is_small(name, input):
    """Whether the loss is torch's for the tensor's size alone: the most frequent reason, and the cheapest to see."""
    return not is_compiling() and _nodes.is_small(input, WORTH_A_CALL[name])


def is_served(name, input, target, reduction):
    """Whether the loss ``name`` of tensors of which aside.py was asked is ours, but for its options."""
    try:
        return (
            input.numel() >= WORTH_A_CALL[name]  # the most frequent reason, and the cheapest to see
            and input.dtype in SUPPORTED
            and target.dtype == input.dtype
            and target.shape == input.shape
            and input.is_contiguous()
            and target.is_contiguous()
            and not target.requires_grad
            and not functorch_active()
            and (input.dtype.itemsize > 2 or not torch.is_autocast_enabled(input.device.type))
            and isinstance(reduction, str)
            and reduction in REDUCTIONS
        )
    except AttributeError:  # no tensor: torch says so in its own words
        return False


def _call(name, input, target, reduction, *options):
    ops = backend.ops_for(input, name)
    if ops is None:
        return None
    reduction = REDUCTIONS[reduction]
    if torch.compiler.is_compiling():
        return getattr(ops, f"{name}_forward")(input, target, reduction, *options)
    if torch.is_grad_enabled() and input.requires_grad:
        return _apply(alive(input), (ops, name, target, reduction, options))
    with below_autograd():
        return getattr(_library.quick(ops), f"{name}_forward")(input, target, reduction, *options)


def _is_positive(number):
    return type(number) in (int, float) and 0 < number < math.inf


def mse_loss_served(input, target, reduction):
    """:func:`mse_loss` of tensors of which aside.py was asked; None where torch's is to compute it. So are the rest."""
    if not is_served("mse_loss", input, target, reduction):
        return None
    return _call("difference_loss", input, target, reduction, math.inf, 1.0, 1.0, 0.0)


def l1_loss_served(input, target, reduction):
    if not is_served("l1_loss", input, target, reduction):
        return None
    return _call("difference_loss", input, target, reduction, *L1)


def smooth_l1_loss_served(input, target, reduction, beta):
    if not _is_positive(beta) or not is_served("smooth_l1_loss", input, target, reduction):
        return None
    return _call("difference_loss", input, target, reduction, float(beta), 0.5 / beta, 1.0, beta / 2)


def huber_loss_served(input, target, reduction, delta):
    if not _is_positive(delta) or not is_served("huber_loss", input, target, reduction):
        return None
    return _call("difference_loss", input, target, reduction, float(delta), 0.5, float(delta), delta * delta / 2)


def binary_cross_entropy_with_logits_served(input, target, weight, reduction, pos_weight):
    name = "binary_cross_entropy_with_logits"
    if not is_served(name, input, target, reduction):
        return None
    if not all(of is None or _is_plain_weight(of, input) for of in (weight, pos_weight)):
        return None
    return _call(name, input, target, reduction, weight, pos_weight)


def _is_plain_weight(weight, input):
    try:
        if weight.dtype != input.dtype or weight.device != input.device or weight.requires_grad:
            return False
    except AttributeError:  # no tensor
        return False
    missing = input.dim() - weight.dim()
    if missing < 0:
        return False
    return all(of in (1, size) for of, size in zip(weight.shape, input.shape[missing:], strict=True))


def mse_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None):
    """The squared error, as :func:`torch.nn.functional.mse_loss`.

    Args:
        input: any shape, contiguous; float32, float64, bfloat16 or float16 on the CPU, of 2^18 numbers or more.
        target: of the shape and dtype of input, contiguous; needs no gradient.
        size_average, reduce: torch's deprecated spelling of ``reduction``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        weight: of input's shape. What has one, and all other tensors, dtypes and devices, are served by torch.

    Returns:
        A scalar, or of input's shape without reduction, of its dtype. Sums are kept in float32 and float64, and do not
        depend on the number of threads.

    >>> F.mse_loss(torch.tensor([0.0, 4.0]), torch.zeros(2))
    tensor(8.)
    """
    loss = None
    if size_average is None is reduce and weight is None and not is_torchs(input, target):
        loss = mse_loss_served(input, target, reduction)
    return F.mse_loss(input, target, size_average, reduce, reduction, weight) if loss is None else loss


def l1_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None):
    """The absolute error, as :func:`torch.nn.functional.l1_loss`; see :func:`mse_loss`.

    >>> F.l1_loss(torch.tensor([0.0, 4.0]), torch.zeros(2))
    tensor(2.)
    """
    loss = None
    if size_average is None is reduce and weight is None and not is_torchs(input, target):
        loss = l1_loss_served(input, target, reduction)
    return F.l1_loss(input, target, size_average, reduce, reduction, weight) if loss is None else loss


def smooth_l1_loss(input, target, size_average=None, reduce=None, reduction="mean", beta=1.0):
    """Squared near 0, absolute beyond ``beta``, as :func:`torch.nn.functional.smooth_l1_loss` (Girshick, 2015).

    ``beta`` is a positive number; otherwise see :func:`mse_loss`.

    >>> F.smooth_l1_loss(torch.tensor([0.0, 4.0]), torch.zeros(2))
    tensor(1.7500)
    """
    loss = None
    if size_average is None is reduce and not is_torchs(input, target):
        loss = smooth_l1_loss_served(input, target, reduction, beta)
    return F.smooth_l1_loss(input, target, size_average, reduce, reduction, beta) if loss is None else loss


def huber_loss(input, target, reduction="mean", delta=1.0, weight=None):
    """``delta`` times :func:`smooth_l1_loss` with that ``beta``, as :func:`torch.nn.functional.huber_loss`.

    >>> F.huber_loss(torch.tensor([0.0, 4.0]), torch.zeros(2), delta=2.0)
    tensor(3.)
    """
    loss = None
    if weight is None and not is_torchs(input, target):
        loss = huber_loss_served(input, target, reduction, delta)
    return F.huber_loss(input, target, reduction, delta, weight) if loss is None else loss


def binary_cross_entropy_with_logits(
    input, target, weight=None, size_average=None, reduce=None, reduction="mean", pos_weight=None
):
    """Cross entropy of two classes, as :func:`torch.nn.functional.binary_cross_entropy_with_logits`.

    Args:
        input: logits; as :func:`mse_loss`'s.
        target: of the shape and dtype of input: probabilities of the first class. Needs no gradient.
        weight: broadcasts to input's shape: a factor of each loss. Needs no gradient.
        pos_weight: broadcasts to input's shape: a factor of what positive targets add. Needs no gradient.
        size_average, reduce, reduction: as :func:`mse_loss`'s; the mean divides by the count of numbers.

    Returns:
        As :func:`mse_loss`.

    >>> F.binary_cross_entropy_with_logits(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
    tensor(0.4100)
    """
    loss = None
    if size_average is None is reduce and not is_torchs(input, target, weight, pos_weight):
        loss = binary_cross_entropy_with_logits_served(input, target, weight, reduction, pos_weight)
    if loss is not None:
        return loss
    return F.binary_cross_entropy_with_logits(input, target, weight, size_average, reduce, reduction, pos_weight)
