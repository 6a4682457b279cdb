"""What the tests share: backends, dtypes with their tolerances, and the comparison with float64 torch."""

import contextlib
import os

import pytest
import torch

import pydl
from pydl import _C

# (relative, absolute) error allowed against float64, a few units in the last place of the output dtype; sums over many
# terms grow like the square root of their number, which the op's own test states when it needs more.
TOLERANCE = {
    torch.float64: (1e-9, 1e-11),
    torch.float32: (2e-5, 2e-6),
    torch.bfloat16: (2e-2, 2e-2),
    torch.float16: (3e-3, 3e-3),
}
ALL_DTYPES = list(TOLERANCE)
# Triton's interpreter and the host twin are slow: two dtypes there, and the others in tests/ops/test_other_dtypes.py
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_HOST = "PYDL_CUDA_ON_HOST" in os.environ
SLOW_DTYPES = [torch.float32, torch.bfloat16]
DTYPES = SLOW_DTYPES if INTERPRETED or ON_HOST else ALL_DTYPES

# triton-interpreted runs the Triton kernels on CPU tensors: TRITON_INTERPRET=1 pytest -m triton, a process of its own
_BACKENDS = [f"cpu-{isa}" for isa in ("baseline", "avx2", "avx512")] + ["cuda", "triton", "triton-interpreted"]
if ON_HOST:  # every CPU tensor is the CUDA kernels' in this process
    _BACKENDS = ["cuda-on-host"]


def _why_not(name):
    if name.startswith("cpu-"):
        isa = name.removeprefix("cpu-")
        return None if isa in pydl.backend.isas() else f"this CPU has no {isa}"
    if name in ("triton-interpreted", "cuda-on-host"):
        return None
    if not torch.cuda.is_available():
        return "no GPU on this machine"
    status = pydl.backend.available()[name]
    return None if status else status.reason


def _marks(name):
    skip = pytest.mark.skipif(_why_not(name) is not None, reason=str(_why_not(name)))
    own_process = {"triton-interpreted": pytest.mark.triton, "cuda-on-host": pytest.mark.cuda_on_host}
    return [skip, own_process[name]] if name in own_process else [skip]


BEST = f"cpu-{pydl.backend.isas()[-1]}"
BACKENDS = [pytest.param(name, marks=_marks(name)) for name in _BACKENDS]


@contextlib.contextmanager
def running(name):
    """Runs a block under a backend of ``BACKENDS``; yields the device to put tensors on."""
    if name.startswith("cpu-"):
        with pydl.backend.use("cpu"), pydl.backend.isa(name.removeprefix("cpu-")):
            yield torch.device("cpu")
    elif name in ("triton-interpreted", "cuda-on-host"):
        with pydl.backend.use(name.split("-")[0]):
            yield torch.device("cpu")
    else:
        allowed = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False  # float32 is held to float32's tolerance
        try:
            with pydl.backend.use(name):
                yield torch.device("cuda")
        finally:
            torch.backends.cudnn.allow_tf32 = allowed


def assert_close(actual, expected, dtype=None, scale=1.0):
    """``actual`` equals ``expected`` (float64 oracle) within the tolerance of ``dtype`` (default: ``actual``'s)."""
    relative, absolute = TOLERANCE[dtype or actual.dtype]
    torch.testing.assert_close(
        actual.detach().cpu().double(),
        expected.detach().cpu().double(),
        rtol=relative * scale,
        atol=absolute * scale,
        equal_nan=True,
    )


def assert_transforms(ours, theirs, x, w, b):
    """Gradients by torch.func of two functions (x, w, b) -> output, and per sample those of the weight, by vmap."""

    def loss(function):
        return lambda x, w, b: function(x, w, b).square().sum()

    for argnums in (0, 1, 2):
        found, expected = (torch.func.grad(loss(f), argnums)(x, w, b) for f in (ours, theirs))
        torch.testing.assert_close(found, expected)
    per_sample = torch.func.vmap(torch.func.grad(loss(ours), 1), (0, None, None))(x, w, b)
    for i in range(len(x)):
        torch.testing.assert_close(per_sample[i], torch.func.grad(loss(theirs), 1)(x[i], w, b))


# the two ways of bfloat16 on AVX-512; a machine without the instruction runs the second alone
BF16_DOT = [pytest.param(True, marks=pytest.mark.skipif(not _C.cpu_has_bf16_dot(), reason="no vdpbf16ps")), False]
AVX512_ALONE = [
    pytest.mark.cpu_kernels,
    pytest.mark.skipif("avx512" not in pydl.backend.isas(), reason="this CPU has no avx512"),
]


@contextlib.contextmanager
def bf16_dot(use):
    """Runs a block with the dot product of pairs of bfloat16, or as on a CPU without that instruction."""
    _C.use_cpu_bf16_dot(use)
    try:
        yield
    finally:
        _C.use_cpu_bf16_dot(True)
