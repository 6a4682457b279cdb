"""3-D pooling (Tran et al., 2015: videos): over the pixels of each plane, then over the planes, by max_pool2d and
avg_pool2d; on the CPU.

A window is a product of three intervals: its maximum is that of its planes' maxima, its sum that of its planes' sums.
Planes are images that one call pools; after it, a plane is a row of an image whose columns are depths.
"""

import torch
import torch.nn.functional as F

from pydl.aside import is_torchs
from pydl.ops import _library, _pool2d
from pydl.ops._memory_format import is_channels_last
from pydl.ops._options import integer, switch, triple
from pydl.ops.adaptive_pool2d import adaptive_avg_pool2d_unasked, equal_windows
from pydl.ops.avg_pool2d import avg_pool2d_unasked
from pydl.ops.max_pool2d import max_pool2d_unasked

__all__ = ["adaptive_avg_pool3d", "adaptive_max_pool3d", "avg_pool3d", "max_pool3d"]

for _name in ("avg_pool3d", "adaptive_avg_pool3d"):
    _library.made_of(_name, "avg_pool2d")
for _name in ("max_pool3d", "adaptive_max_pool3d"):
    _library.made_of(_name, "max_pool2d")


# Numbers of the input from which on our two calls are quicker than torch's one (kernels/cpu/pool2d/NOTES.md).
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


def _planes(volume, channels_last):
    """(N, C, D, H, W) as images (N * D, C, H, W), or (N, C * D, H, W) where rows of pixels lie side by side."""
    if channels_last:
        return volume.transpose(1, 2).flatten(0, 1)
    return volume.flatten(1, 2)


def _columns(images, size, channels_last):
    """What :func:`_planes` made, pooled, as (N, C, D, H' * W'); ``size``: (N, C, D) of the volume."""
    batch, channels, depth = size
    if channels_last:
        return images.unflatten(0, (batch, depth)).transpose(1, 2).flatten(3)
    return images.unflatten(1, (channels, depth)).flatten(3)


class _ContiguousGradient(torch.autograd.Function):
    """The same tensor, whose gradient is contiguous, as torch's is where it is not of the input's memory format."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input):
        return input.view_as(input)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad.contiguous()


def _volume(input):
    """(``input`` as dense (N, C, D, H, W), whether it is channels_last_3d)."""
    if _is_last(input):
        return input.contiguous(memory_format=torch.channels_last_3d), True
    return (input if input.dim() == 5 else input.unsqueeze(0)).contiguous(), False


def _is_last(input, unbatched=False):
    """Whether it is channels_last_3d; where that is asked, also a volume without a batch, with channels innermost."""
    if input.dim() == 4:
        return unbatched and not input.is_contiguous() and input.movedim(0, -1).is_contiguous()
    return input.dim() == 5 and is_channels_last(input)


def _row_major(t):
    """``t``, contiguous by the strides of its dimensions of one number too."""
    return t.flatten().view(t.shape)


def _is_left(input):
    """Whether torch pools it whatever the window: small and empty volumes, and those of one channel."""
    return input.dim() in (4, 5) and (input.numel() < WORTH_A_CALL or input.numel() == 0 or input.shape[-4] == 1)


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
    return F.max_pool3d(input, *options) if is_torchs(input) else max_pool3d_unasked(input, *options)


def max_pool3d_unasked(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices):
    """:func:`max_pool3d` for who has asked whether it is torch's (aside.py)."""
    if not _pool2d.is_served(input, "max_pool2d") or _is_left(input) or _is_last(input, unbatched=True):
        return F.max_pool3d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    ceil_mode, return_indices = switch("max_pool3d", "ceil_mode", ceil_mode), bool(return_indices)
    window = _window("max_pool3d", input, kernel_size, stride, padding, dilation, ceil_mode)
    found = _maximum(*_volume(input), window, ceil_mode, return_indices)
    if input.dim() == 5:
        return found
    return tuple(t.squeeze(0) for t in found) if return_indices else found.squeeze(0)


