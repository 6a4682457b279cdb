"""Batch norm's forward kernels: statistics of the batch, their application, and the running statistics.

A reduction is split over as many programs as fill the GPU, whatever the number of channels; each leaves a partial
result for each of its channels, and a second kernel joins them in float64, in a fixed order.

The statistics survive a mean far above the standard deviation: each tile is summed in float32 around the mean so far,
which a tile can miss only by what is variance itself, and the state between tiles is float64.
"""

import triton
import triton.language as tl

from ..arithmetic import double_of
from .batch_norm_tiles import (
    affine,
    channels_of,
    nothing,
    parameter,
    pointers,
    rounded,
    statistics,
    tile_at,
    total,
    values_of,
)


@triton.jit(do_not_specialize=["outer", "tiles", "tiles_per_split", "splits", "inner_blocks"])
def batch_norm_stats_kernel(
    input_ptr,
    partial_ptr,  # [3, splits, channels] float64: number of values, mean, sum of squared deviations
    outer,
    length,
    channels,
    tiles,  # of a block of channels
    tiles_per_split,
    splits,
    inner_blocks,
    strides,  # (row, channel, inner)
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    ACC: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    split = tl.program_id(0) % splits
    channel_block = tl.program_id(0) // splits
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tiles)
    channel, channel_inside = channels_of(channel_block, channels, COLUMNS, B)

    # a first estimate of the mean, from the first tile
    i, j, inside = tile_at(first, channel_block, outer, length, channels, inner_blocks, COLUMNS, UNIT, A, B)
    x = tl.load(pointers(input_ptr, i, j, channel, strides, COLUMNS, UNIT), mask=inside, other=0.0).to(ACC)
    mean = total(x, COLUMNS).to(tl.float64) * (1.0 / values_of(first, outer, length, inner_blocks, COLUMNS, A, B))
    squares = nothing(tl.float64, COLUMNS, B)
    count = tl.cast(0.0, tl.float64)
    for tile in range(first, last):
        i, j, inside = tile_at(tile, channel_block, outer, length, channels, inner_blocks, COLUMNS, UNIT, A, B)
        x = tl.load(pointers(input_ptr, i, j, channel, strides, COLUMNS, UNIT), mask=inside, other=0.0).to(ACC)
        # around an infinite mean every sum would be nan, where the mean is inf and the variance alone nan
        center = tl.where(tl.abs(mean) == float("inf"), 0.0, mean).to(ACC)
        deviation = tl.where(inside, x - center, 0.0)
        # sums around the mean itself: center differs from it by the rounding to ACC
        delta = tl.where(tl.abs(mean) == float("inf"), 0.0, mean - center.to(tl.float64))
        number = values_of(tile, outer, length, inner_blocks, COLUMNS, A, B)
        sum1 = total(deviation, COLUMNS).to(tl.float64)
        sum2 = total(deviation * deviation, COLUMNS).to(tl.float64)
        sum2 = sum2 - 2.0 * delta * sum1 + number * delta * delta
        sum1 = sum1 - number * delta
        count += number
        step = sum1 * (1.0 / count)  # one quotient for all channels: those of float64 are slow
        squares += sum2 - sum1 * step
        mean += step
    at = partial_ptr + tl.cast(split, tl.int64) * channels + channel
    part = tl.cast(splits, tl.int64) * channels
    tl.store(at, count + nothing(tl.float64, COLUMNS, B), mask=channel_inside)
    tl.store(at + part, mean, mask=channel_inside)
    tl.store(at + 2 * part, squares, mask=channel_inside)


@triton.jit(do_not_specialize=["channels", "splits"])
def batch_norm_join_kernel(
    partial_ptr,  # [3, splits, channels] float64
    mean_ptr,  # [channels] float64
    var_ptr,  # [channels] float64
    channels,
    splits,
    S: tl.constexpr,
    B: tl.constexpr,
):
    """Joins the partial statistics of each channel."""
    channel = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)[None, :]
    split = tl.arange(0, S)[:, None]
    inside = (split < splits) & (channel < channels)
    at = partial_ptr + split.to(tl.int64) * channels + channel
    step = tl.cast(splits, tl.int64) * channels
    count = tl.load(at, mask=inside, other=0.0)
    mean = tl.load(at + step, mask=inside, other=0.0)
    squares = tl.load(at + 2 * step, mask=inside, other=0.0)
    n = tl.sum(count, axis=0, keep_dims=True)
    joined = tl.sum(count * mean, axis=0, keep_dims=True) / n
    apart = mean - joined
    var = tl.sum(squares + count * apart * apart, axis=0, keep_dims=True) / n
    tl.store(mean_ptr + channel, joined, mask=channel < channels)
    tl.store(var_ptr + channel, var, mask=channel < channels)


