"""A convolution and the batch norm after it, and a mean over 2x2 pixels after that, in training: two kernels, one node.

Between two kernels the caches hold tensors, and no Python: what takes 10 µs in a loop takes 50 there. One node asks
once what both ops ask, and the engine calls back once. The gradient of the convolution's bias is zero, since the batch
norm subtracts the mean again; what torch adds up for it is rounding.
"""

import torch

from pydl import backend
from pydl._private import alive, below_autograd, forward_ad, increment_version
from pydl.ops import _library
from pydl.ops._batch_norm_autograd import keeps_output
from pydl.ops._batch_norm_schema import ACTIVATIONS
from pydl.ops._convolution import padding_of
from pydl.ops._memory_format import is_channels_last
from pydl.ops._options import pair
from pydl.ops.batch_norm import counts_inside
from pydl.ops.conv2d import SUPPORTED, WORTH_ASKING

POOLED = (torch.float32, torch.bfloat16)  # the dtypes whose means over 2x2 pixels the batch norm's kernel takes
_MOST_PIXELS = 4096  # of a plane: kMaxPooledPlane of kernels/batch_norm.h


class _ConvolutionBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, bias, scale, shift, residual, rest):
        ops, options, running_mean, running_var, num_batches_tracked, momentum, eps, activation, pools = rest
        ctx.rest = rest
        quick = _library.quick(ops)
        norm = running_mean, running_var, scale, shift
        with below_autograd():
            between = quick.conv2d_forward(input, weight, bias, *options)
            if pools:
                output, mean, var = quick.batch_norm_pooled_train(
                    between, *norm, num_batches_tracked, momentum, eps, activation
                )
            else:
                output, mean, var = quick.batch_norm_train(
                    between, *norm, residual, num_batches_tracked, momentum, eps, activation
                )
        kept = output if keeps_output(activation, residual) and not pools else None
        ctx.to_save = input, weight, scale, shift, between, mean, var, kept  # what ctx.save_for_backward sets
        return output

    @staticmethod
    def backward(ctx, grad):
        ops = ctx.rest[0]
        input, weight, scale, shift, between, *others = ctx.saved_tensors
        if forward_ad._current_level >= 0:  # in a graph from before the level: a tangent would be lost in silence
            raise NotImplementedError("conv2d: expected gradients in reverse mode, got a forward-mode tangent")
        if not torch.is_grad_enabled():
            with below_autograd():
                return _gradients(ctx, _library.quick(ops), grad, input, weight, scale, shift, between, *others)
        # with create_graph: the same numbers as a function of input and weight; the bias cancels
        again = ops.conv2d_forward(input, weight, None, *ctx.rest[1])
        between = between + (again - again.detach())
        return _gradients(ctx, ops, grad, input, weight, scale, shift, between, *others)


def _norm_gradients(ctx, ops, grad, between, mean, var, scale, shift, output, needs):
    """The gradients of ``between``, scale, shift and residual."""
    *_, eps, activation, pools = ctx.rest
    if pools:
        if not (torch.is_grad_enabled() or _library.transforms_active()):
            found = ops.batch_norm_pooled_backward(grad, between, mean, var, scale, shift, eps, activation, *needs[:3])
            return *found, None
        # a function of other ops, whose derivatives there are
        output, *_ = ops.batch_norm_forward(between, None, None, scale, shift, None, True, eps, activation)
        windows = (2, 2), (2, 2), (0, 0), False, True, 0, False, False
        grad = ops.avg_pool2d_backward(grad, between.shape, *windows)
    return ops.batch_norm_backward(grad, between, mean, var, scale, shift, output, True, eps, activation, *needs)


def _gradients(ctx, ops, grad, input, weight, scale, shift, between, mean, var, output):
    need_input, need_weight, need_bias, need_scale, need_shift, need_residual, _ = ctx.needs_input_grad
    _, (stride, padding, dilation, groups, _, channels_last), *_, activation, _ = ctx.rest
    if need_input and need_weight and between.numel() * weight.shape[1:].numel() > WORTH_ASKING:
        need_input, need_weight = _library.wanted(ctx, 0), _library.wanted(ctx, 1)
    through = need_residual and activation != 0
    needs = need_input or need_weight, need_scale, need_shift, through
    grad_between, grad_scale, grad_shift, grad_residual = _norm_gradients(
        ctx, ops, grad, between, mean, var, scale, shift, output, needs
    )
    grad_input = grad_weight = None
    if need_input:
        grad_input = ops.conv2d_backward_input(
            grad_between, weight, input.shape, stride, padding, dilation, groups, channels_last
        )
    if need_weight:
        grad_weight = ops.conv2d_backward_weight(
            grad_between, input, weight.shape, stride, padding, dilation, groups, is_channels_last(weight)
        )
    return (
        grad_input,
        grad_weight,
        grad.new_zeros(weight.shape[0]) if need_bias else None,
        grad_scale if need_scale else None,
        grad_shift if need_shift else None,
        grad_residual if through else grad if need_residual else None,
        None,
    )


_apply = _library.eager(_ConvolutionBatchNorm)


def trained_together(convolution, norm, input, residual, activation, pools=False):
    """activation(norm(convolution(input)) + residual) of two layers as one node, or None where that is not offered.

    ``pools``: with the mean over 2x2 pixels behind it.
    """
    if (
        not norm.training
        or not norm.track_running_stats
        or not isinstance(norm, torch.nn.BatchNorm2d)
        or convolution.padding_mode != "zeros"
        or torch.compiler.is_compiling()
    ):
        return None
    return trained(
        input,
        convolution.weight,
        convolution.bias,
        (convolution.stride, convolution.padding, convolution.dilation, convolution.groups),
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        norm.momentum,
        norm.eps,
        residual,
        activation,
        norm.num_batches_tracked,
        pools,
    )


