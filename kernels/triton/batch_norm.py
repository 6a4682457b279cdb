"""Batch normalisation. The formulas, for each channel, are kernels/batch_norm.h's:

    mean, var = mean and biased variance of the channel's n values
    z = (x - mean) * invstd * weight + bias + residual        output = activation(z)

    gz = grad_output * activation'(z)       xhat = (x - mean) * invstd
    grad_bias = sum(gz)    grad_weight = sum(gz * xhat)    grad_residual = gz
    grad_input = weight * invstd * (gz - sum(gz) / n - xhat * sum(gz * xhat) / n)

Bound by memory: the input is read once for the statistics and once to be normalised, and the same in the backward. A
reduction is split over as many programs as fill the GPU, whatever the number of channels; each leaves a partial result
for each of its channels, and a second kernel joins them in float64, in a fixed order.

The statistics survive a mean far above the standard deviation: each tile is summed in float32 around the mean so far,
which a tile can miss only by what is variance itself, and the state between tiles is float64.

Two walks, of tiles [A, B], serve every layout. columns (channels_last, and (N, C)): A values of B channels. rows
(N, C, spatial): one channel, A batch entries by B positions. What belongs to a channel is [1, B], or a scalar.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .arithmetic import double_of
from .launch import ACCUMULATE, device_of, double_bits, launch, merged_dims, power_of_2

# ---- device functions


@triton.jit
def tile_at(
    tile, channel_block, length, channels, inner_blocks, COLUMNS: tl.constexpr, A: tl.constexpr, B: tl.constexpr
):
    """Indices i [A, 1] and j [1, B] of a tile, its channels, and what is inside; length is of j where not COLUMNS."""
    if COLUMNS:
        i = tl.cast(tile, tl.int64) * A + tl.arange(0, A)[:, None]
        j = tl.cast(channel_block, tl.int64) * B + tl.arange(0, B)[None, :]
        channel = tl.minimum(j, channels - 1)
        j_inside = j < channels
    else:
        i = tl.cast(tile // inner_blocks, tl.int64) * A + tl.arange(0, A)[:, None]
        j = tl.cast(tile % inner_blocks, tl.int64) * B + tl.arange(0, B)[None, :]
        channel = tl.cast(channel_block, tl.int64)
        j_inside = j < length
    return i, j, channel, j_inside


@triton.jit
def pointers(base_ptr, i, j, channel, row_stride, channel_stride, inner_stride, COLUMNS: tl.constexpr):
    if COLUMNS:
        return base_ptr + i * row_stride + j * inner_stride
    else:
        return base_ptr + i * row_stride + channel * channel_stride + j * inner_stride


@triton.jit
def total(x, COLUMNS: tl.constexpr):
    """The sum over the values of each channel of a tile."""
    if COLUMNS:
        return tl.sum(x, axis=0, keep_dims=True)
    else:
        return tl.sum(tl.sum(x, axis=1), axis=0)


@triton.jit
def nothing(DTYPE: tl.constexpr, COLUMNS: tl.constexpr, B: tl.constexpr):
    """Zero for each channel."""
    if COLUMNS:
        return tl.zeros([1, B], DTYPE)
    else:
        return tl.cast(0.0, DTYPE)


@triton.jit
def statistics(mean_ptr, var_ptr, channel, eps_bits, ACC: tl.constexpr):
    """mean as a sum of two numbers (x - mean keeps its last places), and invstd."""
    mean = tl.load(mean_ptr + channel)
    invstd = (1.0 / tl.sqrt(tl.load(var_ptr + channel) + double_of(eps_bits))).to(ACC)
    high = mean.to(ACC)
    return high, (mean - high.to(tl.float64)).to(ACC), invstd


@triton.jit
def parameter(ptr, channel, default: tl.constexpr, ACC: tl.constexpr):
    if ptr is None:
        return tl.cast(channel * 0 + default, ACC)
    else:
        return tl.load(ptr + channel).to(ACC)


@triton.jit
def affine(deviation, scale, bias):
    """z without residual. Forward and backward share it, to the bit: the ReLU's mask is computed again."""
    return tl.fma(deviation, tl.broadcast_to(scale, deviation.shape), tl.broadcast_to(bias, deviation.shape))