def _maximum(volume, last, window, ceil_mode, return_indices):
    """The maxima of a dense volume, or a pair of them and their indices."""
    *size, height, width = volume.shape
    rest = ceil_mode, return_indices
    images = max_pool2d_unasked(_planes(volume, last), *(numbers[1:] for numbers in window), *rest)
    images, in_plane = images if return_indices else (images, None)
    in_depth = ((z, one) for (z, *_), one in zip(window, (1, 1, 0, 1), strict=True))
    columns = max_pool2d_unasked(_columns(images, size, last), *in_depth, *rest)
    columns, in_column = columns if return_indices else (columns, None)
    output = columns.unflatten(3, images.shape[-2:])
    if not return_indices:
        return output
    # a row of `columns` is a plane, an element of it an index in a plane: depth * (H' * W') + element
    in_plane = _columns(in_plane, size, last)
    row = torch.div(in_column, in_plane.shape[-1], rounding_mode="floor")
    indices = in_plane.gather(2, row) + row * (height * width)
    indices = indices.unflatten(3, images.shape[-2:])
    return output, indices


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
    return F.avg_pool3d(input, *options) if is_torchs(input) else avg_pool3d_unasked(input, *options)


def avg_pool3d_unasked(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    """:func:`avg_pool3d` for who has asked whether it is torch's (aside.py)."""
    options = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    if not _pool2d.is_served(input, "avg_pool2d") or _is_left(input) or input.dtype in _HALF:
        return F.avg_pool3d(input, *options)
    rest = switch("avg_pool3d", "ceil_mode", ceil_mode), switch("avg_pool3d", "count_include_pad", count_include_pad)
    *window, _ = _window("avg_pool3d", input, kernel_size, stride, padding, 1, rest[0])
    divisor = None if divisor_override is None else integer("avg_pool3d", "divisor_override", divisor_override)
    if divisor == 0:
        raise RuntimeError("avg_pool3d: expected divisor_override to be other than zero, got 0")
    if _is_last(input) and input.requires_grad:
        input = _ContiguousGradient.apply(input)
    output = _row_major(_mean(*_volume(input), window, *rest, divisor))  # whatever the input is, as torch's
    return output if input.dim() == 5 else output.squeeze(0)


def _mean(volume, last, window, ceil_mode, count_include_pad, divisor):
    size, rest = volume.shape[:3], (ceil_mode, count_include_pad)
    images = avg_pool2d_unasked(_planes(volume, last), *(n[1:] for n in window), *rest, None if divisor is None else 1)
    in_depth = ((z, one) for (z, *_), one in zip(window, (1, 1, 0), strict=True))
    return avg_pool2d_unasked(_columns(images, size, last), *in_depth, *rest, divisor).unflatten(3, images.shape[-2:])


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
    if is_torchs(input):
        return F.adaptive_avg_pool3d(input, output_size)
    return adaptive_avg_pool3d_unasked(input, output_size)


def adaptive_avg_pool3d_unasked(input, output_size):
    """:func:`adaptive_avg_pool3d` for who has asked whether it is torch's (aside.py)."""
    served = _pool2d.is_served(input, "avg_pool2d") and not _is_left(input) and input.dtype not in _HALF
    window = equal_windows(input, output_size, 3) if served else None
    if window is None:
        return F.adaptive_avg_pool3d(input, output_size)
    if window == tuple(input.shape[-3:]):  # the mean of all pixels: one pass over rows of them
        return adaptive_avg_pool2d_unasked(input.flatten(-3, -2), (1, 1)).unsqueeze(-3)
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
    if is_torchs(input):
        return F.adaptive_max_pool3d(input, output_size, return_indices)
    return adaptive_max_pool3d_unasked(input, output_size, return_indices)


def adaptive_max_pool3d_unasked(input, output_size, return_indices):
    """:func:`adaptive_max_pool3d` for who has asked whether it is torch's (aside.py)."""
    served = _pool2d.is_served(input, "max_pool2d") and not _is_left(input)
    window = equal_windows(input, output_size, 3) if served else None
    if window is None:
        return F.adaptive_max_pool3d(input, output_size, return_indices)
    if _is_last(input) and input.requires_grad:
        input = _ContiguousGradient.apply(input)
    options = window, window, (0, 0, 0), (1, 1, 1)
    found = _maximum(*_volume(input), options, False, return_indices)
    found = tuple(t if input.dim() == 5 else t.squeeze(0) for t in (found if return_indices else (found,)))
    found = tuple(_row_major(t) for t in found)  # whatever the input is, as torch's
    return found if return_indices else found[0]
