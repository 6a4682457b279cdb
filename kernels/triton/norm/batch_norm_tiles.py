"""How the batch norm kernels walk their tensors.

Two walks, of tiles [A, B], serve every layout. columns (channels_last, and (N, C)): A values of B channels. rows
(N, C, spatial): one channel, A batch entries by B positions. What belongs to a channel is [1, B], or a scalar.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ..arithmetic import double_of, multiple
from ..launch import Device, device_of, merged_dims, power_of_2, require_device, unit_of

# ---- device functions


@triton.jit
def channels_of(channel_block, channels, COLUMNS: tl.constexpr, B: tl.constexpr):
    """The channels of a tile, and which of them are inside."""
    if COLUMNS:
        channel = tl.cast(channel_block, tl.int64) * B + tl.arange(0, B)[None, :]
        return tl.minimum(channel, channels - 1), channel < channels
    else:
        channel = tl.cast(channel_block, tl.int64)
        return channel, channel < channels


@triton.jit
def tile_at(
    tile,
    channel_block,
    outer,  # of i: values of a channel (columns) or batch entries (rows)
    length,  # of j where not COLUMNS: positions
    channels,
    inner_blocks,  # tiles across j where not COLUMNS
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,  # divides the positions, or the channels of columns, and every stride but the inner one
    A: tl.constexpr,
    B: tl.constexpr,
):
    """Indices i [A, 1] and j [1, B] of a tile, and what is inside."""
    if COLUMNS:
        i = tl.cast(tile, tl.int64) * A + tl.arange(0, A)[:, None]
        j = tl.cast(channel_block, tl.int64) * B + tl.arange(0, B)[None, :]
        return i, j, (i < outer) & (j < multiple(channels, UNIT))
    else:
        i = tl.cast(tile // inner_blocks, tl.int64) * A + tl.arange(0, A)[:, None]
        j = tl.cast(tile % inner_blocks, tl.int64) * B + tl.arange(0, B)[None, :]
        return i, j, (i < outer) & (j < multiple(length, UNIT))


@triton.jit
def values_of(tile, outer, length, inner_blocks, COLUMNS: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """How many values of each of its channels a tile has, as a float64."""
    if COLUMNS:
        values = tl.minimum(outer - tl.cast(tile, tl.int64) * A, A)
    else:
        values = tl.minimum(outer - tl.cast(tile // inner_blocks, tl.int64) * A, A)
        values = values * tl.minimum(length - tl.cast(tile % inner_blocks, tl.int64) * B, B)
    return values.to(tl.float64)


@triton.jit
def pointers(base_ptr, i, j, channel, strides, COLUMNS: tl.constexpr, UNIT: tl.constexpr):
    """The elements of a tile; strides are (row, channel, inner)."""
    if COLUMNS:
        return base_ptr + i * multiple(strides[0], UNIT) + j * strides[2]
    else:
        return base_ptr + i * multiple(strides[0], UNIT) + channel * multiple(strides[1], UNIT) + j * strides[2]


@triton.jit
def total(x, COLUMNS: tl.constexpr):
    """The sum over the values of each channel of a tile."""
    if COLUMNS:
        return tl.sum(x, axis=0, keep_dims=True)
    else:
        return tl.sum(x)


@triton.jit
def nothing(DTYPE: tl.constexpr, COLUMNS: tl.constexpr, B: tl.constexpr):
    """Zero for each channel."""
    if COLUMNS:
        return tl.zeros([1, B], DTYPE)
    else:
        return tl.cast(0.0, DTYPE)


@triton.jit
def statistics(mean_ptr, var_ptr, channel, eps_bits, ACC: tl.constexpr):
    """mean as a sum of two numbers (x - mean keeps its last places), and invstd.

    Each program computes them anew for its channels, so the root and the quotient are of ACC: in float64 they alone
    would hold channels_last to half the memory's bandwidth.
    """
    mean = tl.load(mean_ptr + channel)
    var = (tl.load(var_ptr + channel) + double_of(eps_bits)).to(ACC)
    invstd = 1.0 / (tl.sqrt(var) if tl.float64 == ACC else tl.sqrt_rn(var))
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
def rounded(value, ptr):
    """A float64 in the type that ``ptr`` points to, by way of float32 for the half types."""
    if ptr.dtype.element_ty == tl.float64:
        return value
    else:
        return value.to(tl.float32).to(ptr.dtype.element_ty)


# ---- what the launchers choose


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
        dims = [0, *range(2, t.dim())] if self.columns else range(2, t.dim())
        _, strides = merged_dims([t.size(d) for d in dims], [t.stride(d) for d in dims])
        if len(strides) != 1:
            return None
        return (strides[0], 0, t.stride(1)) if self.columns else (t.stride(0), t.stride(1), strides[0])

    def read(self, what, t, input):
        """``t``, or a copy that the kernels can walk, and its strides."""
        if t is None:
            return None, (0, 0, 0)
        if t.shape != self.shape:
            raise RuntimeError(
                f"batch_norm: expected {what} to have input's shape {tuple(self.shape)}, got {tuple(t.shape)}"
            )
        require_device("batch_norm", "input", input, **{what: t})
        if t.dtype != input.dtype:
            raise RuntimeError(f"batch_norm: expected {what} to have input's dtype, got {t.dtype}")
        strides = self.strides(t)
        if strides is None:
            t = self.empty(input).copy_(t)
            strides = self.strides(t)
        return t, strides

    def unit(self, *strides):
        """What divides the end of a row and the strides of the tensors that are walked together."""
        end = self.channels if self.columns else self.length
        return unit_of(end, *(step for row, channel, _ in strides for step in (row, channel)))

    def tiles(self, elements, acc, like):
        """The tiles of about ``elements`` for the device of ``like``."""
        device = device_of(like)
        if acc == tl.float64:
            elements //= 4
        if 0 < device.capability < 80:  # larger tiles spill
            elements //= 2
        if self.columns:
            b = min(power_of_2(self.channels), 64)
            blocks, inner = triton.cdiv(self.channels, b), 1
        else:
            b = min(power_of_2(self.length), 1024, elements)
            blocks, inner = self.channels, triton.cdiv(self.length, b)
        a = min(max(elements // b, 1), power_of_2(self.outer))
        return Tiles(a, b, triton.cdiv(self.outer, a) * inner, inner, blocks, device)


@dataclass(frozen=True)
class Tiles:
    """Tiles [a, b]: how many each block of channels has, and how they are shared out to programs."""

    a: int
    b: int
    count: int
    inner: int  # of them side by side
    blocks: int
    device: Device

    MOST = 512  # pieces of a channel: what a joining kernel takes

    def split(self, resident):
        """For a reduction: into how many pieces a block's tiles are split, and how many tiles each has.

        As many programs as are ``resident`` on each multiprocessor at a time, whatever the number of channels.
        """
        wanted = triton.cdiv(resident * self.device.multiprocessors, self.blocks)
        each = triton.cdiv(self.count, min(wanted, self.count, self.MOST))
        return triton.cdiv(self.count, each), each

    def registers(self, resident):
        """The option that gives each its share of the registers: left alone, ptxas may aim at fewer and spill."""
        return {"maxnreg": 65536 // (128 * resident) // 8 * 8} if self.device.capability else {}

    def share(self):
        """The same for an application: up to four tiles to a program, which loads its channels' numbers once."""
        each = max(min(self.count, 4, self.count * self.blocks // (16 * self.device.multiprocessors)), 1)
        return triton.cdiv(self.count, each), each
