"""The last layer of a language model and its loss in one: softmax cross entropy of a linear layer's outputs.

Over blocks of rows: the logits of a block become its gradient where they lie and are used at once, so that all logits,
the largest tensor of such a model's step by far, are never stored. In eager mode the forward makes the gradients, three
products in all; otherwise the backward makes the logits once more. On the CPU alone, of class indices; everything else
goes through :func:`pydl.functional.linear` and :func:`pydl.functional.cross_entropy`.
"""

import math

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, dispatch_modes, functorch_active, is_legacy_batchedtensor
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes
from pydl.ops._autocast import lowered
from pydl.ops._linear_cross_entropy_autograd import backward, check_layer, laid_out
from pydl.ops._nodes import is_compiling
from pydl.ops._options import integer, number, reduction_number, switch
from pydl.ops.linear import SUPPORTED, layouts, linear
from pydl.ops.softmax_cross_entropy import class_weight, cross_entropy

__all__ = ["linear_cross_entropy"]

_OP = "linear_cross_entropy"


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    reduction="mean",
    ignore_index=None,
    label_smoothing=0.0,
    options=None,
    z_loss=0.0,
    return_correct=False,
):
    """``cross_entropy(linear(input, linear_weight, linear_bias), target, ...)`` without storing the logits.

    The names and defaults are those of torch 2.13's function; the last two arguments are ours.

    Args:
        input: (in_features) or (N, in_features); float32, float64, bfloat16 or float16 on the CPU, with any strides.
            Half types are copied to float32: logits and sums are never rounded to them.
        linear_weight: (C, in_features). With positions, (C, d1, ..., dk, in_features), logits are stored.
        target: class indices, (N), or of one element for an input of one row; int64 or uint8. With positions
            (N, d1, ..., dk). Class probabilities of the logits' shape are taken too; logits are stored then.
        linear_bias: (C), or (C, d1, ..., dk) with positions, or None.
        weight: (C), a weight for each class.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``, as of :func:`~pydl.functional.cross_entropy`.
        ignore_index: a class index whose rows have loss 0 and gradient 0; None means -100. Not for probabilities.
        label_smoothing: in [0, 1]: the share of the target that is spread evenly over all classes.
        options: a ``torch.nn.LinearCrossEntropyOptions`` asks for torch's own function, which it is about.
        z_loss: adds ``z_loss * lse²`` to each row that is not ignored, as of :func:`~pydl.functional.cross_entropy`.
        return_correct: also returns how many rows have their largest logit (the first of several) at the target,
            ignored rows left out: training accuracy, without a second look at the logits.

    Returns:
        The loss in input's dtype (float32 for half types under autocast), a scalar or (N); with ``return_correct``
        (loss, correct), ``correct`` being an int64 scalar without gradient. The result does not depend on the number
        of threads; gradients are contiguous. On the CPU they are made in the forward, for ``reduction`` mean and sum
        where a gradient is needed at all: evaluate under ``torch.no_grad()``. Extra memory is 12 MB, or 64 rows of
        logits if that is more, and what gradients take; of half types also a float32 copy of the weight. With
        ``create_graph=True`` the logits are stored.

    Raises:
        IndexError: a class index that is neither in [0, C) nor ``ignore_index``.
        ValueError: batch sizes that differ, an unknown reduction, ``return_correct`` with probabilities, ``options``
            with one of our own arguments.
        RuntimeError: other shapes or dtypes that do not fit, label_smoothing above 1.

    >>> hidden, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    >>> F.linear_cross_entropy(hidden, weight, torch.tensor([0]))
    tensor(0.1269)
    """
    if weight is None and options is None and not is_compiling():
        found = _nodes.linear_cross_entropy(
            input, linear_weight, target, linear_bias, reduction, ignore_index, label_smoothing, z_loss, return_correct
        )
        if found is not NotImplemented:
            return found if return_correct else found[0]
    for name, value in (("input", input), ("linear_weight", linear_weight), ("target", target)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{_OP}: expected {name} to be a Tensor, got {type(value).__name__}")
    for name, value in (("linear_bias", linear_bias), ("weight", weight)):
        if value is not None and not isinstance(value, torch.Tensor):
            raise TypeError(f"{_OP}: expected {name} to be a Tensor, got {type(value).__name__}")
    tensors = (input, linear_weight, target, linear_bias, weight)
    arguments = (reduction, ignore_index, label_smoothing, options, z_loss, return_correct)
    if is_torchs(*tensors):
        return _by_torch(*tensors, *arguments)
    return linear_cross_entropy_unasked(*tensors, *arguments)


def linear_cross_entropy_unasked(
    input,
    linear_weight,
    target,
    linear_bias,
    weight,
    reduction,
    ignore_index,
    label_smoothing,
    options=None,
    z_loss=0.0,
    return_correct=False,
):
    """:func:`linear_cross_entropy` for who has asked whether it is torch's (aside.py)."""
    tensors = (input, linear_weight, target, linear_bias, weight)
    if options is not None:
        if z_loss != 0.0 or return_correct:
            raise ValueError(f"{_OP}: expected options to be None with z_loss or return_correct, got {options}")
        return _by_torch(*tensors, reduction, ignore_index, label_smoothing, options)
    how = reduction_number(_OP, reduction)
    if ignore_index is not None:
        ignore_index = integer(_OP, "ignore_index", ignore_index)
    label_smoothing, z_loss = number(_OP, "label_smoothing", label_smoothing), number(_OP, "z_loss", z_loss)
    return_correct = switch(_OP, "return_correct", return_correct)
    ops = backend.ops_for(input, _OP) if _is_served(input, linear_weight, target) else None
    if ops is None:
        return _two_calls(*tensors, reduction, ignore_index, label_smoothing, z_loss, return_correct)
    device_type = input.device.type
    float_output = torch.is_autocast_enabled(device_type)
    if float_output:
        input, linear_weight, linear_bias = lowered(device_type, input, linear_weight, linear_bias)
    if target.dtype == torch.uint8:
        target = target.long()
    if weight is not None:
        weight = class_weight(_OP, input, weight, float_output)
    ignore_index = -100 if ignore_index is None else ignore_index
    rest = (how, ignore_index, label_smoothing, z_loss, float_output, return_correct)
    args = (input, linear_weight, target, linear_bias, weight, *rest)
    if torch.compiler.is_compiling() or type(input) not in _PLAIN or dispatch_modes() > 0:
        loss, _, _, correct = ops.linear_cross_entropy_forward(*args)
    elif functorch_active():
        loss, _, _, correct = _library.transformed(ops).linear_cross_entropy_forward(*args)
    elif torch.is_grad_enabled() and (
        input.requires_grad or linear_weight.requires_grad or (linear_bias is not None and linear_bias.requires_grad)
    ):
        bias = None if linear_bias is None else alive(linear_bias)
        return _apply(alive(input), alive(linear_weight), bias, (ops, target, weight, *rest))
    else:
        with below_autograd():
            loss, _, _, correct = _library.quick(ops).linear_cross_entropy_forward(*args)
    return (loss, correct) if return_correct else loss


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _is_served(input, linear_weight, target):
    """Whether the call is the kernels': of a matrix of weights and class indices."""
    probabilities = target.is_floating_point() and target.shape == (*input.shape[:-1], *linear_weight.shape[:1])
    return input.dtype in SUPPORTED and linear_weight.dim() == 2 and input.dim() in (1, 2) and not probabilities


def _by_torch(
    input,
    linear_weight,
    target,
    linear_bias,
    weight,
    reduction,
    ignore_index,
    label_smoothing,
    options=None,
    z_loss=0.0,
    return_correct=False,
):
    """By torch's own function where it has one (from 2.13 on) and means what was asked for, else by its parts."""
    if z_loss == 0.0 and not return_correct and hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return F.linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
        )
    if options is not None:
        raise ValueError(f"{_OP}: expected options to be None where torch's parts run, got {options}")
    tensors = (input, linear_weight, target, linear_bias, weight)
    return _two_calls(*tensors, reduction, ignore_index, label_smoothing, z_loss, return_correct)


