"""Compiles every Triton kernel and configuration for five architectures, on a machine without any of them.

The launchers are run on meta tensors with Triton's driver replaced by one that names a target, so what is compiled is
what they would launch there: the same signatures, specialisations and configurations. A test fails on a compile error,
on registers spilled to memory, and on more shared memory than the architecture has.

Run as ``pytest -m triton_compile`` (minutes), in a process without TRITON_INTERPRET.
"""

import contextlib
import io
import os
import re
from types import SimpleNamespace

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled under TRITON_INTERPRET=1", allow_module_level=True)
triton = pytest.importorskip("triton", minversion="3.4", reason="Triton is not installed")

from pydl.kernels.triton import batch_norm, conv2d, dropout, launch, softmax_cross_entropy
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

pytestmark = pytest.mark.triton_compile

# multiprocessors, shared memory of one program, capability: of a T4, an A100, an H100, a B200 and an MI300X
TARGETS = {
    "sm_75": (GPUTarget("cuda", 75, 32), launch.Device(40, 64 << 10, 75)),
    "sm_80": (GPUTarget("cuda", 80, 32), launch.Device(108, 163 << 10, 80)),
    "sm_90": (GPUTarget("cuda", 90, 32), launch.Device(132, 227 << 10, 90)),
    "sm_100": (GPUTarget("cuda", 100, 32), launch.Device(148, 227 << 10, 100)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), launch.Device(304, 64 << 10, 0)),
}
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


@pytest.fixture(params=TARGETS)
def compiled(request, monkeypatch, tmp_path):
    """A list that every kernel "launched" in the test is compiled into, for one architecture."""
    target, device = TARGETS[request.param]
    # a device number of its own for each target: a kernel caches what it compiled by it
    number = list(TARGETS).index(request.param)
    monkeypatch.setattr(
        driver,
        "_active",
        SimpleNamespace(
            get_current_device=lambda: number,
            get_current_stream=lambda _: 0,
            get_current_target=lambda: target,
        ),
    )
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # what is cached reports no spills
    for module in (softmax_cross_entropy, batch_norm, conv2d):
        monkeypatch.setattr(module, "device_of", lambda _: device)
    monkeypatch.setattr(triton.knobs.nvidia, "dump_ptxas_log", True)
    kernels = []
    run = JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        with contextlib.redirect_stdout(io.StringIO()) as log:
            kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        if log.getvalue() or target.backend == "hip":
            kernels.append((kernel, log.getvalue()))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    yield kernels
    assert kernels, "no kernel was compiled"
    for kernel, log in kernels:  # pytest -s shows the table
        used, most = kernel.metadata.shared, device.shared_bytes
        report = log + kernel.asm.get("amdgcn", "")
        registers = re.findall(r"Used (\d+) registers|\.vgpr_count:\s*(\d+)", report)[0]
        print(f"{kernel.name}: {''.join(registers)} registers, {used} bytes, {kernel.metadata.num_warps} warps")
        assert used <= most, f"{kernel.name}: {used} bytes of shared memory, {request.param} has {most}"
        assert spilled(kernel, log) == 0, (
            f"{kernel.name} spills {spilled(kernel, log)} registers or bytes:\n{report[-3000:]}"
        )


def spilled(kernel, log):
    """Bytes (NVIDIA, by ptxas -v) or registers (AMD, by the assembler's metadata) that were spilled to memory."""
    if "amdgcn" in kernel.asm:
        # scalar registers spill to lanes of vector registers, not to memory: they do not count
        found = re.findall(r"vgpr_spill_count:\s*(\d+)", kernel.asm["amdgcn"])
    else:
        found = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    assert found, f"{kernel.name}: no report of spills"
    return sum(map(int, found))


def meta(*shape, dtype=F32, last=False):
    format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=format)


# ---- dropout


@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
def test_dropout(compiled, dtype):
    seed = meta(1, dtype=torch.int64)
    dropout.dropout(meta(1 << 22, dtype=dtype), 0.5, seed)
    dropout.dropout(meta(1001, dtype=dtype), 0.5, seed)
    dropout.dropout(meta(8, 64, 56, 56, dtype=dtype), 0.5, seed, 2)  # whole channels
    dropout.dropout(meta(8, 64, 56, 56, dtype=dtype, last=True), 0.5, seed)
    dropout.dropout(meta(8, 64, 56, 56, dtype=dtype, last=True), 0.5, seed, 2)


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


