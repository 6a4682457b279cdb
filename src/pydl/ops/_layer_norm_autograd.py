"""Derivatives of the ops of layer_norm and rms_norm, and those of their backwards."""

import torch

from pydl._private import functorch_active
from pydl.ops import _layer_norm_schema, _library  # noqa: F401  (the former defines the ops)
from pydl.ops._memory_format import product_strides


def _layer_norm_context(ctx, inputs, output):
    input, weight, _, ctx.dims, ctx.eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, weight, output[1])


def layer_norm_gradients(ops, ctx, grad, needs):
    """The gradients of input, weight and bias, or None."""
    input, weight, stats = ctx.saved_tensors
    needs_input, needs_weight, needs_bias = needs
    to_input, to_weight, to_bias = ops.layer_norm_backward(
        grad, input, stats, weight, ctx.dims, ctx.eps, needs_input, needs_weight, needs_bias
    )
    return to_input if needs_input else None, to_weight if needs_weight else None, to_bias if needs_bias else None


def _layer_norm_backward(ops, ctx, grad, _grad_stats):
    if grad is None:
        return (None,) * 5
    return *layer_norm_gradients(ops, ctx, grad, ctx.needs_input_grad[:3]), None, None


_library.autograd("layer_norm_forward", _layer_norm_context, _layer_norm_backward)


def _rms_norm_context(ctx, inputs, output):
    input, weight, ctx.dims, ctx.eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, weight, output[1])


def rms_norm_gradients(ops, ctx, grad, needs):
    """The gradients of input and weight, or None."""
    input, weight, stats = ctx.saved_tensors
    to_input, to_weight = ops.rms_norm_backward(grad, input, stats, weight, ctx.dims, ctx.eps, *needs)
    return _as_product(to_input, grad) if needs[0] else None, to_weight if needs[1] else None


def _as_product(to_input, grad):
    """``to_input`` with the strides that torch's has, which is a product of ``grad`` and what broadcasts to it."""
    if (grad.is_contiguous() and 1 not in grad.shape) or functorch_active():
        return to_input
    strides = product_strides(grad, grad.new_empty(()))
    if strides == to_input.stride():
        return to_input
    return to_input.new_empty_strided(grad.shape, strides).copy_(to_input)


def _rms_norm_backward(ops, ctx, grad, _grad_stats):
    if grad is None:
        return (None,) * 4
    return *rms_norm_gradients(ops, ctx, grad, ctx.needs_input_grad[:2]), None, None


_library.autograd("rms_norm_forward", _rms_norm_context, _rms_norm_backward)


def second_derivatives(input, grad, weight, to_input, to_weight, to_bias, dims, total, eps, centered=True):
    """Those of grad_output, input and weight, in torch's ops, whatever is differentiated how often.

    ``to_input``, ``to_weight`` and ``to_bias`` are the gradients of the backward's results (None: none). With P the
    projection by which layer norm takes mean and xhat out of a row, grad_input = scale P(g), and both xhat and scale
    are functions of the input: d xhat = scale P(d input), d scale = -scale² / n xhat · d input. A row is the numbers
    along ``dims``; ``total`` sums up those that share a weight.
    """
    accumulate = torch.float64 if input.dtype == torch.float64 else torch.float32

    def mean(t):
        return t.mean(dims, keepdim=True)

    def wide(t):
        return None if t is None else t.to(accumulate)

    x, dy, w, u, v, t = map(wide, (input, grad, weight, to_input, to_weight, to_bias))
    deviation = x - mean(x) if centered else x
    scale = (mean(deviation.square()) + eps).rsqrt()
    xhat = deviation * scale

    def project(t):
        t = t - xhat * mean(t * xhat)
        return t - mean(t) if centered else t

    of_grad = of_weight = of_xhat = of_scale = None
    if u is not None:
        g = dy if w is None else dy * w
        of_g = scale * project(u)
        of_grad = of_g if w is None else of_g * w
        of_weight = total(of_g * dy)
        along_g, along_u = mean(g * xhat), mean(u * xhat)
        of_xhat = -scale * (u * along_g + g * along_u)
        of_scale = mean(u * g) - along_u * along_g
        if centered:
            of_scale = of_scale - mean(u) * mean(g)
    if v is not None:
        of_grad = v * xhat if of_grad is None else of_grad + v * xhat
        of_xhat = v * dy if of_xhat is None else of_xhat + v * dy
    if t is not None:
        of_grad = t.expand(grad.shape) if of_grad is None else of_grad + t
    of_input = None if of_xhat is None else scale * project(of_xhat)
    if of_scale is not None:
        of_input = of_input - scale.square() * xhat * of_scale
    return of_grad, of_input, of_weight


def _second_derivatives(ctx, centered, *grads):
    """Those of grad_output, input and weight of a norm of rows, where they are asked for."""
    grad, input, weight = ctx.saved_tensors
    dims, rows = list(range(-ctx.dims, 0)), list(range(input.dim() - ctx.dims))

    def total(t):
        return t.sum(rows) if rows else t

    found = second_derivatives(input, grad, weight, *grads, dims, total, ctx.eps, centered)
    asked = ctx.needs_input_grad[0], ctx.needs_input_grad[1], weight is not None and ctx.needs_input_grad[3]
    likes = (grad, input, weight)
    return [
        None if result is None or not need else result.to(like.dtype)
        for result, need, like in zip(found, asked, likes, strict=True)
    ]


def _backward_context(ctx, inputs, output):
    grad, input, _, weight, ctx.dims, ctx.eps, *_ = inputs
    ctx.shape = input.shape
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad, input, weight)  # which a checkpoint gives once


def _derivative(name, centered):
    """Registers the derivative of a backward; the gradients of what was not needed are those of empty tensors."""

    def backward(ops, ctx, *grads):
        normalised = ctx.shape[len(ctx.shape) - ctx.dims :]
        shapes = ctx.shape, normalised, normalised
        grads = [
            None if grad is None or grad.shape != shape else grad for grad, shape in zip(grads, shapes, strict=False)
        ]
        of_grad, of_input, of_weight = _second_derivatives(ctx, centered, *grads, *(None,) * (3 - len(grads)))
        return of_grad, of_input, None, of_weight, *(None,) * (len(ctx.needs_input_grad) - 4)

    _library.autograd(name, _backward_context, backward)


_derivative("layer_norm_backward", centered=True)
_derivative("rms_norm_backward", centered=False)
