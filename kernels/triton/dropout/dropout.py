"""Dropout (Srivastava et al., JMLR 2014). The contract is kernels/dropout.h's:

    output[i] = keep(i) ? input[i] / (1 - p) : 0
    keep(i)   = word i mod 4 of Philox4x32-10(key = seed, counter = i / 4) >= round(p * 2^32)

i is the row-major logical index whatever the strides, so the mask is the CPU kernels' bit for bit. Dropout of whole
channels uses the channel's index in place of i. No mask is stored: backward is the same function of the gradient.

A contiguous tensor is bound by memory as long as the generator, about 20 integer instructions per element, keeps up;
so a program draws a counter's four words once and interleaves them into element order in registers.
"""

import torch
import triton
import triton.language as tl

from ..arithmetic import double_of
from ..launch import ACCUMULATE, INTERPRETED, double_bits, launch, merged_dims, power_of_2, require_device


@triton.jit
def philox(block, seed):
    """The four uint32 words of Philox4x32-10 at 64-bit counters ``block`` (low and high word, 0, 0), key ``seed``.

    Products are taken in 64 bits: one wide multiplication gives both halves.
    """
    c0 = block.to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0)
    c3 = tl.zeros_like(c0)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p0.to(tl.uint32)
        k0 = k0 + 0x9E3779B9  # the golden ratio
        k1 = k1 + 0xBB67AE85  # sqrt(3) - 1
    return c0, c1, c2, c3


@triton.jit
def word_of(index, seed):
    """The word of element ``index``: the whole counter is drawn and one of its words used."""
    w0, w1, w2, w3 = philox(index // 4, seed)
    lane = (index % 4).to(tl.int32)
    return tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))


@triton.jit
def scaled(x, kept, scale_bits, ACC: tl.constexpr):
    """x / (1 - p) where kept, else 0 (of an inf or nan too)."""
    scale = double_of(scale_bits).to(ACC)
    return tl.where(kept, x.to(ACC) * scale, 0.0).to(x.dtype)


