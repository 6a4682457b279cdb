"""Convolution of groups of few channels, depthwise ones among them: lane by lane.

Matrix products would waste the tensor cores here. Forward and input gradient give each pixel and channel of the result
a lane; the weight gradient sums a tile of pixels for one tap and one input channel of each of several output channels.
"""

import triton
import triton.language as tl

from .conv2d_tiles import across, down, pixel_of, pixel_offset, store_result, within, zeros


@triton.jit(
    do_not_specialize=[
        "pixels",
        "rows",
        "lines",
        "depth",
        "columns",
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
def conv2d_depthwise_kernel(
    source_ptr,  # arguments as conv2d_gather_kernel's
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
    blocks = tl.cdiv(channels, BC)
    pixel = (tl.program_id(0) // blocks).to(INDEX) * BP + down(BP, LAST)
    pixel_inside = pixel < pixels
    image, y, x = pixel_of(pixel, rows, lines)
    channel = ((tl.program_id(0) % blocks) * BC + across(BC, LAST)).to(tl.int64)
    channel_inside = channel < channels
    group, column = channel // columns, channel % columns
    source_y = y * stride_y + offset_y
    source_x = x * stride_x + offset_x
    source_base = (
        source_ptr + group * depth * source_strides[1] + pixel_offset(image, source_y, source_x, source_strides)
    )
    weight_base = weight_ptr + group * weight_strides[0] + column * weight_strides[2]
    sums = zeros(BP, BC, LAST, ACC)
    for step in range(0, taps * depth):
        tap = step // depth
        k = tl.cast(step % depth, tl.int64)
        tap_y, tap_x = tap // taps_x, tap % taps_x
        shift_y, shift_x = tap_y * step_y, tap_x * step_x
        inside = within(source_y + shift_y, source_x + shift_x, source_height, source_width)
        offset = tl.cast(shift_y, tl.int64) * source_strides[2] + tl.cast(shift_x, tl.int64) * source_strides[3]
        offset += k * source_strides[1]
        s = tl.load(source_base + offset, mask=inside & pixel_inside & channel_inside, other=0.0).to(ACC)
        offset = tl.cast(tap_y, tl.int64) * weight_strides[3] + tl.cast(tap_x, tl.int64) * weight_strides[4]
        w = tl.load(weight_base + offset + k * weight_strides[1], mask=channel_inside, other=0.0).to(ACC)
        sums += s * w
    store_result(
        result_ptr, bias_ptr, sums, image, y, x, channel, pixel_inside, channel_inside, result_strides, ACTIVATION, ACC
    )


@triton.jit(
    do_not_specialize=[
        "pixels",
        "pixels_per_split",
        "output_height",
        "output_width",
        "input_height",
        "input_width",
        "groups",
        "rows",
        "depth",
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
def conv2d_depthwise_weight_kernel(
    grad_ptr,  # arguments as conv2d_weight_kernel's
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
    channels = groups * rows
    blocks = tl.cdiv(channels, BC)
    rest = tl.program_id(0)
    block = rest % blocks
    rest = rest // blocks
    place = rest % (taps * depth)
    split = rest // (taps * depth)
    tap, k = place // depth, place % depth
    shift_y = (tap // taps_x) * dilation_y - pad_y
    shift_x = (tap % taps_x) * dilation_x - pad_x
    channel = block * BC + across(BC, LAST)
    channel_inside = channel < channels
    grad_base = grad_ptr + channel.to(tl.int64) * grad_strides[1]
    input_base = input_ptr + ((channel // rows) * depth + k).to(tl.int64) * input_strides[1]
    begin = split.to(INDEX) * pixels_per_split
    end = tl.minimum(begin + pixels_per_split, pixels)
    sums = zeros(BK, BC, LAST, ACC)
    for start in range(begin, end, BK):
        pixel = start + down(BK, LAST)
        inside = (pixel < end) & channel_inside
        image, y, x = pixel_of(pixel, output_height, output_width)
        g = tl.load(grad_base + pixel_offset(image, y, x, grad_strides), mask=inside, other=0.0).to(ACC)
        y = y * stride_y + shift_y
        x = x * stride_x + shift_x
        inside = inside & within(y, x, input_height, input_width)
        sums += g * tl.load(input_base + pixel_offset(image, y, x, input_strides), mask=inside, other=0.0).to(ACC)
    total = tl.sum(sums, axis=0, keep_dims=True) if LAST else tl.sum(sums, axis=1, keep_dims=True)
    at = (tl.cast(split, tl.int64) * channels + channel) * (taps * depth) + place
    tl.store(partial_ptr + at, total, mask=channel_inside)
