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
from pydl.ops import _library

ACTIVATIONS = {None: 0, "relu": 1, "sigmoid": 2}

# training computes mean and var from the input; without it they are the running ones, which a training call ignores.
_library.define(
    "batch_norm_forward",
    "(Tensor input, Tensor? running_mean, Tensor? running_var, Tensor? weight, Tensor? bias, Tensor? residual, "
    "bool training, float eps, int activation) -> (Tensor output, Tensor mean, Tensor var)",
)
# var is biased; count is the number of values per channel, from which the unbiased one follows.
_library.define(
    "batch_norm_update_stats",
    "(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, int count, float momentum) -> ()",
)
# Both in one call, for eager mode.
_library.define(
    "batch_norm_train",
    "(Tensor input, Tensor(a!) running_mean, Tensor(b!) running_var, Tensor? weight, Tensor? bias, Tensor? residual, "
    "float momentum, float eps, int activation) -> (Tensor output, Tensor mean, Tensor var)",
)
# A gradient that is not needed comes back as an empty tensor.
_library.define(
    "batch_norm_backward",
    "(Tensor grad_output, Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? output, "
    "bool training, float eps, int activation, bool need_input, bool need_weight, bool need_bias, bool need_residual)"
    " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)",
)
# The halves, for a version that reduces over processes in between: mean and var of all come from those of each, the
# sums of the gradient are added up, and count is the number of values per channel over all processes.
_library.define("batch_norm_stats", "(Tensor input) -> (Tensor mean, Tensor var)")
_library.define(
    "batch_norm_apply",
    "(Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? residual, float eps, "
    "int activation) -> Tensor",
)
_library.define(
    "batch_norm_backward_reduce",
    "(Tensor grad_output, Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? output, "
    "float eps, int activation) -> (Tensor sum_grad, Tensor sum_grad_xhat)",
)
_library.define(
    "batch_norm_backward_apply",
    "(Tensor grad_output, Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? output, "
    "Tensor sum_grad, Tensor sum_grad_xhat, float count, float eps, int activation, bool need_residual)"
    " -> (Tensor grad_input, Tensor grad_residual)",
)


# ---- fakes


def _like(input):
    """A tensor in the memory format that torch's batch_norm gives its output: channels_last where input is."""
    return torch.empty_like(input, memory_format=torch._prims_common.suggest_memory_format(input))


def _statistic(input):
    return input.new_empty(input.shape[1], dtype=torch.float64)


@_library.fake("batch_norm_forward")
def _(input, running_mean, running_var, weight, bias, residual, training, eps, activation):
    return _like(input), _statistic(input), _statistic(input)


@_library.fake("batch_norm_train")
def _(input, running_mean, running_var, weight, bias, residual, momentum, eps, activation):
    return _like(input), _statistic(input), _statistic(input)


@_library.fake("batch_norm_update_stats")
def _(running_mean, running_var, mean, var, count, momentum):
    return None


@_library.fake("batch_norm_backward")
def _(
    grad_output, input, mean, var, weight, bias, output, training, eps, activation,
    need_input, need_weight, need_bias, need_residual,
):  # fmt: skip
    # all parameters share one dtype
    dtype = weight.dtype if weight is not None else bias.dtype if bias is not None else input.dtype
    channels = input.shape[1]
    return (
        _like(input) if need_input else input.new_empty(0),
        input.new_empty(channels if need_weight else 0, dtype=dtype),
        input.new_empty(channels if need_bias else 0, dtype=dtype),
        _like(input) if need_residual else input.new_empty(0),
    )


@_library.fake("batch_norm_stats")
def _(input):
    return _statistic(input), _statistic(input)


@_library.fake("batch_norm_apply")
def _(input, mean, var, weight, bias, residual, eps, activation):
    return _like(input)


@_library.fake("batch_norm_backward_reduce")
def _(grad_output, input, mean, var, weight, bias, output, eps, activation):
    return _statistic(input), _statistic(input)


@_library.fake("batch_norm_backward_apply")
def _(
    grad_output, input, mean, var, weight, bias, output, sum_grad, sum_grad_xhat, count, eps, activation, need_residual
):
    return _like(input), _like(input) if need_residual else input.new_empty(0)


# ---- autograd


def _keeps_output(activation, residual):
    return activation == ACTIVATIONS["sigmoid"] or (activation == ACTIVATIONS["relu"] and residual is not None)


def _forward_context(ctx, inputs, output):
    input, _, _, weight, bias, residual, ctx.training, ctx.eps, ctx.activation = inputs
    output, mean, var = output
    kept = output if _keeps_output(ctx.activation, residual) else None
    ctx.save_for_backward(input, mean, var, weight, bias, kept)
    ctx.set_materialize_grads(False)


