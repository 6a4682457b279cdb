"""2-D average pooling (LeCun et al., 1989; d2l chapter "Pooling"), on the CPU.

    output[n, c, y, x] = sum over r, s of input[n, c, y*stride + r - padding, x*stride + s - padding] / divisor

Linear in the input: the derivative of the backward is the forward again.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes, _pool2d
from pydl.ops._memory_format import is_channels_last
from pydl.ops._nodes import is_compiling
from pydl.ops._options import integer, switch

__all__ = ["avg_pool2d"]

# divisor: what sums are divided by, 0 for the number of pixels. channels_last is the memory format of the result,
# grad_channels_last of the input's gradient: decided once, in `avg_pool2d` below, so that kernel and fake agree.
_OPTIONS = (
    "int[2] kernel_size, int[2] stride, int[2] padding, bool ceil_mode, bool count_include_pad, int divisor, "
    "bool channels_last, bool grad_channels_last"
)
_library.define("avg_pool2d", f"(Tensor input, {_OPTIONS}) -> Tensor")
_library.define("avg_pool2d_backward", f"(Tensor grad_output, SymInt[4] input_size, {_OPTIONS}) -> Tensor")


@_library.fake("avg_pool2d")
def _(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor, channels_last, _):
    size = _pool2d.output_size("avg_pool2d", input.shape, kernel_size, stride, padding, (1, 1), ceil_mode)
    return _pool2d.empty(input, size, channels_last)


@_library.fake("avg_pool2d_backward")
def _(grad_output, input_size, *options):
    return _pool2d.empty(grad_output, input_size, options[-1])


def _forward_context(ctx, inputs, output):
    input, *ctx.options = inputs
    ctx.input_size = input.shape


def _forward_backward(ops, ctx, grad_output):
    return ops.avg_pool2d_backward(grad_output, ctx.input_size, *ctx.options), *(None,) * 8


_library.autograd("avg_pool2d", _forward_context, _forward_backward)


def _backward_context(ctx, inputs, output):
    _, _, *ctx.options = inputs


def _backward_backward(ops, ctx, grad):
    return ops.avg_pool2d(grad, *ctx.options), *(None,) * 9


_library.autograd("avg_pool2d_backward", _backward_context, _backward_backward)


class _EagerAvgPool(torch.autograd.Function):
    """The same in eager mode with the fewest hops: each op is called below the autograd layer of the dispatcher.

    With create_graph the backward goes through the registered formula, and so can be differentiated again.
    """

    @staticmethod
    def forward(ctx, input, rest):
        ops, options = rest
        ctx.rest = ops, input.shape, options
        with below_autograd():
            return _library.quick(ops).avg_pool2d(input, *options)

    @staticmethod
    def backward(ctx, grad_output):
        ops, input_size, options = ctx.rest
        if _library.transforms_active():  # torch.func.vmap over the gradient
            return _library.transformed(ops).avg_pool2d_backward(grad_output, input_size, *options), None
        if torch.is_grad_enabled():
            return ops.avg_pool2d_backward(grad_output, input_size, *options), None
        with below_autograd():
            return _library.quick(ops).avg_pool2d_backward(grad_output, input_size, *options), None


_apply = _library.eager(_EagerAvgPool)


def avg_pool2d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """The mean of each window's pixels, as :func:`torch.nn.functional.avg_pool2d`.

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float64, bfloat16 or float16 on the CPU, with any strides (other
            dtypes and devices are served by torch). Sums are accumulated in float32 (float64 for float64).
        kernel_size: one number of pixels or (y, x).
        stride: the same; the kernel's size if None.
        padding: the same; zeros around the image, at most half of the kernel's size.
        ceil_mode: windows may hang over the end of the padded image, as long as they begin before it.
        count_include_pad: zeros of the padding count as pixels; what hangs over the padded image never does.
        divisor_override: divides sums by this number instead of the number of pixels.

    Returns:
        (N, C, H', W') or (C, H', W'), channels_last if the input is. H' = (H + 2 * padding - kernel height) / stride
        + 1, rounded down, or up with ``ceil_mode``.

    Raises:
        RuntimeError: shapes or options that do not fit.
        TypeError: options that are no integers.

    >>> F.avg_pool2d(torch.arange(16.0).reshape(1, 4, 4), 2)
    tensor([[[ 2.5000,  4.5000],
             [10.5000, 12.5000]]])
    """
    options = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    if not is_compiling():
        output = _nodes.avg_pool2d(input, *options)
        if output is not NotImplemented:
            return output
    if is_torchs(input):
        return F.avg_pool2d(input, *options)
    return avg_pool2d_unasked(input, *options)


def avg_pool2d_unasked(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    """:func:`avg_pool2d` for who has asked whether it is torch's (aside.py)."""
    ops = backend.ops_for(input, "avg_pool2d") if input.dtype in _pool2d.SUPPORTED else None
    if ops is None:
        return F.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    kernel_size, stride, padding, _ = _pool2d.pairs("avg_pool2d", kernel_size, stride, padding)
    if divisor_override is not None:
        divisor_override = integer("avg_pool2d", "divisor_override", divisor_override)
        if divisor_override == 0:
            raise RuntimeError("avg_pool2d: expected divisor_override to be other than zero, got 0")
    divisor = divisor_override or 0
    ceil_mode = switch("avg_pool2d", "ceil_mode", ceil_mode)
    count_include_pad = switch("avg_pool2d", "count_include_pad", count_include_pad)
    image = _pool2d.batched("avg_pool2d", input)
    channels_last = input.dim() == 4 and is_channels_last(image)
    options = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor, channels_last, channels_last
    output = pooled(ops, image, options)
    return output if image is input else output.squeeze(0)


def pooled(ops, image, options):
    """The op with its ``options``, by the way that suits the moment."""
    if functorch_active():
        return _library.transformed(ops).avg_pool2d(image, *options)
    if not _pool2d.quick(image):
        return ops.avg_pool2d(image, *options)
    if image.requires_grad and torch.is_grad_enabled():
        return _apply(alive(image), (ops, options))
    with below_autograd():
        return _library.quick(ops).avg_pool2d(image, *options)
