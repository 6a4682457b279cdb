"""2-D convolution (LeCun et al., 1989; d2l chapters "Convolutions for Images" and "Padding and Stride").

    output[n, o, y, x] = act(bias[o] + sum over i, r, s of
                             weight[o, i, r, s] * input[n, i, y*stride + r*dilation - padding, ...])

Forward, input gradient and weight gradient are ops of our own. Each is linear in its two tensors, and the gradients of
each are the other two, so that the three are closed under differentiation to any order.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active
from pydl.aside import is_torchs
from pydl.ops import _activations, _library, _nodes
from pydl.ops._autocast import lowered
from pydl.ops._convolution import gradients_of_gradients, output_size, padding_of, weight_gradient_format
from pydl.ops._memory_format import is_channels_last
from pydl.ops._nodes import is_compiling
from pydl.ops._options import integer, pair

__all__ = ["conv2d"]

# padding is (top, bottom, left, right): "same" with an even kernel pads one more at the bottom and on the right.
# channels_last is the memory format of the result: decided once, in `conv2d` below, so that kernel and fake agree.
_OPTIONS = "int[2] stride, int[4] padding, int[2] dilation, int groups"
_library.define(
    "conv2d_forward",
    f"(Tensor input, Tensor weight, Tensor? bias, {_OPTIONS}, str activation, bool channels_last) -> Tensor",
    triton="conv2d.conv2d",
)
_library.define(
    "conv2d_backward_input",
    f"(Tensor grad_output, Tensor weight, SymInt[4] input_size, {_OPTIONS}, bool channels_last) -> Tensor",
    triton="conv2d.conv2d",
)
_library.define(
    "conv2d_backward_weight",
    f"(Tensor grad_output, Tensor input, SymInt[4] weight_size, {_OPTIONS}, bool channels_last) -> Tensor",
    triton="conv2d.conv2d",
)
_library.define(
    "conv2d_backward_bias",
    "(Tensor grad_output) -> Tensor",
    triton="conv2d.conv2d",
)
# The last two together, of a convolution and the activation that gave `output`, or of a convolution alone. For eager
# mode below the autograd layer: it has no formula.
_library.define(
    "conv2d_backward_parameters",
    f"(Tensor grad_output, Tensor input, Tensor? output, SymInt[4] weight_size, {_OPTIONS}, str activation, "
    "bool channels_last) -> (Tensor, Tensor)",
)


def _empty(like, size, channels_last):
    return like.new_empty(size).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@_library.fake("conv2d_forward")
def _(input, weight, bias, stride, padding, dilation, groups, activation, channels_last):
    size = output_size("conv2d", input, weight, bias, stride, padding, dilation, groups)
    return _empty(input, size, channels_last)


@_library.fake("conv2d_backward_input")
def _(grad_output, weight, input_size, stride, padding, dilation, groups, channels_last):
    return _empty(grad_output, input_size, channels_last)


@_library.fake("conv2d_backward_weight")
def _(grad_output, input, weight_size, stride, padding, dilation, groups, channels_last):
    return _empty(grad_output, weight_size, channels_last)


@_library.fake("conv2d_backward_parameters")
def _(grad_output, input, output, weight_size, stride, padding, dilation, groups, activation, channels_last):
    return _empty(grad_output, weight_size, channels_last), grad_output.new_empty(grad_output.shape[1])


@_library.fake("conv2d_backward_bias")
def _(grad_output):
    return grad_output.new_empty(grad_output.shape[1])


def _forward_context(ctx, inputs, output):
    input, weight, _, stride, padding, dilation, groups, ctx.activation, ctx.channels_last = inputs
    ctx.options = (stride, padding, dilation, groups)
    ctx.input_size, ctx.weight_size = input.shape, weight.shape
    ctx.weight_channels_last = weight_gradient_format(weight, ctx.channels_last)
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(
        input if needs_weight else None,
        weight if needs_input else None,
        output if ctx.activation != "none" else None,
    )


def _forward_backward(ops, ctx, grad, needs=None):
    input, weight, output = ctx.saved_tensors
    needs_input, needs_weight, needs_bias = needs or ctx.needs_input_grad[:3]
    grad = _activations.backward(grad, output, ctx.activation)
    grad_input = grad_weight = grad_bias = None
    if needs_input:
        grad_input = ops.conv2d_backward_input(grad, weight, ctx.input_size, *ctx.options, ctx.channels_last)
    if needs_weight:
        grad_weight = ops.conv2d_backward_weight(grad, input, ctx.weight_size, *ctx.options, ctx.weight_channels_last)
    if needs_bias:
        grad_bias = ops.conv2d_backward_bias(grad)
    return grad_input, grad_weight, grad_bias, None, None, None, None, None, None


_library.autograd("conv2d_forward", _forward_context, _forward_backward)


gradients_of_gradients("conv2d", "none")


def _bias_context(ctx, inputs, output):
    ctx.size = inputs[0].shape


def _bias_backward(ops, ctx, grad):
    return grad[None, :, None, None].expand(ctx.size)


_library.autograd("conv2d_backward_bias", _bias_context, _bias_backward)


# From about this many multiplications on, a gradient costs more than to ask the engine whether it is wanted.
WORTH_ASKING = 1 << 20


class _EagerConv2d(torch.autograd.Function):
    """The same in eager mode with the fewest hops: each op is called below the autograd layer of the dispatcher.

    The registered formula above, which torch.compile uses, costs three times as much; with create_graph the backward
    goes through it, and so can be differentiated again.
    """

    @staticmethod
    def forward(ctx, input, weight, bias, rest):
        # what needs no gradient comes as one tuple: each argument of its own costs on the way in and out
        ops, stride, padding, dilation, groups, ctx.activation, ctx.channels_last = rest
        with below_autograd():
            output = _library.quick(ops).conv2d_forward(input, weight, bias, *rest[1:])
        ctx.ops, ctx.options = ops, (stride, padding, dilation, groups)
        ctx.input_size, ctx.weight_size = input.shape, weight.shape
        ctx.weight_channels_last = weight_gradient_format(weight, ctx.channels_last)
        ctx.to_save = (  # what ctx.save_for_backward sets
            input if weight.requires_grad else None,
            weight if input.requires_grad else None,
            output if ctx.activation != "none" else None,
        )
        return output

    @staticmethod
    def backward(ctx, grad):
        *needs, _ = ctx.needs_input_grad
        if needs[0] and needs[1] and grad.numel() * ctx.weight_size[1:].numel() > WORTH_ASKING:
            needs[0], needs[1] = _library.wanted(ctx, 0), _library.wanted(ctx, 1)
        if _library.transforms_active():  # torch.func.vmap over the gradient
            return *_forward_backward(_library.transformed(ctx.ops), ctx, grad, needs)[:3], None
        if torch.is_grad_enabled():
            return *_forward_backward(ctx.ops, ctx, grad, needs)[:3], None
        with below_autograd():
            return *_forward_backward(_library.quick(ctx.ops), ctx, grad, needs)[:3], None


_apply = _library.eager(_EagerConv2d)

SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, activation=None):
    """Cross-correlates ``input`` with ``weight``, as :func:`torch.nn.functional.conv2d`.

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float64, bfloat16 or float16, with any strides (other dtypes are
            served by torch). Sums are accumulated in float32 (float64 for float64); on the CPU float16 is copied to
            float32 and back.
        weight: (O, C / groups, kernel height, kernel width).
        bias: (O,) or None.
        stride: one number of pixels or (y, x).
        padding: pixels, (y, x), ``"valid"`` (none) or ``"same"`` (output as large as the input; stride 1).
        dilation: distance between the taps of the kernel, one number of pixels or (y, x).
        groups: how many blocks channels are split into; each convolves its own.
        activation: keyword-only: None, ``"relu"`` or ``"sigmoid"``, applied to the result in the same pass.

    Returns:
        (N, O, H', W'), or (O, H', W'); channels_last if the input or the weight is. H' = (H + 2 * padding -
        dilation * (kernel height - 1) - 1) // stride + 1. On the CPU 3x3 and 5x5 kernels of stride 1, and 3x3
        kernels of stride 2, may be computed by Winograd's method; :class:`pydl.backend.exact` does without. An inf
        or nan of the input, or of the gradient that comes in, spoils the outputs, or the input's gradients, that it
        reaches in torch, and no others. (Where one meets padding, weights of inf and the gradients of weights may hold
        nan that torch has not.)

    Raises:
        RuntimeError: shapes, dtypes, devices or options that do not fit.
        ValueError: an unknown activation.

    >>> x, edges = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]]), torch.tensor([[[[1.0, -1.0]]]])
    >>> F.conv2d(x, edges)
    tensor([[[0., 1.],
             [0., 1.]]])
    """
    if not is_compiling():
        output = _nodes.conv2d(input, weight, bias, stride, padding, dilation, groups, activation)
        if output is not NotImplemented:
            return output
    if is_torchs(input, weight, bias):
        return _by_torch(input, weight, bias, stride, padding, dilation, groups, activation)
    return conv2d_unasked(input, weight, bias, stride, padding, dilation, groups, activation)


def conv2d_unasked(input, weight, bias, stride, padding, dilation, groups, activation=None):
    """:func:`conv2d` for who has asked whether it is torch's (aside.py)."""
    _activations.check("conv2d", activation)
    # zero channels: torch's own answer, an output without channels, is left to torch; as is what is no tensor
    served = input.dtype in SUPPORTED and not (input.dim() > 2 and input.shape[-3] == 0)
    served = served and isinstance(weight, torch.Tensor)
    ops = backend.ops_for(input, "conv2d") if served else None
    if ops is None:
        return _by_torch(input, weight, bias, stride, padding, dilation, groups, activation)
    if weight.dim() != 4:
        raise RuntimeError(f"conv2d: expected weight to be 4-D, got shape {tuple(weight.shape)}")
    transforms = functorch_active()
    if transforms:
        ops = _library.transformed(ops)
    device_type = input.device.type
    if torch.is_autocast_enabled(device_type):
        input, weight, bias = lowered(device_type, input, weight, bias)
    stride, dilation = pair("conv2d", "stride", stride), pair("conv2d", "dilation", dilation)
    padding = padding_of("conv2d", padding, weight, stride, dilation)
    groups = integer("conv2d", "groups", groups)
    batched = input.dim() == 4
    if not batched:
        if input.dim() != 3:
            raise RuntimeError(
                f"conv2d: expected input to be 3-D (unbatched) or 4-D (batched), got shape {tuple(input.shape)}"
            )
        input = input.unsqueeze(0)
    channels_last = (is_channels_last(input) or is_channels_last(weight)) and input.numel() != 0
    rest = (stride, padding, dilation, groups, activation or "none", channels_last)
    if transforms or torch.compiler.is_compiling():
        output = ops.conv2d_forward(input, weight, bias, *rest)
    elif torch.is_grad_enabled():
        output = _apply(alive(input), alive(weight), None if bias is None else alive(bias), (ops, *rest))
    else:
        with below_autograd():
            output = _library.quick(ops).conv2d_forward(input, weight, bias, *rest)
    return output if batched else output.squeeze(0)


def _by_torch(input, weight, bias, stride, padding, dilation, groups, activation):
    _activations.check("conv2d", activation)
    return _activations.finished(F.conv2d(input, weight, bias, stride, padding, dilation, groups), activation)