def _forward_backward(ops, ctx, grad_output, _grad_mean, _grad_var):
    input, mean, var, weight, bias, kept = ctx.saved_tensors
    need_input, _, _, need_weight, need_bias, need_residual, *_ = ctx.needs_input_grad
    none = (None,) * 3
    if grad_output is None:
        return (None,) * 9
    if ctx.activation == 0:  # z = ... + residual: its gradient is grad_output itself
        grad_residual, need_residual = (grad_output if need_residual else None), False
    else:
        grad_residual = None
    if not (need_input or need_weight or need_bias or need_residual):
        return None, None, None, None, None, grad_residual, *none
    grads = ops.batch_norm_backward(
        grad_output, input, mean, var, weight, bias, kept, ctx.training, ctx.eps, ctx.activation,
        need_input, need_weight, need_bias, need_residual,
    )  # fmt: skip
    return (
        grads[0] if need_input else None,
        None,
        None,
        grads[1].view_as(weight) if need_weight else None,
        grads[2].view_as(bias) if need_bias else None,
        grads[3] if need_residual else grad_residual,
        *none,
    )


_library.autograd("batch_norm_forward", _forward_context, _forward_backward)


def _backward_context(ctx, inputs, output):
    *tensors, ctx.training, ctx.eps, ctx.activation = inputs[:10]
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _gradients(grad_output, input, mean, var, weight, bias, output, training, eps, activation):
    """batch_norm_backward's formula in torch ops, for its own derivative; mean and var are functions of input."""
    dims = [0, *range(2, input.dim())]
    shape = [1, -1] + [1] * (input.dim() - 2)
    accumulate = torch.float64 if input.dtype == torch.float64 else torch.float32
    x, grad = input.to(accumulate), grad_output.to(accumulate)
    if training:
        deviation = x - x.mean(dims, keepdim=True)
        invstd = (deviation.square().mean(dims, keepdim=True) + eps).rsqrt()
    else:
        deviation = x - mean.to(accumulate).view(shape)
        invstd = (var.to(accumulate).view(shape) + eps).rsqrt()
    xhat = deviation * invstd
    scale = invstd if weight is None else invstd * weight.to(accumulate).view(shape)
    if activation == ACTIVATIONS["sigmoid"]:
        y = output.to(accumulate)
        grad = grad * y * (1 - y)
    elif activation == ACTIVATIONS["relu"]:
        with torch.no_grad():
            z = output
            if z is None:
                z = deviation * scale
                z = z if bias is None else z + bias.to(accumulate).view(shape)
        grad = grad.masked_fill(z <= 0, 0)
    sum_grad, sum_grad_xhat = grad.sum(dims, keepdim=True), (grad * xhat).sum(dims, keepdim=True)
    grad_input = grad
    if training:
        n = max(input.numel() // max(input.shape[1], 1), 1)
        grad_input = grad - sum_grad / n - xhat * (sum_grad_xhat / n)
    return grad_input * scale, sum_grad_xhat.flatten(), sum_grad.flatten(), grad


def _backward_backward(ops, ctx, *grad_grads):
    grad_output, input, mean, var, weight, bias, output = ctx.saved_tensors
    again = torch.is_grad_enabled()
    positions = {0: grad_output, 1: input, 4: weight, 6: output}
    with torch.enable_grad():
        # each argument under a name of its own, so that output does not lead back to input
        args = {
            i: (t.view_as(t) if again and t.requires_grad else t.detach().requires_grad_())
            for i, t in positions.items()
            if t is not None and ctx.needs_input_grad[i]
        }
        given = {i: args.get(i, t) for i, t in positions.items()}
        results = _gradients(
            given[0], given[1], mean, var, given[4], bias, given[6], ctx.training, ctx.eps, ctx.activation
        )
        pairs = [
            (result, grad.to(result.dtype).view_as(result))
            for result, grad in zip(results, grad_grads, strict=True)
            if result.requires_grad and grad is not None and grad.numel() == result.numel()
        ]
        if not pairs:
            return (None,) * 14
        found = torch.autograd.grad(
            [result for result, _ in pairs],
            list(args.values()),
            [grad for _, grad in pairs],
            create_graph=again,
            allow_unused=True,
        )
    grads = [None] * 14
    for i, grad in zip(args, found, strict=True):
        grads[i] = grad
    return tuple(grads)


_library.autograd("batch_norm_backward", _backward_context, _backward_backward)


def _refuse(name):
    def backward(ops, ctx, *grads):
        raise RuntimeError(
            f"{name}: expected its inputs to be used without gradient, got one that requires it; "
            "differentiate through batch_norm, or write an autograd.Function around the halves"
        )

    _library.autograd(name, lambda ctx, inputs, output: None, backward)


for _name in ("batch_norm_stats", "batch_norm_apply", "batch_norm_backward_reduce", "batch_norm_backward_apply"):
    _refuse(_name)


class _EagerBatchNorm(torch.autograd.Function):
    """Forward, update and backward with the fewest hops: each op is called below the autograd layer of the dispatcher.

    Half the overhead of the registered formula above, which torch.compile uses. With create_graph, the backward goes
    through the registered batch_norm_backward, which is differentiable.
    """

    @staticmethod
    def forward(
        ctx, ops, input, running_mean, running_var, weight, bias, residual, training, momentum, eps, activation
    ):
        with _below_autograd():
            if training and running_mean is not None:
                output, mean, var = ops.batch_norm_train(
                    input, running_mean, running_var, weight, bias, residual, momentum, eps, activation
                )
            else:
                output, mean, var = ops.batch_norm_forward(
                    input, running_mean, running_var, weight, bias, residual, training, eps, activation
                )
        ctx.save_for_backward(input, mean, var, weight, bias, output if _keeps_output(activation, residual) else None)
        ctx.arguments = ops, training, eps, activation
        return output

    @staticmethod
    def backward(ctx, grad_output):
        _, need_input, _, _, need_weight, need_bias, need_residual, *_ = ctx.needs_input_grad
        ops, training, eps, activation = ctx.arguments
        input, mean, var, weight, bias, kept = ctx.saved_tensors
        through = activation != 0 and need_residual
        grad_residual = grad_output if need_residual else None  # but for an activation
        grad_input = grad_weight = grad_bias = None
        if need_input or need_weight or need_bias or through:
            args = (
                grad_output, input, mean, var, weight, bias, kept, training, eps, activation,
                need_input, need_weight, need_bias, through,
            )  # fmt: skip
            if torch.is_grad_enabled():
                grads = ops.batch_norm_backward(*args)
            else:
                with _below_autograd():
                    grads = ops.batch_norm_backward(*args)
            grad_input = grads[0] if need_input else None
            grad_weight = _shaped(grads[1], weight) if need_weight else None
            grad_bias = _shaped(grads[2], bias) if need_bias else None
            grad_residual = grads[3] if through else grad_residual
        return None, grad_input, None, None, grad_weight, grad_bias, grad_residual, None, None, None, None


def _shaped(grad, parameter):
    return grad if parameter.dim() == 1 else grad.view_as(parameter)


_below_autograd = torch._C._AutoDispatchBelowAutograd


class _TransformedBatchNorm(torch.autograd.Function):
    """The same for torch.func; its backward is made of torch ops, which any further transform takes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(ops, *args):
        return ops.batch_norm_forward(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, input, _, _, weight, bias, residual, ctx.training, ctx.eps, ctx.activation = inputs
        output, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        kept = output if _keeps_output(ctx.activation, residual) else None
        ctx.save_for_backward(input, mean, var, weight, bias, kept)

    @staticmethod
    def backward(ctx, grad_output, _grad_mean, _grad_var):
        input, mean, var, weight, bias, kept = ctx.saved_tensors
        grads = _gradients(grad_output, input, mean, var, weight, bias, kept, ctx.training, ctx.eps, ctx.activation)
        like = (input, weight, bias, input)
        needs = [ctx.needs_input_grad[i] for i in (1, 4, 5, 6)]
        grad_input, grad_weight, grad_bias, grad_residual = (
            grad.to(t.dtype).view_as(t) if need else None for grad, t, need in zip(grads, like, needs, strict=True)
        )
        return None, grad_input, None, None, grad_weight, grad_bias, grad_residual, None, None, None

    @staticmethod
    def jvp(ctx, *tangents):
        raise RuntimeError("batch_norm: expected reverse-mode differentiation, got forward mode, which is not offered")


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

    Returns:
        A tensor of ``input``'s shape, dtype and memory format. Sums are kept in float32, and in float64 over blocks.

    Raises:
        ValueError: for one value per channel in training, eps out of range, one running statistic without the other in
            training, or an unknown activation.
        RuntimeError: for parameters whose size or dtype does not fit, and for evaluation without running statistics.
    """
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
    if momentum is None:
        raise TypeError("batch_norm: expected momentum to be a number, got None")
    if activation not in ACTIVATIONS:
        raise ValueError(f"batch_norm: expected activation to be None, 'relu' or 'sigmoid', got {activation!r}")
    ops = backend.ops_for(input) if input.dtype in _SUPPORTED else None
    if ops is None:
        return _by_torch(input, running_mean, running_var, weight, bias, training, momentum, eps, residual, activation)
    if (running_mean is not None and running_mean.requires_grad) or (
        running_var is not None and running_var.requires_grad
    ):
        raise RuntimeError("batch_norm: expected the running statistics not to require grad, got one that does")
    code = ACTIVATIONS[activation]
    update = training and running_mean is not None and values != 0
    if not torch.compiler.is_compiling() and not _library.transforms_active():
        output = _EagerBatchNorm.apply(
            ops, input, running_mean, running_var, weight, bias, residual, training, momentum, eps, code
        )
        if update:
            torch.autograd.graph.increment_version((running_mean, running_var))
        return output
    args = input, running_mean, running_var, weight, bias, residual, training, eps, code
    if _library.transforms_active():
        output, mean, var = _TransformedBatchNorm.apply(ops, *args)
    else:
        output, mean, var = ops.batch_norm_forward(*args)
    if update:  # which torch.compile sees in the schema
        ops.batch_norm_update_stats(running_mean, running_var, mean, var, values, momentum)
    return output


def _by_torch(input, running_mean, running_var, weight, bias, training, momentum, eps, residual, activation):
    output = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if residual is not None:
        output = output + residual
    if activation is None:
        return output
    return F.relu(output) if activation == "relu" else torch.sigmoid(output)