@triton.jit
def gradient_of_z(grad, deviation, scale, bias, output, GRADIENT: tl.constexpr):
    """gz. GRADIENT says what it is read from: 0 linear, 1 ReLU of the input, 2 ReLU's output, 3 sigmoid's output."""
    if GRADIENT == 1:
        return tl.where(affine(deviation, scale, bias) <= 0.0, 0.0, grad)
    elif GRADIENT == 2:
        return tl.where(output <= 0.0, 0.0, grad)
    elif GRADIENT == 3:
        return grad * output * (1.0 - output)
    else:
        return grad


# ---- statistics


@triton.jit
def batch_norm_stats_kernel(
    input_ptr,
    partial_ptr,  # [3, splits, channels] float64: number of values, mean, sum of squared deviations
    outer,  # of i: values of a channel (columns) or batch entries (rows)
    length,  # of j where not COLUMNS: positions
    channels,
    tiles,
    tiles_per_split,
    splits,
    inner_blocks,  # tiles across j where not COLUMNS
    row_stride,
    channel_stride,
    inner_stride,
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    split = tl.program_id(0) % splits
    channel_block = tl.program_id(0) // splits
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tiles)

    # a first estimate of the mean, from the first tile
    i, j, channel, j_inside = tile_at(first, channel_block, length, channels, inner_blocks, COLUMNS, A, B)
    inside = (i < outer) & j_inside
    at = pointers(input_ptr, i, j, channel, row_stride, channel_stride, inner_stride, COLUMNS)
    x = tl.load(at, mask=inside, other=0.0).to(ACC)
    number = tl.maximum(total(inside.to(ACC), COLUMNS), 1.0)
    mean = (total(x, COLUMNS) / number).to(tl.float64)
    squares = nothing(tl.float64, COLUMNS, B)
    count = nothing(tl.float64, COLUMNS, B)
    for tile in range(first, last):
        i, j, channel, j_inside = tile_at(tile, channel_block, length, channels, inner_blocks, COLUMNS, A, B)
        inside = (i < outer) & j_inside
        at = pointers(input_ptr, i, j, channel, row_stride, channel_stride, inner_stride, COLUMNS)
        x = tl.load(at, mask=inside, other=0.0).to(ACC)
        center = mean.to(ACC)
        deviation = tl.where(inside, x - center, 0.0)
        values = total(inside.to(ACC), COLUMNS).to(tl.float64)
        # sums around the mean itself: center differs from it by the rounding to ACC
        delta = mean - center.to(tl.float64)
        sum1 = total(deviation, COLUMNS).to(tl.float64)
        sum2 = total(deviation * deviation, COLUMNS).to(tl.float64)
        sum2 = sum2 - 2.0 * delta * sum1 + values * delta * delta
        sum1 = sum1 - values * delta
        count += values
        safe = tl.maximum(count, 1.0)
        squares += sum2 - sum1 * sum1 / safe
        mean += sum1 / safe
    at = partial_ptr + split * channels + channel
    step = tl.cast(splits, tl.int64) * channels
    stored = (j < channels) if COLUMNS else channel < channels
    tl.store(at, count, mask=stored)
    tl.store(at + step, mean, mask=stored)
    tl.store(at + 2 * step, squares, mask=stored)


@triton.jit
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
    at = partial_ptr + split * channels + channel
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


@triton.jit
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
    new = (1.0 - momentum) * old + momentum * batch
    if running_ptr.dtype.element_ty != tl.float64:
        new = new.to(tl.float32)  # on the way to a half type
    tl.store(running_ptr, new.to(running_ptr.dtype.element_ty), mask=inside)


# ---- application


