"""Forward and input gradient of the convolution as one implicit matrix product.

A row of the product is a pixel of the result, a column one of its channels, and the sum runs over taps of the kernel
and channels of the source, whose tiles are gathered where they lie; nothing is unfolded and padding is never
materialised. Forward and input gradient differ in how a pixel q of the result and a tap t name a pixel of the source:
q * stride + offset + t * step.
"""

import triton
import triton.language as tl

from .conv2d_tiles import across, down, pixel_of, pixel_offset, store_result, within, zeros


@triton.jit
def multiplied(s, w, sums, LAST: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """sums + source times weight, in the orientation of the tiles."""
    if LAST:
        return tl.dot(s, w, sums, input_precision=PRECISION, out_dtype=ACC)
    else:
        return tl.dot(w, s, sums, input_precision=PRECISION, out_dtype=ACC)


@triton.jit(
    do_not_specialize=[
        "pixels",
        "rows",
        "lines",
        "source_height",
        "source_width",
        "taps",
        "taps_x",
        "stride_y",
        "stride_x",
        "offset_y",
        "offset_x",
        "step_y",
        "step_x",
    ]
)
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
    INDEX: tl.constexpr,  # of the index of a pixel: 32 bits where they reach
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
    column = column_block * BC + across(BC, LAST)
    column_inside = column < columns

    source_y = y * stride_y + offset_y
    source_x = x * stride_x + offset_x
    source_base = (
        source_ptr + group * depth * source_strides[1] + pixel_offset(image, source_y, source_x, source_strides)
    )
    weight_base = weight_ptr + group * weight_strides[0] + column.to(tl.int64) * weight_strides[2]
    # terms of the sum: along the lanes of the source's tile, across those of the weight's
    source_k = across(BK, LAST)
    weight_k = down(BK, LAST)
    sums = zeros(BP, BC, LAST, ACC)
    if FLAT:
        for start in range(0, taps * depth, BK):
            term = start + source_k
            tap, channel = term // depth, term % depth
            shift_y, shift_x = (tap // taps_x) * step_y, (tap % taps_x) * step_x
            inside = within(source_y + shift_y, source_x + shift_x, source_height, source_width)
            offset = shift_y.to(tl.int64) * source_strides[2] + shift_x.to(tl.int64) * source_strides[3]
            offset += channel.to(tl.int64) * source_strides[1]
            s = tl.load(source_base + offset, mask=pixel_inside & (term < taps * depth) & inside, other=0.0)
            term = start + weight_k
            tap, channel = term // depth, term % depth
            offset = channel.to(tl.int64) * weight_strides[1]
            offset += (tap // taps_x).to(tl.int64) * weight_strides[3] + (tap % taps_x).to(tl.int64) * weight_strides[4]
            w = tl.load(weight_base + offset, mask=column_inside & (term < taps * depth), other=0.0)
            sums = multiplied(s, w, sums, LAST, PRECISION, ACC)
    else:
        blocks = tl.cdiv(depth, BK)
        source_lanes = source_k.to(tl.int64) * source_strides[1]
        weight_lanes = weight_k.to(tl.int64) * weight_strides[1]
        for step in range(0, taps * blocks):
            tap = step // blocks
            first = (step % blocks) * BK
            tap_y, tap_x = tap // taps_x, tap % taps_x
            shift_y, shift_x = tap_y * step_y, tap_x * step_x
            inside = within(source_y + shift_y, source_x + shift_x, source_height, source_width)
            offset = tl.cast(shift_y, tl.int64) * source_strides[2] + tl.cast(shift_x, tl.int64) * source_strides[3]
            offset += tl.cast(first, tl.int64) * source_strides[1]
            s = tl.load(
                (source_base + offset) + source_lanes,
                mask=pixel_inside & inside & (source_k < depth - first),
                other=0.0,
            )
            offset = tl.cast(tap_y, tl.int64) * weight_strides[3] + tl.cast(tap_x, tl.int64) * weight_strides[4]
            offset += tl.cast(first, tl.int64) * weight_strides[1]
            w = tl.load(
                (weight_base + offset) + weight_lanes, mask=column_inside & (weight_k < depth - first), other=0.0
            )
            sums = multiplied(s, w, sums, LAST, PRECISION, ACC)
    store_result(
        result_ptr, bias_ptr, sums, image, y, x, group * columns + column, pixel_inside, column_inside, result_strides,
        ACTIVATION, ACC,
    )  # fmt: skip