@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
def test_cross_entropy(compiled, dtype):
    weight = meta(50257, dtype=F64 if dtype == F64 else F32)
    cross_entropy(meta(4096, 10, dtype=dtype), indices(4096))
    cross_entropy(meta(4096, 1000, dtype=dtype), indices(4096), smoothing=0.1)
    cross_entropy(meta(4096, 50257, dtype=dtype), indices(4096), weight, smoothing=0.1, z_loss=1e-4)  # rows unaligned
    cross_entropy(meta(32768, 32768, dtype=dtype), indices(32768))  # two steps of reduction
    cross_entropy(meta(16, 131072, dtype=dtype), indices(16), reduction=0)  # rows in pieces
    cross_entropy(meta(8, 21, 65, 65, dtype=dtype), indices(8, 65, 65))  # strided classes


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_cross_entropy_probabilities(compiled, dtype):
    weight = meta(1000)
    cross_entropy(meta(4096, 1000, dtype=dtype), meta(4096, 1000, dtype=dtype), weight, smoothing=0.1)
    cross_entropy(meta(16, 50257, dtype=dtype), meta(16, 50257), z_loss=1e-4)
    cross_entropy(meta(8, 21, 64, 64, dtype=dtype, last=True), meta(8, 21, 64, 64, dtype=dtype))


# ---- batch norm


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
def test_batch_norm(compiled, dtype, last):
    for shape in ((64, 64, 56, 56), (32, 2048, 7, 7)):
        x = meta(*shape, dtype=dtype, last=last)
        parameter = meta(shape[1], dtype=F64 if dtype == F64 else F32)
        # activation, whether with residual: ReLU, plain, and with a residual before ReLU
        for activation, residual in ((1, False), (0, False), (1, True)):
            if activation == 0 and shape[1] == 2048:
                continue
            output, mean, var = batch_norm.batch_norm_forward(
                x, None, None, parameter, parameter, x if residual else None, True, 1e-5, activation
            )
            batch_norm.batch_norm_backward(
                x, x, mean, var, parameter, parameter, output if residual else None, True, 1e-5, activation,
                True, True, True, residual,
            )  # fmt: skip
        batch_norm.batch_norm_update_stats(parameter, parameter, mean, var, 100, 0.1)


# ---- conv2d


def convolution(shape, outputs, kernel, stride=1, padding=0, groups=1, dtype=BF16, last=True, bias=False):
    x = meta(*shape, dtype=dtype, last=last)
    w = meta(outputs, shape[1] // groups, kernel, kernel, dtype=dtype, last=last)
    b = meta(outputs, dtype=dtype) if bias else None
    options = ((stride, stride), (padding,) * 4, (1, 1), groups)
    y = conv2d.conv2d_forward(x, w, b, *options, "relu" if bias else "none", last)
    conv2d.conv2d_backward_input(y, w, x.shape, *options, last)
    conv2d.conv2d_backward_weight(y, x, w.shape, *options, last)


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
def test_conv2d(compiled, dtype, last):
    options = {"dtype": dtype, "last": last}
    convolution((32, 256, 14, 14), 256, 3, padding=1, **options)
    convolution((32, 256, 56, 56), 64, 1, bias=True, **options)
    convolution((2, 512, 7, 7), 512, 3, padding=1, **options)  # few programs: smaller tiles
    convolution((32, 3, 224, 224), 64, 7, stride=2, padding=3, **options)
    convolution((32, 32, 28, 28), 32, 3, padding=1, groups=32, **options)


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
def test_conv2d_tf32(compiled, last, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32)
    convolution((32, 256, 14, 14), 256, 3, padding=1, dtype=F32, last=last)


def test_ones(compiled):
    """Triton makes constants of arguments that are 1: sizes of one must compile too."""
    dropout.dropout(meta(1), 0.5, meta(1, dtype=torch.int64))
    for rows, classes in ((1, 1), (1, 10), (3, 1)):
        cross_entropy(meta(rows, classes), indices(rows), smoothing=0.1)
    for shape in ((2, 1), (1, 1, 5, 7), (1, 3, 1, 2)):
        x = meta(*shape)
        output, mean, var = batch_norm.batch_norm_forward(x, None, None, None, None, None, True, 1e-5, 0)
        batch_norm.batch_norm_backward(output, x, mean, var, None, None, None, True, 1e-5, 0, True, True, True, False)
    batch_norm.batch_norm_update_stats(meta(1), meta(1), meta(1, dtype=F64), meta(1, dtype=F64), 2, 0.1)
    convolution((1, 1, 1, 1), 1, 1, dtype=F32, last=False)
    convolution((1, 2, 5, 5), 2, 1, groups=2, dtype=F32, last=False)
    convolution((1, 40, 1, 1), 40, 1, dtype=F32)
