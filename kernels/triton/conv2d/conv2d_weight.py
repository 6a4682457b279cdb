"""Weight gradient of the convolution as an implicit matrix product.

A row of the product is an output channel, a column a tap and an input channel, and the sum runs over the pixels of the
output. The pixels are split over as many programs as fill the GPU; each leaves a partial result, and a second kernel
adds them in a fixed order.
"""

import triton
import triton.language as tl

from .conv2d_tiles import across, down, pixel_of, pixel_offset, within


@triton.jit(
    do_not_specialize=[
        "pixels",
        "pixels_per_split",
        "output_height",
        "output_width",
        "input_height",
        "input_width",
        "groups",
        "taps",
        "taps_x",
        "stride_y",
        "stride_x",
        "pad_y",
        "pad_x",
        "dilation_y",
        "dilation_x",
    ]
)
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
    INDEX: tl.constexpr,  # of the index of a pixel: 32 bits where they reach
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
        g = tl.load(grad_base + pixel_offset(image, y, x, grad_strides), mask=pixel_inside & row_inside, other=0.0)
        y = y * stride_y + shift_y
        x = x * stride_x + shift_x
        inside = pixel_inside & column_inside & within(y, x, input_height, input_width)
        s = tl.load(input_base + pixel_offset(image, y, x, input_strides), mask=inside, other=0.0)
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
    at = (tl.cast(split, tl.int64) * groups + group) * rows + row
    tl.store(partial_ptr + at * (taps * depth) + place, sums, mask=stored)


@triton.jit(do_not_specialize=["numel", "splits", "depth", "taps", "taps_x", "weight_strides"])
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
