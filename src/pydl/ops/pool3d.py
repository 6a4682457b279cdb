"""3-D pooling (Tran et al., 2015: videos), on the CPU.

A window is a product of three intervals: its maximum is that of its planes' maxima, its sum that of its planes' sums.
So the ops pool the pixels of each plane and then the planes, by the kernels of 2-D pooling (csrc/pool3d_call.h). Their
results and gradients are row-major, whatever the input is, as torch's are where ours are called.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import functorch_active
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes, _pool2d
from pydl.ops._memory_format import is_channels_last
from pydl.ops._nodes import is_compiling
from pydl.ops._options import integer, switch, triple
from pydl.ops.adaptive_pool2d import adaptive_avg_pool2d, adaptive_max_pool2d, equal_windows
from pydl.ops.max_pool2d import BYTE_TAPS, indices_of

__all__ = ["adaptive_avg_pool3d", "adaptive_max_pool3d", "avg_pool3d", "max_pool3d"]

# divisor: what sums are divided by, 0 for the number of pixels
_MEAN = "int[3] kernel_size, int[3] stride, int[3] padding, bool ceil_mode, bool count_include_pad, int divisor"
_library.define("avg_pool3d", f"(Tensor input, {_MEAN}) -> Tensor")
_library.define("avg_pool3d_backward", f"(Tensor grad_output, SymInt[5] input_size, {_MEAN}) -> Tensor")
# plane_places (N, C, D, H', W'): the tap of each maximum in its plane; depth_places (N, C, D', H', W'): the plane of
# its window. Those that nobody wants come back as empty tensors.
_WINDOW = "int[3] kernel_size, int[3] stride, int[3] padding, int[3] dilation, bool ceil_mode"
_PLACES = "Tensor plane_places, Tensor depth_places"
_library.define("max_pool3d", f"(Tensor input, {_WINDOW}, bool wants_places) -> (Tensor output, {_PLACES})")
_library.define("max_pool3d_backward", f"(Tensor grad_output, {_PLACES}, SymInt[5] input_size, {_WINDOW}) -> Tensor")
_library.define("max_pool3d_gather", f"(Tensor input, {_PLACES}, {_WINDOW}) -> Tensor")

_library.made_of("adaptive_avg_pool3d", "avg_pool3d")
_library.made_of("adaptive_max_pool3d", "max_pool3d")


def _sizes(op, input_size, kernel_size, stride, padding, dilation, ceil_mode):
    """([N, C, D, H', W'], [N, C, D', H', W'])."""
    shape = tuple(input_size)
    if len(shape) != 5:
        raise RuntimeError(f"{op}: expected input to be 5-D, got shape {shape}")
    count = _pool2d.windows(op, shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    return [*input_size[:3], *count[1:]], [*input_size[:2], *count]


@_library.fake("avg_pool3d")
def _(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor):
    return input.new_empty(_sizes("avg_pool3d", input.shape, kernel_size, stride, padding, (1, 1, 1), ceil_mode)[1])


@_library.fake("avg_pool3d_backward")
def _(grad_output, input_size, *options):
    return grad_output.new_empty(input_size)


def _mean_context(ctx, inputs, output):
    input, *ctx.options = inputs
    ctx.input_size = input.shape


def _mean_backward(ops, ctx, grad_output):
    return ops.avg_pool3d_backward(grad_output, ctx.input_size, *ctx.options), *(None,) * 6


_library.autograd("avg_pool3d", _mean_context, _mean_backward)


def _mean_backward_context(ctx, inputs, output):
    _, _, *ctx.options = inputs


def _mean_backward_backward(ops, ctx, grad):
    return ops.avg_pool3d(grad, *ctx.options), *(None,) * 7


_library.autograd("avg_pool3d_backward", _mean_backward_context, _mean_backward_backward)


@_library.fake("max_pool3d")
def _(input, kernel_size, stride, padding, dilation, ceil_mode, wants_places):
    between, size = _sizes("max_pool3d", input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    taps = kernel_size[1] * kernel_size[2], kernel_size[0]
    dtypes = (torch.uint8 if count <= BYTE_TAPS else torch.int32 for count in taps)
    sizes = (between, size) if wants_places else ([0], [0])
    places = (input.new_empty(of, dtype=dtype) for of, dtype in zip(sizes, dtypes, strict=True))
    return input.new_empty(size), *places


@_library.fake("max_pool3d_backward")
def _(grad_output, plane_places, depth_places, input_size, *window):
    return grad_output.new_empty(input_size)


@_library.fake("max_pool3d_gather")
def _(input, plane_places, depth_places, *window):
    return input.new_empty(depth_places.shape)


def _max_context(ctx, inputs, output):
    input, *ctx.window, ctx.wants_places = inputs
    ctx.input_size = input.shape
    ctx.save_for_backward(*output[1:])


def _max_backward(ops, ctx, grad_output, *_grad_places):
    if not ctx.wants_places:
        raise RuntimeError("max_pool3d: expected wants_places to be True where a gradient is asked for, got False")
    return ops.max_pool3d_backward(grad_output, *ctx.saved_tensors, ctx.input_size, *ctx.window), *(None,) * 6


_library.autograd("max_pool3d", _max_context, _max_backward)


def _max_backward_context(ctx, inputs, output):
    _, *places, _ = inputs[:4]
    ctx.window = inputs[4:]
    ctx.save_for_backward(*places)


def _max_backward_backward(ops, ctx, grad):
    return ops.max_pool3d_gather(grad, *ctx.saved_tensors, *ctx.window), *(None,) * 8


_library.autograd("max_pool3d_backward", _max_backward_context, _max_backward_backward)


def _gather_context(ctx, inputs, output):
    input, *places = inputs[:3]
    ctx.window, ctx.input_size = inputs[3:], input.shape
    ctx.save_for_backward(*places)


def _gather_backward(ops, ctx, grad):
    return ops.max_pool3d_backward(grad, *ctx.saved_tensors, ctx.input_size, *ctx.window), *(None,) * 7


_library.autograd("max_pool3d_gather", _gather_context, _gather_backward)


# Numbers of the input from which on our two passes are quicker than torch's one (kernels/cpu/pool2d/NOTES.md).
WORTH_A_CALL = 1 << 16
_HALF = (torch.bfloat16, torch.float16)  # whose sums of sums would be rounded twice; torch has no loop for most of them


def _window(op, input, kernel_size, stride, padding, dilation, ceil_mode):
    """(kernel_size, stride, padding, dilation) as (z, y, x) each, checked."""
    kernel_size = triple(op, "kernel_size", kernel_size)
    if stride is None or (isinstance(stride, tuple | list) and not stride):
        stride = kernel_size
    stride, padding = triple(op, "stride", stride), triple(op, "padding", padding)
    dilation = triple(op, "dilation", dilation)
    shape = tuple(input.shape)
    if len(shape) not in (4, 5) or any(length == 0 for length in shape[-4:]):
        raise RuntimeError(
            f"{op}: expected input to be 4-D (unbatched) or 5-D (batched) and empty in its batch alone, got shape "
            f"{shape}"
        )
    _pool2d.windows(op, shape[-3:], kernel_size, stride, padding, dilation, ceil_mode)
    return kernel_size, stride, padding, dilation


def _is_last(input):
    """Whether it is channels_last_3d, or a volume without a batch with channels innermost."""
    if input.dim() == 4:
        return not input.is_contiguous() and input.movedim(0, -1).is_contiguous()
    return input.dim() == 5 and is_channels_last(input)


def _is_left(input):
    """Whether torch pools it whatever the window: small and empty volumes, and those of one channel."""
    return input.dim() in (4, 5) and (input.numel() < WORTH_A_CALL or input.numel() == 0 or input.shape[-4] == 1)


def is_small(input):
    """Whether it is torch's for its size alone, so that nothing else has to be asked."""
    return not is_compiling() and _nodes.is_small(input, WORTH_A_CALL)


def _batched(input):
    return input if input.dim() == 5 else input.unsqueeze(0)


def _ops(input, op):
    """(the ops, whether a transform of torch.func is at work)."""
    ops, transforms = backend.ops_for(input, op), functorch_active()
    return (_library.transformed(ops) if transforms else ops), transforms


def max_pool3d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """The largest pixel of each window, as :func:`torch.nn.functional.max_pool3d`. A nan in a window is its maximum.

    Args:
        input: (N, C, D, H, W) or (C, D, H, W); float32, float64, bfloat16 or float16 on the CPU, with any strides
            (other dtypes and devices, small volumes, those of one channel and channels_last_3d are served by torch).
        kernel_size: one number of pixels or (z, y, x).
        stride: the same; the kernel's size if None.
        padding: the same; pixels of -inf around the volume, at most half of the kernel's reach.
        dilation: the same; distance between the pixels of a window.
        ceil_mode: windows may hang over the end of the padded volume, as long as they begin before it.
        return_indices: also returns where each maximum was found.

    Returns:
        (N, C, D', H', W') or (C, D', H', W'). D' = (D + 2 * padding - dilation * (kernel depth - 1) - 1) / stride + 1,
        rounded down, or up with ``ceil_mode``. With ``return_indices`` a pair of that and the indices (depth * H +
        row) * W + column, int64, of the first maximum (or the last nan). The gradient goes to that pixel.

    Raises:
        RuntimeError: shapes or options that do not fit.
        TypeError: options that are no integers.

    >>> F.max_pool3d(torch.arange(8.0).reshape(1, 2, 2, 2), 2)
    tensor([[[[7.]]]])
    """
    options = kernel_size, stride, padding, dilation, ceil_mode, return_indices
    is_left = is_small(input) or is_torchs(input)
    return F.max_pool3d(input, *options) if is_left else max_pool3d_unasked(input, *options)


def max_pool3d_unasked(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices):
    """:func:`max_pool3d` for who has asked whether it is torch's (aside.py)."""
    if not _pool2d.is_served(input, "max_pool3d") or _is_left(input) or _is_last(input):
        return F.max_pool3d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    ceil_mode, return_indices = switch("max_pool3d", "ceil_mode", ceil_mode), bool(return_indices)
    window = _window("max_pool3d", input, kernel_size, stride, padding, dilation, ceil_mode)
    return _maximum(input, window, ceil_mode, return_indices)


def _maximum(input, window, ceil_mode, return_indices):
    """The maxima, or a pair of them and their indices."""
    volume, output = _batched(input), NotImplemented
    if not return_indices and not is_compiling():
        output = _nodes.max_pool3d(volume, *window, ceil_mode)
    if output is NotImplemented:
        ops, transforms = _ops(volume, "max_pool3d")
        wants_places = return_indices or transforms or (volume.requires_grad and torch.is_grad_enabled())
        output, *places = ops.max_pool3d(volume, *window, ceil_mode, wants_places)
    found = (output, _indices(*places, window, volume.shape)) if return_indices else (output,)
    if input.dim() == 4:
        found = tuple(t.squeeze(0) for t in found)
    return found if return_indices else found[0]


def _indices(plane_places, depth_places, window, size):
    """torch's indices ((depth * H + row) * W + column, int64) of the places."""
    *_, height, width = size
    in_plane = indices_of(plane_places.flatten(1, 2), [numbers[1:] for numbers in window], width)
    _, stride, padding, dilation = (numbers[0] for numbers in window)
    starts = torch.arange(depth_places.shape[2], device=depth_places.device) * stride - padding
    depth = depth_places.long() * dilation + starts[:, None, None]
    return in_plane.view(plane_places.shape).gather(2, depth) + depth * (height * width)


def avg_pool3d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """The mean of each window's pixels, as :func:`torch.nn.functional.avg_pool3d`.

    Args:
        input: (N, C, D, H, W) or (C, D, H, W); float32 or float64 on the CPU, with any strides (other
            dtypes and devices, small volumes and those of one channel are served by torch).
        kernel_size: one number of pixels or (z, y, x).
        stride: the same; the kernel's size if None.
        padding: the same; zeros around the volume, at most half of the kernel's size.
        ceil_mode: windows may hang over the end of the padded volume, as long as they begin before it.
        count_include_pad: zeros of the padding count as pixels; what hangs over the padded volume never does.
        divisor_override: divides sums by this number instead of the number of pixels.

    Returns:
        (N, C, D', H', W') or (C, D', H', W'), contiguous. D' = (D + 2 * padding - kernel depth) / stride + 1, rounded
        down, or up with ``ceil_mode``.

    Raises:
        RuntimeError: shapes or options that do not fit.
        TypeError: options that are no integers.

    >>> F.avg_pool3d(torch.arange(8.0).reshape(1, 2, 2, 2), 2)
    tensor([[[[3.5000]]]])
    """
    options = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    is_left = is_small(input) or is_torchs(input)
    return F.avg_pool3d(input, *options) if is_left else avg_pool3d_unasked(input, *options)


def avg_pool3d_unasked(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    """:func:`avg_pool3d` for who has asked whether it is torch's (aside.py)."""
    options = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    if not _pool2d.is_served(input, "avg_pool3d") or _is_left(input) or input.dtype in _HALF:
        return F.avg_pool3d(input, *options)
    rest = switch("avg_pool3d", "ceil_mode", ceil_mode), switch("avg_pool3d", "count_include_pad", count_include_pad)
    *window, _ = _window("avg_pool3d", input, kernel_size, stride, padding, 1, rest[0])
    divisor = None if divisor_override is None else integer("avg_pool3d", "divisor_override", divisor_override)
    if divisor == 0:
        raise RuntimeError("avg_pool3d: expected divisor_override to be other than zero, got 0")
    volume = _batched(input)
    arguments = volume, *window, *rest, divisor or 0
    output = NotImplemented if is_compiling() else _nodes.avg_pool3d(*arguments)
    if output is NotImplemented:
        ops, _ = _ops(volume, "avg_pool3d")
        output = ops.avg_pool3d(*arguments)
    return output if volume is input else output.squeeze(0)


def adaptive_avg_pool3d(input, output_size):
    """The mean over equal parts of a volume, as :func:`torch.nn.functional.adaptive_avg_pool3d`.

    Args:
        input: (N, C, D, H, W) or (C, D, H, W); as :func:`avg_pool3d` takes it.
        output_size: (D', H', W') or one number for all, None for the volume's; what does not divide D, H, W is torch's.

    Returns:
        (N, C, D', H', W') or (C, D', H', W'), contiguous but where it is the mean of all.

    Sizes that do not fit raise what torch raises.

    >>> F.adaptive_avg_pool3d(torch.arange(8.0).reshape(1, 2, 2, 2), 1)
    tensor([[[[3.5000]]]])
    """
    if is_small(input) or is_torchs(input):
        return F.adaptive_avg_pool3d(input, output_size)
    return adaptive_avg_pool3d_unasked(input, output_size)


def adaptive_avg_pool3d_unasked(input, output_size):
    """:func:`adaptive_avg_pool3d` for who has asked whether it is torch's (aside.py)."""
    served = _pool2d.is_served(input, "avg_pool3d") and not _is_left(input) and input.dtype not in _HALF
    window = equal_windows(input, output_size, 3) if served else None
    if window is None:
        return F.adaptive_avg_pool3d(input, output_size)
    if window == tuple(input.shape[-3:]):  # the mean of all pixels: one pass over rows of them
        return adaptive_avg_pool2d(input.flatten(-3, -2), (1, 1)).unsqueeze(-3)
    return avg_pool3d_unasked(input, window, window, 0, False, True, None)


def adaptive_max_pool3d(input, output_size, return_indices=False):
    """The largest pixel of equal parts of a volume, as :func:`torch.nn.functional.adaptive_max_pool3d`.

    Args:
        input: (N, C, D, H, W) or (C, D, H, W); as :func:`max_pool3d` takes it. A nan in a part is its maximum.
        output_size: (D', H', W') or one number for all, None for the volume's; what does not divide D, H, W is torch's.
        return_indices: also returns where each maximum was found.

    Returns:
        (N, C, D', H', W') or (C, D', H', W'), contiguous. With ``return_indices`` a pair of that and the indices
        (depth * H + row) * W + column, int64, of the first maximum (or the last nan).

    Sizes that do not fit raise what torch raises.

    >>> F.adaptive_max_pool3d(torch.arange(8.0).reshape(1, 2, 2, 2), 1)
    tensor([[[[7.]]]])
    """
    if is_small(input) or is_torchs(input):
        return F.adaptive_max_pool3d(input, output_size, return_indices)
    return adaptive_max_pool3d_unasked(input, output_size, return_indices)


def adaptive_max_pool3d_unasked(input, output_size, return_indices):
    """:func:`adaptive_max_pool3d` for who has asked whether it is torch's (aside.py)."""
    served = _pool2d.is_served(input, "max_pool3d") and not _is_left(input)
    window = equal_windows(input, output_size, 3) if served else None
    if window is None:
        return F.adaptive_max_pool3d(input, output_size, return_indices)
    return_indices = bool(return_indices)
    if window == tuple(input.shape[-3:]) and not _is_last(input):  # of all pixels: one pass over rows of them
        found = adaptive_max_pool2d(input.contiguous().flatten(-3, -2), (1, 1), return_indices)
        return tuple(t.unsqueeze(-3) for t in found) if return_indices else found.unsqueeze(-3)
    return _maximum(input, (window, window, (0, 0, 0), (1, 1, 1)), False, return_indices)
