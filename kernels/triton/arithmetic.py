"""Device functions that several ops share."""

import triton
import triton.language as tl


@triton.jit
def double_of(bits):
    """The float64 that the launcher passed as an int64 (``launch.double_bits``)."""
    return tl.cast(tl.cast(bits, tl.int64), tl.float64, bitcast=True)


@triton.jit
def multiple(x, UNIT: tl.constexpr):
    """x, which is a multiple of UNIT, said so that the compiler sees it: accesses become that many elements wide.

    Of an argument Triton itself only knows whether it is a multiple of 16; rows of 1000 classes are one of 8.
    """
    return x // UNIT * UNIT


@triton.jit
def offset_of(index, sizes, strides):
    """The offset of element ``index`` (int64, row-major over ``sizes``) of a tensor with ``strides``."""
    rest = index
    offset = tl.zeros_like(index)
    for d in tl.static_range(len(sizes) - 1, 0, -1):
        offset += (rest % sizes[d]) * strides[d]
        rest = rest // sizes[d]
    return offset + rest * strides[0]
