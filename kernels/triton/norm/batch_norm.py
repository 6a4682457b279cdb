"""Batch normalisation: the launchers. The formulas, for each channel, are kernels/batch_norm.h's:

    mean, var = mean and biased variance of the channel's n values
    z = (x - mean) * invstd * weight + bias + residual        output = activation(z)

    gz = grad_output * activation'(z)       xhat = (x - mean) * invstd
    grad_bias = sum(gz)    grad_weight = sum(gz * xhat)    grad_residual = gz
    grad_input = weight * invstd * (gz - sum(gz) / n - xhat * sum(gz * xhat) / n)

Bound by memory: the input is read once for the statistics and once to be normalised, and the same in the backward.
"""

import math

import torch
import triton
import triton.language as tl

from ..launch import ACCUMULATE, double_bits, launch, power_of_2, require_device
from .batch_norm_backward import (
    batch_norm_backward_apply_kernel,
    batch_norm_backward_join_kernel,
    batch_norm_backward_reduce_kernel,
)
from .batch_norm_forward import (
    batch_norm_apply_kernel,
    batch_norm_join_kernel,
    batch_norm_stats_kernel,
    batch_norm_update_kernel,
)
from .batch_norm_tiles import Walk


def _parameters(input, **tensors):
    """The parameters, contiguous, and their dtype."""
    require_device("batch_norm", "input", input, **tensors)
    dtype = None
    found = []
    for name, t in tensors.items():
        if t is not None:
            if t.numel() != input.shape[1]:
                raise RuntimeError(
                    f"batch_norm: expected {name} to have {input.shape[1]} elements, got shape {tuple(t.shape)}"
                )
            half = input.dtype in (torch.bfloat16, torch.float16)
            if t.dtype != input.dtype and not (half and t.dtype == torch.float32):
                raise RuntimeError(
                    f"batch_norm: expected {name} to have input's dtype, or float32 beside a half input, got {t.dtype}"
                )
            if dtype not in (None, t.dtype):
                raise RuntimeError(
                    f"batch_norm: expected {name} to have the dtype of the other parameters, got {t.dtype}"
                )
            dtype = t.dtype
            t = t.contiguous()
        found.append(t)
    return *found, dtype or input.dtype


def _statistic(input):
    return input.new_empty(input.shape[1], dtype=torch.float64)


