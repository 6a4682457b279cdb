"""Softmax cross entropy (d2l "Softmax Regression"), with label smoothing (Szegedy et al., CVPR 2016) and z-loss (PaLM).

The forward keeps two numbers per row, whose sum is the log-sum-exp; the backward makes the softmax again from them and
the logits, so that no tensor of the logits' size is stored. The reduction happens inside the op, in a fixed order.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import (
    alive,
    below_autograd,
    dispatch_modes,
    functorch_active,
    is_legacy_batchedtensor,
    reduction_names,
)
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes
from pydl.ops._nodes import is_compiling
from pydl.ops._options import integer, number, reduction_number
from pydl.ops._softmax_cross_entropy_autograd import Transformable, backward, kept_dtype

__all__ = ["cross_entropy"]

_SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def cross_entropy(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
    *,
    z_loss=0.0,
):
    """Cross entropy of logits and targets: ``Σ q_c (lse - x_c) + z_loss lse²`` per row, with ``lse = log Σ exp x``.

    Args:
        input: logits, (C), (N, C) or (N, C, d1, ..., dk), in any memory format; float32, float64, bfloat16 or float16
            (other dtypes are served by torch). It is never written to.
        target: class indices, int64 or uint8, of input's shape without C; or class probabilities of input's shape.
        weight: (C), a weight for each class.
        size_average, reduce: torch's deprecated spelling of ``reduction``.
        ignore_index: a class index whose rows have loss 0 and gradient 0, whatever their logits hold.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. With class indices the mean divides by the sum of the weights of
            the targets that are not ignored (nan if there is none), with probabilities by the number of rows.
        label_smoothing: in [0, 1]: the share of the target that is spread evenly over all classes (below 0: 0).
        z_loss: keyword-only. Adds ``z_loss * lse²`` to each row that is not ignored, without class weights; ``"mean"``
            divides it by the same number as the rest. It keeps ``lse`` near 0.

    Returns:
        The loss in input's dtype (float32 for half logits under autocast), a scalar or, without reduction, of input's
        shape without C. Sums are kept in float32 (float64 for float64) or wider.

    Raises:
        IndexError: a class index that is neither in [0, C) nor ``ignore_index``.
        ValueError: batch sizes that differ, an unknown reduction.
        RuntimeError: other shapes or dtypes that do not fit, label_smoothing above 1.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    >>> F.cross_entropy(logits, torch.tensor([0, 1]))
    tensor(0.1269)
    """
    if size_average is not None or reduce is not None:
        reduction = reduction_names.legacy_get_string(size_average, reduce)
    options = (ignore_index, reduction, label_smoothing, z_loss)
    if weight is None and not is_compiling():
        output = _nodes.cross_entropy(input, target, *options)
        if output is not NotImplemented:
            return output
    if is_torchs(input, target, weight):
        return _by_torch(input, target, weight, *options)
    return cross_entropy_unasked(input, target, weight, *options)


def cross_entropy_unasked(input, target, weight, ignore_index, reduction, label_smoothing, z_loss=0.0):
    """:func:`cross_entropy` for who has asked whether it is torch's (aside.py)."""
    how = reduction_number("cross_entropy", reduction)
    if type(ignore_index) is not int:
        ignore_index = integer("cross_entropy", "ignore_index", ignore_index)
    if type(label_smoothing) is not float:
        label_smoothing = number("cross_entropy", "label_smoothing", label_smoothing)
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"cross_entropy: expected target to be a Tensor, got {type(target).__name__}")
    if weight is not None and not isinstance(weight, torch.Tensor):
        raise TypeError(f"cross_entropy: expected weight to be a Tensor, got {type(weight).__name__}")
    ops = backend.ops_for(input) if input.dtype in _SUPPORTED else None
    if ops is None:
        return _by_torch(input, target, weight, ignore_index, reduction, label_smoothing, z_loss)
    float_output = torch.is_autocast_enabled(input.device.type)
    if target.dtype != torch.int64 or weight is not None:
        if target.dtype == torch.uint8:
            target = target.long()
        if target.is_floating_point() and target.shape == input.shape:
            input, target, weight, label_smoothing, float_output = _with_probabilities(
                input, target, weight, ignore_index, label_smoothing, float_output
            )
        elif weight is not None:
            weight = class_weight("cross_entropy", input, weight, float_output)
    args = (input, target, weight, how, ignore_index, label_smoothing, z_loss, float_output)
    if torch.compiler.is_compiling() or type(input) not in _PLAIN or dispatch_modes() > 0:
        return ops.softmax_cross_entropy_forward(*args)[0]
    if functorch_active():
        return Transformable.apply(ops, *args)[0]
    if torch.is_grad_enabled() and (input.requires_grad or target.requires_grad):
        return _apply(alive(input), alive(target), (ops, *args[2:]))
    with below_autograd():
        return _library.quick(ops).softmax_cross_entropy_forward(*args)[0]


def _by_torch(input, target, weight, ignore_index, reduction, label_smoothing, z_loss):
    if z_loss != 0.0:
        raise ValueError(f"cross_entropy: expected z_loss to be 0 where torch's own kernel runs, got {z_loss}")
    return F.cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


