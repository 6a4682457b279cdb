"""Derivatives of batch_norm's ops: the registered formulas, which torch.compile uses, and the form for torch.func."""

import torch

from pydl.ops import _library
from pydl.ops._batch_norm_schema import ACTIVATIONS


def keeps_output(activation, residual):
    return activation == ACTIVATIONS["sigmoid"] or (activation == ACTIVATIONS["relu"] and residual is not None)


def _keep(ctx, input, mean, var, weight, bias, residual, output):
    """What the formula reads: the bias for a ReLU's mask alone."""
    kept = output if keeps_output(ctx.activation, residual) else None
    again = ctx.activation == ACTIVATIONS["relu"] and kept is None
    ctx.bias_is = None if bias is None else (bias.shape, bias.dtype)
    ctx.save_for_backward(input, mean, var, weight, bias if again else None, kept)


def as_asked(found, needs, input, weight, bias_is):
    """The gradients of input, weight, bias and residual that are needed, in their shapes and dtypes."""
    like = (
        (input.shape, input.dtype),
        weight is not None and (weight.shape, weight.dtype),
        bias_is,
        (input.shape, input.dtype),
    )
    return tuple(
        grad.to(is_[1]).reshape(is_[0]) if need else None for grad, is_, need in zip(found, like, needs, strict=True)
    )


def _forward_context(ctx, inputs, output):
    input, _, _, weight, bias, residual, ctx.training, ctx.eps, ctx.activation = inputs
    output, mean, var = output
    _keep(ctx, input, mean, var, weight, bias, residual, output)
    ctx.set_materialize_grads(False)


def _forward_backward(ops, ctx, grad_output, _grad_mean, _grad_var):
    input, mean, var, weight, bias, kept = ctx.saved_tensors
    need_input, _, _, need_weight, need_bias, need_residual, *_ = ctx.needs_input_grad
    none = (None,) * 3
    if grad_output is None:
        return (None,) * 9
    if ctx.activation == 0:  # z = ... + residual: its gradient is grad_output itself
        grad_residual, need_residual = (grad_output if need_residual else None), False
    else:
        grad_residual = None
    if not (need_input or need_weight or need_bias or need_residual):
        return None, None, None, None, None, grad_residual, *none
    if bias is None and weight is None and need_bias:  # says the dtype of the gradient
        bias = input.new_zeros(input.shape[1], dtype=ctx.bias_is[1])
    grads = ops.batch_norm_backward(
        grad_output, input, mean, var, weight, bias, kept, ctx.training, ctx.eps, ctx.activation,
        need_input, need_weight, need_bias, need_residual,
    )  # fmt: skip
    return (
        grads[0] if need_input else None,
        None,
        None,
        grads[1].view(weight.shape) if need_weight else None,
        grads[2].view(ctx.bias_is[0]) if need_bias else None,
        grads[3] if need_residual else grad_residual,
        *none,
    )


_library.autograd("batch_norm_forward", _forward_context, _forward_backward)


