"""3-D convolution (Tran et al., 2015; d2l exercise of "Convolutions for Images"), by conv2d's kernels; on the CPU.

    output[n, o, z, y, x] = bias[o] + sum over i, q, r, s of
                            weight[o, i, q, r, s] * input[n, i, z*stride + q*dilation - padding, y..., x...]

Forward, input gradient and weight gradient are ops of our own (csrc/conv3d.cpp says how they are made of 2-D ones).
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import functorch_active, onednn_dtypes
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes
from pydl.ops._autocast import lowered
from pydl.ops._convolution import check, gradients_of_gradients, output_size, padding_of
from pydl.ops._memory_format import is_channels_last
from pydl.ops._nodes import is_compiling
from pydl.ops._options import integer, triple
from pydl.ops.conv2d import SUPPORTED, WORTH_ASKING

__all__ = ["conv3d"]

# padding is (front, back, top, bottom, left, right). channels_last is the memory format of the result: decided once, in
# `conv3d` below, so that kernel and fake agree.
_OPTIONS = "int[3] stride, int[6] padding, int[3] dilation, int groups"
_library.define(
    "conv3d_forward", f"(Tensor input, Tensor weight, Tensor? bias, {_OPTIONS}, bool channels_last) -> Tensor"
)
_library.define(
    "conv3d_backward_input",
    f"(Tensor grad_output, Tensor weight, SymInt[5] input_size, {_OPTIONS}, bool channels_last) -> Tensor",
)
_library.define(
    "conv3d_backward_weight",
    f"(Tensor grad_output, Tensor input, SymInt[5] weight_size, {_OPTIONS}, bool channels_last) -> Tensor",
)

# What is torch's, as it is the faster: groups of fewer channels in or out (depthwise kernels among them; but for first
# layers), and less work than so many multiplications of stride 1 (measured: kernels/cpu/conv2d/NOTES.md).
FEWEST_CHANNELS = 32
LEAVES_STRIDED = True  # of more than the first layer's channels, in channels_last_3d
WORTH_A_CALL = 1 << 25


def _empty(like, size, channels_last):
    return like.new_empty(size).to(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)


@_library.fake("conv3d_forward")
def _(input, weight, bias, stride, padding, dilation, groups, channels_last):
    size = output_size("conv3d", input, weight, bias, stride, padding, dilation, groups)
    return _empty(input, size, channels_last)


@_library.fake("conv3d_backward_input")
def _(grad_output, weight, input_size, stride, padding, dilation, groups, channels_last):
    return _empty(grad_output, input_size, channels_last)


@_library.fake("conv3d_backward_weight")
def _(grad_output, input, weight_size, stride, padding, dilation, groups, channels_last):
    return _empty(grad_output, weight_size, channels_last)


def _forward_context(ctx, inputs, output):
    input, weight, _, *ctx.options, ctx.channels_last = inputs
    ctx.input_size, ctx.weight_size = input.shape, weight.shape
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)


def _forward_backward(ops, ctx, grad):
    input, weight = ctx.saved_tensors
    needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    eager = not torch.compiler.is_compiling() and not functorch_active()
    if eager and needs_input and needs_weight and grad.numel() * ctx.weight_size[1:].numel() > WORTH_ASKING:
        needs_input, needs_weight = _library.wanted(ctx, 0), _library.wanted(ctx, 1)
    grad_input = grad_weight = grad_bias = None
    if needs_input:
        grad_input = ops.conv3d_backward_input(grad, weight, ctx.input_size, *ctx.options, ctx.channels_last)
    if needs_weight:
        grad_weight = ops.conv3d_backward_weight(grad, input, ctx.weight_size, *ctx.options, ctx.channels_last)
    if needs_bias:
        grad_bias = ops.conv2d_backward_bias(grad.flatten(3))
    return grad_input, grad_weight, grad_bias, None, None, None, None, None


_library.autograd("conv3d_forward", _forward_context, _forward_backward)
gradients_of_gradients("conv3d")


# oneDNN keeps channels_last; torch's own loops give contiguous results
_ONEDNNS = onednn_dtypes() if torch.backends.mkldnn.is_available() else frozenset()


def _is_onednns(input, weight, stride, dilation, groups):
    """Whether torch would ask oneDNN for it, as ``use_mkldnn`` in ATen/native/Convolution.cpp has it."""
    if input.dtype not in _ONEDNNS or not torch.backends.mkldnn.enabled:
        return False
    if input.dtype != torch.float32:
        return True
    strided, dilated = any(s != 1 for s in stride), any(d != 1 for d in dilation)
    batch, *_ = size = input.shape
    many = batch * size[1] * size[2] * size[3] > 20480
    large = weight.shape[-1] > 3 and weight.shape[-2] > 3
    threads = torch.get_num_threads() > 1 or strided or dilated or batch >= 16
    return (threads or weight.shape[-1] != 1 or weight.shape[-2] != 1) and (groups > 1 or large or batch > 1 or many)


def conv3d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Cross-correlates ``input`` with ``weight``, as :func:`torch.nn.functional.conv3d`.

    Args:
        input: (N, C, D, H, W) or (C, D, H, W); float32, float64, bfloat16 or float16 on the CPU, with any strides
            (other dtypes and devices, and tensors without elements, are served by torch). Sums are accumulated in
            float32 (float64 for float64); float16 is copied to float32 and back.
        weight: (O, C / groups, kernel depth, kernel height, kernel width).
        bias: (O,) or None.
        stride: one number of pixels or (z, y, x).
        padding: pixels, (z, y, x), ``"valid"`` (none) or ``"same"`` (output as large as the input; stride 1).
        dilation: distance between the taps of the kernel, one number of pixels or (z, y, x).
        groups: how many blocks channels are split into; each convolves its own.

    Groups of fewer than 32 channels in or out (but first layers: up to 4 in and 32 or more out), strides in
    channels_last_3d, and calls of little work are torch's, whose kernels are the faster ones there.

    Returns:
        (N, O, D', H', W') or (O, D', H', W'); channels_last_3d where torch's result is. D' = (D + 2 * padding -
        dilation * (kernel depth - 1) - 1) // stride + 1. Kernels of 3 and 5 pixels may be computed by Winograd's
        method along height and width, as :func:`pydl.functional.conv2d` does; :class:`pydl.backend.exact` does
        without.

    Raises:
        RuntimeError: shapes, dtypes or options that do not fit.

    >>> F.conv3d(torch.ones(1, 3, 8, 16, 16), torch.ones(4, 3, 3, 3, 3)).shape
    torch.Size([1, 4, 6, 14, 14])
    """
    if is_torchs(input, weight, bias):
        return F.conv3d(input, weight, bias, stride, padding, dilation, groups)
    return conv3d_unasked(input, weight, bias, stride, padding, dilation, groups)