def trained(
    input,
    weight,
    bias,
    options,
    mean,
    var,
    scale,
    shift,
    momentum,
    eps,
    residual,
    activation,
    count,
    pools=False,
):
    """activation(batch_norm(conv2d(input)) + residual) in training as one node, or None where that is not offered.

    It is in eager mode, by kernels of ours, with running statistics that take a fixed part of each batch, and for a
    residual of the result's own shape; with pooling for small planes in NCHW on the CPU.

    Args:
        options: stride, padding, dilation and groups of the convolution.
        mean, var: the running statistics.
        scale, shift: weight and bias of the batch norm.
        count: the number of batches so far, to which 1 is added, or None.
        pools: whether the mean over 2x2 pixels, two apart, follows; then there is an activation and no residual.
    """
    if (
        mean is None
        or var is None
        or type(momentum) not in (float, int)
        or eps <= 0
        or not torch.is_grad_enabled()
        or input.dim() != 4
        or input.shape[0] < 2
        or input.numel() == 0
        or input.dtype not in SUPPORTED
        or input.dtype != weight.dtype
        or torch.is_autocast_enabled(input.device.type)
        or mean.requires_grad
        or var.requires_grad
        or _library.transforms_active()
    ):
        return None
    ops = backend.ops_for(input, "conv2d")
    if ops is None or backend.ops_for(input) is not ops:
        return None
    stride, padding, dilation, groups = options
    stride, dilation = pair("conv2d", "stride", stride), pair("conv2d", "dilation", dilation)
    padding = padding_of("conv2d", padding, weight, stride, dilation)
    channels_last = is_channels_last(input) or is_channels_last(weight)
    if residual is not None or pools:
        padded = (input.shape[2] + padding[0] + padding[1], input.shape[3] + padding[2] + padding[3])
        size = [(padded[d] - dilation[d] * (weight.shape[2 + d] - 1) - 1) // stride[d] + 1 for d in (0, 1)]
    if residual is not None and (
        type(residual) is not torch.Tensor
        or residual.shape != (input.shape[0], weight.shape[0], *size)
        or residual.dtype != input.dtype
        or residual.device != input.device
    ):
        return None
    if pools and not (
        ops is torch.ops.pydl
        and input.is_cpu
        and input.dtype in POOLED
        and not channels_last
        and min(size) > 1
        and size[0] * size[1] <= _MOST_PIXELS
        and mean.is_contiguous()
        and var.is_contiguous()
    ):
        return None
    if count is not None and not counts_inside(count):
        count.add_(1)
        count = None
    options = (stride, padding, dilation, groups, "none", channels_last)
    rest = (ops, options, mean, var, count, momentum, eps, ACTIVATIONS[activation], pools)
    output = _apply(*(None if t is None else alive(t) for t in (input, weight, bias, scale, shift, residual)), rest)
    written = mean, var, count
    increment_version(written if count is not None else written[:2])
    return output


def foldable(weight, mean, var):
    """Whether an evaluating batch norm with these running statistics can be folded into the weight before it."""
    return (
        mean is not None
        and var is not None
        and type(weight) in (torch.Tensor, torch.nn.Parameter)
        and weight.dtype == var.dtype
        and weight.is_floating_point()
    )


def folding_pays(input, weight, stride, mean, var, transposed=None):
    """Whether folding at this call, in evaluation, costs less than the pass over the output that it saves.

    Measured on two cores: folding takes 30 µs and a nanosecond for 15 weights, the pass 14 µs and a nanosecond for 15
    numbers. Gradients would have to flow through the folding, so it waits for evaluation without them.

    Args:
        transposed: the groups of a transposed convolution; None for any other.
    """
    if torch.is_grad_enabled() or input.dim() != 4:
        return False
    y, x = pair("conv2d", "stride", stride)
    pixels = input.numel() // max(input.shape[1], 1)
    if transposed is None:
        output = pixels // max(y * x, 1) * weight.shape[0]
    else:
        output = pixels * y * x * weight.shape[1] * transposed
    return (
        output > weight.numel() + (1 << 18)
        and input.dtype == weight.dtype
        and not torch.is_autocast_enabled(input.device.type)
        and not _library.transforms_active()
        and foldable(weight, mean, var)
    )


def folded(weight, bias, mean, var, scale, shift, eps, transposed=None):
    """Weight and bias of a convolution with an evaluating batch norm in them.

    With s = scale / sqrt(var + eps): norm(conv(x)) = conv(x; weight s) + (bias - mean) s + shift.

    Args:
        transposed: the groups of a transposed convolution, whose weight is (C, O / groups, ...); None for any other.
    """
    # in float64 the square root and the product are exact to the last place of the result
    s = (var.double() + eps).rsqrt()
    if scale is not None:
        s = s * scale.double()
    moved = -mean.double() * s
    if bias is not None:
        moved = moved + bias.double() * s
    if shift is not None:
        moved = moved + shift.double()
    moved, s = moved.to(var.dtype), s.to(var.dtype)
    if transposed is None:
        return weight * s.view(-1, 1, 1, 1), moved
    of_groups = s.view(transposed, -1).repeat_interleave(weight.shape[0] // transposed, 0)
    return weight * of_groups[:, :, None, None], moved
