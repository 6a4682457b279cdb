"""2-D maximum pooling (d2l chapter "Pooling"), on the CPU.

    output[n, c, y, x] = max over r, s of input[n, c, y*stride + r*dilation - padding, x*stride + s*dilation - padding]

Where each maximum came from is kept as its tap, r * kernel width + s: a byte per output up to 256 taps, an int32
beyond. The backward adds each gradient at its place and needs nothing else; its derivative is a gather at the places,
whose derivative is the backward again.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes, _pool2d
from pydl.ops._memory_format import is_channels_last
from pydl.ops._nodes import is_compiling
from pydl.ops._options import switch

__all__ = ["max_pool2d"]

# channels_last is the memory format of the result: decided once, in `max_pool2d` below, so that kernel and fake agree.
# Places that nobody wants come back as an empty tensor.
_WINDOW = "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation"
_library.define(
    "max_pool2d",
    f"(Tensor input, {_WINDOW}, bool ceil_mode, bool channels_last, bool wants_places) "
    "-> (Tensor output, Tensor places)",
)
_library.define(
    "max_pool2d_backward",
    f"(Tensor grad_output, Tensor places, SymInt[4] input_size, {_WINDOW}, bool channels_last) -> Tensor",
)
_library.define("max_pool2d_gather", f"(Tensor input, Tensor places, {_WINDOW}, bool channels_last) -> Tensor")

BYTE_TAPS = 256  # kernels of up to so many taps keep their places as bytes


@_library.fake("max_pool2d")
def _(input, kernel_size, stride, padding, dilation, ceil_mode, channels_last, wants_places):
    size = _pool2d.output_size("max_pool2d", input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    dtype = torch.uint8 if kernel_size[0] * kernel_size[1] <= BYTE_TAPS else torch.int32
    places = _pool2d.empty(input, size, channels_last, dtype) if wants_places else input.new_empty([0], dtype=dtype)
    return _pool2d.empty(input, size, channels_last), places


@_library.fake("max_pool2d_backward")
def _(grad_output, places, input_size, kernel_size, stride, padding, dilation, channels_last):
    return _pool2d.empty(grad_output, input_size, channels_last)


@_library.fake("max_pool2d_gather")
def _(input, places, kernel_size, stride, padding, dilation, channels_last):
    return _pool2d.empty(input, places.shape, channels_last)


def _forward_context(ctx, inputs, output):
    input, *ctx.window, _, ctx.channels_last, ctx.wants_places = inputs
    ctx.input_size = input.shape
    ctx.save_for_backward(output[1])


def _forward_backward(ops, ctx, grad_output, _grad_places):
    if not ctx.wants_places:
        raise RuntimeError("max_pool2d: expected wants_places to be True where a gradient is asked for, got False")
    (places,) = ctx.saved_tensors
    grad_input = ops.max_pool2d_backward(grad_output, places, ctx.input_size, *ctx.window, ctx.channels_last)
    return grad_input, None, None, None, None, None, None, None


_library.autograd("max_pool2d", _forward_context, _forward_backward)


def _backward_context(ctx, inputs, output):
    _, places, _, *ctx.window, ctx.channels_last = inputs
    ctx.save_for_backward(places)


def _backward_backward(ops, ctx, grad):
    (places,) = ctx.saved_tensors
    grad = ops.max_pool2d_gather(grad, places, *ctx.window, ctx.channels_last)
    return grad, None, None, None, None, None, None, None


_library.autograd("max_pool2d_backward", _backward_context, _backward_backward)


def _gather_context(ctx, inputs, output):
    input, places, *ctx.window, ctx.channels_last = inputs
    ctx.input_size = input.shape
    ctx.save_for_backward(places)


def _gather_backward(ops, ctx, grad):
    (places,) = ctx.saved_tensors
    grad = ops.max_pool2d_backward(grad, places, ctx.input_size, *ctx.window, ctx.channels_last)
    return grad, None, None, None, None, None, None


_library.autograd("max_pool2d_gather", _gather_context, _gather_backward)


class _EagerMaxPool(torch.autograd.Function):
    """The same in eager mode with the fewest hops: each op is called below the autograd layer of the dispatcher.

    With create_graph the backward goes through the registered formula, and so can be differentiated again.
    """

    @staticmethod
    def forward(ctx, input, rest):
        # what needs no gradient comes as one tuple: each argument of its own costs on the way in and out
        ops, window, ceil_mode, channels_last, return_places = rest
        ctx.rest = ops, window, channels_last, input.shape
        with below_autograd():
            output, places = _library.quick(ops).max_pool2d(input, *window, ceil_mode, channels_last, True)
        ctx.to_save = (places,)  # what ctx.save_for_backward sets
        if not return_places:
            return output
        ctx.materialize_grads = False  # what ctx.set_materialize_grads sets
        ctx.mark_non_differentiable(places)
        return output, places

    @staticmethod
    def backward(ctx, grad_output, _grad_places=None):
        if grad_output is None:
            return None, None
        ops, window, channels_last, input_size = ctx.rest
        (places,) = ctx.saved_tensors
        rest = (grad_output, places, input_size, *window, channels_last)
        if _library.transforms_active():  # torch.func.vmap over the gradient
            return _library.transformed(ops).max_pool2d_backward(*rest), None
        if torch.is_grad_enabled():
            return ops.max_pool2d_backward(*rest), None
        with below_autograd():
            return _library.quick(ops).max_pool2d_backward(*rest), None


_apply = _library.eager(_EagerMaxPool)


def indices_of(places, window, width):
    """torch's indices (row * width + column in the image, int64) of the places."""
    (_, kernel_width), stride, padding, dilation = window
    taps = places.long()
    row = torch.div(taps, kernel_width, rounding_mode="floor")
    column = taps - row * kernel_width
    starts = (
        torch.arange(size, device=places.device) * step - pad
        for size, step, pad in zip(places.shape[2:], stride, padding, strict=True)
    )
    y, x = starts
    return (row * dilation[0] + y[:, None]) * width + (column * dilation[1] + x)