def _backward_context(ctx, inputs, output):
    *tensors, ctx.training, ctx.eps, ctx.activation = inputs[:10]
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def gradients(grad_output, input, mean, var, weight, bias, output, training, eps, activation):
    """batch_norm_backward's formula in torch ops, for its own derivative; mean and var are functions of input."""
    dims = [0, *range(2, input.dim())]
    shape = [1, -1] + [1] * (input.dim() - 2)
    accumulate = torch.float64 if input.dtype == torch.float64 else torch.float32
    x, grad = input.to(accumulate), grad_output.to(accumulate)
    if training:
        deviation = x - x.mean(dims, keepdim=True)
        invstd = (deviation.square().mean(dims, keepdim=True) + eps).rsqrt()
    else:
        deviation = x - mean.to(accumulate).view(shape)
        invstd = (var.to(accumulate).view(shape) + eps).rsqrt()
    xhat = deviation * invstd
    scale = invstd if weight is None else invstd * weight.to(accumulate).view(shape)
    if activation == ACTIVATIONS["sigmoid"]:
        y = output.to(accumulate)
        grad = grad * y * (1 - y)
    elif activation == ACTIVATIONS["relu"]:
        with torch.no_grad():
            z = output
            if z is None:
                z = deviation * scale
                z = z if bias is None else z + bias.to(accumulate).view(shape)
        grad = grad.masked_fill(z <= 0, 0)
    sum_grad, sum_grad_xhat = grad.sum(dims, keepdim=True), (grad * xhat).sum(dims, keepdim=True)
    grad_input = grad
    if training:
        n = max(input.numel() // max(input.shape[1], 1), 1)
        grad_input = grad - sum_grad / n - xhat * (sum_grad_xhat / n)
    return grad_input * scale, sum_grad_xhat.flatten(), sum_grad.flatten(), grad


def _backward_backward(ops, ctx, *grad_grads):
    grad_output, input, mean, var, weight, bias, output = ctx.saved_tensors
    again = torch.is_grad_enabled()
    positions = {0: grad_output, 1: input, 4: weight, 6: output}
    with torch.enable_grad():
        # each argument under a name of its own, so that output does not lead back to input
        args = {
            i: (t.view_as(t) if again and t.requires_grad else t.detach().requires_grad_())
            for i, t in positions.items()
            if t is not None and ctx.needs_input_grad[i]
        }
        given = {i: args.get(i, t) for i, t in positions.items()}
        results = gradients(
            given[0], given[1], mean, var, given[4], bias, given[6], ctx.training, ctx.eps, ctx.activation
        )
        pairs = [
            (result, grad.to(result.dtype).view_as(result))
            for result, grad in zip(results, grad_grads, strict=True)
            if result.requires_grad and grad is not None and grad.numel() == result.numel()
        ]
        if not pairs:
            return (None,) * 14
        found = torch.autograd.grad(
            [result for result, _ in pairs],
            list(args.values()),
            [grad for _, grad in pairs],
            create_graph=again,
            allow_unused=True,
        )
    grads = [None] * 14
    for i, grad in zip(args, found, strict=True):
        grads[i] = grad
    return tuple(grads)


_library.autograd("batch_norm_backward", _backward_context, _backward_backward)


def _refuse(name):
    def backward(ops, ctx, *grads):
        raise RuntimeError(
            f"{name}: expected its inputs to be used without gradient, got one that requires it; "
            "differentiate through batch_norm, or write an autograd.Function around it"
        )

    _library.autograd(name, lambda ctx, inputs, output: None, backward)


for _name in (
    "batch_norm_stats",
    "batch_norm_apply",
    "batch_norm_backward_reduce",
    "batch_norm_backward_apply",
    "batch_norm_pooled_backward",
):
    _refuse(_name)


class TransformedBatchNorm(torch.autograd.Function):
    """The same for torch.func; its backward is made of torch ops, which any further transform takes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(ops, *args):
        return ops.batch_norm_forward(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, input, _, _, weight, bias, residual, ctx.training, ctx.eps, ctx.activation = inputs
        output, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        _keep(ctx, input, mean, var, weight, bias, residual, output)

    @staticmethod
    def backward(ctx, grad_output, _grad_mean, _grad_var):
        input, mean, var, weight, bias, kept = ctx.saved_tensors
        grads = gradients(grad_output, input, mean, var, weight, bias, kept, ctx.training, ctx.eps, ctx.activation)
        needs = [ctx.needs_input_grad[i] for i in (1, 4, 5, 6)]
        grad_input, grad_weight, grad_bias, grad_residual = as_asked(grads, needs, input, weight, ctx.bias_is)
        return None, grad_input, None, None, grad_weight, grad_bias, grad_residual, None, None, None

    @staticmethod
    def jvp(ctx, *tangents):
        raise RuntimeError("batch_norm: expected reverse-mode differentiation, got forward mode, which is not offered")
