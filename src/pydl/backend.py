"""Which kernels run: ``torch, cpu, cuda, triton``, one vocabulary everywhere.

By default the device of the input decides: ``cpu`` for CPU tensors, ``cuda`` for GPU tensors (``triton`` where the CUDA
library was not built). ``PYDL_BACKEND`` or :func:`use` ask for one; asking for one that is absent is an error that
names those present. Under ``torch``, ``pydl.functional`` and ``pydl.nn`` call torch's own functions.
"""

import functools
import os
import re
from contextlib import ContextDecorator
from dataclasses import dataclass
from pathlib import Path

import torch

from pydl import _C
from pydl.errors import OptionError
from pydl.ops import _library, _nodes, _triton

NAMES = ("torch", "cpu", "cuda", "triton")


@dataclass(frozen=True)
class Status:
    """Whether a backend can be used, and why or why not; true when it can."""

    ok: bool
    reason: str

    def __bool__(self):
        return self.ok


# The host twin's library (tests/support/cuda_on_host): CUDA kernels compiled for the CPU, which serve CPU tensors then.
_ON_HOST = os.environ.get("PYDL_CUDA_ON_HOST")


@functools.cache
def _cuda_library():
    """Loads the CUDA library once; None, or why it cannot be used."""
    path = Path(_ON_HOST or Path(_C.__file__).with_name("libpydl_cuda.so"))
    if _ON_HOST is None and torch.version.cuda is None:
        built = "; pydl's CUDA library is built" if path.is_file() else ""
        return f"torch is built without CUDA{built}"
    if not path.is_file():
        return f"pydl was built without its CUDA library ({path} is absent)"
    try:
        _C.load_cuda(str(path))
    except RuntimeError as error:
        return str(error)
    return None


def cuda_architectures():
    """What the loaded CUDA library is compiled for, such as ``("sm_80", "sm_90", "compute_120")``."""
    return tuple(filter(None, _C.cuda_architectures().split(", ")))


def _runs_on(capability, architectures):
    """Whether machine code or PTX among ``architectures`` runs on a GPU of compute capability (major, minor)."""
    for kind, number, feature in re.findall(r"(sm|compute)_(\d+)([a-z]?)", ", ".join(architectures)):
        have = divmod(int(number), 10)
        later = have <= capability and (kind == "compute" or have[0] == capability[0])
        if have == capability if feature else later:  # sm_90a: that very chip
            return True
    return False


@functools.cache
def _cuda_status():
    why_not = _cuda_library()
    if why_not is not None:
        return Status(False, why_not)
    if _ON_HOST is not None:
        return Status(True, "CUDA kernels compiled for the CPU, on CPU tensors")
    if not torch.cuda.is_available():
        return Status(False, "torch sees no GPU")
    compiled = cuda_architectures()
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not _runs_on(capability, compiled):
            return Status(
                False, f"compiled for {', '.join(compiled)}; GPU {index} is sm_{capability[0]}{capability[1]}"
            )
    return Status(True, f"CUDA kernels for {', '.join(compiled)}")


def _triton_status():
    why_not = _triton.why_not()
    how = "interpreted on CPU tensors" if _triton.interpreted() else "compiled at the first call"
    return Status(why_not is None, why_not or f"triton {_triton.version()}, {how}")


def available():
    """A dict from backend name to :class:`Status`, in the order of ``NAMES``.

    >>> bool(pydl.backend.available()["cpu"])
    True
    """
    emulated = " compiled for AVX2" if _C.avx512_is_emulated() and _C.cpu_isa() == "avx512" else ""
    return {
        "torch": Status(True, f"torch {torch.__version__}"),
        "cpu": Status(True, f"{_C.cpu_isa()} kernels{emulated}"),
        "cuda": _cuda_status(),
        "triton": _triton_status(),
    }


def _checked(name):
    if name not in NAMES:
        raise ValueError(f"backend: expected the name to be one of {', '.join(NAMES)}, got {name!r}")
    status = available()
    if not status[name]:
        present = ", ".join(n for n in NAMES if status[n])
        raise RuntimeError(
            f"backend: expected {name!r} to be available, got: {status[name].reason}; present are {present}"
        )
    return name


# A plain global, not a thread-local: DataParallel's and autograd's threads must see the caller's choice, and
# torch.compile can guard on it.
_asked = None


def _read_environment():
    for variable, choose in (("PYDL_BACKEND", use._set), ("PYDL_CPU_ISA", set_isa)):
        if asked := os.environ.get(variable):
            try:
                choose(asked)
            except (ValueError, RuntimeError) as error:  # who set it is not the one who wrote the import
                raise OptionError(f"{variable}={asked}: {error}") from None


class _Switch(ContextDecorator):
    """A setting that is in force from the call on, and taken back where a ``with`` block or a decorated call ends.

    As ``torch.set_grad_enabled`` does it: a plain call stays in force; as a decorator, it is in force inside the
    decorated function alone.
    """

    def __init__(self, name):
        self._before, self._name = self._get(), name
        self._set(name)

    def __enter__(self):
        self._set(self._name)
        return self

    def __exit__(self, *exception):
        self._set(self._before)

    def __call__(self, function):
        self._set(self._before)
        return super().__call__(function)

    def _recreate_cm(self):  # each call of a decorated function goes back to what was in force before it
        return type(self)(self._name)