def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """The largest pixel of each window, as :func:`torch.nn.functional.max_pool2d`. A nan in a window is its maximum.

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float64, bfloat16 or float16 on the CPU, with any strides (other
            dtypes and devices are served by torch).
        kernel_size: one number of pixels or (y, x).
        stride: the same; the kernel's size if None.
        padding: the same; pixels of -inf around the image, at most half of the kernel's reach.
        dilation: the same; distance between the pixels of a window.
        ceil_mode: windows may hang over the end of the padded image, as long as they begin before it.
        return_indices: also returns where each maximum was found.

    Returns:
        (N, C, H', W') or (C, H', W'), channels_last if the input is. H' = (H + 2 * padding - dilation * (kernel height
        - 1) - 1) / stride + 1, rounded down, or up with ``ceil_mode``. With ``return_indices`` a pair of that and the
        indices row * W + column, int64, of the first maximum (or the last nan). The gradient goes to that pixel.

    Raises:
        RuntimeError: shapes or options that do not fit.
        TypeError: options that are no integers.

    >>> F.max_pool2d(torch.arange(16.0).reshape(1, 4, 4), 2)
    tensor([[[ 5.,  7.],
             [13., 15.]]])
    """
    if return_indices is False and not is_compiling():
        output = _nodes.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)
        if output is not NotImplemented:
            return output
    if is_torchs(input):
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return max_pool2d_unasked(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d_unasked(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices):
    """:func:`max_pool2d` for who has asked whether it is torch's (aside.py)."""
    ops = backend.ops_for(input, "max_pool2d") if input.dtype in _pool2d.SUPPORTED else None
    if ops is None:
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    window = _pool2d.pairs("max_pool2d", kernel_size, stride, padding, dilation)
    ceil_mode, return_indices = switch("max_pool2d", "ceil_mode", ceil_mode), bool(return_indices)
    image = _pool2d.batched("max_pool2d", input)
    channels_last = input.dim() == 4 and is_channels_last(image)
    if functorch_active():
        output, places = _library.transformed(ops).max_pool2d(image, *window, ceil_mode, channels_last, True)
    elif image.requires_grad and torch.is_grad_enabled():
        if _pool2d.quick(image):
            output = _apply(alive(image), (ops, window, ceil_mode, channels_last, return_indices))
            if return_indices:
                output, places = output
        else:
            output, places = ops.max_pool2d(image, *window, ceil_mode, channels_last, True)
    elif _pool2d.quick(image):
        ops = _library.quick(ops)
        with below_autograd():
            output, places = ops.max_pool2d(image, *window, ceil_mode, channels_last, return_indices)
    else:
        output, places = ops.max_pool2d(image, *window, ceil_mode, channels_last, return_indices)
    if return_indices:
        indices = indices_of(places, window, image.shape[3])
        if indices.stride() != output.stride():  # of one channel, which has two strides to choose from
            indices = indices.as_strided(indices.shape, output.stride())
        return (output, indices) if image is input else (output.squeeze(0), indices.squeeze(0))
    return output if image is input else output.squeeze(0)
