"""Batch norm's backward kernels: two sums of each channel, split and joined as in the forward, and the gradients."""

import triton
import triton.language as tl

from ..arithmetic import double_of
from .batch_norm_tiles import affine, channels_of, nothing, parameter, pointers, rounded, statistics, tile_at, total


@triton.jit
def gradient_of_z(
    grad_output_ptr,
    output_ptr,
    deviation,
    scale,
    bias,
    i,
    j,
    channel,
    inside,
    grad_strides,
    output_strides,
    GRADIENT: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    ACC: tl.constexpr,
):
    """gz. GRADIENT says what it is read from: 0 linear, 1 ReLU of the input, 2 ReLU's output, 3 sigmoid's output."""
    at = pointers(grad_output_ptr, i, j, channel, grad_strides, COLUMNS, UNIT)
    grad = tl.load(at, mask=inside, other=0.0).to(ACC)
    if GRADIENT == 1:
        grad = tl.where(affine(deviation, scale, bias) <= 0.0, 0.0, grad)
    elif GRADIENT >= 2:
        at = pointers(output_ptr, i, j, channel, output_strides, COLUMNS, UNIT)
        output = tl.load(at, mask=inside, other=0.0).to(ACC)
        grad = tl.where(output <= 0.0, 0.0, grad) if GRADIENT == 2 else grad * output * (1.0 - output)
    return grad


@triton.jit(do_not_specialize=["outer", "tiles", "tiles_per_split", "splits", "inner_blocks", "eps_bits"])
def batch_norm_backward_reduce_kernel(
    grad_output_ptr,
    input_ptr,
    output_ptr,  # or None
    mean_ptr,  # [channels] float64
    var_ptr,  # [channels] float64
    weight_ptr,  # [channels], or None
    bias_ptr,  # [channels], or None
    partial_ptr,  # [2, splits, channels] ACC: sums of gz and of gz * xhat
    outer,
    length,
    channels,
    tiles,
    tiles_per_split,
    splits,
    inner_blocks,
    grad_strides,
    input_strides,
    output_strides,
    eps_bits,
    GRADIENT: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    ACC: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    split = tl.program_id(0) % splits
    channel_block = tl.program_id(0) // splits
    channel, channel_inside = channels_of(channel_block, channels, COLUMNS, B)
    mean_high, mean_low, invstd = statistics(mean_ptr, var_ptr, channel, eps_bits, ACC)
    scale = invstd * parameter(weight_ptr, channel, 1.0, ACC)
    bias = parameter(bias_ptr, channel, 0.0, ACC)
    sum_grad = nothing(ACC, COLUMNS, B)
    sum_grad_xhat = nothing(ACC, COLUMNS, B)
    first = split * tiles_per_split
    for tile in range(first, tl.minimum(first + tiles_per_split, tiles)):
        i, j, inside = tile_at(tile, channel_block, outer, length, channels, inner_blocks, COLUMNS, UNIT, A, B)
        at = pointers(input_ptr, i, j, channel, input_strides, COLUMNS, UNIT)
        deviation = tl.load(at, mask=inside, other=0.0).to(ACC) - mean_high - mean_low
        gz = gradient_of_z(
            grad_output_ptr, output_ptr, deviation, scale, bias, i, j, channel, inside, grad_strides, output_strides,
            GRADIENT, COLUMNS, UNIT, ACC,
        )  # fmt: skip
        sum_grad += total(gz, COLUMNS)
        sum_grad_xhat += total(gz * tl.where(inside, deviation, 0.0), COLUMNS)
    at = partial_ptr + tl.cast(split, tl.int64) * channels + channel
    tl.store(at, sum_grad, mask=channel_inside)
    tl.store(at + tl.cast(splits, tl.int64) * channels, sum_grad_xhat * invstd, mask=channel_inside)


@triton.jit(do_not_specialize=["channels", "splits"])
def batch_norm_backward_join_kernel(
    partial_ptr,  # [2, splits, channels]
    sum_grad_ptr,  # [channels] float64
    sum_grad_xhat_ptr,  # [channels] float64
    grad_weight_ptr,  # [channels], or None
    grad_bias_ptr,  # [channels], or None
    channels,
    splits,
    S: tl.constexpr,
    B: tl.constexpr,
):
    channel = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)[None, :]
    split = tl.arange(0, S)[:, None]
    inside = (split < splits) & (channel < channels)
    at = partial_ptr + split.to(tl.int64) * channels + channel
    grad = tl.load(at, mask=inside, other=0.0).to(tl.float64)
    grad_xhat = tl.load(at + tl.cast(splits, tl.int64) * channels, mask=inside, other=0.0).to(tl.float64)
    sum_grad = tl.sum(grad, axis=0, keep_dims=True)
    sum_grad_xhat = tl.sum(grad_xhat, axis=0, keep_dims=True)
    tl.store(sum_grad_ptr + channel, sum_grad, mask=channel < channels)
    tl.store(sum_grad_xhat_ptr + channel, sum_grad_xhat, mask=channel < channels)
    if grad_weight_ptr is not None:
        tl.store(grad_weight_ptr + channel, rounded(sum_grad_xhat, grad_weight_ptr), mask=channel < channels)
    if grad_bias_ptr is not None:
        tl.store(grad_bias_ptr + channel, rounded(sum_grad, grad_bias_ptr), mask=channel < channels)


