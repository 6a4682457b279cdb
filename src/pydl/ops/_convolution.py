"""What convolutions of every number of dimensions share: arguments, the size of the output, gradients of gradients.

``<op>_forward`` without bias, ``<op>_backward_input`` and ``<op>_backward_weight`` are each linear in their two
tensors, and the gradients of each are the other two: the three are closed under differentiation to any order.
"""

import torch

from pydl.ops import _library
from pydl.ops._memory_format import is_channels_last, row_major
from pydl.ops._options import pair, triple


def check(op, condition, message):
    """Raises RuntimeError where the condition does not hold."""
    if not condition:
        raise RuntimeError(f"{op}: expected {message}")


def padding_of(op, padding, weight, stride, dilation):
    """(before, after) of each dimension, one after another, of torch's padding argument; stride: one of each."""
    if not isinstance(padding, str):
        numbers = (pair if len(stride) == 2 else triple)(op, "padding", padding)
        return tuple(side for number in numbers for side in (number, number))
    if padding == "valid":
        return (0,) * (2 * len(stride))
    check(op, padding == "same", f"padding to be numbers, 'same' or 'valid', got {padding!r}")
    check(op, all(s == 1 for s in stride), f"stride to be 1 with padding 'same', got {stride}")
    whole = (d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True))
    return tuple(side for w in whole for side in (w // 2, w - w // 2))


def output_size(op, input, weight, bias, stride, padding, dilation, groups):
    """[N, O, ...], and the checks of csrc/<op>.cpp once more, for tracing, which never gets there."""
    dims = len(stride)
    check(
        op,
        input.dim() == dims + 2,
        f"input to be {dims + 1}-D (unbatched) or {dims + 2}-D (batched), got shape {tuple(input.shape)}",
    )
    check(op, weight.dim() == dims + 2, f"weight to be {dims + 2}-D, got shape {tuple(weight.shape)}")
    check(op, min(stride) > 0, f"stride to be positive, got {tuple(stride)}")
    check(op, min(padding) >= 0, f"padding to be at least 0, got {tuple(padding)}")
    check(op, min(dilation) > 0, f"dilation to be positive, got {tuple(dilation)}")
    check(op, groups > 0, f"groups to be positive, got {groups}")
    features, channels = weight.shape[0], weight.shape[1] * groups
    check(op, features % groups == 0, f"out_channels to be divisible by groups ({groups}), got {features}")
    check(op, input.shape[1] == channels, f"input to be of {channels} channels, got {input.shape[1]}")
    for name, other in (("weight", weight), ("bias", bias)):
        if other is not None:
            dtypes = f"{other.dtype} and {input.dtype}"
            check(op, other.dtype == input.dtype, f"{name} to be of the dtype of input, got {dtypes}")
    if bias is not None:
        check(op, tuple(bias.shape) == (features,), f"bias to be of shape ({features}), got {bias.shape}")
    size = [input.shape[0], features]
    for d in range(dims):
        padded = input.shape[2 + d] + padding[2 * d] + padding[2 * d + 1]
        reach = (weight.shape[2 + d] - 1) * dilation[d] + 1
        check(op, reach <= padded, f"the kernel to be no larger than the padded input ({padded}), got {reach}")
        size.append((padded - reach) // stride[d] + 1)
    return size


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