@triton.jit(do_not_specialize=["numel", "threshold", "scale_bits"])
def dropout_contiguous_kernel(
    input_ptr,  # [numel]
    output_ptr,  # [numel]
    seed_ptr,  # [1] int64
    numel,
    threshold,
    scale_bits,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offset = start + tl.arange(0, BLOCK)
    w0, w1, w2, w3 = philox(start // 4 + tl.arange(0, BLOCK // 4), tl.load(seed_ptr))
    bar = tl.cast(threshold, tl.int32).to(tl.uint32, bitcast=True)
    # compared before they change lanes: a byte for each element instead of a word
    even = tl.interleave((w0 >= bar).to(tl.int8), (w2 >= bar).to(tl.int8))
    odd = tl.interleave((w1 >= bar).to(tl.int8), (w3 >= bar).to(tl.int8))
    kept = tl.interleave(even, odd) != 0
    if start + BLOCK <= numel:  # no mask: a mask that is no multiple of 16 bytes would split the accesses
        x = tl.load(input_ptr + offset)
        tl.store(output_ptr + offset, scaled(x, kept, scale_bits, ACC))
    else:
        inside = offset < numel
        x = tl.load(input_ptr + offset, mask=inside, other=0.0)
        tl.store(output_ptr + offset, scaled(x, kept, scale_bits, ACC), mask=inside)


@triton.jit(do_not_specialize=["channels", "threshold", "scale_bits"])
def dropout_channels_kernel(
    input_ptr,  # [channels, share]
    output_ptr,  # [channels, share]
    seed_ptr,  # [1] int64
    channels,
    share,
    threshold,
    scale_bits,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    chunks = tl.cdiv(share, COLUMNS)
    row = (tl.program_id(0) // chunks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % chunks).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    kept = word_of(row, tl.load(seed_ptr)) >= tl.cast(threshold, tl.int32).to(tl.uint32, bitcast=True)
    offset = row[:, None] * share + column[None, :]
    inside = (row < channels)[:, None] & (column < share)[None, :]
    x = tl.load(input_ptr + offset, mask=inside & kept[:, None], other=0.0)  # a dropped channel is not read
    tl.store(output_ptr + offset, scaled(x, kept[:, None], scale_bits, ACC), mask=inside)


@triton.jit(do_not_specialize=["numel", "sizes", "mask_strides", "threshold", "scale_bits"])
def dropout_strided_kernel(
    input_ptr,
    output_ptr,
    seed_ptr,  # [1] int64
    numel,
    sizes,  # tuples, outermost dimension in the output's memory first
    mask_strides,  # of the index that the mask is drawn by
    input_strides,
    output_strides,
    input_step,  # between the four elements of a counter, where QUAD
    output_step,
    threshold,
    scale_bits,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,  # type of the index arithmetic: 64-bit division is slow
    QUAD: tl.constexpr,  # the sizes count counters, not elements, and mask_strides too
    BLOCK: tl.constexpr,
):
    rest = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    inside = rest < numel
    mask_index = tl.zeros([BLOCK], tl.int64)
    source = tl.zeros([BLOCK], tl.int64)
    target = tl.zeros([BLOCK], tl.int64)
    for d in tl.static_range(len(sizes) - 1, -1, -1):
        k = (rest % sizes[d]).to(tl.int64)
        rest = rest // sizes[d]
        mask_index += k * mask_strides[d]
        source += k * input_strides[d]
        target += k * output_strides[d]
    seed = tl.load(seed_ptr)
    bar = tl.cast(threshold, tl.int32).to(tl.uint32, bitcast=True)
    if QUAD:
        words = philox(mask_index, seed)
        for j in tl.static_range(4):
            x = tl.load(input_ptr + source + j * tl.cast(input_step, tl.int64), mask=inside, other=0.0)
            y = scaled(x, words[j] >= bar, scale_bits, ACC)
            tl.store(output_ptr + target + j * tl.cast(output_step, tl.int64), y, mask=inside)
    else:
        x = tl.load(input_ptr + source, mask=inside, other=0.0)
        tl.store(output_ptr + target, scaled(x, word_of(mask_index, seed) >= bar, scale_bits, ACC), mask=inside)


def dropout(input, p, seed, shared_dims=0):
    """Launches dropout; ``seed`` is read on the device. See ``pydl.ops.dropout`` for the arguments."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: expected p to be a probability in [0, 1], got {p:g}")
    if not 0 <= shared_dims <= input.dim():
        raise RuntimeError(f"dropout: expected shared_dims to be in [0, {input.dim()}], got {shared_dims}")
    if input.dtype not in ACCUMULATE:
        raise RuntimeError(f"dropout: expected dtype to be float32, float64, bfloat16 or float16, got {input.dtype}")
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise RuntimeError(
            f"dropout: expected seed to be an int64 tensor of one element, got {seed.dtype} of shape "
            f"{tuple(seed.shape)}"
        )
    require_device("dropout", "input", input, seed=seed)
    output = torch.empty_like(input)
    numel = input.numel()
    if numel == 0:
        return output
    threshold = round(p * 2**32)
    if threshold == 2**32:  # nothing is kept
        return output.zero_()
    threshold -= 2**32 if threshold >= 2**31 else 0  # the same bits as an int32
    scale_bits = double_bits(1.0 / (1.0 - p))
    acc = ACCUMULATE[input.dtype]
    share = 1
    for size in input.shape[input.dim() - shared_dims :]:
        share *= size
    if not (input.is_contiguous() and output.is_contiguous()):
        _launch_strided(input, output, seed, share, shared_dims, threshold, scale_bits, acc)
    elif share == 1:
        block = 16384 if INTERPRETED else 2048 if numel >= 2**20 else 512
        arguments = (input, output, seed, numel, threshold, scale_bits)
        programs = triton.cdiv(numel, block)
        launch(
            dropout_contiguous_kernel,
            programs,
            input,
            *arguments,
            ACC=acc,
            BLOCK=block,
            num_warps=4 if block > 512 else 1,
        )
    else:
        columns = min(power_of_2(share), 1024)
        rows, channels = 2048 // columns, numel // share
        programs = triton.cdiv(channels, rows) * triton.cdiv(share, columns)
        arguments = (input, output, seed, channels, share, threshold, scale_bits)
        launch(dropout_channels_kernel, programs, input, *arguments, ACC=acc, ROWS=rows, COLUMNS=columns, num_warps=4)
    return output


def _launch_strided(input, output, seed, share, shared_dims, threshold, scale_bits, acc):
    numel, last = input.numel(), input.dim() - shared_dims
    mask_stride = [0] * input.dim()
    step = 1
    for d in range(last - 1, -1, -1):
        mask_stride[d] = step
        step *= input.size(d)
    # in the order of the output's memory, so that neighbouring lanes write neighbouring addresses
    order = sorted(range(input.dim()), key=lambda d: (-output.stride(d), d))
    columns = ([values[d] for d in order] for values in (input.shape, mask_stride, input.stride(), output.stride()))
    sizes, mask_strides, input_strides, output_strides = (list(column) for column in merged_dims(*columns))
    input_step = output_step = 0
    # a dimension that holds whole counters and is not innermost in memory: draw each counter once for its four elements
    quad = next((d for d in range(len(sizes)) if mask_strides[d] == 1), None)
    use_quad = quad is not None and share == 1 and sizes[quad] % 4 == 0 and output_strides[quad] != 1
    if use_quad:
        input_step, output_step = input_strides[quad], output_strides[quad]
        sizes[quad] //= 4
        mask_strides = [1 if d == quad else stride // 4 for d, stride in enumerate(mask_strides)]
        input_strides[quad] *= 4
        output_strides[quad] *= 4
        numel //= 4
    block = 16384 if INTERPRETED else 512
    dims = [tuple(column) for column in (sizes, mask_strides, input_strides, output_strides)]
    arguments = (input, output, seed, numel, *dims, input_step, output_step, threshold, scale_bits)
    index = tl.int32 if numel + block < 2**31 else tl.int64
    programs = triton.cdiv(numel, block)
    options = {"ACC": acc, "INDEX": index, "QUAD": use_quad, "BLOCK": block, "num_warps": 4}
    launch(dropout_strided_kernel, programs, input, *arguments, **options)
