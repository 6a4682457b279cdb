"""What the convolution's kernels share: how they walk pixels and channels, and the tile of a matrix product.

LAST orients every tile: channels along the lanes for channels_last, pixels for NCHW, so that both are read in order.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ..launch import power_of_2

# ---- device functions


@triton.jit
def down(n: tl.constexpr, LAST: tl.constexpr):
    """0 .. n - 1 along pixels: [n, 1] where channels are last, else [1, n]."""
    if LAST:
        return tl.arange(0, n)[:, None]
    else:
        return tl.arange(0, n)[None, :]


@triton.jit
def across(n: tl.constexpr, LAST: tl.constexpr):
    """0 .. n - 1 along channels: [1, n] where channels are last, else [n, 1]."""
    if LAST:
        return tl.arange(0, n)[None, :]
    else:
        return tl.arange(0, n)[:, None]


@triton.jit
def zeros(pixels: tl.constexpr, channels: tl.constexpr, LAST: tl.constexpr, DTYPE: tl.constexpr):
    if LAST:
        return tl.zeros([pixels, channels], DTYPE)
    else:
        return tl.zeros([channels, pixels], DTYPE)


@triton.jit
def pixel_of(index, height, width):
    """(image, y, x) of a pixel's index: image in 64 bits, y and x in 32."""
    x = index % width
    rest = index // width
    return (rest // height).to(tl.int64), (rest % height).to(tl.int32), x.to(tl.int32)


@triton.jit
def pixel_offset(image, y, x, strides):
    """The offset of a pixel's first channel in a tensor of ``strides`` (N, C, H, W)."""
    return image * strides[0] + y.to(tl.int64) * strides[2] + x.to(tl.int64) * strides[3]


@triton.jit
def within(y, x, height, width):
    """Whether (y, x) is a pixel of the image; outside lies the padding."""
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def store_result(
    result_ptr,
    bias_ptr,  # [channels], or None
    sums,
    image,
    y,
    x,
    channel,  # in 64 bits
    pixel_inside,
    channel_inside,
    strides,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
):
    """Stores act(sums + bias)."""
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + channel, mask=channel_inside, other=0.0).to(ACC)
    if ACTIVATION == "relu":
        sums = tl.where(sums <= 0.0, 0.0, sums)
    elif ACTIVATION == "sigmoid":
        sums = 1.0 / (1.0 + tl.exp(-sums))
    at = result_ptr + pixel_offset(image, y, x, strides) + channel * strides[1]
    tl.store(at, sums.to(result_ptr.dtype.element_ty), mask=pixel_inside & channel_inside)


# ---- the choice of tiles


@dataclass(frozen=True)
class Tile:
    """Rows, columns and terms of a matrix product's tile, and how it is run.

    Rows are pixels in the forward and the input gradient, output channels in the weight gradient.
    """

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int


def precision_of(dtype, device):
    """How float32 operands are rounded: torch's own switch, where the device can."""
    return "tf32" if dtype == torch.float32 and device.tf32 and torch.backends.cudnn.allow_tf32 else "ieee"


def is_flat(depth):
    """Whether so few channels are summed that a block should cover several taps."""
    return depth < 32 and depth != 16


def tile_of(m, n, copies, dtype, device, precision, last, flat):
    """The tile of ``copies`` products of m rows and n columns.

    Chosen by dtype, by what the device holds, and by whether large tiles would leave multiprocessors idle.

    Channels-last operands are read 16 bytes at a time; in NCHW, and where a block covers several taps (flat), each
    element has an address of its own, and the registers that these take bound the tile.
    """
    if dtype == torch.float64:
        return Tile(32, 32, 16, 4, 1)
    columns = min(max(power_of_2(n), 16), 128)
    if 0 < device.capability < 80:  # Triton multiplies without tensor cores here
        return Tile(32, min(columns, 32), 16, 4, 1)
    if dtype == torch.float32 and precision == "ieee":
        # no tensor core: sums and operands share the registers
        return Tile(64, min(columns, 64), 16, 8 if device.capability >= 100 or not device.tf32 else 4, 2)
    k = 32 if dtype == torch.float32 else 64  # 128 bytes
    if flat:
        return Tile(64, min(columns, 32 if dtype == torch.float32 else 64), k // 2, 4, 2)
    if device.capability == 0:  # AMD: 64 KB of shared memory, and larger tiles spill
        return Tile(64, min(columns, 64), k // 2, 4, 2)
    wide = device.shared_bytes >= 160 << 10  # not on consumer cards, sm_120 included, which have 99 KB
    stages = 3 if wide else 2
    if not last:
        return Tile(64, min(columns, 64), k // 2, 4, stages)
    if not wide:
        k //= 2
    rows = 128 if m > 64 else 64
    if copies * triton.cdiv(m, rows) * triton.cdiv(n, columns) < device.multiprocessors:
        rows = 64
        if copies * triton.cdiv(m, rows) * triton.cdiv(n, columns) < device.multiprocessors:
            columns = min(columns, 64)
    # what 4 warps hold without spilling: Hopper reads operands from shared memory, the others from registers
    held = 128 * 64 if device.capability == 90 else 64 * 64 if device.capability < 90 else 0
    return Tile(rows, columns, k, 8 if rows * columns > held else 4, stages)
