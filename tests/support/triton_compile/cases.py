"""What is compiled ahead of time: the targets, and launches of every Triton kernel on meta tensors."""

import torch
from triton.backends.compiler import GPUTarget

from pydl.kernels.triton import launch
from pydl.kernels.triton.conv2d import conv2d
from pydl.kernels.triton.dropout import dropout
from pydl.kernels.triton.norm import batch_norm
from pydl.kernels.triton.softmax import softmax_cross_entropy

# Every configuration is compiled for these. Multiprocessors, shared memory of one program, capability: of a T4, an
# A100, an H100, a B200 and an MI300X
TARGETS = {
    "sm_75": (GPUTarget("cuda", 75, 32), launch.Device(40, 64 << 10, 75)),
    "sm_80": (GPUTarget("cuda", 80, 32), launch.Device(108, 163 << 10, 80)),
    "sm_90": (GPUTarget("cuda", 90, 32), launch.Device(132, 227 << 10, 90)),
    "sm_100": (GPUTarget("cuda", 100, 32), launch.Device(148, 227 << 10, 100)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), launch.Device(304, 64 << 10, 0)),
}
# And one launch of each kernel for these: an RTX 3090, an RTX 4090, an RTX 5090, an RX 7900 and an RX 9070. They have
# less shared memory than the data centre's, and AMD's have waves of 32, so that a thread has twice the elements.
CONSUMER = {
    "sm_86": (GPUTarget("cuda", 86, 32), launch.Device(82, 99 << 10, 86)),
    "sm_89": (GPUTarget("cuda", 89, 32), launch.Device(128, 99 << 10, 89)),
    "sm_120": (GPUTarget("cuda", 120, 32), launch.Device(170, 99 << 10, 120)),
    "gfx1100": (GPUTarget("hip", "gfx1100", 32), launch.Device(96, 64 << 10, 0, tf32=False)),
    "gfx1201": (GPUTarget("hip", "gfx1201", 32), launch.Device(64, 64 << 10, 0, tf32=False)),
}
ALL_TARGETS = TARGETS | CONSUMER
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def meta(*shape, dtype=F32, last=False):
    format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=format)


# ---- dropout


@case
def dropout_float32():
    seed = meta(1, dtype=torch.int64)
    dropout.dropout(meta(1 << 22), 0.5, seed)
    dropout.dropout(meta(1001), 0.5, seed)
    dropout.dropout(meta(8, 64, 56, 56, last=True), 0.5, seed)


@case
def dropout_bfloat16():
    seed = meta(1, dtype=torch.int64)
    dropout.dropout(meta(1 << 22, dtype=BF16), 0.5, seed)
    dropout.dropout(meta(8, 64, 56, 56, dtype=BF16), 0.5, seed, 2)  # whole channels
    dropout.dropout(meta(8, 64, 56, 56, dtype=BF16, last=True), 0.5, seed)
    dropout.dropout(meta(8, 64, 56, 56, dtype=BF16, last=True), 0.5, seed, 2)


@case
def dropout_float64():
    dropout.dropout(meta(1 << 22, dtype=F64), 0.5, meta(1, dtype=torch.int64))


# ---- cross entropy


def cross_entropy(input, target, weight=None, reduction=1, smoothing=0.0, z_loss=0.0):
    arguments = (reduction, -100, smoothing, z_loss)
    output, norm, denominator = softmax_cross_entropy.softmax_cross_entropy_forward(input, target, weight, *arguments)
    saved = (output, input, target, weight, norm, denominator)
    softmax_cross_entropy.softmax_cross_entropy_backward(*saved, *arguments)
    if target.is_floating_point():
        softmax_cross_entropy.softmax_cross_entropy_backward_target(*saved, reduction, smoothing)


def indices(*shape):
    return meta(*shape, dtype=torch.int64)


