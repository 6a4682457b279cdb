"""1-D pooling: that of images of one row, by max_pool2d and avg_pool2d."""

import torch
import torch.nn.functional as F

from pydl.aside import is_torchs
from pydl.ops import _library, _nodes, _pool2d
from pydl.ops._memory_format import is_channels_last
from pydl.ops._nodes import is_compiling
from pydl.ops._options import one_integer, switch
from pydl.ops.adaptive_pool2d import adaptive_avg_pool2d_unasked, adaptive_max_pool2d_unasked, equal_windows
from pydl.ops.avg_pool2d import avg_pool2d_unasked
from pydl.ops.max_pool2d import max_pool2d_unasked

__all__ = ["adaptive_avg_pool1d", "adaptive_max_pool1d", "avg_pool1d", "max_pool1d"]

for _name in ("avg_pool1d", "adaptive_avg_pool1d"):
    _library.made_of(_name, "avg_pool2d")
for _name in ("max_pool1d", "adaptive_max_pool1d"):
    _library.made_of(_name, "max_pool2d")


def _window(op, input, kernel_size, stride, padding, dilation, ceil_mode):
    """((1, kernel_size), (1, stride), (0, padding), (1, dilation), ceil_mode), checked."""
    kernel_size = one_integer(op, "kernel_size", kernel_size)
    if stride is None or (isinstance(stride, tuple | list) and not stride):
        stride = kernel_size
    stride = one_integer(op, "stride", stride)
    padding, dilation = one_integer(op, "padding", padding), one_integer(op, "dilation", dilation)
    ceil_mode = switch(op, "ceil_mode", ceil_mode)
    for name, value, least in (
        ("kernel_size", kernel_size, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if value < least:
            raise RuntimeError(f"{op}: expected {name} to be at least {least}, got {value}")
    shape = tuple(input.shape)
    if len(shape) not in (2, 3) or any(length == 0 for length in shape[-2:]):
        raise RuntimeError(
            f"{op}: expected input to be 2-D (unbatched) or 3-D (batched) and empty in its batch alone, got shape "
            f"{shape}"
        )
    reach = dilation * (kernel_size - 1) + 1
    if padding > kernel_size // 2:
        raise RuntimeError(
            f"{op}: expected padding to be at most half of kernel_size, got padding {padding} for kernel_size "
            f"{kernel_size}"
        )
    if shape[-1] + 2 * padding + (stride - 1 if ceil_mode else 0) < reach:
        raise RuntimeError(
            f"{op}: expected the kernel to be no larger than the padded input ({shape[-1] + 2 * padding}), got "
            f"kernel_size {kernel_size} with dilation {dilation}"
        )
    return (1, kernel_size), (1, stride), (0, padding), (1, dilation), ceil_mode


def max_pool1d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """The largest number of each window, as :func:`torch.nn.functional.max_pool1d`. A nan in a window is its maximum.

    Args:
        input: (N, C, L) or (C, L); float32, float64, bfloat16 or float16 on the CPU, with any strides (other dtypes
            and devices are served by torch, and so is a maximum that no gradient is wanted of over an input whose
            channels lie side by side).
        kernel_size: numbers in a window.
        stride: distance of windows; the kernel's size if None.
        padding: numbers of -inf at both ends, at most half of the kernel's size.
        dilation: distance between the numbers of a window.
        ceil_mode: windows may hang over the end of the padded input, as long as they begin before it.
        return_indices: also returns where each maximum was found.

    Returns:
        (N, C, L') or (C, L'). L' = (L + 2 * padding - dilation * (kernel_size - 1) - 1) / stride + 1, rounded down, or
        up with ``ceil_mode``. With ``return_indices`` a pair of that and the indices, int64, of the first maximum (or
        the last nan). The gradient goes to that number.

    Raises:
        RuntimeError: shapes or options that do not fit.
        TypeError: options that are no integers.

    >>> F.max_pool1d(torch.tensor([[1.0, 3.0, 5.0, 7.0]]), 2)
    tensor([[3., 7.]])
    """
    if is_torchs(input):
        return F.max_pool1d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return max_pool1d_unasked(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool1d_unasked(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices):
    """:func:`max_pool1d` for who has asked whether it is torch's (aside.py)."""
    options = kernel_size, stride, padding, dilation, ceil_mode
    if not _pool2d.is_served(input, "max_pool2d"):
        return F.max_pool1d(input, *options, return_indices)
    window = _window("max_pool1d", input, *options)
    image = input.unsqueeze(-2)
    wants_gradient = input.requires_grad and torch.is_grad_enabled()
    if image.dim() == 4 and not return_indices and not wants_gradient and is_channels_last(image):
        return F.max_pool1d(input, *options)  # which is contiguous then
    output = NotImplemented
    if not return_indices and not is_compiling():
        output = _nodes.max_pool2d(image, *window)
    if output is NotImplemented:
        output = max_pool2d_unasked(image, *window, return_indices)
    return tuple(t.squeeze(-2) for t in output) if return_indices else output.squeeze(-2)


def avg_pool1d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    """The mean of each window's numbers, as :func:`torch.nn.functional.avg_pool1d`.

    Args:
        input: (N, C, L) or (C, L); float32, float64, bfloat16 or float16 on the CPU, with any strides (other dtypes
            and devices are served by torch). Sums are accumulated in float32 (float64 for float64).
        kernel_size: numbers in a window.
        stride: distance of windows; the kernel's size if None.
        padding: zeros at both ends, at most half of the kernel's size.
        ceil_mode: windows may hang over the end of the padded input, as long as they begin before it.
        count_include_pad: zeros of the padding count as numbers; what hangs over the padded input never does.

    Returns:
        (N, C, L') or (C, L'). L' = (L + 2 * padding - kernel_size) / stride + 1, rounded down, or up with
        ``ceil_mode``.

    Raises:
        RuntimeError: shapes or options that do not fit.
        TypeError: options that are no integers.

    >>> F.avg_pool1d(torch.tensor([[1.0, 3.0, 5.0, 7.0]]), 2)
    tensor([[2., 6.]])
    """
    if is_torchs(input):
        return F.avg_pool1d(input, kernel_size, stride, padding, ceil_mode, count_include_pad)
    return avg_pool1d_unasked(input, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool1d_unasked(input, kernel_size, stride, padding, ceil_mode, count_include_pad):
    """:func:`avg_pool1d` for who has asked whether it is torch's (aside.py)."""
    if not _pool2d.is_served(input, "avg_pool2d"):
        return F.avg_pool1d(input, kernel_size, stride, padding, ceil_mode, count_include_pad)
    *window, _, ceil_mode = _window("avg_pool1d", input, kernel_size, stride, padding, 1, ceil_mode)
    options = *window, ceil_mode, switch("avg_pool1d", "count_include_pad", count_include_pad), None
    image, output = input.unsqueeze(-2), NotImplemented
    if not is_compiling():
        output = _nodes.avg_pool2d(image, *options)
    if output is NotImplemented:
        output = avg_pool2d_unasked(image, *options)
    return output.squeeze(-2)


def _rows(input, output_size):
    """(``input`` as images of one row, (1, output_size)); None where torch pools it: as equal_windows() says."""
    if isinstance(output_size, tuple | list) and len(output_size) == 1:
        output_size = output_size[0]
    if input.dim() not in (2, 3) or isinstance(output_size, bool) or not isinstance(output_size, int | torch.SymInt):
        return None
    image, size = input.unsqueeze(-2), (1, output_size)
    return None if equal_windows(image, size) is None else (image, size)


def adaptive_avg_pool1d(input, output_size):
    """The mean over equal parts of a row, as :func:`torch.nn.functional.adaptive_avg_pool1d`.

    Args:
        input: (N, C, L) or (C, L); as :func:`avg_pool1d` takes it.
        output_size: L'. Sizes that do not divide L are torch's.

    Returns:
        (N, C, L') or (C, L').

    Sizes that do not fit raise what torch raises.

    >>> F.adaptive_avg_pool1d(torch.tensor([[1.0, 3.0, 5.0, 7.0]]), 2)
    tensor([[2., 6.]])
    """
    if is_torchs(input):
        return F.adaptive_avg_pool1d(input, output_size)
    return adaptive_avg_pool1d_unasked(input, output_size)


def adaptive_avg_pool1d_unasked(input, output_size):
    """:func:`adaptive_avg_pool1d` for who has asked whether it is torch's (aside.py)."""
    rows = _rows(input, output_size) if _pool2d.is_served(input, "avg_pool2d") else None
    if rows is None:
        return F.adaptive_avg_pool1d(input, output_size)
    output = NotImplemented if is_compiling() else _nodes.adaptive_avg_pool2d(*rows)
    return (adaptive_avg_pool2d_unasked(*rows) if output is NotImplemented else output).squeeze(-2)


def adaptive_max_pool1d(input, output_size, return_indices=False):
    """The largest number of equal parts of a row, as :func:`torch.nn.functional.adaptive_max_pool1d`.

    Args:
        input: (N, C, L) or (C, L); as :func:`avg_pool1d` takes it. A nan in a part is its maximum.
        output_size: L'. Sizes that do not divide L are torch's.
        return_indices: also returns where each maximum was found.

    Returns:
        (N, C, L') or (C, L'). With ``return_indices`` a pair of that and the indices, int64, of the first maximum (or
        the last nan). The gradient goes to that number.

    Sizes that do not fit raise what torch raises.

    >>> F.adaptive_max_pool1d(torch.tensor([[1.0, 3.0, 5.0, 7.0]]), 2)
    tensor([[3., 7.]])
    """
    if is_torchs(input):
        return F.adaptive_max_pool1d(input, output_size, return_indices)
    return adaptive_max_pool1d_unasked(input, output_size, return_indices)


def adaptive_max_pool1d_unasked(input, output_size, return_indices):
    """:func:`adaptive_max_pool1d` for who has asked whether it is torch's (aside.py)."""
    rows = _rows(input, output_size) if _pool2d.is_served(input, "max_pool2d") else None
    if rows is None:
        return F.adaptive_max_pool1d(input, output_size, return_indices)
    if return_indices:
        return tuple(t.squeeze(-2) for t in adaptive_max_pool2d_unasked(*rows, True))
    output = NotImplemented if is_compiling() else _nodes.adaptive_max_pool2d(*rows)
    return (adaptive_max_pool2d_unasked(*rows, False) if output is NotImplemented else output).squeeze(-2)