def conv3d_unasked(input, weight, bias, stride, padding, dilation, groups):
    """:func:`conv3d` for who has asked whether it is torch's (aside.py)."""
    served = input.dtype in SUPPORTED and isinstance(weight, torch.Tensor)
    served = served and input.numel() != 0 and weight.numel() != 0
    ops = backend.ops_for(input, "conv3d") if served else None
    if ops is None or is_left(input, weight, groups):
        return F.conv3d(input, weight, bias, stride, padding, dilation, groups)
    check("conv3d", weight.dim() == 5, f"weight to be 5-D, got shape {tuple(weight.shape)}")
    transforms = functorch_active()
    if transforms:
        ops = _library.transformed(ops)
    stride, dilation = triple("conv3d", "stride", stride), triple("conv3d", "dilation", dilation)
    if is_strided_left(input, weight, stride):
        return F.conv3d(input, weight, bias, stride, padding, dilation, groups)
    if torch.is_autocast_enabled("cpu"):
        input, weight, bias = lowered("cpu", input, weight, bias)
    padding = padding_of("conv3d", padding, weight, stride, dilation)
    groups = integer("conv3d", "groups", groups)
    batched = input.dim() == 5
    if not batched:
        check(
            "conv3d", input.dim() == 4, f"input to be 4-D (unbatched) or 5-D (batched), got shape {tuple(input.shape)}"
        )
        input = input.unsqueeze(0)
    channels_last = (is_channels_last(input) or is_channels_last(weight)) and _is_onednns(
        input, weight, stride, dilation, groups
    )
    arguments = input, weight, bias, stride, padding, dilation, groups, channels_last
    output = NotImplemented if transforms or is_compiling() else _nodes.conv3d(*arguments)
    if output is NotImplemented:
        output = ops.conv3d_forward(*arguments)
    return output if batched else output.squeeze(0)


_FIRST = 4  # channels of a first layer, at most


def is_of_few(channels, features, groups):
    """Whether a group has so few channels in or out that torch's kernels are the faster ones."""
    first = groups == 1 and channels <= _FIRST and features >= FEWEST_CHANNELS
    return min(channels, features) < FEWEST_CHANNELS and not first


def is_left(input, weight, groups):
    """Whether torch's kernels are the faster ones: few channels, little work."""
    if weight.dim() != 5 or not isinstance(groups, int) or groups < 1:
        return False
    if is_of_few(weight.shape[1], weight.shape[0] // groups, groups):
        return True
    return input.numel() * weight.shape[0] * weight[0, 0].numel() < WORTH_A_CALL


def is_strided_left(input, weight, stride):
    """Whether torch's kernels are the faster ones: strides in channels_last_3d, but of first layers."""
    if not LEAVES_STRIDED or stride[1:] == (1, 1) or weight.shape[1] <= _FIRST or input.dim() != 5:
        return False
    return is_channels_last(input) or is_channels_last(weight)