@triton.jit(
    do_not_specialize=["outer", "tiles", "tiles_per_program", "programs", "inner_blocks", "eps_bits", "count_bits"]
)
def batch_norm_backward_apply_kernel(
    grad_output_ptr,
    input_ptr,
    output_ptr,  # or None
    mean_ptr,  # [channels] float64
    var_ptr,  # [channels] float64
    weight_ptr,  # [channels], or None
    bias_ptr,  # [channels], or None
    sum_grad_ptr,  # [channels] float64, or None with given statistics
    sum_grad_xhat_ptr,  # [channels] float64, or None
    grad_input_ptr,  # or None
    grad_residual_ptr,  # or None; laid out as grad_input
    outer,
    length,
    channels,
    tiles,
    tiles_per_program,
    programs,  # for each block of channels
    inner_blocks,
    grad_strides,
    input_strides,
    output_strides,
    grad_input_strides,
    eps_bits,
    count_bits,  # values of a channel
    GRADIENT: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    ACC: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    if COLUMNS:
        blocks = tl.cdiv(channels, B)
        program, channel_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    else:
        channel_block, program = tl.program_id(0) // programs, tl.program_id(0) % programs
    channel, _ = channels_of(channel_block, channels, COLUMNS, B)
    mean_high, mean_low, invstd = statistics(mean_ptr, var_ptr, channel, eps_bits, ACC)
    scale = invstd * parameter(weight_ptr, channel, 1.0, ACC)
    bias = parameter(bias_ptr, channel, 0.0, ACC)
    mean_grad = nothing(ACC, COLUMNS, B)
    slope = nothing(ACC, COLUMNS, B)
    if sum_grad_ptr is not None:
        share = 1.0 / double_of(count_bits)
        mean_grad += (tl.load(sum_grad_ptr + channel) * share).to(ACC)
        slope += (tl.load(sum_grad_xhat_ptr + channel) * share).to(ACC) * invstd
    first = program * tiles_per_program
    for tile in range(first, tl.minimum(first + tiles_per_program, tiles)):
        i, j, inside = tile_at(tile, channel_block, outer, length, channels, inner_blocks, COLUMNS, UNIT, A, B)
        deviation = tl.zeros([A, B], ACC)
        if GRADIENT == 1 or sum_grad_ptr is not None:
            at = pointers(input_ptr, i, j, channel, input_strides, COLUMNS, UNIT)
            deviation = tl.load(at, mask=inside).to(ACC) - mean_high - mean_low
        gz = gradient_of_z(
            grad_output_ptr, output_ptr, deviation, scale, bias, i, j, channel, inside, grad_strides, output_strides,
            GRADIENT, COLUMNS, UNIT, ACC,
        )  # fmt: skip
        if grad_residual_ptr is not None:
            at = pointers(grad_residual_ptr, i, j, channel, grad_input_strides, COLUMNS, UNIT)
            tl.store(at, gz.to(grad_residual_ptr.dtype.element_ty), mask=inside)
        if grad_input_ptr is not None:
            if sum_grad_ptr is not None:
                gz = gz - mean_grad - deviation * slope
            at = pointers(grad_input_ptr, i, j, channel, grad_input_strides, COLUMNS, UNIT)
            tl.store(at, (scale * gz).to(grad_input_ptr.dtype.element_ty), mask=inside)