_PLAIN = (torch.Tensor, torch.nn.Parameter)


class _Eager(torch.autograd.Function):
    """The op in eager mode, where two things pay that a compiled graph cannot have.

    It skips the Python of a registered autograd formula (a third of a small call's time), and it makes the gradient in
    the forward, while the row is in the cache: the logits are read from memory once, not twice. That gradient is handed
    out once, and only if the upstream gradient is 1; it is never scaled, since rounding to half types comes last.
    Otherwise it is made from the logits again. Whether the next forward makes it goes by the last backward: a loop that
    scales its loss pays once. The bits are the same either way. On a GPU the gradient is made in the backward alone:
    to look at the upstream gradient the host would have to wait for it.
    """

    early = True

    @staticmethod
    def forward(ctx, input, target, rest):
        # what needs no gradient comes as one tuple: each argument of its own costs on the way in and out
        ops, weight, reduction, *_ = ctx.rest = rest
        ctx.materialize_grads = False  # what ctx.set_materialize_grads sets, as ctx.save_for_backward sets to_save
        ctx.may_be_early = may_be_early = reduction != 0 and input.is_cpu
        quick = _library.quick(ops)
        with below_autograd():
            if may_be_early and _Eager.early and input.requires_grad and not target.is_floating_point():
                output, norm, denominator, ctx.grad_input = quick.softmax_cross_entropy_forward_backward(
                    input, target, *rest[1:]
                )
            else:
                output, norm, denominator = quick.softmax_cross_entropy_forward(input, target, *rest[1:])
                ctx.grad_input = None
        ctx.to_save = input, target, weight, norm, denominator
        return output

    @staticmethod
    def backward(ctx, grad_output):
        grad_input, ctx.grad_input = ctx.grad_input, None
        # a vmap over the gradient: of torch.func, or torch's older one, of is_grads_batched
        transforms = _library.transforms_active()
        batched = transforms or (grad_output is not None and _is_batched(grad_output))
        if ctx.may_be_early and grad_output is not None and not torch.is_grad_enabled() and not batched:
            _Eager.early = grad_output.item() == 1.0
            if grad_input is not None and (_Eager.early or _is_written(ctx)):
                return grad_input if _Eager.early else (grad_input * grad_output).to(grad_input.dtype), None, None
        ops, _, ctx.reduction, ctx.ignore_index, ctx.label_smoothing, ctx.z_loss, _ = ctx.rest
        if torch.is_grad_enabled() or transforms:
            return *backward(ops, ctx, grad_output)[:2], None
        with below_autograd():
            return *backward(_library.quick(ops), ctx, grad_output)[:2], None


_is_batched = is_legacy_batchedtensor


def _is_written(ctx):
    """Whether logits or target were written to since the forward, as torch's own loss allows for the logits."""
    try:
        ctx.saved_tensors  # noqa: B018  (asks torch's version counters)
    except RuntimeError:
        return True
    return False


_apply = _library.eager(_Eager)


def class_weight(op, input, weight, autocast):
    """The weight of class indices in the dtype that sums are kept in; refused where torch refuses it."""
    cast = autocast and torch.promote_types(input.dtype, weight.dtype) in (torch.float32, torch.bfloat16, torch.float16)
    if weight.dtype != input.dtype and not cast:
        raise RuntimeError(f"{op}: expected weight dtype to be input's, {input.dtype}, got {weight.dtype}")
    if weight.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"{op}: expected weight to need no gradient for class indices, got requires_grad=True")
    return weight.to(kept_dtype(input.dtype)).contiguous()


def _with_probabilities(input, target, weight, ignore_index, label_smoothing, float_output):
    """Brings probabilities and weight to the dtypes that the op takes; torch's promotion decides the loss's dtype."""
    if ignore_index >= 0:
        raise RuntimeError(
            f"cross_entropy: expected ignore_index to be negative for class probabilities, got {ignore_index}"
        )
    common = torch.promote_types(input.dtype, target.dtype)
    if weight is not None:
        common = torch.promote_types(common, weight.dtype)
        if weight.requires_grad and weight.shape == _class_sizes(input):
            # Weights that learn are folded into the targets, whose gradient the op knows.
            dim = 0 if input.dim() == 1 else 1
            smoothing = max(label_smoothing, 0.0)
            target = target * (1.0 - smoothing) + smoothing / max(input.shape[dim], 1)
            target = target * weight.view([-1 if d == dim else 1 for d in range(input.dim())])
            weight, label_smoothing = None, 0.0
    if common == torch.float64:
        input = input.to(common)
    elif common == torch.float32:
        float_output = True  # half logits stay as they are
    if target.dtype != input.dtype:
        target = target.to(kept_dtype(common))
    if weight is not None:
        weight = weight.to(kept_dtype(common)).contiguous()
    return input, target, weight, label_smoothing, float_output


def _class_sizes(input):
    return input.shape if input.dim() == 1 else input.shape[1:2]
