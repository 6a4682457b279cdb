"""Batch normalisation (Ioffe, Szegedy, ICML 2015; d2l chapter "Batch Normalization"), residual and activation fused.

The differentiable ops are pure: the forward returns the statistics, and ``batch_norm_update_stats`` declares in its
schema that it writes the running ones. mean and var are float64 of shape (channels) for every dtype, since a float32
mean near 1e4 is coarser than a standard deviation of 1e-2.

What backward reads: the input alone without activation or with ReLU (the mask is computed again from the input, bit for
bit), so the output may be written over in place. With a ReLU over a residual, and with sigmoid, it reads the output
instead of the residual: one tensor fewer to keep, because the next layer keeps that output anyway; writing over it in
place before backward is then refused by torch's version counter, as after torch's own relu.
"""

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active, increment_version
from pydl.aside import is_torchs
from pydl.ops import _activations, _library, _nodes
from pydl.ops._batch_norm_autograd import TransformedBatchNorm, as_asked, gradients, keeps_output
from pydl.ops._batch_norm_schema import ACTIVATIONS
from pydl.ops._nodes import is_compiling
from pydl.ops._options import number, switch

__all__ = ["batch_norm"]


class _EagerBatchNorm(torch.autograd.Function):
    """Forward, update and backward with the fewest hops: each op is called below the autograd layer of the dispatcher.

    Half the overhead of the registered formula above, which torch.compile uses. With create_graph, the backward goes
    through the registered batch_norm_backward, which is differentiable.
    """

    @staticmethod
    def forward(ctx, input, weight, bias, residual, rest):
        # what needs no gradient comes as one tuple: each argument of its own costs on the way in and out
        output, mean, var = _forward(input, weight, bias, residual, rest)
        ctx.rest = rest
        activation = rest[-1]
        if bias is not None:
            ctx.bias_is = bias.shape, bias.dtype
        # what ctx.save_for_backward sets
        if not activation:
            ctx.to_save = input, mean, var, weight, None, None
        elif keeps_output(activation, residual):
            ctx.to_save = input, mean, var, weight, None, output
        else:  # the mask is made again: a copy, since torch lets one write to the bias before the backward
            ctx.to_save = input, mean, var, weight, None if bias is None else bias.detach().clone(), None
        return output

    @staticmethod
    def backward(ctx, grad_output):
        need_input, need_weight, need_bias, need_residual, _ = ctx.needs_input_grad
        ops, *_, training, _, eps, activation = ctx.rest
        input, mean, var, weight, bias, output = ctx.saved_tensors
        through = need_residual and activation != 0
        grad_input = grad_weight = grad_bias = grad_residual = None
        if bias is None and weight is None and need_bias:  # says the dtype of the gradient
            bias = input.new_zeros(input.shape[1], dtype=ctx.bias_is[1])
        if _library.transforms_active():  # torch.func.vmap over the gradient
            found = gradients(
                grad_output, input, mean, var, weight, bias, output, training, eps, activation,
            )  # fmt: skip
            return *as_asked(found, ctx.needs_input_grad[:4], input, weight, need_bias and ctx.bias_is), None
        if need_input or need_weight or need_bias or through:
            if torch.is_grad_enabled():
                grad_input, grad_weight, grad_bias, grad_residual = ops.batch_norm_backward(
                    grad_output, input, mean, var, weight, bias, output, training, eps, activation,
                    need_input, need_weight, need_bias, through,
                )  # fmt: skip
            else:
                with below_autograd():
                    grad_input, grad_weight, grad_bias, grad_residual = _library.quick(ops).batch_norm_backward(
                        grad_output, input, mean, var, weight, bias, output, training, eps, activation,
                        need_input, need_weight, need_bias, through,
                    )  # fmt: skip
            if not need_input:
                grad_input = None
            grad_weight = grad_weight.view(weight.shape) if need_weight else None
            grad_bias = grad_bias.view(ctx.bias_is[0]) if need_bias else None
        if not through:
            grad_residual = grad_output if need_residual else None
        return grad_input, grad_weight, grad_bias, grad_residual, None


def _forward(input, weight, bias, residual, rest):
    ops, running_mean, running_var, num_batches_tracked, training, momentum, eps, activation = rest
    with below_autograd():
        if training and running_mean is not None:
            return _library.quick(ops).batch_norm_train(
                input, running_mean, running_var, weight, bias, residual, num_batches_tracked, momentum, eps, activation
            )
        return _library.quick(ops).batch_norm_forward(
            input, running_mean, running_var, weight, bias, residual, training, eps, activation
        )


_apply = _library.eager(_EagerBatchNorm)


def counts_inside(num_batches_tracked):
    """Whether batch_norm_train can add to it, rather than torch."""
    return num_batches_tracked.is_cpu and num_batches_tracked.dtype == torch.int64


_ANY_RANK = -1  # all bits: see pydl.nn.norm


# ---- public

_SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def batch_norm(
    input,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
    *,
    residual=None,
    activation=None,
    num_batches_tracked=None,
):
    """Normalises each channel of ``input``: activation((input - mean) / sqrt(var + eps) * weight + bias + residual).

    Args:
        input: (N, C) or (N, C, spatial...); float32, float64, bfloat16 or float16, row-major or channels_last.
        running_mean, running_var: (C) or None; used when not training, else updated in place with the batch's mean and
            unbiased variance: running = (1 - momentum) * running + momentum * batch.
        weight, bias: (C) or None for 1 and 0. They and the running statistics share one dtype: input's, or float32
            beside a half input.
        training: takes mean and biased variance from the batch.
        momentum: the part of the batch in the running statistics.
        eps: added to the variance.
        residual: (extra, keyword only) a tensor of input's shape and dtype that is added before the activation.
        activation: (extra, keyword only) None, "relu" or "sigmoid".
        num_batches_tracked: (extra, keyword only) an int64 tensor of one number, to which training adds 1.

    Returns:
        A tensor of ``input``'s shape, dtype and memory format. Sums are kept in float32, and in float64 over blocks.

    Raises:
        ValueError: for one value per channel in training, eps out of range, one running statistic without the other in
            training, or an unknown activation.
        RuntimeError: for parameters whose size or dtype does not fit, and for evaluation without running statistics.

    >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])  # two samples of two channels
    >>> F.batch_norm(x, None, None, training=True)
    tensor([[-1.0000, -1.0000],
            [ 1.0000,  1.0000]])
    """
    rest = (training, momentum, eps, residual, activation, num_batches_tracked)
    if not is_compiling():
        output = _nodes.batch_norm(input, running_mean, running_var, weight, bias, *rest, _ANY_RANK)
        if output is not NotImplemented:
            return output
    if is_torchs(input, running_mean, running_var, weight, bias, residual):
        return _by_torch(input, running_mean, running_var, weight, bias, rest)
    return batch_norm_unasked(input, running_mean, running_var, weight, bias, *rest)


def batch_norm_unasked(
    input,
    running_mean,
    running_var,
    weight,
    bias,
    training,
    momentum,
    eps,
    residual=None,
    activation=None,
    num_batches_tracked=None,
):
    """:func:`batch_norm` for who has asked whether it is torch's (aside.py)."""
    _activations.check("batch_norm", activation)
    if training is not True and training is not False:
        switch("batch_norm", "training", training)
    if type(momentum) is not float or type(eps) is not float:
        momentum, eps = number("batch_norm", "momentum", momentum), number("batch_norm", "eps", eps)
    if _is_empty(input):
        rest = (training, momentum, eps, residual, activation, num_batches_tracked)
        return _by_torch(input, running_mean, running_var, weight, bias, rest)
    if training:
        channels = input.shape[1] if input.dim() > 1 else 1
        values = input.numel() // channels if channels else 0  # per channel
        if values == 1:
            raise ValueError(
                "batch_norm: expected input to have more than 1 value per channel when training, "
                f"got shape {tuple(input.shape)}"
            )
        if eps <= 0.0:
            raise ValueError(f"batch_norm: expected eps to be positive when training, got {eps}")
        if (running_mean is None) != (running_var is None):
            raise ValueError(
                "batch_norm: expected running_mean and running_var to be both given or both None, "
                f"got {'running_var' if running_mean is None else 'running_mean'} alone"
            )
    elif eps < 0.0:
        raise ValueError(f"batch_norm: expected eps to be at least 0, got {eps}")
    ops = backend.ops_for(input) if input.dtype in _SUPPORTED else None
    if not training:
        num_batches_tracked = None
    transforms = functorch_active()
    eager = ops is not None and not torch.compiler.is_compiling() and not transforms
    update = training and running_mean is not None and values != 0
    if num_batches_tracked is not None and not (eager and update and counts_inside(num_batches_tracked)):
        num_batches_tracked.add_(1)
        num_batches_tracked = None
    if ops is None:
        rest = (training, momentum, eps, residual, activation, num_batches_tracked)
        return _by_torch(input, running_mean, running_var, weight, bias, rest)
    if (running_mean is not None and running_mean.requires_grad) or (
        running_var is not None and running_var.requires_grad
    ):
        raise RuntimeError("batch_norm: expected the running statistics not to require grad, got one that does")
    code = ACTIVATIONS[activation]
    if eager:
        rest = ops, running_mean, running_var, num_batches_tracked, training, momentum, eps, code
        input = alive(input)
        weight = None if weight is None else alive(weight)
        bias = None if bias is None else alive(bias)
        residual = None if residual is None else alive(residual)
        if torch.is_grad_enabled():
            output = _apply(input, weight, bias, residual, rest)
        else:
            output = _forward(input, weight, bias, residual, rest)[0]
        if update:
            written = running_mean, running_var, num_batches_tracked
            increment_version(written if num_batches_tracked is not None else written[:2])
        return output
    args = input, running_mean, running_var, weight, bias, residual, training, eps, code
    if transforms:
        output, mean, var = TransformedBatchNorm.apply(ops, *args)
    else:
        output, mean, var = ops.batch_norm_forward(*args)
    if update:  # which torch.compile sees in the schema
        ops.batch_norm_update_stats(running_mean, running_var, mean, var, values, momentum)
    return output


def _is_empty(input):
    """No values in channels that there are: torch's own answer is a product of the input and the first weight."""
    return input.numel() == 0 and (input.dim() < 2 or input.shape[1] > 0)


def _by_torch(input, running_mean, running_var, weight, bias, rest):
    training, momentum, eps, residual, activation, num_batches_tracked = rest
    _activations.check("batch_norm", activation)
    if num_batches_tracked is not None and training:
        num_batches_tracked.add_(1)
    output = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _activations.finished(output, activation, residual)
