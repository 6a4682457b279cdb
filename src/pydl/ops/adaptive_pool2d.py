"""2-D pooling to a given size, the mean or maximum of all pixels (1 x 1) among it (Lin et al., 2014; d2l "NiN").

    output[n, c, y, x] = mean or max over input[n, c, y*H/H' : (y + 1)*H/H', x*W/W' : (x + 1)*W/W']

Where the size divides the image's, that is a pooling whose windows lie side by side: avg_pool2d and max_pool2d. Windows
of unequal size are torch's.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes, _pool2d
from pydl.ops._memory_format import is_channels_last
from pydl.ops._nodes import is_compiling
from pydl.ops.avg_pool2d import pooled
from pydl.ops.max_pool2d import max_pool2d_unasked

__all__ = ["adaptive_avg_pool2d", "adaptive_max_pool2d"]

_library.made_of("adaptive_avg_pool2d", "avg_pool2d")
_library.made_of("adaptive_max_pool2d", "max_pool2d")


def equal_windows(input, output_size, dims=2):
    """The windows that cut ``input``'s last ``dims`` dimensions into ``output_size``; None where torch pools it.

    That is: sizes that do not divide the image's, images that are no (C, ...) or (N, C, ...), and what torch refuses.
    """
    if isinstance(output_size, int):
        output_size = (output_size,) * dims
    if input.dim() not in (dims + 1, dims + 2) or not isinstance(output_size, tuple | list) or len(output_size) != dims:
        return None
    window = []
    for length, count in zip(input.shape[-dims:], output_size, strict=True):
        count = length if count is None else count
        if isinstance(count, bool) or not isinstance(count, int | torch.SymInt) or count <= 0:
            return None
        if length == 0 or length % count != 0:
            return None
        window.append(length // count)
    return None if input.shape[-dims - 1] == 0 else tuple(window)


def adaptive_avg_pool2d(input, output_size):
    """The mean over equal parts of an image, as :func:`torch.nn.functional.adaptive_avg_pool2d`.

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float64, bfloat16 or float16 on the CPU, with any strides (other
            dtypes and devices are served by torch). Sums are accumulated in float32 (float64 for float64).
        output_size: (H', W') or one number for both, None for the image's; what does not divide H and W is torch's.

    Returns:
        (N, C, H', W') or (C, H', W'), channels_last if the input is.

    Sizes that do not fit raise what torch raises.

    >>> F.adaptive_avg_pool2d(torch.arange(16.0).reshape(1, 4, 4), 2)
    tensor([[[ 2.5000,  4.5000],
             [10.5000, 12.5000]]])
    """
    if not is_compiling():
        output = _nodes.adaptive_avg_pool2d(input, output_size)
        if output is not NotImplemented:
            return output
    if is_torchs(input):
        return F.adaptive_avg_pool2d(input, output_size)
    return adaptive_avg_pool2d_unasked(input, output_size)


def adaptive_avg_pool2d_unasked(input, output_size):
    """:func:`adaptive_avg_pool2d` for who has asked whether it is torch's (aside.py)."""
    ops = backend.ops_for(input, "avg_pool2d") if input.dtype in _pool2d.SUPPORTED else None
    window = None if ops is None else equal_windows(input, output_size)
    if window is None:
        return F.adaptive_avg_pool2d(input, output_size)
    image = _pool2d.batched("adaptive_avg_pool2d", input)
    channels_last = input.dim() == 4 and is_channels_last(image)
    # the mean of all pixels is a mean to torch, whose gradient is contiguous whatever the input is
    whole = window[0] == image.shape[2] and window[1] == image.shape[3]
    options = window, window, (0, 0), False, True, 0, channels_last, channels_last and not whole
    output = pooled(ops, image, options)
    return output if image is input else output.squeeze(0)


def adaptive_max_pool2d(input, output_size, return_indices=False):
    """The largest pixel of equal parts of an image, as :func:`torch.nn.functional.adaptive_max_pool2d`.

    Args:
        input: as :func:`adaptive_avg_pool2d` takes it. A nan in a part is its maximum.
        output_size: (H', W') or one number for both, None for the image's; what does not divide H and W is torch's.
        return_indices: also returns where each maximum was found.

    Returns:
        (N, C, H', W') or (C, H', W'), channels_last if the input is. With ``return_indices`` a pair of that and the
        indices row * W + column, int64, of the first maximum (or the last nan). The gradient goes to that pixel.

    Sizes that do not fit raise what torch raises.

    >>> F.adaptive_max_pool2d(torch.arange(16.0).reshape(1, 4, 4), 2)
    tensor([[[ 5.,  7.],
             [13., 15.]]])
    """
    if return_indices is False and not is_compiling():
        output = _nodes.adaptive_max_pool2d(input, output_size)
        if output is not NotImplemented:
            return output
    if is_torchs(input):
        return F.adaptive_max_pool2d(input, output_size, return_indices)
    return adaptive_max_pool2d_unasked(input, output_size, return_indices)


def adaptive_max_pool2d_unasked(input, output_size, return_indices):
    """:func:`adaptive_max_pool2d` for who has asked whether it is torch's (aside.py)."""
    window = equal_windows(input, output_size) if _pool2d.is_served(input, "max_pool2d") else None
    if window is None:
        return F.adaptive_max_pool2d(input, output_size, return_indices)
    return max_pool2d_unasked(input, window, window, 0, 1, False, return_indices)