def batch_norm_stats(input):
    """Returns mean and biased variance of each channel, float64; nan of nothing, as torch's."""
    walk = Walk.of(input)
    mean, var = _statistic(input), _statistic(input)
    if input.numel() == 0:
        return mean.fill_(math.nan), var.fill_(math.nan)
    acc = ACCUMULATE[input.dtype]
    input, strides = walk.read("input", input, input)
    tiles = walk.tiles(4096, acc, input)
    resident = 3 if walk.columns else 4  # as many as the registers hold
    splits, each = tiles.split(resident)
    partial = input.new_empty((3, splits, walk.channels), dtype=torch.float64)
    launch(
        batch_norm_stats_kernel, splits * tiles.blocks, input, input, partial, walk.outer, walk.length, walk.channels,
        tiles.count, each, splits, tiles.inner, strides, COLUMNS=walk.columns, UNIT=walk.unit(strides), ACC=acc,
        A=tiles.a, B=tiles.b, num_warps=4, **tiles.registers(resident),
    )  # fmt: skip
    s = power_of_2(splits)
    b = max(512 // s, 1)
    programs = triton.cdiv(walk.channels, b)
    launch(batch_norm_join_kernel, programs, input, partial, mean, var, walk.channels, splits, S=s, B=b, num_warps=4)
    return mean, var


def batch_norm_apply(input, mean, var, weight, bias, residual, eps, activation):
    """Returns activation(z) in input's memory format."""
    walk = Walk.of(input)
    weight, bias, _ = _parameters(input, weight=weight, bias=bias)
    output = walk.empty(input)
    acc = ACCUMULATE[input.dtype]
    input, input_strides = walk.read("input", input, input)
    residual, residual_strides = walk.read("residual", residual, input)
    if input.numel() == 0:
        return output
    tiles = walk.tiles(2048, acc, input)
    programs, each = tiles.share()
    output_strides = walk.strides(output)
    unit = walk.unit(input_strides, residual_strides, output_strides)
    launch(
        batch_norm_apply_kernel, programs * tiles.blocks, input, input, residual, output, mean, var, weight, bias,
        walk.outer, walk.length, walk.channels, tiles.count, each, programs, tiles.inner, input_strides,
        residual_strides, output_strides, double_bits(eps), ACTIVATION=activation, COLUMNS=walk.columns, UNIT=unit,
        ACC=acc, A=tiles.a, B=tiles.b, num_warps=4, **tiles.registers(3),
    )  # fmt: skip
    return output


def batch_norm_forward(input, running_mean, running_var, weight, bias, residual, training, eps, activation):
    """Returns output, mean and var; without training they are the running statistics."""
    Walk.of(input)
    _parameters(input, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    if training:
        if input.numel() == 0:
            mean, var = _statistic(input).zero_(), _statistic(input).zero_()
        else:
            mean, var = batch_norm_stats(input)
    else:
        for name, t in (("running_mean", running_mean), ("running_var", running_var)):
            if t is None:
                raise RuntimeError(f"batch_norm: expected {name} to be given in evaluation mode, got None")
        # copies even of float64: an op's results must not be its arguments
        mean, var = (t.to(torch.float64, copy=True).reshape(-1) for t in (running_mean, running_var))
    return batch_norm_apply(input, mean, var, weight, bias, residual, eps, activation), mean, var


def batch_norm_update_stats(running_mean, running_var, mean, var, count, momentum):
    """Moves the running statistics, in place, towards those of the batch."""
    channels = mean.numel()
    for t in (running_mean, running_var):
        if t.numel() != channels:
            raise RuntimeError(
                f"batch_norm_update_stats: expected the running statistics to have {channels} elements, got shape "
                f"{tuple(t.shape)}"
            )
    strides = (t.stride(-1) if t.dim() else 1 for t in (running_mean, running_var))
    unbiased = count / (count - 1) if count > 1 else math.inf
    launch(
        batch_norm_update_kernel, triton.cdiv(channels, 256), mean, running_mean, running_var, mean, var, channels,
        *strides, double_bits(momentum), double_bits(unbiased), B=256, num_warps=4,
    )  # fmt: skip


def batch_norm_train(
    input, running_mean, running_var, weight, bias, residual, num_batches_tracked, momentum, eps, activation
):
    """batch_norm_forward in training, and batch_norm_update_stats."""
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    results = batch_norm_forward(input, running_mean, running_var, weight, bias, residual, True, eps, activation)
    if input.numel() > 0:
        count = input.numel() // input.shape[1]
        batch_norm_update_stats(running_mean, running_var, *results[1:], count, momentum)
    return results


def _gradient(activation, output):
    if activation == 2 and output is None:
        raise RuntimeError("batch_norm: expected output to be given for the gradient of sigmoid, got None")
    return 0 if activation == 0 else 3 if activation == 2 else 1 if output is None else 2


def _backward_sums(grad_output, input, mean, var, weight, bias, output, eps, activation, grad_weight, grad_bias):
    walk = Walk.of(input)
    weight, bias, _ = _parameters(input, weight=weight, bias=bias)
    gradient = _gradient(activation, output)
    sum_grad, sum_grad_xhat = _statistic(input), _statistic(input)
    if input.numel() == 0:
        for t in (sum_grad, sum_grad_xhat, grad_weight, grad_bias):
            if t is not None:
                t.zero_()
        return sum_grad, sum_grad_xhat
    acc = ACCUMULATE[input.dtype]
    grad_output, grad_strides = walk.read("grad_output", grad_output, input)
    output, output_strides = walk.read("output", output if gradient >= 2 else None, input)
    input, input_strides = walk.read("input", input, input)
    tiles = walk.tiles(2048, acc, input)
    splits, each = tiles.split(4)
    kept = torch.float64 if acc == tl.float64 else torch.float32
    partial = input.new_empty((2, splits, walk.channels), dtype=kept)
    launch(
        batch_norm_backward_reduce_kernel, splits * tiles.blocks, input, grad_output, input, output, mean, var, weight,
        bias, partial, walk.outer, walk.length, walk.channels, tiles.count, each, splits, tiles.inner, grad_strides,
        input_strides, output_strides, double_bits(eps), GRADIENT=gradient, COLUMNS=walk.columns,
        UNIT=walk.unit(grad_strides, input_strides, output_strides), ACC=acc, A=tiles.a,
        B=tiles.b, num_warps=4, **tiles.registers(4),
    )  # fmt: skip
    s = power_of_2(splits)
    b = max(1024 // s, 1)
    launch(
        batch_norm_backward_join_kernel, triton.cdiv(walk.channels, b), input, partial, sum_grad, sum_grad_xhat,
        grad_weight, grad_bias, walk.channels, splits, S=s, B=b, num_warps=4,
    )  # fmt: skip
    return sum_grad, sum_grad_xhat


def _backward_gradients(
    grad_output, input, mean, var, weight, bias, output, sums, count, eps, activation, need_input, need_residual
):
    walk = Walk.of(input)
    weight, bias, _ = _parameters(input, weight=weight, bias=bias)
    gradient = _gradient(activation, output)
    grad_input = walk.empty(input) if need_input else input.new_empty(0)
    grad_residual = walk.empty(input) if need_residual else input.new_empty(0)
    if input.numel() == 0 or not (need_input or need_residual):
        return grad_input, grad_residual
    acc = ACCUMULATE[input.dtype]
    grad_output, grad_strides = walk.read("grad_output", grad_output, input)
    output, output_strides = walk.read("output", output if gradient >= 2 else None, input)
    input, input_strides = walk.read("input", input, input)
    tiles = walk.tiles(2048, acc, input)
    programs, each = tiles.share()
    target_strides = walk.strides(grad_input if need_input else grad_residual)
    launch(
        batch_norm_backward_apply_kernel, programs * tiles.blocks, input, grad_output, input, output, mean, var, weight,
        bias, *sums, grad_input if need_input else None, grad_residual if need_residual else None, walk.outer,
        walk.length, walk.channels, tiles.count, each, programs, tiles.inner, grad_strides, input_strides,
        output_strides, target_strides, double_bits(eps), double_bits(count), GRADIENT=gradient, COLUMNS=walk.columns,
        UNIT=walk.unit(grad_strides, input_strides, output_strides, target_strides),
        ACC=acc, A=tiles.a, B=tiles.b, num_warps=4, **tiles.registers(3),
    )  # fmt: skip
    return grad_input, grad_residual


def batch_norm_backward_reduce(grad_output, input, mean, var, weight, bias, output, eps, activation):
    """Returns sum(gz) and sum(gz * xhat) of each channel, float64."""
    return _backward_sums(grad_output, input, mean, var, weight, bias, output, eps, activation, None, None)


def batch_norm_backward_apply(
    grad_output, input, mean, var, weight, bias, output, sum_grad, sum_grad_xhat, count, eps, activation, need_residual
):
    """Returns grad_input and grad_residual from the sums."""
    sums = (sum_grad, sum_grad_xhat)
    return _backward_gradients(
        grad_output, input, mean, var, weight, bias, output, sums, count, eps, activation, True, need_residual
    )


def batch_norm_backward(
    grad_output, input, mean, var, weight, bias, output, training, eps, activation,
    need_input, need_weight, need_bias, need_residual,
):  # fmt: skip
    """Returns the gradients of input, weight, bias and residual; an empty tensor for one that is not needed."""
    *_, dtype = _parameters(input, weight=weight, bias=bias)
    channels = input.shape[1]
    grad_weight = input.new_empty(channels if need_weight else 0, dtype=dtype)
    grad_bias = input.new_empty(channels if need_bias else 0, dtype=dtype)
    sums = (None, None)
    if need_weight or need_bias or (training and need_input):
        found = _backward_sums(
            grad_output, input, mean, var, weight, bias, output, eps, activation,
            grad_weight if need_weight else None, grad_bias if need_bias else None,
        )  # fmt: skip
        sums = found if training else sums
    count = input.numel() / max(channels, 1)
    grad_input, grad_residual = _backward_gradients(
        grad_output, input, mean, var, weight, bias, output, sums, count, eps, activation, need_input, need_residual
    )
    return grad_input, grad_weight, grad_bias, grad_residual
