"""The ops of group_norm: schemas, fakes, derivatives, and the derivative of the backward, which is layer norm's."""

import torch

from pydl.ops import _library
from pydl.ops._layer_norm_autograd import second_derivatives

# stats: float64 (2, N, groups), mean and 1 / deviation. channels_last: the memory format of output and grad_input. A
# gradient that is not needed comes back as an empty tensor; eps is what the backward's own derivative needs.
_library.define(
    "group_norm_forward",
    "(Tensor input, Tensor? weight, Tensor? bias, int groups, float eps, bool channels_last) "
    "-> (Tensor output, Tensor stats)",
)
_library.define(
    "group_norm_backward",
    "(Tensor grad_output, Tensor input, Tensor stats, Tensor? weight, int groups, float eps, bool channels_last, "
    "bool need_input, bool need_weight, bool need_bias) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
)


def _empty(like, channels_last):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return like.new_empty(like.shape).to(
        memory_format=formats[like.dim()] if channels_last else torch.contiguous_format
    )


@_library.fake("group_norm_forward")
def _(input, weight, bias, groups, eps, channels_last):
    return _empty(input, channels_last), input.new_empty((2, input.shape[0], groups), dtype=torch.float64)


@_library.fake("group_norm_backward")
def _(grad_output, input, stats, weight, groups, eps, channels_last, need_input, need_weight, need_bias):
    parameter = input if weight is None else weight
    return (
        _empty(input, channels_last) if need_input else input.new_empty(0),
        parameter.new_empty(input.shape[1] if need_weight else 0),
        parameter.new_empty(input.shape[1] if need_bias else 0),
    )


def _context(ctx, inputs, output):
    input, weight, _, ctx.groups, ctx.eps, ctx.channels_last = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, weight, output[1])


def gradients(ops, ctx, grad):
    """The gradients of input, weight and bias, or None."""
    input, weight, stats = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    found = ops.group_norm_backward(grad, input, stats, weight, ctx.groups, ctx.eps, ctx.channels_last, *needs)
    return tuple(t if need else None for t, need in zip(found, needs, strict=True))


def _backward(ops, ctx, grad, _grad_stats):
    return (None,) * 6 if grad is None else (*gradients(ops, ctx, grad), None, None, None)


_library.autograd("group_norm_forward", _context, _backward)


def _again_context(ctx, inputs, output):
    grad, input, _, weight, ctx.groups, ctx.eps, *_ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad, input, weight)


def _again(ops, ctx, to_input, to_weight, to_bias):
    """As of a layer norm of (N, groups, channels of a group, places), with weights along the channels."""
    grad, input, weight = ctx.saved_tensors
    by_group, of_channels = (*input.shape[:1], ctx.groups, input.shape[1] // ctx.groups, -1), (1, ctx.groups, -1, 1)

    def grouped(t, shape, of):
        return None if t is None or t.shape != of else t.reshape(shape)

    channels = input.shape[1:2]
    found = second_derivatives(
        *(grouped(t, by_group, input.shape) for t in (input, grad)),
        grouped(weight, of_channels, channels),
        grouped(to_input, by_group, input.shape),
        *(grouped(t, of_channels, channels) for t in (to_weight, to_bias)),
        (2, 3),
        lambda t: t.sum((0, 3)),
        ctx.eps,
    )
    asked, likes = (*ctx.needs_input_grad[:2], ctx.needs_input_grad[3]), (grad, input, weight)
    of_grad, of_input, of_weight = (
        t.reshape(like.shape).to(like.dtype) if need and t is not None else None
        for t, need, like in zip(found, asked, likes, strict=True)
    )
    return of_grad, of_input, None, of_weight, *(None,) * 6


_library.autograd("group_norm_backward", _again_context, _again)