@triton.jit(
    do_not_specialize=["channels", "running_mean_stride", "running_var_stride", "momentum_bits", "unbiased_bits"]
)
def batch_norm_update_kernel(
    running_mean_ptr,  # [channels]
    running_var_ptr,  # [channels]
    mean_ptr,  # [channels] float64
    var_ptr,  # [channels] float64
    channels,
    running_mean_stride,
    running_var_stride,
    momentum_bits,
    unbiased_bits,  # n / (n - 1)
    B: tl.constexpr,
):
    """running = (1 - momentum) * running + momentum * batch."""
    channel = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    inside = channel < channels
    momentum = double_of(momentum_bits)
    mean = tl.load(mean_ptr + channel, mask=inside)
    var = tl.load(var_ptr + channel, mask=inside) * double_of(unbiased_bits)
    move(running_mean_ptr + channel * running_mean_stride, mean, momentum, inside)
    move(running_var_ptr + channel * running_var_stride, var, momentum, inside)


@triton.jit
def move(running_ptr, batch, momentum, inside):
    old = tl.load(running_ptr, mask=inside).to(tl.float64)
    tl.store(running_ptr, rounded((1.0 - momentum) * old + momentum * batch, running_ptr), mask=inside)


@triton.jit(do_not_specialize=["outer", "tiles", "tiles_per_program", "programs", "inner_blocks", "eps_bits"])
def batch_norm_apply_kernel(
    input_ptr,
    residual_ptr,  # or None
    output_ptr,
    mean_ptr,  # [channels] float64
    var_ptr,  # [channels] float64
    weight_ptr,  # [channels], or None
    bias_ptr,  # [channels], or None
    outer,
    length,
    channels,
    tiles,
    tiles_per_program,
    programs,  # for each block of channels
    inner_blocks,
    input_strides,  # (row, channel, inner)
    residual_strides,
    output_strides,
    eps_bits,
    ACTIVATION: tl.constexpr,  # 0 none, 1 ReLU, 2 sigmoid
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    ACC: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    # rows: all tiles of a channel, then the next channel; columns: neighbouring channels of the same rows
    if COLUMNS:
        blocks = tl.cdiv(channels, B)
        program, channel_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    else:
        channel_block, program = tl.program_id(0) // programs, tl.program_id(0) % programs
    channel, _ = channels_of(channel_block, channels, COLUMNS, B)
    mean_high, mean_low, invstd = statistics(mean_ptr, var_ptr, channel, eps_bits, ACC)
    scale = invstd * parameter(weight_ptr, channel, 1.0, ACC)
    bias = parameter(bias_ptr, channel, 0.0, ACC)
    first = program * tiles_per_program
    for tile in range(first, tl.minimum(first + tiles_per_program, tiles)):
        i, j, inside = tile_at(tile, channel_block, outer, length, channels, inner_blocks, COLUMNS, UNIT, A, B)
        x = tl.load(pointers(input_ptr, i, j, channel, input_strides, COLUMNS, UNIT), mask=inside).to(ACC)
        z = affine(x - mean_high - mean_low, scale, bias)
        if residual_ptr is not None:
            z += tl.load(pointers(residual_ptr, i, j, channel, residual_strides, COLUMNS, UNIT), mask=inside).to(ACC)
        if ACTIVATION == 1:
            z = tl.where(z <= 0.0, 0.0, z)
        elif ACTIVATION == 2:
            z = 1.0 / (1.0 + tl.exp(-z))
        at = pointers(output_ptr, i, j, channel, output_strides, COLUMNS, UNIT)
        tl.store(at, z.to(output_ptr.dtype.element_ty), mask=inside)
