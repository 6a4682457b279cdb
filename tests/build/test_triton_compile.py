"""Compiles every Triton kernel and configuration for seven architectures, on a machine without any of them.

The launchers are run on meta tensors with Triton's driver replaced by one that names a target, so what is compiled is
what they would launch there: the same signatures, specialisations and configurations. What several cases launch is
compiled once, by two processes. A test fails on a compile error, on registers spilled to memory, and on more shared
memory than the architecture has.

Run as ``pytest -m triton_compile`` (minutes), in a process without TRITON_INTERPRET; ``-k sm_90`` for one architecture.
"""

import contextlib
import io
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled under TRITON_INTERPRET=1", allow_module_level=True)
triton = pytest.importorskip("triton", minversion="3.4", reason="Triton is not installed")

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from pydl.kernels.triton import launch
from pydl.kernels.triton.conv2d import conv2d
from pydl.kernels.triton.dropout import dropout
from pydl.kernels.triton.norm import batch_norm
from pydl.kernels.triton.softmax import softmax_cross_entropy

pytestmark = pytest.mark.triton_compile

# multiprocessors, shared memory of one program, capability: of a T4, an A100, an RTX 3090, an H100, a B200, an RTX 5090
# and an MI300X
TARGETS = {
    "sm_75": (GPUTarget("cuda", 75, 32), launch.Device(40, 64 << 10, 75)),
    "sm_80": (GPUTarget("cuda", 80, 32), launch.Device(108, 163 << 10, 80)),
    "sm_86": (GPUTarget("cuda", 86, 32), launch.Device(82, 99 << 10, 86)),
    "sm_90": (GPUTarget("cuda", 90, 32), launch.Device(132, 227 << 10, 90)),
    "sm_100": (GPUTarget("cuda", 100, 32), launch.Device(148, 227 << 10, 100)),
    "sm_120": (GPUTarget("cuda", 120, 32), launch.Device(170, 99 << 10, 120)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), launch.Device(304, 64 << 10, 0)),
}
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


# ---- compiling


class Compiler:
    """Collects what the cases of a test run launch, and compiles each different kernel once, in two processes."""

    def __init__(self):
        self.sources = []  # (source, target, options) of each different kernel, in the order of their numbers
        self.numbers = {}  # of a source's hash, target and options
        self.wanted = {}  # numbers of (case, architecture)
        self.futures = None

    def collect(self, name, architecture, monkeypatch):
        """Runs the launchers of a case as on an architecture."""
        target, device = TARGETS[architecture]
        number = list(TARGETS).index(architecture)  # a device number of its own: a kernel caches what it compiled by it
        active = SimpleNamespace(
            get_current_device=lambda: number,
            get_current_stream=lambda _: 0,
            get_current_target=lambda: target,
        )
        wanted = self.wanted.setdefault((name, architecture), {})
        run = JITFunction.run

        def record(source, target, options, **_):
            key = (source.hash(), architecture, str(sorted(options.items())))
            if key not in self.numbers:
                self.numbers[key] = len(self.sources)
                self.sources.append((source, target, options))
            wanted[self.numbers[key]] = None
            return SimpleNamespace(number=self.numbers[key])

        def look_up(self_, *arguments, grid, warmup, **options):
            # a kernel that another case launched comes from Triton's cache, without a compilation
            kernel = run(self_, *arguments, grid=grid, warmup=True, **options)
            wanted[kernel.number] = None
            return kernel

        with monkeypatch.context() as patch:
            patch.setattr(driver, "_active", active)
            patch.setattr(launch, "ELSEWHERE", device)
            patch.setattr(triton.compiler, "compile", record)
            patch.setattr(JITFunction, "run", look_up)
            CASES[name]()

    def start(self, folder):
        # forked workers see self.sources, which need not be pickled then
        self.pool = ProcessPoolExecutor(2, multiprocessing.get_context("fork"), _begin, (self.sources, folder))
        self.futures = [self.pool.submit(_compile, number) for number in range(len(self.sources))]

    def reports(self, name, architecture):
        return [self.futures[number].result() for number in self.wanted[name, architecture]]


def _begin(sources, folder):
    global _sources
    _sources = sources
    os.environ["TRITON_CACHE_DIR"] = str(folder)  # an empty one: what is cached reports no spills
    triton.knobs.nvidia.dump_ptxas_log = True
    torch.set_num_threads(1)


def _compile(number):
    """A dict that says what became of a kernel: name, error, shared memory, spills, registers."""
    source, target, options = _sources[number]
    report = {"name": source.name, "error": None}
    with contextlib.redirect_stdout(io.StringIO()) as log:
        try:
            kernel = triton.compiler.compile(source, target=target, options=options)
        except Exception as error:  # whatever a compiler raises is a finding of the test
            return report | {"error": f"{type(error).__name__}: {error}"}
    report |= {"shared": kernel.metadata.shared, "warps": kernel.metadata.num_warps}
    if target.backend == "cuda":
        spills, registers = r"(\d+) bytes spill (?:stores|loads)", r"Used (\d+) registers"
        text, scalar = log.getvalue(), []
    else:
        # .private_segment_fixed_size: bytes of memory that a lane has for spills and arrays
        spills, registers = r"\.(?:vgpr_spill_count|private_segment_fixed_size):\s*(\d+)", r"\.vgpr_count:\s*(\d+)"
        text = kernel.asm["amdgcn"]
        scalar = re.findall(r"\.sgpr_spill_count:\s*(\d+)", text)
    found = re.findall(spills, text)
    if not found:
        return report | {"error": "no report of spills"}
    return report | {
        "spilled": sum(map(int, found)),
        "scalar": sum(map(int, scalar)),
        "registers": int(re.findall(registers, text)[0]),
    }


# On AMD a scalar register that does not fit goes to one of the 64 lanes of a vector register, by one instruction, and
# never to memory as long as vector registers are left (which the counts of those show). One vector register's worth.
SCALAR_SPILLS = 64


@pytest.fixture(scope="module")
def compiler(request, tmp_path_factory):
    """The kernels of all the tests that were selected, being compiled."""
    compiler = Compiler()
    with pytest.MonkeyPatch.context() as monkeypatch:
        for item in request.session.items:
            if item.function is test_compiles:
                compiler.collect(*(item.callspec.params[key] for key in ("name", "architecture")), monkeypatch)
    compiler.start(tmp_path_factory.mktemp("triton"))
    yield compiler
    compiler.pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("architecture", TARGETS)
def test_compiles(architecture, name, compiler):
    most = TARGETS[architecture][1].shared_bytes
    reports = compiler.reports(name, architecture)
    assert reports, "no kernel was compiled"
    wrong = []
    for report in reports:  # pytest -s shows the table
        print(report)
        if report["error"] is not None:
            wrong.append(f"{report['name']}: {report['error']}")
            continue
        if report["shared"] > most:
            wrong.append(f"{report['name']}: {report['shared']} bytes of shared memory, {architecture} has {most}")
        if report["spilled"]:
            wrong.append(f"{report['name']} spills to memory: {report}")
        if report["scalar"] > SCALAR_SPILLS:
            wrong.append(f"{report['name']} spills {report['scalar']} scalar registers")
    assert not wrong, "\n".join(wrong)