def _two_calls(
    input,
    linear_weight,
    target,
    linear_bias,
    weight,
    reduction,
    ignore_index,
    label_smoothing,
    z_loss,
    return_correct,
):
    """The same by the two functions that it is made of, which find who serves them."""
    check_layer(input, linear_weight, linear_bias)
    classes, *positions, _ = linear_weight.shape
    if target.shape == (*input.shape[:-1], classes, *positions):
        if ignore_index is not None:
            raise RuntimeError(f"{_OP}: expected ignore_index to be None for class probabilities, got {ignore_index}")
        if return_correct:
            raise ValueError(
                f"{_OP}: expected target to be class indices for return_correct, got class probabilities of shape "
                f"{tuple(target.shape)}"
            )
    ignore_index = -100 if ignore_index is None else ignore_index
    if positions:
        linear_weight = linear_weight.flatten(0, -2)
        linear_bias = None if linear_bias is None else linear_bias.flatten()
    logits = linear(input, linear_weight, linear_bias)
    if positions:
        logits = logits.unflatten(-1, (classes, *positions))
    loss = cross_entropy(
        logits,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )
    if not return_correct:
        return loss
    found = logits.detach().argmax(0 if logits.dim() == 1 else 1)
    target = target.reshape(found.shape)
    return loss, ((found == target) & (target != ignore_index)).sum()


