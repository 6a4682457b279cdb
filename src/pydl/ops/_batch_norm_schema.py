"""The schemas of batch_norm's ops, and their fakes: shapes, dtypes and strides without data.

mean and var are float64 of shape (channels) for every dtype.
"""

import torch

from pydl.ops import _library
from pydl.ops._memory_format import normalised_format

ACTIVATIONS = {None: 0, "relu": 1, "sigmoid": 2}

# training computes mean and var from the input; without it they are the running ones, which a training call ignores.
_library.define(
    "batch_norm_forward",
    "(Tensor input, Tensor? running_mean, Tensor? running_var, Tensor? weight, Tensor? bias, Tensor? residual, "
    "bool training, float eps, int activation) -> (Tensor output, Tensor mean, Tensor var)",
    triton="norm.batch_norm",
)
# var is biased; count is the number of values per channel, from which the unbiased one follows; a symbol, so that a
# compiled training step takes any batch size.
_library.define(
    "batch_norm_update_stats",
    "(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, SymInt count, float momentum) -> ()",
    triton="norm.batch_norm",
)
# Both in one call, for eager mode; it adds 1 to num_batches_tracked, an int64 scalar in the CPU's memory.
_library.define(
    "batch_norm_train",
    "(Tensor input, Tensor(a!) running_mean, Tensor(b!) running_var, Tensor? weight, Tensor? bias, Tensor? residual, "
    "Tensor(c!)? num_batches_tracked, float momentum, float eps, int activation) "
    "-> (Tensor output, Tensor mean, Tensor var)",
    triton="norm.batch_norm",
)
# A gradient that is not needed comes back as an empty tensor.
_library.define(
    "batch_norm_backward",
    "(Tensor grad_output, Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? output, "
    "bool training, float eps, int activation, bool need_input, bool need_weight, bool need_bias, bool need_residual)"
    " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)",
    triton="norm.batch_norm",
)
# batch_norm_train with an activation and the mean over 2x2 pixels behind it, and the gradients of that, which read no
# output: for float32 and bfloat16 images in NCHW on the CPU, of planes of 2x2 to 4096 pixels.
_library.define(
    "batch_norm_pooled_train",
    "(Tensor input, Tensor(a!) running_mean, Tensor(b!) running_var, Tensor? weight, Tensor? bias, "
    "Tensor(c!)? num_batches_tracked, float momentum, float eps, int activation) "
    "-> (Tensor output, Tensor mean, Tensor var)",
)
_library.define(
    "batch_norm_pooled_backward",
    "(Tensor grad_output, Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, "
    "int activation, bool need_input, bool need_weight, bool need_bias)"
    " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
)
# The halves, for a version that reduces over processes in between: mean and var of all come from those of each, the
# sums of the gradient are added up, and count is the number of values per channel over all processes.
_library.define(
    "batch_norm_stats",
    "(Tensor input) -> (Tensor mean, Tensor var)",
    triton="norm.batch_norm",
)
_library.define(
    "batch_norm_apply",
    "(Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? residual, float eps, "
    "int activation) -> Tensor",
    triton="norm.batch_norm",
)
_library.define(
    "batch_norm_backward_reduce",
    "(Tensor grad_output, Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? output, "
    "float eps, int activation) -> (Tensor sum_grad, Tensor sum_grad_xhat)",
    triton="norm.batch_norm",
)
_library.define(
    "batch_norm_backward_apply",
    "(Tensor grad_output, Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? output, "
    "Tensor sum_grad, Tensor sum_grad_xhat, float count, float eps, int activation, bool need_residual)"
    " -> (Tensor grad_input, Tensor grad_residual)",
    triton="norm.batch_norm",
)


# ---- fakes


def _like(input, grad_output=None):
    """A tensor in the memory format that torch's batch_norm gives its output, or the gradient of its input."""
    return torch.empty_like(input, memory_format=normalised_format(input, grad_output))


def _statistic(input):
    return input.new_empty(input.shape[1], dtype=torch.float64)


@_library.fake("batch_norm_forward")
def _(input, running_mean, running_var, weight, bias, residual, training, eps, activation):
    return _like(input), _statistic(input), _statistic(input)


@_library.fake("batch_norm_train")
def _(input, running_mean, running_var, weight, bias, residual, num_batches_tracked, momentum, eps, activation):
    return _like(input), _statistic(input), _statistic(input)


@_library.fake("batch_norm_pooled_train")
def _(input, running_mean, running_var, weight, bias, num_batches_tracked, momentum, eps, activation):
    n, c, h, w = input.shape
    return input.new_empty(n, c, h // 2, w // 2), _statistic(input), _statistic(input)


@_library.fake("batch_norm_pooled_backward")
def _(grad_output, input, mean, var, weight, bias, eps, activation, need_input, need_weight, need_bias):
    dtype = weight.dtype if weight is not None else bias.dtype if bias is not None else input.dtype
    channels = input.shape[1]
    return (
        torch.empty_like(input) if need_input else input.new_empty(0),
        input.new_empty(channels if need_weight else 0, dtype=dtype),
        input.new_empty(channels if need_bias else 0, dtype=dtype),
    )


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
        _like(input, grad_output) if need_input else input.new_empty(0),
        input.new_empty(channels if need_weight else 0, dtype=dtype),
        input.new_empty(channels if need_bias else 0, dtype=dtype),
        _like(input, grad_output) if need_residual else input.new_empty(0),
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
    grad_input = _like(input, grad_output)
    return grad_input, torch.empty_like(grad_input) if need_residual else input.new_empty(0)
