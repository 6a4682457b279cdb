"""1-D convolution and its transpose (Waibel et al., 1989; d2l "TextCNN"), as those of images of one row; on the CPU.

    output[n, o, i] = bias[o] + sum over c, r of weight[o, c, r] * input[n, c, i*stride + r*dilation - padding]

torch makes both tensors contiguous unless the weight's channels lie side by side; such weights are left to it.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes
from pydl.ops._memory_format import is_channels_last
from pydl.ops._nodes import is_compiling
from pydl.ops._options import integer, one_integer
from pydl.ops.conv2d import SUPPORTED, conv2d_unasked
from pydl.ops.conv_transpose2d import conv_transpose2d_unasked

__all__ = ["conv1d", "conv_transpose1d"]

_library.made_of("conv1d", "conv_transpose2d")  # on the CPU alone
_library.made_of("conv_transpose1d", "conv_transpose2d")


def conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Cross-correlates ``input`` with ``weight``, as :func:`torch.nn.functional.conv1d`.

    Args:
        input: (N, C, L) or (C, L); float32, float64, bfloat16 or float16 on the CPU, with any strides (other dtypes
            and devices, and tensors without elements, are served by torch).
        weight: (O, C / groups, kernel size); one whose channels lie side by side is torch's.
        bias: (O,) or None.
        stride: distance of windows.
        padding: zeros at both ends, ``"valid"`` (none) or ``"same"`` (output as long as the input; stride 1).
        dilation: distance between the taps of the kernel.
        groups: how many blocks channels are split into; each convolves its own.

    Returns:
        (N, O, L') or (O, L'). L' = (L + 2 * padding - dilation * (kernel size - 1) - 1) // stride + 1. Computed as
        :func:`pydl.functional.conv2d` computes images of one row.

    Raises:
        RuntimeError: shapes, dtypes or options that do not fit.

    >>> edges = torch.tensor([[[1.0, -1.0]]])
    >>> F.conv1d(torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]]), edges)
    tensor([[ 0., -1.,  0.,  1.]])
    """
    if is_torchs(input, weight, bias):
        return F.conv1d(input, weight, bias, stride, padding, dilation, groups)
    return conv1d_unasked(input, weight, bias, stride, padding, dilation, groups)


def conv1d_unasked(input, weight, bias, stride, padding, dilation, groups):
    """:func:`conv1d` for who has asked whether it is torch's (aside.py)."""
    op = "conv1d"
    options = stride, padding, dilation, groups
    if not _is_served(op, input, weight):
        return F.conv1d(input, weight, bias, *options)
    stride, dilation, groups = (
        one_integer(op, "stride", stride),
        one_integer(op, "dilation", dilation),
        integer(op, "groups", groups),
    )
    _check(op, input, weight, bias, groups)
    reach = dilation * (weight.shape[2] - 1) + 1
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            _refuse(op, "padding to be a number, 'same' or 'valid'", repr(padding))
        if padding == "same" and stride != 1:
            _refuse(op, "stride to be 1 with padding 'same'", stride)
        room = reach - 1 if padding == "same" else 0
    else:
        padding = one_integer(op, "padding", padding)
        room = 2 * padding
    for name, number, least in (("stride", stride, 1), ("dilation", dilation, 1), ("padding", room, 0)):
        if number < least:
            _refuse(op, f"{name} to be {'positive' if least else 'at least 0'}", number if least else padding)
    if input.shape[-1] + room < reach:
        _refuse(op, f"the kernel to be no larger than the padded input ({input.shape[-1] + room})", reach)
    image, kernel = _row(input), weight.unsqueeze(2)
    options = (1, stride), padding if isinstance(padding, str) else (0, padding), (1, dilation), groups, None
    output = NotImplemented
    if input.dim() == 3 and not is_compiling():
        output = _nodes.conv2d(image, kernel, bias, *options)
    if output is NotImplemented:
        output = conv2d_unasked(image, kernel, bias, *options)
    return output.squeeze(-2)


