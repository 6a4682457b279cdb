"""The schemas, fakes and derivatives of linear_cross_entropy's ops."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from pydl.ops import _library
from pydl.ops._softmax_cross_entropy_autograd import differentiable_backward, kept_dtype
from pydl.ops.linear import layouts

_TENSORS = "Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, "
_OPTIONS = "int reduction, int ignore_index, float label_smoothing, float z_loss"
_NEEDS = ", bool needs_input, bool needs_weight, bool needs_bias"
_COUNTED = ", bool float_output, bool counts_correct"
_OUTPUTS = "Tensor output, Tensor norm, Tensor denominator, Tensor correct"
_GRADIENTS = "Tensor grad_input, Tensor grad_weight, Tensor grad_bias"

# reduction, weight, float_output and denominator: as of softmax_cross_entropy. norm (2 rows) is what the backward makes
# the softmax from, in blocks that the kernels alone know. correct: one int64, or of no elements where nobody counts.
_library.define("linear_cross_entropy_forward", f"({_TENSORS}{_OPTIONS}{_COUNTED}) -> ({_OUTPUTS})")
# The same, and the gradients for an upstream gradient of 1 (mean and sum), in the dtype of the sums; one that is not
# needed has no elements.
_library.define(
    "linear_cross_entropy_forward_backward",
    f"({_TENSORS}{_OPTIONS}{_COUNTED}{_NEEDS}) -> ({_OUTPUTS}, {_GRADIENTS})",
)
# The gradients in the dtype of the input, from the logits, which are made once more.
_library.define(
    "linear_cross_entropy_backward",
    f"(Tensor grad_output, {_TENSORS}Tensor norm, Tensor denominator, {_OPTIONS}{_NEEDS}) -> ({_GRADIENTS})",
)


def _check(condition, message, error=RuntimeError):
    if not condition:
        raise error(f"linear_cross_entropy: expected {message}")


# The checks of csrc/linear_cross_entropy.cpp once more, for tracing, which never gets there.
def check_layer(input, linear_weight, linear_bias):
    """Shapes and dtypes of the linear layer; its weight may have positions between classes and features."""
    size = tuple(linear_weight.shape)
    _check(input.dim() in (1, 2), f"input to be of 1 or 2 dimensions, got shape {tuple(input.shape)}")
    _check(len(size) >= 2, f"linear_weight to be at least 2-D, got shape {size}")
    _check(
        input.shape[-1] == size[-1],
        f"input's last dimension to be {size[-1]} (linear_weight of shape {size}), got shape {tuple(input.shape)}",
    )
    _check(
        input.dim() == 2 or len(size) == 2,
        f"input to be 2-D for linear_weight of shape {size}, got shape {tuple(input.shape)}",
    )
    for name, t in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if t is not None:
            _check(t.dtype == input.dtype, f"{name} to be of the dtype of input, got {t.dtype} and {input.dtype}")
    if linear_bias is not None:
        of = f"({', '.join(map(str, size[:-1]))})"
        _check(linear_bias.shape == size[:-1], f"linear_bias to be of shape {of}, got {tuple(linear_bias.shape)}")


def _check_target(input, linear_weight, target, weight):
    size = tuple(target.shape)
    if input.dim() == 1:
        _check(target.dim() <= 1, f"target to be of 0 or 1 dimensions, got shape {size}")
        _check(target.numel() == 1, f"target to be one class index, got shape {size}", ValueError)
    else:
        rows = input.shape[0]
        _check(target.dim() > 0 and target.shape[0] == rows, f"target to be of shape ({rows}), got {size}", ValueError)
        _check(target.dim() == 1, f"target to be of shape ({rows}), got {size}")
    _check(target.dtype == torch.int64, f"target dtype to be int64 or uint8, got {target.dtype}")
    if weight is not None:
        classes, size = linear_weight.shape[0], tuple(weight.shape)
        _check(size == (classes,), f"weight to be of shape ({classes}), one for each class, got {size}")


@_library.fake("linear_cross_entropy_forward")
def _fake_forward(
    input,
    linear_weight,
    target,
    linear_bias,
    weight,
    reduction,
    ignore_index,
    label_smoothing,
    z_loss,
    float_output,
    counts_correct,
):
    check_layer(input, linear_weight, linear_bias)
    _check_target(input, linear_weight, target, weight)
    sums, rows = kept_dtype(input.dtype), input.shape[:-1]
    return (
        input.new_empty(rows if reduction == 0 else (), dtype=sums if float_output else input.dtype),
        input.new_empty(2 * (rows[0] if rows else 1), dtype=sums),
        input.new_empty((), dtype=torch.float64),
        input.new_empty(() if counts_correct else (0,), dtype=torch.int64),
    )


def _fake_gradients(input, linear_weight, needs, dtype):
    sizes = input.shape, linear_weight.shape, linear_weight.shape[:1]
    return tuple(input.new_empty(size if need else (0,), dtype=dtype) for size, need in zip(sizes, needs, strict=True))


@_library.fake("linear_cross_entropy_forward_backward")
def _(input, linear_weight, *args):
    *args, needs_input, needs_weight, needs_bias = args
    needs = needs_input, needs_weight, needs_bias
    outputs = _fake_forward(input, linear_weight, *args)
    return *outputs, *_fake_gradients(input, linear_weight, needs, kept_dtype(input.dtype))


@_library.fake("linear_cross_entropy_backward")
def _(grad_output, input, linear_weight, *args):
    return _fake_gradients(input, linear_weight, args[-3:], input.dtype)


def _setup_context(ctx, inputs, output):
    input, linear_weight, target, linear_bias, weight, *options, _, _ = inputs
    ctx.reduction, ctx.ignore_index, ctx.label_smoothing, ctx.z_loss = options
    _, norm, denominator, correct = output
    ctx.layouts = layouts(input, linear_weight, linear_bias)
    ctx.mark_non_differentiable(norm, denominator, correct)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, linear_weight, target, linear_bias, weight, norm, denominator)


def _backward(ops, ctx, grad_output, *_):
    needs_input, needs_weight, _, needs_bias, *rest = ctx.needs_input_grad
    grad_input, grad_weight, grad_bias = backward(ops, ctx, grad_output, (needs_input, needs_weight, needs_bias))
    return grad_input, grad_weight, None, grad_bias, *(None for _ in rest)


_library.autograd("linear_cross_entropy_forward", _setup_context, _backward)


def backward(ops, ctx, grad_output, needs):
    """The gradients of input, linear_weight and linear_bias; None for those that are not needed.

    ``ctx`` has the options as attributes and the tensors of :func:`_setup_context` saved.
    """
    if grad_output is None:
        return None, None, None
    input, linear_weight, target, linear_bias, weight, norm, denominator = ctx.saved_tensors
    if torch.is_grad_enabled() or _library.transforms_active():  # gradients to be differentiated or batched
        return _differentiable(ctx, grad_output, input, linear_weight, target, linear_bias, weight, needs)
    grads = ops.linear_cross_entropy_backward(
        grad_output,
        input,
        linear_weight,
        target,
        linear_bias,
        weight,
        norm,
        denominator,
        ctx.reduction,
        ctx.ignore_index,
        ctx.label_smoothing,
        ctx.z_loss,
        *needs,
    )
    return laid_out(ctx, (grad if need else None for grad, need in zip(grads, needs, strict=True)))


def laid_out(ctx, grads):
    """Gradients of input, weight and bias in the layouts that torch gives those of a linear layer (linear.py)."""
    return tuple(
        grad.t().contiguous().t() if in_columns and grad is not None else grad
        for grad, in_columns in zip(grads, (*ctx.layouts, False), strict=True)
    )


def _differentiable(ctx, grad_output, input, linear_weight, target, linear_bias, weight, needs):
    """The same in torch's own functions, which autograd can follow further; all logits are stored for that."""
    dtype = kept_dtype(input.dtype)
    x, w, b = (None if t is None else t.to(dtype) for t in (input, linear_weight, linear_bias))
    if target.dim() == input.dim():  # of one row: one element
        target = target.reshape(())
    grad, _ = differentiable_backward(ctx, grad_output, F.linear(x, w, b), target, weight, True, False)
    rows, x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    grads = (
        (rows @ w).reshape(input.shape).to(input.dtype) if needs[0] else None,
        (rows.mT @ x).to(linear_weight.dtype) if needs[1] else None,
        rows.sum(0).to(input.dtype) if needs[2] else None,
    )
    return laid_out(ctx, grads)


def gradients(
    grad_output, input, linear_weight, target, linear_bias, reduction, ignore_index, label_smoothing, z_loss, layouts,
    needs,
):  # fmt: skip
    """Those of a call without weights of classes, for csrc/autograd: see _differentiable."""
    options = SimpleNamespace(
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        layouts=layouts,
    )
    return _differentiable(options, grad_output, input, linear_weight, target, linear_bias, None, needs)


def _refuse_double_backward(ops, ctx, *grads):
    raise RuntimeError(
        "linear_cross_entropy: expected gradients of gradients to be taken with create_graph=True through "
        "linear_cross_entropy, got a derivative of its backward op"
    )


# Without this a second derivative of the backward op would be zero, in silence.
_library.autograd("linear_cross_entropy_backward", lambda ctx, inputs, output: None, _refuse_double_backward)
