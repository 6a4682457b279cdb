"""NCHW to channels_last and back: what an implicit product of NCHW tensors costs less with than without.

The product of NCHW tensors gathers two or four bytes at a time, since a pixel's neighbour is not provably its neighbour
in memory; with channels last it moves 16. Two copies at the speed of memory buy that, where enough is computed for each
byte that they move: what a pixel contributes grows with the channels on the other side and the taps.
"""

import math

import torch
import triton
import triton.language as tl

from ..launch import launch
from .conv2d_tiles import is_flat, pixel_of, pixel_offset, precision_of

# Multiply-adds for each byte that copies move, from which on they pay: the gathered product runs at about a third of
# the other's rate (predicted: some 100 of 300 TFLOP/s, 40 of 110 in tf32, beside 3.4 TB/s of copies). And multiply-adds
# that take as long as the launches of the copies.
PAYS = {torch.bfloat16: 15, torch.float16: 15, torch.float32: 6}
PAYS_FROM = 1 << 28


@triton.jit
def conv2d_transpose_kernel(
    source_ptr,
    result_ptr,
    count,  # pixels of all images
    height,
    width,
    channels,
    source_strides,  # N, C, H, W
    result_strides,
    INDEX: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """A tile of [channels, pixels], read along one of them and written along the other, through shared memory."""
    blocks = tl.cdiv(channels, BC)
    pixel = (tl.program_id(0) // blocks).to(INDEX) * BP + tl.arange(0, BP)[None, :]
    channel = (tl.program_id(0) % blocks).to(tl.int64) * BC + tl.arange(0, BC)[:, None]
    image, y, x = pixel_of(pixel, height, width)
    mask = (pixel < count) & (channel < channels)
    at = source_ptr + pixel_offset(image, y, x, source_strides) + channel * source_strides[1]
    values = tl.load(at, mask=mask)
    at = result_ptr + pixel_offset(image, y, x, result_strides) + channel * result_strides[1]
    tl.store(at, values, mask=mask)


def transposed(tensor, format):
    """A copy of a 4-D tensor in a memory format."""
    result = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=format)
    batch, channels, height, width = tensor.shape
    count = batch * height * width
    index = tl.int32 if count + 64 < 2**31 else tl.int64
    launch(
        conv2d_transpose_kernel, triton.cdiv(count, 64) * triton.cdiv(channels, 64), tensor, tensor, result, count,
        height, width, channels, tuple(tensor.stride()), tuple(result.stride()), INDEX=index, BP=64, BC=64, num_warps=4,
    )  # fmt: skip
    return result


def last(tensor):
    """``tensor`` itself where it is channels_last, else a copy that is."""
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor
    return transposed(tensor, torch.channels_last)


def to_copy(tensor):
    """How many elements of ``tensor`` have to be copied for it to be channels_last."""
    return 0 if tensor.is_contiguous(memory_format=torch.channels_last) else tensor.numel()


def transpose_pays(dtype, device, pixels, weight_size, groups, elements):
    """Whether a pass over ``pixels`` of the output (of all images) is worth copies of so many ``elements``.

    Only where tensor cores multiply, and the channels of a block are neighbours then.
    """
    ieee = dtype == torch.float32 and precision_of(dtype, device) != "tf32"
    if dtype not in PAYS or ieee or 0 < device.capability < 80:
        return False
    outputs, depth, *kernel = weight_size
    if is_flat(depth) or is_flat(outputs // groups):
        return False
    multiply_adds = pixels * outputs * depth * math.prod(kernel)
    return multiply_adds >= PAYS_FROM and 0 < 2 * elements * dtype.itemsize * PAYS[dtype] <= multiply_adds
