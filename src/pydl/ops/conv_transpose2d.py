"""Transposed 2-D convolution (Dumoulin and Visin, 2016; d2l chapter "Transposed Convolution").

    output[n, o, i*stride + r*dilation - padding, ...] = act(bias[o] + sum over c, i, r, ... of
                                                             weight[c, o, r, s] * input[n, c, i, j])

That is the gradient of a convolution's input: conv2d's three ops in other places, the first of them with a bias
and an activation. Rows
and columns of ``output_padding`` are such that a convolution back would not reach them all: less padding at the far
side, and beyond what there is of it nothing but the bias.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active
from pydl.aside import is_torchs
from pydl.ops import _activations, _library, _nodes
from pydl.ops._autocast import lowered
from pydl.ops._memory_format import is_channels_last
from pydl.ops._nodes import is_compiling
from pydl.ops._options import integer, pair
from pydl.ops.conv2d import SUPPORTED, WORTH_ASKING, weight_gradient_format

__all__ = ["conv_transpose2d"]

# The options, output_size among them, are those of the convolution whose input gradient this is.
_library.define(
    "conv_transpose2d",
    "(Tensor input, Tensor weight, Tensor? bias, SymInt[4] output_size, int[2] stride, int[4] padding, "
    "int[2] dilation, int groups, str activation, bool channels_last) -> Tensor",
)


@_library.fake("conv_transpose2d")
def _(input, weight, bias, output_size, stride, padding, dilation, groups, activation, channels_last):
    return input.new_empty(output_size).to(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def _context(ctx, inputs, output):
    input, weight, _, _, *ctx.options, ctx.activation, ctx.channels_last = inputs
    ctx.weight_size = weight.shape
    ctx.weight_channels_last = weight_gradient_format(weight, ctx.channels_last)
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(
        input if needs_weight else None,
        weight if needs_input else None,
        output if ctx.activation != "none" else None,
    )


def _formula(ops, ctx, grad):
    return *_backward(ops, ctx, grad, ctx.needs_input_grad[:3])[:3], *(None,) * 7


_library.autograd("conv_transpose2d", _context, _formula)


def _backward(ops, ctx, grad, needs):
    input, weight, output = ctx.saved_tensors
    grad = _activations.backward(grad, output, ctx.activation)
    grad_input = grad_weight = grad_bias = None
    if needs[0]:
        grad_input = ops.conv2d_forward(grad, weight, None, *ctx.options, "none", ctx.channels_last)
    if needs[1]:
        grad_weight = ops.conv2d_backward_weight(input, grad, ctx.weight_size, *ctx.options, ctx.weight_channels_last)
    if needs[2]:
        grad_bias = ops.conv2d_backward_bias(grad)
    return grad_input, grad_weight, grad_bias, None


class _EagerConvTranspose2d(torch.autograd.Function):
    """In eager mode one node of the autograd graph, its ops called below the autograd layer of the dispatcher."""

    @staticmethod
    def forward(ctx, input, weight, bias, rest):
        ops, _, *ctx.options, ctx.activation, ctx.channels_last = rest
        ctx.ops, ctx.weight_size = ops, weight.shape
        ctx.weight_channels_last = weight_gradient_format(weight, ctx.channels_last)
        with below_autograd():
            output = _library.quick(ops).conv_transpose2d(input, weight, bias, *rest[1:])
        ctx.to_save = (
            input if weight.requires_grad else None,
            weight if input.requires_grad else None,
            output if ctx.activation != "none" else None,
        )
        return output

    @staticmethod
    def backward(ctx, grad):
        *needs, _ = ctx.needs_input_grad
        if needs[0] and needs[1] and grad.numel() * ctx.weight_size[0] > WORTH_ASKING:
            needs[0], needs[1] = _library.wanted(ctx, 0), _library.wanted(ctx, 1)
        if _library.transforms_active():  # torch.func.vmap over the gradient
            return _backward(_library.transformed(ctx.ops), ctx, grad, needs)
        if torch.is_grad_enabled():
            return _backward(ctx.ops, ctx, grad, needs)
        with below_autograd():
            return _backward(_library.quick(ctx.ops), ctx, grad, needs)


_apply = _library.eager(_EagerConvTranspose2d)


def _refuse(rule, got):
    raise RuntimeError(f"conv_transpose2d: expected {rule}, got {got}")


def conv_transpose2d(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, activation=None
):
    """The transpose of :func:`conv2d` with the same weight, as :func:`torch.nn.functional.conv_transpose2d`.

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float64, bfloat16 or float16 on the CPU, with any strides (other
            dtypes and devices, and tensors without elements, are served by torch).
        weight: (C, O / groups, kernel height, kernel width).
        bias: (O,) or None.
        stride: one number of pixels or (y, x).
        padding: pixels by which each side of the output is smaller, one number or (y, x).
        output_padding: rows and columns more at the bottom and on the right, fewer than stride or dilation.
        groups: how many blocks channels are split into.
        dilation: distance between the taps of the kernel, one number of pixels or (y, x).
        activation: keyword-only: None, ``"relu"`` or ``"sigmoid"``, applied to the result in the same pass.

    Returns:
        (N, O, H', W') or (O, H', W'), channels_last if the input or the weight is. H' = (H - 1) * stride - 2 * padding
        + dilation * (kernel height - 1) + output_padding + 1. Computed as :func:`conv2d`'s input gradient is.

    Raises:
        RuntimeError: shapes, dtypes or options that do not fit.
        ValueError: an unknown activation.

    >>> F.conv_transpose2d(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[[1.0, 10.0]]]]), stride=2)
    tensor([[[ 1., 10.,  2., 20.]]])
    """
    options = stride, padding, output_padding, groups, dilation
    if not is_compiling():
        output = _nodes.conv_transpose2d(input, weight, bias, *options, activation)
        if output is not NotImplemented:
            return output
    if is_torchs(input, weight, bias):
        return _by_torch(input, weight, bias, *options, activation)
    return conv_transpose2d_unasked(input, weight, bias, *options, activation)


def conv_transpose2d_unasked(input, weight, bias, stride, padding, output_padding, groups, dilation, activation=None):
    """:func:`conv_transpose2d` for who has asked whether it is torch's (aside.py)."""
    _activations.check("conv_transpose2d", activation)
    served = input.is_cpu and input.dtype in SUPPORTED and isinstance(weight, torch.Tensor)
    served = served and input.numel() != 0 and weight.numel() != 0
    ops = backend.ops_for(input, "conv_transpose2d") if served else None
    if ops is None:
        return _by_torch(input, weight, bias, stride, padding, output_padding, groups, dilation, activation)
    transforms = functorch_active()
    if transforms:
        ops = _library.transformed(ops)
    if torch.is_autocast_enabled("cpu"):
        input, weight, bias = lowered("cpu", input, weight, bias)
    batched = input.dim() == 4
    if not batched and input.dim() != 3:
        _refuse("input to be 3-D (unbatched) or 4-D (batched)", f"shape {tuple(input.shape)}")
    if not batched:
        input = input.unsqueeze(0)
    plan = _plan(input, weight, bias, stride, padding, output_padding, groups, dilation)
    if plan is None:
        return _by_torch(input, weight, bias, stride, padding, output_padding, groups, dilation, activation)
    size, options, beyond = plan
    channels_last = is_channels_last(input) or is_channels_last(weight)
    rest = (size, *options, activation or "none", channels_last)
    if beyond or transforms:
        output = ops.conv2d_backward_input(input, weight, size, *options, channels_last)
        output = F.pad(output, beyond) if beyond else output
        output = _activations.finished(output if bias is None else output + bias[:, None, None], activation)
    elif torch.compiler.is_compiling():
        output = ops.conv_transpose2d(input, weight, bias, *rest)
    elif torch.is_grad_enabled():
        output = _apply(alive(input), alive(weight), None if bias is None else alive(bias), (ops, *rest))
    else:
        with below_autograd():
            output = _library.quick(ops).conv_transpose2d(input, weight, bias, *rest)
    return output if batched else output.squeeze(0)


