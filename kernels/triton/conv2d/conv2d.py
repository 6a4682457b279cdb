"""2-D convolution, forward and both gradients: the launchers. The formulas are kernels/conv2d.h's.

Forward and input gradient are one implicit matrix product (conv2d_gather.py). The input gradient of a strided
convolution is one launch for each residue of the pixel modulo the stride, over those taps alone that reach it, so no
product with zero is computed. The weight gradient sums over pixels (conv2d_weight.py).

Sums are kept in float32 (float64 for float64). bfloat16 and float16 run on tensor cores, float32 too where torch's own
switch (torch.backends.cudnn.allow_tf32) allows tf32; NCHW tensors are copied to channels_last and back where that pays
(conv2d_transpose.py). Groups of few channels, depthwise ones among them, are summed
directly, lane by lane (conv2d_depthwise.py).
"""

import math

import torch
import triton
import triton.language as tl

from ..launch import ACCUMULATE, device_of, launch, power_of_2, require_device
from .conv2d_depthwise import conv2d_depthwise_kernel, conv2d_depthwise_weight_kernel
from .conv2d_gather import conv2d_gather_kernel
from .conv2d_tiles import is_flat, precision_of, tile_of
from .conv2d_transpose import last, to_copy, transpose_pays, transposed
from .conv2d_weight import conv2d_weight_join_kernel, conv2d_weight_kernel

FEW = 16  # channels of a group below which tensor cores are left idle


def _require(condition, expected):
    if not condition:
        raise RuntimeError(f"conv2d: expected {expected}")


def _empty(like, size, channels_last):
    format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=format)


def _registers(is_last, warps, device):
    """On Blackwell ptxas, left alone, aims at few registers and spills some bytes: the option that allows it more."""
    if device.capability >= 120:  # consumer cards, which read the operands of mma.sync from registers
        return {"maxnreg": 255}
    return {"maxnreg": 128 if is_last and warps == 8 else 168} if device.capability >= 100 else {}


def _gather(source, weight, bias, result, depth, columns, groups, weight_strides, pixels, taps, walk, activation):
    """One launch over the pixels of ``result`` (a view of those to compute): see conv2d_gather_kernel.

    pixels: (rows, lines) of the result; taps: how many, y and x; walk: stride, offset and step of y and x.
    """
    count = result.size(0) * pixels[0] * pixels[1]
    if count == 0:
        return
    acc = ACCUMULATE[source.dtype]
    device = device_of(source)
    precision = precision_of(source.dtype, device)
    is_last = result.stride(1) == 1 and result.size(1) > 1
    sizes = (source.size(2), source.size(3), taps[0] * taps[1], max(taps[1], 1))
    strides = (tuple(source.stride()), tuple(result.stride()), weight_strides)
    options = {"ACTIVATION": activation, "LAST": is_last, "ACC": acc}
    if groups > 1 and min(depth, columns) < FEW:
        channels = groups * columns
        elements = 512 if 0 < device.capability < 80 else 1024  # of 128 threads; more would spill
        if is_last:
            bc = min(power_of_2(channels), 64)
            bp = max(elements // bc, 1)
        else:
            bp = min(power_of_2(count), 256)
            bc = min(power_of_2(channels), elements // bp)
        index = tl.int32 if count + bp < 2**31 else tl.int64
        launch(
            conv2d_depthwise_kernel, triton.cdiv(count, bp) * triton.cdiv(channels, bc), source, source, weight,
            bias, result, count, *pixels, depth, columns, channels, *sizes, *strides, *walk, **options, INDEX=index,
            BP=bp, BC=bc, num_warps=4,
        )  # fmt: skip
        return
    flat = is_flat(depth)
    t = tile_of(count, columns, groups, source.dtype, device, precision, is_last, flat)
    k = min(t.k, max(power_of_2(depth * max(taps[0] * taps[1], 1) if flat else depth), 16))
    index = tl.int32 if count + t.m < 2**31 else tl.int64
    programs = triton.cdiv(count, t.m) * triton.cdiv(columns, t.n) * groups
    launch(
        conv2d_gather_kernel, programs, source, source, weight, bias, result, count, *pixels, depth, columns, *sizes,
        *strides, *walk, **options, FLAT=flat, PRECISION=precision, INDEX=index, BP=t.m, BC=t.n, BK=k,
        num_warps=t.num_warps, num_stages=t.num_stages, **_registers(is_last, t.num_warps, device),
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
    require_device("conv2d", "input", input, weight=weight, bias=bias)
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
    pixels = input.size(0) * size[0] * size[1]
    copied = pixels * outputs + to_copy(input)
    if not channels_last and transpose_pays(input.dtype, device_of(input), pixels, weight.shape, groups, copied):
        options = (stride, padding, dilation, groups, activation, True)
        return transposed(conv2d_forward(last(input), last(weight), bias, *options), torch.contiguous_format)
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
    require_device("conv2d", "grad_output", grad_output, weight=weight)
    dtype, device = grad_output.dtype, device_of(grad_output)
    pixels = grad_output.size(0) * grad_output.size(2) * grad_output.size(3)
    copied = math.prod(input_size) + to_copy(grad_output)
    if not channels_last and transpose_pays(dtype, device, pixels, weight.shape, groups, copied):
        options = (input_size, stride, padding, dilation, groups, True)
        return transposed(conv2d_backward_input(last(grad_output), last(weight), *options), torch.contiguous_format)
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
    require_device("conv2d", "grad_output", grad_output, input=input)
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
    precision = precision_of(input.dtype, device)
    if transpose_pays(input.dtype, device, pixels, weight_size, groups, to_copy(grad_output) + to_copy(input)):
        grad_output, input = last(grad_output), last(input)
    is_last = input.stride(1) == 1 and input.size(1) > 1
    direct = groups > 1 and min(depth, rows) < FEW
    if direct:
        bc = min(power_of_2(outputs), 32 if is_last else 4)
        bk = 1024 // bc
        programs = triton.cdiv(outputs, bc) * taps * depth
    else:
        flat = is_flat(depth)
        # a piece of the pixels for each program: at least 8 steps of 64
        copies = groups * taps * max(pixels // 512, 1)
        t = tile_of(rows, depth, copies, input.dtype, device, precision, is_last, flat)
        bk = t.k
        br = min(t.m, max(power_of_2(rows), 16))
        bc = t.n if not flat else min(max(power_of_2(depth * taps), 16), 32)
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
    options = {"LAST": is_last, "ACC": acc, "INDEX": index, "BC": bc, "BK": bk}
    if direct:
        launch(conv2d_depthwise_weight_kernel, programs * splits, input, *arguments, **options, num_warps=4)
    else:
        launch(
            conv2d_weight_kernel, programs * splits, input, *arguments, **options,
            **_registers(is_last, t.num_warps, device), FLAT=flat, PRECISION=precision,
            BR=br, num_warps=t.num_warps if br * bc >= 64 * 64 else 4,
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