def conv_transpose1d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """The transpose of :func:`conv1d` with the same weight, as :func:`torch.nn.functional.conv_transpose1d`.

    Args:
        input: (N, C, L) or (C, L); as :func:`conv1d` takes it.
        weight: (C, O / groups, kernel size); one whose channels lie side by side is torch's.
        bias: (O,) or None.
        stride: one number.
        padding: numbers by which each end of the output is shorter.
        output_padding: numbers more at the far end, fewer than stride or dilation.
        groups: how many blocks channels are split into.
        dilation: distance between the taps of the kernel.

    Returns:
        (N, O, L') or (O, L'). L' = (L - 1) * stride - 2 * padding + dilation * (kernel size - 1) + output_padding + 1.

    Raises:
        RuntimeError: shapes, dtypes or options that do not fit.

    >>> F.conv_transpose1d(torch.tensor([[1.0, 2.0]]), torch.tensor([[[1.0, 10.0]]]), stride=2)
    tensor([[ 1., 10.,  2., 20.]])
    """
    if is_torchs(input, weight, bias):
        return F.conv_transpose1d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv_transpose1d_unasked(input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose1d_unasked(input, weight, bias, stride, padding, output_padding, groups, dilation):
    """:func:`conv_transpose1d` for who has asked whether it is torch's (aside.py)."""
    op = "conv_transpose1d"
    if not _is_served(op, input, weight):
        return F.conv_transpose1d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    stride, dilation, groups = (
        one_integer(op, "stride", stride),
        one_integer(op, "dilation", dilation),
        integer(op, "groups", groups),
    )
    padding, more = one_integer(op, "padding", padding), one_integer(op, "output_padding", output_padding)
    _check(op, input, weight, bias, groups, transposed=True)
    for name, number, least in (("stride", stride, 1), ("dilation", dilation, 1), ("padding", padding, 0)):
        if number < least:
            _refuse(op, f"{name} to be {'positive' if least else 'at least 0'}", number)
    if not 0 <= more < max(stride, dilation):
        _refuse(op, "output_padding to be at least 0 and less than stride or dilation", more)
    length = (input.shape[-1] - 1) * stride - 2 * padding + dilation * (weight.shape[2] - 1) + more + 1
    if length <= 0:
        _refuse(op, "an output of at least one number", length)
    options = (1, stride), (0, padding), (0, more), groups, (1, dilation)
    image, kernel = _row(input), weight.unsqueeze(2)
    output = NotImplemented
    if input.dim() == 3 and not is_compiling():
        output = _nodes.conv_transpose2d(image, kernel, bias, *options, None)
    if output is NotImplemented:
        output = conv_transpose2d_unasked(image, kernel, bias, *options)
    return output.squeeze(-2)


def _is_served(op, input, weight):
    served = input.is_cpu and input.dtype in SUPPORTED and isinstance(weight, torch.Tensor)
    served = served and input.numel() != 0 and weight.numel() != 0
    if not served or backend.ops_for(input, op) is None:
        return False
    return weight.dim() != 3 or not is_channels_last(weight.unsqueeze(2))


def _row(input):
    """``input`` as images of one row, which are contiguous as torch's are."""
    image = input.unsqueeze(-2)
    return image.contiguous() if image.dim() == 4 and is_channels_last(image) else image


def _refuse(op, rule, got):
    raise RuntimeError(f"{op}: expected {rule}, got {got}")


def _check(op, input, weight, bias, groups, transposed=False):
    if input.dim() not in (2, 3):
        _refuse(op, "input to be 2-D (unbatched) or 3-D (batched)", f"shape {tuple(input.shape)}")
    if weight.dim() != 3:
        _refuse(op, "weight to be 3-D", f"shape {tuple(weight.shape)}")
    if groups <= 0:
        _refuse(op, "groups to be positive", groups)
    first, second = weight.shape[0], weight.shape[1] * groups
    channels, features = (first, second) if transposed else (second, first)
    if input.shape[-2] != channels:
        _refuse(op, f"input to be of {channels} channels", input.shape[-2])
    if first % groups:
        _refuse(op, f"{'in' if transposed else 'out'}_channels to be divisible by groups ({groups})", first)
    if bias is not None and bias.shape != (features,):
        _refuse(op, f"bias to be of shape ({features})", tuple(bias.shape))
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != input.dtype and not torch.is_autocast_enabled("cpu"):
            _refuse(op, f"{name} to be of the dtype of input", f"{tensor.dtype} and {input.dtype}")