def _by_torch(input, weight, bias, stride, padding, output_padding, groups, dilation, activation):
    _activations.check("conv_transpose2d", activation)
    output = F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return _activations.finished(output, activation)


def _plan(input, weight, bias, stride, padding, output_padding, groups, dilation):
    """What conv2d's ops take.

    Returns:
        (size of the result, (stride, padding, dilation, groups), what is left to pad: empty, or for ``F.pad``); None
        where no pixel of the input reaches the output, which is torch's to refuse or to fill.
    """
    op = "conv_transpose2d"
    stride, dilation = pair(op, "stride", stride), pair(op, "dilation", dilation)
    padding, output_padding = pair(op, "padding", padding), pair(op, "output_padding", output_padding)
    groups = integer(op, "groups", groups)
    channels = input.shape[1]
    if weight.dim() != 4:
        _refuse("weight to be 4-D", f"shape {tuple(weight.shape)}")
    for name, numbers, least in (("stride", stride, 1), ("dilation", dilation, 1), ("padding", padding, 0)):
        if min(numbers) < least:
            _refuse(f"{name} to be {'positive' if least else 'at least 0'}", numbers)
    if groups <= 0:
        _refuse("groups to be positive", groups)
    if channels != weight.shape[0]:
        _refuse(f"input to be of {weight.shape[0]} channels", channels)
    if channels % groups:
        _refuse(f"in_channels to be divisible by groups ({groups})", channels)
    if weight.dtype != input.dtype:
        _refuse("weight to be of the dtype of input", f"{weight.dtype} and {input.dtype}")
    features = weight.shape[1] * groups
    if bias is not None and bias.dtype != input.dtype:
        _refuse("bias to be of the dtype of input", f"{bias.dtype} and {input.dtype}")
    if bias is not None and bias.shape != (features,):
        _refuse(f"bias to be of shape ({features})", tuple(bias.shape))
    size, sides, beyond = [input.shape[0], features], [], []
    for d in range(2):
        more = output_padding[d]
        if not 0 <= more < max(stride[d], dilation[d]):
            _refuse("output_padding to be at least 0 and less than stride or dilation", more)
        far = max(padding[d] - more, 0)
        core = (input.shape[2 + d] - 1) * stride[d] - padding[d] - far + dilation[d] * (weight.shape[2 + d] - 1) + 1
        if core <= 0:
            return None
        size.append(core)
        sides += [padding[d], far]
        beyond.append(more - (padding[d] - far))
    left = [0, beyond[1], 0, beyond[0]] if any(beyond) else []
    return size, (stride, tuple(sides), dilation, groups), left
