"""2-D convolution, forward and both gradients. The formulas are kernels/conv2d.h's.

Forward and input gradient are one implicit matrix product: a row is a pixel of the result, a column one of its
channels, and the sum runs over taps of the kernel and channels of the source, whose tiles are gathered where they lie,
in either memory format; nothing is unfolded and padding is never materialised. Both are told apart by how a pixel q of
the result and a tap t name a pixel of the source: q * stride + offset + t * step. The input gradient of a strided
convolution is one launch for each residue of the pixel modulo the stride, over those taps alone that reach it, so no
product with zero is computed.

The weight gradient sums over pixels. It is split over as many programs as fill the GPU; each leaves a partial result,
and a second kernel adds them in a fixed order.

Sums are kept in float32 (float64 for float64). bfloat16 and float16 run on tensor cores, float32 too where torch's own
switch (torch.backends.cudnn.allow_tf32) allows tf32. Groups of few channels, depthwise ones among them, would waste
the tensor cores: they are summed directly, lane by lane.

LAST orients every tile: channels along the lanes for channels_last, pixels for NCHW, so that both are read in order.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .launch import ACCUMULATE, device_of, launch, power_of_2

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
def pixel_of(index, height, width):
    """(image, y, x) of a pixel's index."""
    x = index % width
    rest = index // width
    return rest // height, rest % height, x