@triton.jit
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
    inner_blocks,
    input_strides,  # tuples (row, channel, inner)
    residual_strides,
    output_strides,
    eps_bits,
    ACTIVATION: tl.constexpr,  # 0 none, 1 ReLU, 2 sigmoid
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    # rows: all tiles of a channel, then the next channel; columns: neighbouring channels of the same rows
    if COLUMNS:
        blocks = tl.cdiv(channels, B)
        tile, channel_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    else:
        channel_block, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i, j, channel, j_inside = tile_at(tile, channel_block, length, channels, inner_blocks, COLUMNS, A, B)
    inside = (i < outer) & j_inside
    mean_high, mean_low, invstd = statistics(mean_ptr, var_ptr, channel, eps_bits, ACC)
    scale = invstd * parameter(weight_ptr, channel, 1.0, ACC)
    bias = parameter(bias_ptr, channel, 0.0, ACC)
    at = pointers(input_ptr, i, j, channel, input_strides[0], input_strides[1], input_strides[2], COLUMNS)
    x = tl.load(at, mask=inside).to(ACC)
    z = affine(x - mean_high - mean_low, scale, bias)
    if residual_ptr is not None:
        at = pointers(
            residual_ptr, i, j, channel, residual_strides[0], residual_strides[1], residual_strides[2], COLUMNS
        )
        z += tl.load(at, mask=inside).to(ACC)
    if ACTIVATION == 1:
        z = tl.where(z <= 0.0, 0.0, z)
    elif ACTIVATION == 2:
        z = 1.0 / (1.0 + tl.exp(-z))
    at = pointers(output_ptr, i, j, channel, output_strides[0], output_strides[1], output_strides[2], COLUMNS)
    tl.store(at, z.to(output_ptr.dtype.element_ty), mask=inside)


# ---- backward


@triton.jit
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
    ACC: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    split = tl.program_id(0) % splits
    channel_block = tl.program_id(0) // splits
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tiles)
    i, j, channel, j_inside = tile_at(first, channel_block, length, channels, inner_blocks, COLUMNS, A, B)
    mean_high, mean_low, invstd = statistics(mean_ptr, var_ptr, channel, eps_bits, ACC)
    scale = invstd * parameter(weight_ptr, channel, 1.0, ACC)
    bias = parameter(bias_ptr, channel, 0.0, ACC)
    sum_grad = nothing(ACC, COLUMNS, B)
    sum_grad_xhat = nothing(ACC, COLUMNS, B)
    for tile in range(first, last):
        i, j, channel, j_inside = tile_at(tile, channel_block, length, channels, inner_blocks, COLUMNS, A, B)
        inside = (i < outer) & j_inside
        at = pointers(grad_output_ptr, i, j, channel, grad_strides[0], grad_strides[1], grad_strides[2], COLUMNS)
        grad = tl.load(at, mask=inside, other=0.0).to(ACC)
        at = pointers(input_ptr, i, j, channel, input_strides[0], input_strides[1], input_strides[2], COLUMNS)
        deviation = tl.load(at, mask=inside, other=0.0).to(ACC) - mean_high - mean_low
        output = grad
        if GRADIENT >= 2:
            at = pointers(output_ptr, i, j, channel, output_strides[0], output_strides[1], output_strides[2], COLUMNS)
            output = tl.load(at, mask=inside, other=0.0).to(ACC)
        gz = gradient_of_z(grad, deviation, scale, bias, output, GRADIENT)
        sum_grad += total(gz, COLUMNS)
        sum_grad_xhat += total(gz * tl.where(inside, deviation, 0.0), COLUMNS)
    at = partial_ptr + split * channels + channel
    stored = (j < channels) if COLUMNS else channel < channels
    tl.store(at, sum_grad, mask=stored)
    tl.store(at + tl.cast(splits, tl.int64) * channels, sum_grad_xhat * invstd, mask=stored)


@triton.jit
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
    at = partial_ptr + split * channels + channel
    grad = tl.load(at, mask=inside, other=0.0).to(tl.float64)
    grad_xhat = tl.load(at + tl.cast(splits, tl.int64) * channels, mask=inside, other=0.0).to(tl.float64)
    sum_grad = tl.sum(grad, axis=0, keep_dims=True)
    sum_grad_xhat = tl.sum(grad_xhat, axis=0, keep_dims=True)
    tl.store(sum_grad_ptr + channel, sum_grad, mask=channel < channels)
    tl.store(sum_grad_xhat_ptr + channel, sum_grad_xhat, mask=channel < channels)
    if grad_weight_ptr is not None:
        store_parameter(grad_weight_ptr + channel, sum_grad_xhat, channel < channels)
    if grad_bias_ptr is not None:
        store_parameter(grad_bias_ptr + channel, sum_grad, channel < channels)