class _Eager(torch.autograd.Function):
    """The op in eager mode, whose forward makes the gradients while a block's logits are in the cache.

    They are handed out once, scaled in the dtype of the sums by the upstream gradient: to make the logits again would
    take a third more. What is written to the tensors in between changes nothing then. A second backward, one without
    reduction, and an upstream gradient that is not finite (which must leave ignored rows alone) make them from the
    logits again.
    """

    @staticmethod
    def forward(ctx, input, linear_weight, linear_bias, rest):
        # what needs no gradient comes as one tuple: each argument of its own costs on the way in and out
        ctx.ops, target, weight, *options = rest
        ctx.reduction, ctx.ignore_index, ctx.label_smoothing, ctx.z_loss, _, counts_correct = options
        ctx.materialize_grads = False  # what ctx.set_materialize_grads sets, as ctx.save_for_backward sets to_save
        ctx.dtype, ctx.layouts = input.dtype, layouts(input, linear_weight, linear_bias)
        tensors = (input, linear_weight, target, linear_bias, weight)
        quick = _library.quick(ctx.ops)
        with below_autograd():
            if ctx.reduction != 0:
                loss, norm, denominator, correct, *ctx.gradients = quick.linear_cross_entropy_forward_backward(
                    *tensors, *options, *ctx.needs_input_grad[:3]
                )
            else:
                loss, norm, denominator, correct = quick.linear_cross_entropy_forward(*tensors, *options)
                ctx.gradients = None
        ctx.to_save = *tensors, norm, denominator
        if not counts_correct:
            return loss
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx, grad_output, *_):
        gradients, ctx.gradients = ctx.gradients, None
        needs = ctx.needs_input_grad[:3]
        # a vmap over the gradient: of torch.func, or torch's older one, of is_grads_batched
        transforms = _library.transforms_active()
        batched = transforms or (grad_output is not None and is_legacy_batchedtensor(grad_output))
        if gradients and grad_output is not None and not torch.is_grad_enabled() and not batched:
            scale = grad_output.item()
            if math.isfinite(scale):
                if scale != 1.0:
                    gradients = [grad.mul_(scale) for grad in gradients]
                grads = (g.to(ctx.dtype) if need else None for g, need in zip(gradients, needs, strict=True))
                return *laid_out(ctx, grads), None
        if torch.is_grad_enabled() or transforms:
            return *backward(ctx.ops, ctx, grad_output, needs), None
        with below_autograd():
            return *backward(_library.quick(ctx.ops), ctx, grad_output, needs), None


_apply = _library.eager(_Eager)
