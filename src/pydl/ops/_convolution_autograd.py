"""What the gradients of convolutions of every number of dimensions share.

``<op>_forward`` without bias, ``<op>_backward_input`` and ``<op>_backward_weight`` are each linear in their two
tensors, and the gradients of each are the other two: the three are closed under differentiation to any order.
"""

import torch

from pydl.ops import _library
from pydl.ops._memory_format import is_channels_last, row_major


def weight_gradient_format(weight, channels_last):
    """Whether the weight's gradient is channels_last: as the whole call, unless a row-major weight is both (1x1)."""
    if not channels_last or not weight.is_contiguous(memory_format=torch.channels_last):
        return channels_last
    return not weight.is_contiguous() or weight.stride() != row_major(weight.shape)


def _swap(ctx):
    """Of a bilinear op: which of its two tensors the gradient of the other one needs."""
    return ctx.needs_input_grad[1], ctx.needs_input_grad[0]


def gradients_of_gradients(op, *activation):
    """Makes ``<op>_backward_input`` and ``<op>_backward_weight`` differentiable.

    Args:
        op: "conv2d" or "conv3d".
        activation: what ``<op>_forward`` takes between its options and the memory format, for none.
    """
    forward, backward_input, backward_weight = (f"{op}_{of}" for of in ("forward", "backward_input", "backward_weight"))

    def convolved(ops, ctx, input, weight):
        return getattr(ops, forward)(input, weight, None, *ctx.options, *activation, ctx.channels_last)

    # grad_input(grad_output, weight): with g the gradient of its result, the gradient of grad_output is the convolution
    # of g, and that of weight is the weight gradient with g in the input's place
    def input_context(ctx, inputs, output):
        grad_output, weight, _, *ctx.options, ctx.channels_last = inputs
        ctx.weight_size, ctx.weight_channels_last = weight.shape, is_channels_last(weight)
        ctx.save_for_backward(*(t if need else None for t, need in zip((grad_output, weight), _swap(ctx), strict=True)))

    def input_backward(ops, ctx, grad):
        grad_output, weight = ctx.saved_tensors
        to_grad_output = to_weight = None
        if ctx.needs_input_grad[0]:
            to_grad_output = convolved(ops, ctx, grad, weight)
        if ctx.needs_input_grad[1]:
            to_weight = getattr(ops, backward_weight)(
                grad_output, grad, ctx.weight_size, *ctx.options, ctx.weight_channels_last
            )
        return to_grad_output, to_weight, None, None, None, None, None, None

    # grad_weight(grad_output, input): with g the gradient of its result, g stands in the weight's place
    def weight_context(ctx, inputs, output):
        grad_output, input, _, *ctx.options, _ = inputs
        ctx.input_size, ctx.channels_last = input.shape, is_channels_last(input)
        ctx.save_for_backward(*(t if need else None for t, need in zip((grad_output, input), _swap(ctx), strict=True)))

    def weight_backward(ops, ctx, grad):
        grad_output, input = ctx.saved_tensors
        to_grad_output = to_input = None
        if ctx.needs_input_grad[0]:
            to_grad_output = convolved(ops, ctx, input, grad)
        if ctx.needs_input_grad[1]:
            to_input = getattr(ops, backward_input)(grad_output, grad, ctx.input_size, *ctx.options, ctx.channels_last)
        return to_grad_output, to_input, None, None, None, None, None, None

    _library.autograd(backward_input, input_context, input_backward)
    _library.autograd(backward_weight, weight_context, weight_backward)