@triton.jit
def store_parameter(ptr, value, inside):
    if ptr.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)  # on the way to a half type
    tl.store(ptr, value.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
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
    grad_residual_ptr,  # or None
    outer,
    length,
    channels,
    tiles,
    inner_blocks,
    grad_strides,
    input_strides,
    output_strides,
    grad_input_strides,
    eps_bits,
    count_bits,  # values of a channel
    GRADIENT: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    if COLUMNS:
        blocks = tl.cdiv(channels, B)
        tile, channel_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    else:
        channel_block, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i, j, channel, j_inside = tile_at(tile, channel_block, length, channels, inner_blocks, COLUMNS, A, B)
    inside = (i < outer) & j_inside
    mean_high, mean_low, invstd = statistics(mean_ptr, var_ptr, channel, eps_bits, ACC)
    scale = invstd * parameter(weight_ptr, channel, 1.0, ACC)
    bias = parameter(bias_ptr, channel, 0.0, ACC)
    at = pointers(grad_output_ptr, i, j, channel, grad_strides[0], grad_strides[1], grad_strides[2], COLUMNS)
    grad = tl.load(at, mask=inside).to(ACC)
    deviation = tl.zeros([A, B], ACC)
    if GRADIENT == 1 or sum_grad_ptr is not None:
        at = pointers(input_ptr, i, j, channel, input_strides[0], input_strides[1], input_strides[2], COLUMNS)
        deviation = tl.load(at, mask=inside).to(ACC) - mean_high - mean_low
    output = grad
    if GRADIENT >= 2:
        at = pointers(output_ptr, i, j, channel, output_strides[0], output_strides[1], output_strides[2], COLUMNS)
        output = tl.load(at, mask=inside).to(ACC)
    gz = gradient_of_z(grad, deviation, scale, bias, output, GRADIENT)
    # grad_input and grad_residual have one layout
    target = pointers(
        0, i, j, channel, grad_input_strides[0], grad_input_strides[1],
        grad_input_strides[2], COLUMNS,
    )  # fmt: skip
    if grad_residual_ptr is not None:
        tl.store(grad_residual_ptr + target, gz.to(grad_residual_ptr.dtype.element_ty), mask=inside)
    if grad_input_ptr is not None:
        if sum_grad_ptr is not None:
            count = double_of(count_bits)
            mean_grad = (tl.load(sum_grad_ptr + channel) / count).to(ACC)
            slope = (tl.load(sum_grad_xhat_ptr + channel) / count).to(ACC) * invstd
            gz = gz - mean_grad - deviation * slope
        tl.store(grad_input_ptr + target, (scale * gz).to(grad_input_ptr.dtype.element_ty), mask=inside)


# ---- launchers


@dataclass(frozen=True)
class Walk:
    """How the kernels walk a tensor of input's shape and format."""

    shape: torch.Size
    format: torch.memory_format
    columns: bool
    outer: int
    length: int
    channels: int

    @staticmethod
    def of(input):
        if input.dim() < 2:
            raise RuntimeError(
                f"batch_norm: expected input to have at least 2 dimensions (N, C, ...), got shape {tuple(input.shape)}"
            )
        format = torch._prims_common.suggest_memory_format(input)
        batch, channels, *spatial = input.shape
        positions = math.prod(spatial)
        columns = format != torch.contiguous_format or positions == 1
        outer, length = (batch * positions, 1) if columns else (batch, positions)
        return Walk(input.shape, format, columns, outer, length, channels)

    def empty(self, like):
        """A tensor of this shape and format."""
        return torch.empty_like(like, memory_format=self.format)

    def strides(self, t):
        """(row, channel, inner) of ``t``, or None where the kernels cannot walk it."""
        if self.columns:
            dims = [0, *range(2, t.dim())]
            _, strides = merged_dims([t.size(d) for d in dims], [t.stride(d) for d in dims])
            return (strides[0], 0, t.stride(1)) if len(strides) == 1 else None
        dims = range(2, t.dim())
        _, strides = merged_dims([t.size(d) for d in dims], [t.stride(d) for d in dims])
        return (t.stride(0), t.stride(1), strides[0]) if len(strides) == 1 else None

    def read(self, what, t, input):
        """``t``, or a copy that the kernels can walk, and its strides."""
        if t is None:
            return None, (0, 0, 0)
        if t.shape != self.shape:
            raise RuntimeError(
                f"batch_norm: expected {what} to have input's shape {tuple(self.shape)}, got {tuple(t.shape)}"
            )
        if t.dtype != input.dtype:
            raise RuntimeError(f"batch_norm: expected {what} to have input's dtype, got {t.dtype}")
        strides = self.strides(t)
        if strides is None:
            t = self.empty(input).copy_(t)
            strides = self.strides(t)
        return t, strides

    def tile(self, elements, acc, device):
        """A, B, how many tiles there are along i and j, and how many blocks of channels."""
        if acc == tl.float64:
            elements //= 4
        if 0 < device.capability < 80:  # larger tiles spill
            elements //= 2
        if self.columns:
            b = min(power_of_2(self.channels), 64)
            a = min(max(elements // b, 1), power_of_2(self.outer))
            return a, b, triton.cdiv(self.outer, a), 1, triton.cdiv(self.channels, b)
        b = min(power_of_2(self.length), 1024, elements)
        a = min(max(elements // b, 1), power_of_2(self.outer))
        return a, b, triton.cdiv(self.outer, a), triton.cdiv(self.length, b), self.channels


SPLITS = 512  # the most that a join kernel takes


def _split(tiles, blocks, like):
    """Into how many programs the tiles of a block of channels are split, and how many each takes."""
    wanted = triton.cdiv(4 * device_of(like).multiprocessors, blocks)
    each = triton.cdiv(tiles, min(wanted, tiles, SPLITS))
    return triton.cdiv(tiles, each), each


def _parameters(input, **tensors):
    """The parameters, contiguous, and their dtype."""
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
    a, b, outer_tiles, inner_tiles, blocks = walk.tile(4096, acc, device_of(input))
    tiles = outer_tiles * inner_tiles
    splits, each = _split(tiles, blocks, input)
    partial = input.new_empty((3, splits, walk.channels), dtype=torch.float64)
    launch(
        batch_norm_stats_kernel, splits * blocks, input, input, partial, walk.outer, walk.length, walk.channels, tiles,
        each, splits, inner_tiles, *strides, COLUMNS=walk.columns, ACC=acc, A=a, B=b, num_warps=4,
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
    a, b, outer_tiles, inner_tiles, blocks = walk.tile(2048, acc, device_of(input))
    tiles = outer_tiles * inner_tiles
    launch(
        batch_norm_apply_kernel, tiles * blocks, input, input, residual, output, mean, var, weight, bias, walk.outer,
        walk.length, walk.channels, tiles, inner_tiles, input_strides, residual_strides, walk.strides(output),
        double_bits(eps), ACTIVATION=activation, COLUMNS=walk.columns, ACC=acc, A=a, B=b, num_warps=4,
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
    a, b, outer_tiles, inner_tiles, blocks = walk.tile(2048, acc, device_of(input))
    tiles = outer_tiles * inner_tiles
    splits, each = _split(tiles, blocks, input)
    kept = torch.float64 if acc == tl.float64 else torch.float32
    partial = input.new_empty((2, splits, walk.channels), dtype=kept)
    launch(
        batch_norm_backward_reduce_kernel, splits * blocks, input, grad_output, input, output, mean, var, weight, bias,
        partial, walk.outer, walk.length, walk.channels, tiles, each, splits, inner_tiles, grad_strides, input_strides,
        output_strides, double_bits(eps), GRADIENT=gradient, COLUMNS=walk.columns, ACC=acc, A=a, B=b, num_warps=4,
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
    a, b, outer_tiles, inner_tiles, blocks = walk.tile(2048, acc, device_of(input))
    tiles = outer_tiles * inner_tiles
    target_strides = walk.strides(grad_input if need_input else grad_residual)
    launch(
        batch_norm_backward_apply_kernel, tiles * blocks, input, grad_output, input, output, mean, var, weight, bias,
        *sums, grad_input if need_input else None, grad_residual if need_residual else None, walk.outer, walk.length,
        walk.channels, tiles, inner_tiles, grad_strides, input_strides, output_strides, target_strides,
        double_bits(eps), double_bits(count), GRADIENT=gradient, COLUMNS=walk.columns, ACC=acc, A=a, B=b, num_warps=4,
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