@case
def cross_entropy_bfloat16():
    cross_entropy(meta(4096, 1000, dtype=BF16), indices(4096))
    cross_entropy(meta(32768, 32768, dtype=BF16), indices(32768), smoothing=0.1)  # two steps of reduction
    cross_entropy(meta(4096, 50257, dtype=BF16), indices(4096), meta(50257), z_loss=1e-4)  # rows unaligned
    cross_entropy(meta(16, 131072, dtype=BF16), indices(16), reduction=0)  # rows in pieces


@case
def cross_entropy_float32():
    cross_entropy(meta(4096, 10), indices(4096))
    cross_entropy(meta(4096, 50257), indices(4096), meta(50257), smoothing=0.1, z_loss=1e-4)
    cross_entropy(meta(8, 21, 65, 65), indices(8, 65, 65))  # strided classes


@case
def cross_entropy_float64():
    cross_entropy(meta(4096, 50257, dtype=F64), indices(4096), meta(50257, dtype=F64), smoothing=0.1, z_loss=1e-4)


@case
def cross_entropy_probabilities():
    cross_entropy(meta(4096, 1000, dtype=BF16), meta(4096, 1000, dtype=BF16), meta(1000), smoothing=0.1)
    cross_entropy(meta(16, 50257), meta(16, 50257), z_loss=1e-4)
    cross_entropy(meta(8, 21, 64, 64, dtype=BF16, last=True), meta(8, 21, 64, 64, dtype=BF16))


# ---- batch norm


def normalisation(shape, dtype, last, activation=1, residual=False):
    x = meta(*shape, dtype=dtype, last=last)
    parameter = meta(shape[1], dtype=F64 if dtype == F64 else F32)
    output, mean, var = batch_norm.batch_norm_forward(
        x, None, None, parameter, parameter, x if residual else None, True, 1e-5, activation
    )
    batch_norm.batch_norm_backward(
        x, x, mean, var, parameter, parameter, output if residual else None, True, 1e-5, activation,
        True, True, True, residual,
    )  # fmt: skip
    batch_norm.batch_norm_update_stats(parameter, parameter, mean, var, 100, 0.1)


@case
def batch_norm_rows():
    normalisation((64, 64, 56, 56), BF16, False)
    normalisation((64, 64, 56, 56), BF16, False, residual=True)
    normalisation((32, 2048, 7, 7), BF16, False)
    normalisation((64, 64, 56, 56), F32, False, activation=0)


@case
def batch_norm_columns():
    normalisation((64, 64, 56, 56), BF16, True)
    normalisation((64, 64, 56, 56), BF16, True, residual=True)
    normalisation((64, 6, 24, 24), F32, True)
    normalisation((64, 64, 56, 56), F32, True, activation=0)


@case
def batch_norm_float64():
    normalisation((64, 64, 56, 56), F64, False, residual=True)
    normalisation((64, 64, 56, 56), F64, True)


# ---- conv2d