@triton.jit
def activated(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where(z <= 0.0, 0.0, z)
    elif ACTIVATION == "sigmoid":
        return 1.0 / (1.0 + tl.exp(-z))
    else:
        return z


# ---- forward and input gradient


@triton.jit
def conv2d_gather_kernel(
    source_ptr,  # (N, groups * depth, source height, source width)
    weight_ptr,
    bias_ptr,  # [groups * columns], or None
    result_ptr,  # (N, groups * columns, result height, result width)
    pixels,  # N * rows * lines: those of the result that this launch computes
    rows,
    lines,
    depth,  # source channels of a group
    columns,  # result channels of a group
    source_height,
    source_width,
    taps,  # that reach these pixels, y and x
    taps_x,
    source_strides,  # (N, C, H, W)
    result_strides,  # (N, C, H, W); H and W between neighbouring pixels of this launch
    weight_strides,  # (group, depth, column, tap y, tap x)
    stride_y,
    stride_x,
    offset_y,
    offset_x,
    step_y,
    step_x,
    ACTIVATION: tl.constexpr,
    FLAT: tl.constexpr,  # few channels: a block of the sum covers several taps
    LAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BP: tl.constexpr,  # pixels, columns and terms of the sum in a tile
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    column_blocks = tl.cdiv(columns, BC)
    pixel_blocks = tl.cdiv(pixels, BP)
    # neighbouring programs share a tile of the source
    column_block = tl.program_id(0) % column_blocks
    pixel_block = (tl.program_id(0) // column_blocks) % pixel_blocks
    group = (tl.program_id(0) // column_blocks // pixel_blocks).to(tl.int64)

    pixel = pixel_block.to(INDEX) * BP + down(BP, LAST)
    pixel_inside = pixel < pixels
    image, y, x = pixel_of(pixel, rows, lines)
    image = image.to(tl.int64)
    column = column_block * BC + across(BC, LAST)
    column_inside = column < columns

    source_y = y.to(tl.int32) * stride_y + offset_y
    source_x = x.to(tl.int32) * stride_x + offset_x
    source_base = (
        source_ptr
        + group * depth * source_strides[1]
        + image * source_strides[0]
        + source_y.to(tl.int64) * source_strides[2]
        + source_x.to(tl.int64) * source_strides[3]
    )
    weight_base = weight_ptr + group * weight_strides[0] + column.to(tl.int64) * weight_strides[2]
    # terms of the sum: along the lanes of the source's tile, across those of the weight's
    source_k = across(BK, LAST)
    weight_k = down(BK, LAST)
    sums = tl.zeros([BP, BC], ACC) if LAST else tl.zeros([BC, BP], ACC)
    if FLAT:
        for start in range(0, taps * depth, BK):
            term = start + source_k
            tap, channel = term // depth, term % depth
            tap_y, tap_x = tap // taps_x, tap % taps_x
            at_y = source_y + tap_y * step_y
            at_x = source_x + tap_x * step_x
            inside = pixel_inside & (term < taps * depth)
            inside = inside & (at_y >= 0) & (at_y < source_height) & (at_x >= 0) & (at_x < source_width)
            offset = channel.to(tl.int64) * source_strides[1]
            offset += (tap_y * step_y).to(tl.int64) * source_strides[2]
            offset += (tap_x * step_x).to(tl.int64) * source_strides[3]
            s = tl.load(source_base + offset, mask=inside, other=0.0)
            term = start + weight_k
            tap, channel = term // depth, term % depth
            offset = channel.to(tl.int64) * weight_strides[1]
            offset += (tap // taps_x).to(tl.int64) * weight_strides[3] + (tap % taps_x).to(tl.int64) * weight_strides[4]
            w = tl.load(weight_base + offset, mask=column_inside & (term < taps * depth), other=0.0)
            if LAST:
                sums = tl.dot(s, w, sums, input_precision=PRECISION, out_dtype=ACC)
            else:
                sums = tl.dot(w, s, sums, input_precision=PRECISION, out_dtype=ACC)
    else:
        blocks = tl.cdiv(depth, BK)
        source_lanes = source_k.to(tl.int64) * source_strides[1]
        weight_lanes = weight_k.to(tl.int64) * weight_strides[1]
        for step in range(0, taps * blocks):
            tap = step // blocks
            first = (step % blocks) * BK
            tap_y, tap_x = tap // taps_x, tap % taps_x
            at_y = source_y + tap_y * step_y
            at_x = source_x + tap_x * step_x
            inside = pixel_inside & (at_y >= 0) & (at_y < source_height) & (at_x >= 0) & (at_x < source_width)
            offset = tl.cast(tap_y * step_y, tl.int64) * source_strides[2]
            offset += tl.cast(tap_x * step_x, tl.int64) * source_strides[3]
            offset += tl.cast(first, tl.int64) * source_strides[1]
            s = tl.load((source_base + offset) + source_lanes, mask=inside & (source_k < depth - first), other=0.0)
            offset = tl.cast(tap_y, tl.int64) * weight_strides[3] + tl.cast(tap_x, tl.int64) * weight_strides[4]
            offset += tl.cast(first, tl.int64) * weight_strides[1]
            w = tl.load(
                (weight_base + offset) + weight_lanes, mask=column_inside & (weight_k < depth - first), other=0.0
            )
            if LAST:
                sums = tl.dot(s, w, sums, input_precision=PRECISION, out_dtype=ACC)
            else:
                sums = tl.dot(w, s, sums, input_precision=PRECISION, out_dtype=ACC)
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + group * columns + column, mask=column_inside, other=0.0).to(ACC)
    target = (
        result_ptr
        + image * result_strides[0]
        + y.to(tl.int64) * result_strides[2]
        + x.to(tl.int64) * result_strides[3]
        + (group * columns + column) * result_strides[1]
    )
    tl.store(target, activated(sums, ACTIVATION).to(result_ptr.dtype.element_ty), mask=pixel_inside & column_inside)


@triton.jit
def conv2d_gather_direct_kernel(
    source_ptr,
    weight_ptr,
    bias_ptr,
    result_ptr,
    pixels,
    rows,
    lines,
    depth,
    columns,
    channels,  # groups * columns
    source_height,
    source_width,
    taps,
    taps_x,
    source_strides,
    result_strides,
    weight_strides,
    stride_y,
    stride_x,
    offset_y,
    offset_x,
    step_y,
    step_x,
    ACTIVATION: tl.constexpr,
    LAST: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """The same, without matrix products: a lane for each pixel and channel. For groups of few channels."""
    blocks = tl.cdiv(channels, BC)
    pixel = (tl.program_id(0) // blocks).to(INDEX) * BP + down(BP, LAST)
    pixel_inside = pixel < pixels
    image, y, x = pixel_of(pixel, rows, lines)
    image = image.to(tl.int64)
    channel = (tl.program_id(0) % blocks) * BC + across(BC, LAST)
    channel_inside = channel < channels
    group, column = (channel // columns).to(tl.int64), (channel % columns).to(tl.int64)
    source_y = y.to(tl.int32) * stride_y + offset_y
    source_x = x.to(tl.int32) * stride_x + offset_x
    source_base = (
        source_ptr
        + group * depth * source_strides[1]
        + image * source_strides[0]
        + source_y.to(tl.int64) * source_strides[2]
        + source_x.to(tl.int64) * source_strides[3]
    )
    weight_base = weight_ptr + group * weight_strides[0] + column * weight_strides[2]
    sums = tl.zeros([BP, BC], ACC) if LAST else tl.zeros([BC, BP], ACC)
    for step in range(0, taps * depth):
        tap = step // depth
        k = tl.cast(step % depth, tl.int64)
        tap_y, tap_x = tap // taps_x, tap % taps_x
        at_y = source_y + tap_y * step_y
        at_x = source_x + tap_x * step_x
        inside = (at_y >= 0) & (at_y < source_height) & (at_x >= 0) & (at_x < source_width)
        offset = tl.cast(tap_y * step_y, tl.int64) * source_strides[2]
        offset += tl.cast(tap_x * step_x, tl.int64) * source_strides[3] + k * source_strides[1]
        s = tl.load(source_base + offset, mask=inside & pixel_inside & channel_inside, other=0.0).to(ACC)
        offset = tl.cast(tap_y, tl.int64) * weight_strides[3] + tl.cast(tap_x, tl.int64) * weight_strides[4]
        w = tl.load(weight_base + offset + k * weight_strides[1], mask=channel_inside, other=0.0).to(ACC)
        sums += s * w
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + channel, mask=channel_inside, other=0.0).to(ACC)
    target = (
        result_ptr
        + image * result_strides[0]
        + y.to(tl.int64) * result_strides[2]
        + x.to(tl.int64) * result_strides[3]
        + channel.to(tl.int64) * result_strides[1]
    )
    tl.store(target, activated(sums, ACTIVATION).to(result_ptr.dtype.element_ty), mask=pixel_inside & channel_inside)


# ---- weight gradient


@triton.jit
def conv2d_weight_kernel(
    grad_ptr,  # (N, groups * rows, output height, output width)
    input_ptr,  # (N, groups * depth, input height, input width)
    partial_ptr,  # [splits, groups, rows, taps * depth]
    pixels,  # N * output height * output width
    pixels_per_split,  # a multiple of BK
    output_height,
    output_width,
    input_height,
    input_width,
    groups,
    rows,  # output channels of a group
    depth,  # input channels of a group
    taps,
    taps_x,
    grad_strides,  # (N, C, H, W)
    input_strides,
    stride_y,
    stride_x,
    pad_y,
    pad_x,
    dilation_y,
    dilation_x,
    FLAT: tl.constexpr,  # a block of columns covers several taps
    LAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BR: tl.constexpr,  # output channels, columns (taps and input channels) and pixels in a tile
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    row_blocks = tl.cdiv(rows, BR)
    depth_blocks = tl.cdiv(depth, BC)
    column_blocks = taps * depth_blocks
    if FLAT:
        column_blocks = tl.cdiv(taps * depth, BC)
    rest = tl.program_id(0)
    row_block = rest % row_blocks
    rest = rest // row_blocks
    column_block = rest % column_blocks
    rest = rest // column_blocks
    group = rest % groups
    split = rest // groups

    row = row_block * BR + across(BR, LAST)  # [1, BR] where channels are last
    row_inside = row < rows
    if FLAT:
        column = column_block * BC + across(BC, LAST)
        tap, channel = column // depth, column % depth
        column_inside = column < taps * depth
    else:
        tap = column_block // depth_blocks
        channel = (column_block % depth_blocks) * BC + across(BC, LAST)
        column_inside = channel < depth
    shift_y = (tap // taps_x) * dilation_y - pad_y
    shift_x = (tap % taps_x) * dilation_x - pad_x
    grad_base = grad_ptr + (group * rows + row).to(tl.int64) * grad_strides[1]
    input_base = input_ptr + (group * depth + channel).to(tl.int64) * input_strides[1]

    begin = split.to(INDEX) * pixels_per_split
    end = tl.minimum(begin + pixels_per_split, pixels)
    sums = tl.zeros([BR, BC], ACC)
    for start in range(begin, end, BK):
        pixel = start + down(BK, LAST)
        pixel_inside = pixel < end
        image, y, x = pixel_of(pixel, output_height, output_width)
        image = image.to(tl.int64)
        offset = image * grad_strides[0] + y.to(tl.int64) * grad_strides[2] + x.to(tl.int64) * grad_strides[3]
        g = tl.load(grad_base + offset, mask=pixel_inside & row_inside, other=0.0)
        at_y = y.to(tl.int32) * stride_y + shift_y
        at_x = x.to(tl.int32) * stride_x + shift_x
        inside = pixel_inside & column_inside
        inside = inside & (at_y >= 0) & (at_y < input_height) & (at_x >= 0) & (at_x < input_width)
        offset = image * input_strides[0] + at_y.to(tl.int64) * input_strides[2] + at_x.to(tl.int64) * input_strides[3]
        s = tl.load(input_base + offset, mask=inside, other=0.0)
        if LAST:
            sums = tl.dot(tl.trans(g), s, sums, input_precision=PRECISION, out_dtype=ACC)
        else:
            sums = tl.dot(g, tl.trans(s), sums, input_precision=PRECISION, out_dtype=ACC)
    row = row_block * BR + tl.arange(0, BR)[:, None]
    lane = tl.arange(0, BC)[None, :]
    if FLAT:
        place = column_block * BC + lane
        stored = (row < rows) & (place < taps * depth)
    else:
        first = (column_block % depth_blocks) * BC
        place = (column_block // depth_blocks) * depth + first + lane
        stored = (row < rows) & (first + lane < depth)
    at = (split * groups + group).to(tl.int64) * rows + row
    tl.store(partial_ptr + at * (taps * depth) + place, sums, mask=stored)


@triton.jit
def conv2d_weight_direct_kernel(
    grad_ptr,
    input_ptr,
    partial_ptr,  # [splits, groups * rows, taps * depth]
    pixels,
    pixels_per_split,
    output_height,
    output_width,
    input_height,
    input_width,
    groups,
    rows,
    depth,
    taps,
    taps_x,
    grad_strides,
    input_strides,
    stride_y,
    stride_x,
    pad_y,
    pad_x,
    dilation_y,
    dilation_x,
    LAST: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    """The same, without matrix products: one tap and one input channel of each group of BC output channels."""
    channels = groups * rows
    blocks = tl.cdiv(channels, BC)
    rest = tl.program_id(0)
    block = rest % blocks
    rest = rest // blocks
    place = rest % (taps * depth)
    split = rest // (taps * depth)
    tap, k = place // depth, place % depth
    channel = block * BC + across(BC, LAST)
    channel_inside = channel < channels
    grad_base = grad_ptr + channel.to(tl.int64) * grad_strides[1]
    input_base = input_ptr + ((channel // rows) * depth + k).to(tl.int64) * input_strides[1]
    begin = split.to(INDEX) * pixels_per_split
    end = tl.minimum(begin + pixels_per_split, pixels)
    sums = tl.zeros([BK, BC], ACC) if LAST else tl.zeros([BC, BK], ACC)
    for start in range(begin, end, BK):
        pixel = start + down(BK, LAST)
        pixel_inside = pixel < end
        image, y, x = pixel_of(pixel, output_height, output_width)
        image = image.to(tl.int64)
        offset = image * grad_strides[0] + y.to(tl.int64) * grad_strides[2] + x.to(tl.int64) * grad_strides[3]
        g = tl.load(grad_base + offset, mask=pixel_inside & channel_inside, other=0.0).to(ACC)
        at_y = y.to(tl.int32) * stride_y + (tap // taps_x) * dilation_y - pad_y
        at_x = x.to(tl.int32) * stride_x + (tap % taps_x) * dilation_x - pad_x
        inside = pixel_inside & channel_inside
        inside = inside & (at_y >= 0) & (at_y < input_height) & (at_x >= 0) & (at_x < input_width)
        offset = image * input_strides[0] + at_y.to(tl.int64) * input_strides[2] + at_x.to(tl.int64) * input_strides[3]
        sums += g * tl.load(input_base + offset, mask=inside, other=0.0).to(ACC)
    total = tl.sum(sums, axis=0, keep_dims=True) if LAST else tl.sum(sums, axis=1, keep_dims=True)
    at = (split * channels + channel).to(tl.int64) * (taps * depth) + place
    tl.store(partial_ptr + at, total, mask=channel_inside)


@triton.jit
def conv2d_weight_join_kernel(
    partial_ptr,  # [splits, output channels, taps * depth]
    grad_weight_ptr,  # (output channels, depth, kernel height, kernel width)
    numel,
    splits,
    depth,
    taps,
    taps_x,
    weight_strides,  # (O, I, H, W)
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds the partial gradients in order."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < numel
    sums = tl.zeros([BLOCK], ACC)
    for split in range(splits):
        sums += tl.load(partial_ptr + tl.cast(split, tl.int64) * numel + index, mask=inside, other=0.0)
    channel = index % depth
    tap = (index // depth) % taps
    row = index // depth // taps
    offset = row * weight_strides[0] + channel * weight_strides[1]
    offset += (tap // taps_x) * weight_strides[2] + (tap % taps_x) * weight_strides[3]
    tl.store(grad_weight_ptr + offset, sums.to(grad_weight_ptr.dtype.element_ty), mask=inside)


# ---- launchers

FEW = 16  # channels of a group below which tensor cores are left idle


@dataclass(frozen=True)
class Tile:
    """Pixels (or output channels), columns and terms of a matrix product's tile, and how it is run."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int


def _tile(m, n, dtype, device, precision, last, flat):
    """Chosen by dtype, by what the device holds, and by whether large tiles would leave multiprocessors idle.

    Channels-last operands are read 16 bytes at a time; in NCHW, and where a block covers several taps (flat), each
    element has an address of its own, and the registers that these take bound the tile.
    """
    if dtype == torch.float64:
        return Tile(32, 32, 16, 4, 1)
    small_n = min(max(power_of_2(n), 16), 128)
    if 0 < device.capability < 80:  # Triton multiplies without tensor cores here
        return Tile(32, min(small_n, 32), 16, 4, 1)
    if dtype == torch.float32 and precision == "ieee":
        return Tile(64, min(small_n, 64), 16, 4, 2)  # no tensor core: sums and operands share the registers
    k = 32 if dtype == torch.float32 else 64  # 128 bytes
    if flat:
        return Tile(64, min(small_n, 32 if dtype == torch.float32 else 64), k // 2, 4, 2)
    if device.capability == 0:  # AMD: 64 KB of shared memory, and larger tiles spill
        return Tile(64, min(small_n, 64), k // 2, 4, 2)
    wide = device.shared_bytes >= 160 << 10
    stages = 3 if wide else 2
    if not last:
        return Tile(64, min(small_n, 64), k // 2, 4, stages)
    if not wide:
        k //= 2
    tile_m = 128
    if triton.cdiv(m, tile_m) * triton.cdiv(n, small_n) < device.multiprocessors:
        tile_m = 64
        if triton.cdiv(m, tile_m) * triton.cdiv(n, small_n) < device.multiprocessors:
            small_n = min(small_n, 64)
    blackwell = device.capability >= 100 and small_n == 128  # spills with 4 warps
    return Tile(tile_m, small_n, k, 8 if tile_m * small_n >= 128 * 128 or blackwell else 4, stages)


def _flat(depth):
    """Whether so few channels are summed that a block should cover several taps."""
    return depth < 32 and depth != 16


def _precision(dtype):
    return "tf32" if dtype == torch.float32 and torch.backends.cudnn.allow_tf32 else "ieee"


def _require(condition, expected):
    if not condition:
        raise RuntimeError(f"conv2d: expected {expected}")


def _empty(like, size, channels_last):
    format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=format)


def _gather(source, weight, bias, result, depth, columns, groups, weight_strides, pixels, taps, walk, activation):
    """One launch over the pixels of ``result`` (a view of those to compute): see conv2d_gather_kernel.

    pixels: (rows, lines) of the result; taps: how many, y and x; walk: stride, offset and step of y and x.
    """
    count = result.size(0) * pixels[0] * pixels[1]
    if count == 0:
        return
    acc = ACCUMULATE[source.dtype]
    precision = _precision(source.dtype)
    last = result.stride(1) == 1 and result.size(1) > 1
    sizes = (source.size(2), source.size(3), taps[0] * taps[1], max(taps[1], 1))
    strides = (tuple(source.stride()), tuple(result.stride()), weight_strides)
    options = {"ACTIVATION": activation, "LAST": last, "ACC": acc}
    if groups > 1 and min(depth, columns) < FEW:
        channels = groups * columns
        if last:
            bc = min(power_of_2(channels), 64)
            bp = max(1024 // bc, 1)
        else:
            bp = min(power_of_2(count), 256)
            bc = min(power_of_2(channels), 1024 // bp)
        index = tl.int32 if count + bp < 2**31 else tl.int64
        launch(
            conv2d_gather_direct_kernel, triton.cdiv(count, bp) * triton.cdiv(channels, bc), source, source, weight,
            bias, result, count, *pixels, depth, columns, channels, *sizes, *strides, *walk, **options, INDEX=index,
            BP=bp, BC=bc, num_warps=4,
        )  # fmt: skip
        return
    flat = _flat(depth)
    device = device_of(source)
    t = _tile(count, columns, source.dtype, device, precision, last, flat)
    k = min(t.k, max(power_of_2(depth * max(taps[0] * taps[1], 1) if flat else depth), 16))
    if device.capability >= 100 and source.dtype == torch.float32:
        options["maxnreg"] = 168  # left alone, ptxas aims at fewer and spills a few bytes
    index = tl.int32 if count + t.m < 2**31 else tl.int64
    programs = triton.cdiv(count, t.m) * triton.cdiv(columns, t.n) * groups
    launch(
        conv2d_gather_kernel, programs, source, source, weight, bias, result, count, *pixels, depth, columns, *sizes,
        *strides, *walk, **options, FLAT=flat, PRECISION=precision, INDEX=index, BP=t.m, BC=t.n, BK=k,
        num_warps=t.num_warps, num_stages=t.num_stages,
    )  # fmt: skip


def conv2d_forward(input, weight, bias, stride, padding, dilation, groups, activation, channels_last):
    """Returns act(conv(input, weight) + bias). padding is (top, bottom, left, right)."""
    _require(input.dim() == 4, f"input to be 3-D (unbatched) or 4-D (batched), got shape {tuple(input.shape)}")
    _require(weight.dim() == 4, f"weight to be 4-D, got shape {tuple(weight.shape)}")
    _require(min(stride) > 0, f"stride to be positive, got {tuple(stride)}")
    _require(min(padding) >= 0, f"padding to be at least 0, got {tuple(padding)}")
    _require(min(dilation) > 0, f"dilation to be positive, got {tuple(dilation)}")
    _require(groups > 0, f"groups to be positive, got {groups}")
    outputs, depth, *kernel = weight.shape
    _require(outputs % groups == 0, f"out_channels to be divisible by groups ({groups}), got {outputs}")
    _require(input.size(1) == depth * groups, f"input to be of {depth * groups} channels, got {input.size(1)}")
    _require(weight.dtype == input.dtype, f"weight to be of the dtype of input, got {weight.dtype} and {input.dtype}")
    if bias is not None:
        _require(bias.dtype == input.dtype, f"bias to be of the dtype of input, got {bias.dtype} and {input.dtype}")
        _require(tuple(bias.shape) == (outputs,), f"bias to be of shape ({outputs}), got {bias.shape}")
        bias = bias.contiguous()
    size = []
    for d in range(2):
        padded = input.size(2 + d) + padding[2 * d] + padding[2 * d + 1]
        reach = (kernel[d] - 1) * dilation[d] + 1
        _require(reach <= padded, f"the kernel to be no larger than the padded input ({padded}), got {reach}")
        size.append((padded - reach) // stride[d] + 1)
    output = _empty(input, (input.size(0), outputs, *size), channels_last)
    columns = outputs // groups
    step_o, step_i, step_y, step_x = weight.stride()
    weight_strides = (columns * step_o, step_i, step_o, step_y, step_x)
    walk = (*stride, -padding[0], -padding[2], *dilation)
    _gather(input, weight, bias, output, depth, columns, groups, weight_strides, size, kernel, walk, activation)
    return output


def _residues(stride, dilation, kernel):
    """For each residue of (pixel + padding) modulo stride, the first tap that reaches it and the taps' distance.

    Tap r of an output y reads pixel y * stride + r * dilation - padding.
    """
    period = stride // math.gcd(stride, dilation)
    reached = {}
    for r in range(min(period, kernel) - 1, -1, -1):
        reached[r * dilation % stride] = r
    return period, reached


def conv2d_backward_input(grad_output, weight, input_size, stride, padding, dilation, groups, channels_last):
    """Returns the gradient of the input."""
    grad_input = _empty(grad_output, tuple(input_size), channels_last)
    outputs, columns, *kernel = weight.shape
    depth = outputs // groups
    step_o, step_i, *step = weight.stride()
    tables = [_residues(stride[d], dilation[d], kernel[d]) for d in range(2)]
    top = (padding[0], padding[2])
    for py in range(min(stride[0], input_size[2])):
        for px in range(min(stride[1], input_size[3])):
            taps, offset, first, walk_step = [], [], [], []
            for d, p in enumerate((py, px)):
                period, reached = tables[d]
                r = reached.get((p + top[d]) % stride[d])
                taps.append(0 if r is None else (kernel[d] - r + period - 1) // period)
                first.append(r or 0)
                # tap r + t * period of pixel p + q * stride belongs to output q + offset + t * step
                offset.append(0 if r is None else (p + top[d] - r * dilation[d]) // stride[d])
                walk_step.append(-(period * dilation[d]) // stride[d])
            if 0 in taps:
                taps = [0, 0]
            w = weight[:, :, first[0] :, first[1] :]
            weight_strides = (depth * step_o, step_o, step_i, step[0] * tables[0][0], step[1] * tables[1][0])
            part = grad_input[:, :, py :: stride[0], px :: stride[1]]
            walk = (1, 1, *offset, *walk_step)
            _gather(
                grad_output, w, None, part, depth, columns, groups, weight_strides, part.shape[2:], taps, walk, "none"
            )
    return grad_input


def conv2d_backward_weight(grad_output, input, weight_size, stride, padding, dilation, groups, channels_last):
    """Returns the gradient of the weight."""
    grad_weight = _empty(grad_output, tuple(weight_size), channels_last)
    outputs, depth, *kernel = weight_size
    if grad_weight.numel() == 0:
        return grad_weight
    batch, _, height, width = grad_output.shape
    pixels = batch * height * width
    if pixels == 0 or input.numel() == 0:
        return grad_weight.zero_()
    rows, taps = outputs // groups, kernel[0] * kernel[1]
    acc = ACCUMULATE[input.dtype]
    kept = torch.float64 if acc == tl.float64 else torch.float32
    device = device_of(input)
    precision = _precision(input.dtype)
    last = input.stride(1) == 1 and input.size(1) > 1
    direct = groups > 1 and min(depth, rows) < FEW
    if direct:
        bc = min(power_of_2(outputs), 32 if last else 4)
        bk = 1024 // bc
        programs = triton.cdiv(outputs, bc) * taps * depth
    else:
        flat = _flat(depth)
        t = _tile(rows, depth, input.dtype, device, precision, last, flat)
        bk = t.k
        br = min(t.m, max(power_of_2(rows), 16))
        bc = min(t.n, 64) if not flat else min(max(power_of_2(depth * taps), 16), 32)
        column_blocks = triton.cdiv(depth * taps, bc) if flat else taps * triton.cdiv(depth, bc)
        programs = triton.cdiv(rows, br) * column_blocks * groups
    # enough programs for two on each multiprocessor, each of at least 8 steps
    splits = max(min(triton.cdiv(2 * device.multiprocessors, programs), triton.cdiv(pixels, 8 * bk)), 1)
    each = triton.cdiv(triton.cdiv(pixels, splits), bk) * bk
    splits = triton.cdiv(pixels, each)
    partial = torch.empty((splits, grad_weight.numel()), dtype=kept, device=input.device)
    arguments = (
        grad_output, input, partial, pixels, each, height, width, input.size(2), input.size(3), groups, rows, depth,
        taps, kernel[1], tuple(grad_output.stride()), tuple(input.stride()), *stride, padding[0], padding[2], *dilation,
    )  # fmt: skip
    index = tl.int32 if pixels + each + bk < 2**31 else tl.int64
    options = {"LAST": last, "ACC": acc, "INDEX": index, "BC": bc, "BK": bk}
    if direct:
        launch(conv2d_weight_direct_kernel, programs * splits, input, *arguments, **options, num_warps=4)
    else:
        launch(
            conv2d_weight_kernel, programs * splits, input, *arguments, **options, FLAT=flat, PRECISION=precision,
            BR=br, num_warps=t.num_warps if br * bc >= 128 * 64 else 4,
            num_stages=t.num_stages if input.element_size() == 2 else 2,
        )  # fmt: skip
    numel = grad_weight.numel()
    launch(
        conv2d_weight_join_kernel, triton.cdiv(numel, 512), input, partial, grad_weight, numel, splits, depth, taps,
        kernel[1], tuple(grad_weight.stride()), ACC=acc, BLOCK=512, num_warps=4,
    )  # fmt: skip
    return grad_weight


def conv2d_backward_bias(grad_output):
    """Returns the sum of the gradient over images and pixels, added up in float32 or wider."""
    return grad_output.sum((0, 2, 3))