class use(_Switch):
    """Asks for a backend, in every thread: ``pydl.backend.use("torch")``, or inside a ``with`` block of it.

    The call is in force at once; ``with`` undoes it at the end of its block, and a function decorated with it runs
    under it. The choice is made in the forward and kept for its backward, wherever that runs.

    Raises:
        ValueError: for an unknown name.
        RuntimeError: for a backend that is absent; the message names those present.

    >>> with pydl.backend.use("torch"):
    ...     pydl.backend.current()
    'torch'
    """

    @staticmethod
    def _get():
        return _asked

    @staticmethod
    def _set(name):
        global _asked
        _asked = None if name is None else _checked(name)
        _nodes.serve_cpu(_asked in (None, "cpu"))


def _first_on_gpu():
    """The backend that GPU tensors get where none is asked for, or None."""
    if _cuda_status():
        return "cuda"
    return "triton" if _triton_status() else None


# What torch.compiler.assume_constant_result does, without importing torch._dynamo: that takes a second.
_first_on_gpu._dynamo_marked_constant = True


def current(device="cpu"):
    """The name of the backend that serves tensors on ``device``.

    Raises:
        RuntimeError: when no backend of ours serves that device, or the one asked for does not.
    """
    kind = torch.device(device).type
    if kind == "meta":  # shapes without data: there is nothing to compute
        return "torch"
    if _asked is not None:
        if _asked == "torch" or (_asked == "cpu") == (kind == "cpu"):
            return _asked
        if kind == "cpu" and (
            (_asked == "triton" and os.environ.get("TRITON_INTERPRET") == "1") or (_asked == "cuda" and _ON_HOST)
        ):
            return _asked
        raise RuntimeError(f"backend: expected tensors for {_asked!r} to be on its device, got one on {kind!r}")
    if kind == "cpu":
        return "cpu"
    if kind == "cuda":
        name = _first_on_gpu()
        if name is not None:
            return name
        status = available()
        raise RuntimeError(
            f"backend: expected a GPU backend to be available, got cuda: {status['cuda'].reason}; "
            f"triton: {status['triton'].reason}; use('torch') runs torch's own kernels"
        )
    raise RuntimeError(f"backend: expected tensors to be on cpu or cuda, got one on {kind!r}; use('torch') serves it")


def _tf32(device):
    """Whether torch lets convolutions of float32 run on tensor cores, and ``device`` has those for it (sm_80 on)."""
    return torch.backends.cudnn.allow_tf32 and torch.cuda.get_device_capability(device) >= (8, 0)


_tf32._dynamo_marked_constant = True


def _better_in_triton(op, tensor):
    """What Triton computes on tensor cores whatever the layout, and with Hopper's own instructions: it comes first."""
    if op != "conv2d":
        return False
    return tensor.dtype in (torch.bfloat16, torch.float16) or (tensor.dtype == torch.float32 and _tf32(tensor.device))


def ops_for(tensor, op=None):
    """The op namespace that serves ``tensor`` (``torch.ops.pydl`` or ``torch.ops.pydl_triton``), or None for torch.

    ``op`` is the name of the op, for the ones that a backend serves less well than another, or not at all.
    """
    if _asked is None and tensor.is_cpu:  # the common case, kept short: it is paid on every call
        return torch.ops.pydl
    if _asked is None and _library.on_cpu_alone(op):
        return None  # on a GPU, whatever serves there
    name = current(tensor.device)
    if name == "torch" or (name != "cpu" and _library.on_cpu_alone(op)):
        return None
    if _asked is None and name == "cuda" and _better_in_triton(op, tensor) and not _triton.why_not():
        name = "triton"
    return torch.ops.pydl_triton if name == "triton" else torch.ops.pydl


def isas():
    """Instruction sets that this CPU runs, lowest first.

    >>> pydl.backend.isas()[0]
    'baseline'
    """
    return list(_C.cpu_isas())


def current_isa():
    """The instruction set that the CPU kernels use now."""
    return _C.cpu_isa()


def set_isa(name):
    """Selects the instruction set of the CPU kernels, for the whole process."""
    if name not in _C.cpu_isas():
        raise ValueError(f"isa: expected the instruction set to be one of {', '.join(_C.cpu_isas())}, got {name!r}")
    _C.set_cpu_isa(name)


class isa(_Switch):
    """Selects an instruction set (for tests and comparisons; see :func:`isas`), as :class:`use` does a backend.

    Raises:
        ValueError: for a name that is not in :func:`isas`.

    >>> with pydl.backend.isa("baseline"):
    ...     pydl.backend.current_isa()
    'baseline'
    """

    _get = staticmethod(current_isa)
    _set = staticmethod(set_isa)


class exact(_Switch):
    """Asks for sums of torch's own accuracy, as :class:`use` does a backend: on the CPU, convolutions without Winograd.

    In force for all that runs under it, backwards included. Winograd's method saves products by mixing the numbers of a
    tile: its results differ from torch's in more of the last digits, and sums of whole numbers are no whole numbers.

    Args:
        on: False takes it back inside a block of it.

    >>> with pydl.backend.exact():
    ...     nn.Conv2d(1, 1, 3)(torch.ones(1, 1, 8, 8)).shape
    torch.Size([1, 1, 6, 6])
    """

    _get = staticmethod(_C.is_exact)
    _set = staticmethod(_C.set_exact)

    def __init__(self, on=True):
        super().__init__(bool(on))


_read_environment()