def convolution(shape, outputs, kernel, stride=1, padding=0, groups=1, dtype=BF16, last=True, bias=False):
    x = meta(*shape, dtype=dtype, last=last)
    w = meta(outputs, shape[1] // groups, kernel, kernel, dtype=dtype, last=last)
    b = meta(outputs, dtype=dtype) if bias else None
    options = ((stride, stride), (padding,) * 4, (1, 1), groups)
    y = conv2d.conv2d_forward(x, w, b, *options, "relu" if bias else "none", last)
    if shape[1] != 3:  # images need no gradient
        conv2d.conv2d_backward_input(y, w, x.shape, *options, last)
    conv2d.conv2d_backward_weight(y, x, w.shape, *options, last)


@case
def conv2d_bfloat16_channels_last():
    convolution((32, 256, 14, 14), 256, 3, padding=1)
    convolution((32, 256, 56, 56), 64, 1, bias=True)
    convolution((2, 512, 7, 7), 512, 3, padding=1)  # few programs: smaller tiles
    convolution((32, 128, 56, 56), 128, 3, stride=2, padding=1)


@case
def conv2d_bfloat16_NCHW():
    convolution((32, 256, 14, 14), 256, 3, padding=1, last=False)  # by way of channels_last
    convolution((32, 64, 56, 56), 256, 1, last=False)  # as it is
    convolution((32, 3, 224, 224), 64, 7, stride=2, padding=3, last=False)


@case
def conv2d_few_channels():
    convolution((32, 3, 224, 224), 64, 7, stride=2, padding=3)
    convolution((32, 32, 28, 28), 32, 3, padding=1, groups=32)
    convolution((32, 32, 28, 28), 32, 3, padding=1, groups=32, last=False)
    convolution((32, 3, 32, 32), 16, 3, padding=1, dtype=F32)


@case
def conv2d_float16():
    convolution((32, 256, 14, 14), 256, 3, padding=1, dtype=F16)


@case
def conv2d_tf32():
    convolution((32, 256, 14, 14), 256, 3, padding=1, dtype=F32)
    convolution((32, 256, 14, 14), 256, 3, padding=1, dtype=F32, last=False)


@case
def conv2d_ieee():
    with torch.backends.cudnn.flags(allow_tf32=False):
        convolution((32, 256, 14, 14), 256, 3, padding=1, dtype=F32)
        convolution((32, 256, 14, 14), 256, 3, padding=1, dtype=F32, last=False)


@case
def conv2d_float64():
    convolution((32, 256, 14, 14), 256, 3, padding=1, dtype=F64)


# ---- all


@case
def ones():
    """Triton makes constants of arguments that are 1, without a tensor's methods: sizes of one must compile too."""
    dropout.dropout(meta(1), 0.5, meta(1, dtype=torch.int64))
    for rows, classes in ((1, 1), (1, 10), (3, 1)):
        cross_entropy(meta(rows, classes), indices(rows), smoothing=0.1)
    for shape in ((2, 1), (1, 1, 5, 7), (1, 3, 1, 2)):
        normalisation(shape, F32, False)
    convolution((1, 1, 1, 1), 1, 1, dtype=F32, last=False)
    convolution((1, 2, 5, 5), 2, 1, groups=2, dtype=F32, last=False)
    convolution((1, 40, 1, 1), 40, 1, dtype=F32)


# ---- each kernel once, as training in bfloat16 or tf32 launches it

ONE_OF_EACH = {
    "dropout 2^22 bf16": lambda: dropout.dropout(meta(1 << 22, dtype=BF16), 0.5, indices(1)),
    "dropout2d 8x64x56x56 bf16 channels_last": lambda: dropout.dropout(
        meta(8, 64, 56, 56, dtype=BF16, last=True), 0.5, indices(1), 2
    ),
    "cross_entropy 4096x1000 bf16": lambda: cross_entropy(meta(4096, 1000, dtype=BF16), indices(4096)),
    "cross_entropy 4096x1000 bf16 probabilities, weights": lambda: cross_entropy(
        meta(4096, 1000, dtype=BF16), meta(4096, 1000, dtype=BF16), meta(1000), smoothing=0.1
    ),
    "batch_norm+residual+relu 64x64x56x56 bf16 NCHW": lambda: normalisation(
        (64, 64, 56, 56), BF16, False, residual=True
    ),
    "batch_norm+relu 64x64x56x56 bf16 channels_last": lambda: normalisation((64, 64, 56, 56), BF16, True),
    "conv2d 256@14 3x3/1 -> 256 bf16 NCHW": lambda: convolution((32, 256, 14, 14), 256, 3, padding=1, last=False),
    "conv2d 256@14 3x3/1 -> 256 tf32 channels_last": lambda: convolution(
        (32, 256, 14, 14), 256, 3, padding=1, dtype=F32
    ),
    "conv2d 3@224 7x7/2 -> 64 bf16 channels_last": lambda: convolution((32, 3, 224, 224), 64, 7, stride=2, padding=3),
    "conv2d 32@28 3x3/1 -> 32, 32 groups bf16 channels_last": lambda: convolution(
        (32, 32, 28, 28), 32, 3, padding=1, groups=32
    ),
}
ALL_CASES = CASES | ONE_OF_EACH
