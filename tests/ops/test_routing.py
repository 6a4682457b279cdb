"""Which backend serves which tensor, and that tensors of two GPUs are refused: all without a GPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pydl import backend
from pydl.ops import _triton

HALF, F32, F64 = [torch.bfloat16, torch.float16], torch.float32, torch.float64
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture
def machine(monkeypatch):
    """A function that makes pydl see a GPU of a capability, and the backends that are there for it."""

    def see(capability, cuda=True, triton=True):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(backend, "_cuda_status", lambda: backend.Status(cuda, "a test's"))
        monkeypatch.setattr(_triton, "why_not", lambda: None if triton else "a test's")
        monkeypatch.setattr(backend, "_first_on_gpu", lambda: "cuda" if cuda else "triton" if triton else None)

    return see


def served_by(op, dtype, memory_format=torch.contiguous_format, device="cuda:0"):
    with FakeTensorMode():
        x = torch.empty(2, 3, 4, 5, dtype=dtype, device=device).to(memory_format=memory_format)
        ops = backend.ops_for(x, op)
    return {torch.ops.pydl: "cuda", torch.ops.pydl_triton: "triton", None: "torch"}[ops]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    "capability, tf32, dtype, served",
    [
        ((8, 0), True, F32, "triton"),  # tensor cores take float32, and torch lets them
        ((12, 0), True, F32, "triton"),
        ((7, 5), True, F32, "cuda"),
        ((8, 0), False, F32, "cuda"),
        ((9, 0), False, F32, "cuda"),
        ((9, 0), True, F64, "cuda"),
        *(((9, 0), tf32, dtype, "triton") for tf32 in (False, True) for dtype in HALF),
        ((7, 5), True, torch.float16, "triton"),
    ],
)
def test_convolutions(machine, capability, tf32, dtype, served, memory_format):
    machine(capability)
    with torch.backends.cudnn.flags(allow_tf32=tf32):
        assert served_by("conv2d", dtype, memory_format) == served


@pytest.mark.parametrize("dtype", [*HALF, F32, F64])
@pytest.mark.parametrize("op", ["batch_norm", "dropout", "softmax_cross_entropy", None])
def test_other_ops_stay_with_the_cuda_library(machine, op, dtype):
    machine((9, 0))
    assert served_by(op, dtype) == "cuda"


@pytest.mark.parametrize("dtype", [*HALF, F32, F64])
def test_what_is_there_serves(machine, dtype):
    machine((9, 0), triton=False)
    assert served_by("conv2d", dtype) == "cuda"
    machine((9, 0), cuda=False)
    assert served_by("conv2d", dtype) == served_by("dropout", dtype) == "triton"
    machine((9, 0), cuda=False, triton=False)
    with pytest.raises(RuntimeError, match=r"expected a GPU backend to be available, got cuda: .*; triton: "):
        served_by("conv2d", dtype)


@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
def test_ops_with_kernels_for_the_cpu_alone_are_torchs_on_a_gpu(machine, op):
    machine((9, 0))
    assert served_by(op, F32) == "torch"


@pytest.mark.parametrize("asked", ["cuda", "triton", "torch"])
def test_who_asks_is_served_by_what_was_asked_for(machine, asked):
    machine((9, 0))
    with backend.use(asked):
        for dtype in (*HALF, F32, F64):
            assert served_by("conv2d", dtype) == asked


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_gpu_changes_nothing_elsewhere(machine, device):
    machine((9, 0))
    assert served_by("conv2d", torch.bfloat16, device=device) == ("torch" if device == "meta" else "cuda")


# ---- tensors of two GPUs


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a GPU, and has no memory: kernels must not come to ask for it."""

    @staticmethod
    def __new__(cls, size, device, dtype=torch.float32):
        return torch.Tensor._make_wrapper_subclass(cls, size, dtype=dtype, device=device)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} was called")


def conv2d_forward(ops, here, there):
    ops.conv2d_forward(here(2, 4, 8, 8), there(6, 4, 3, 3), None, (1, 1), (0,) * 4, (1, 1), 1, "none", False)


def conv2d_bias(ops, here, there):
    x, w = here(2, 4, 8, 8), here(6, 4, 3, 3)
    ops.conv2d_forward(x, w, there(6), (1, 1), (0,) * 4, (1, 1), 1, "none", False)


def conv2d_backward_input(ops, here, there):
    ops.conv2d_backward_input(here(2, 6, 6, 6), there(6, 4, 3, 3), (2, 4, 8, 8), (1, 1), (0,) * 4, (1, 1), 1, False)


def conv2d_backward_weight(ops, here, there):
    ops.conv2d_backward_weight(here(2, 6, 6, 6), there(2, 4, 8, 8), (6, 4, 3, 3), (1, 1), (0,) * 4, (1, 1), 1, False)


def cross_entropy_target(ops, here, there):
    ops.softmax_cross_entropy_forward(here(5, 7), there(5, dtype=torch.int64), None, 1, -100, 0.0, 0.0)


def cross_entropy_weight(ops, here, there):
    ops.softmax_cross_entropy_forward(here(5, 7), here(5, dtype=torch.int64), there(7), 1, -100, 0.0, 0.0)


def batch_norm_weight(ops, here, there):
    ops.batch_norm_forward(here(2, 3, 4, 4), None, None, there(3), None, None, True, 1e-5, 0)


def dropout_seed(ops, here, there):
    ops.dropout(here(4, 5), 0.5, there(1, dtype=torch.int64))


CALLS = {
    conv2d_forward: "conv2d: expected weight to be on the device of input",
    conv2d_bias: "conv2d: expected bias to be on the device of input",
    conv2d_backward_input: "conv2d: expected weight to be on the device of grad_output",
    conv2d_backward_weight: "conv2d: expected input to be on the device of grad_output",
    cross_entropy_target: "cross_entropy: expected target to be on the device of input",
    cross_entropy_weight: "cross_entropy: expected weight to be on the device of input",
    batch_norm_weight: "batch_norm: expected weight to be on the device of input",
    dropout_seed: "dropout: expected seed to be on the device of input",
}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
@pytest.mark.parametrize("namespace", ["pydl", pytest.param("pydl_triton", marks=pytest.mark.triton)])
def test_tensors_on_two_gpus(namespace, call):
    def on(device):
        return lambda *size, dtype=F32: Elsewhere(size, device, dtype)

    ops = getattr(torch.ops, namespace)
    # past autograd and the Python of a subclass, to the implementation for GPUs itself
    with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
        for there in ("cuda:1", "cpu"):
            with pytest.raises(RuntimeError, match=CALLS[call]):
                call(ops, on("cuda:0"), on(there))
        # on one GPU it is the memory that is asked for, in vain
        with pytest.raises((RuntimeError, AssertionError)) as error:
            call(ops, on("cuda:1"), on("cuda:1"))
        assert "on the device of" not in str(error.value)
