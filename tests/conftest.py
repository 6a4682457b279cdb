"""Fixtures: a seed before each test, and the backends as a parameter."""

import os
from importlib.util import find_spec

# A graph that inductor cached before an op's schema changed must not be what is tested.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
# Threads that wait by spinning take the cores from whatever else runs, other tests too; read as torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from testing import BACKENDS, BEST, running

import pydl.functional
import pydl.ops.embedding
import pydl.ops.embedding_bag
import pydl.ops.instance_norm
import pydl.ops.recurrent_cells

if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
    import interpreter

    interpreter.install()


def _leaves_out(item):
    """Whether a body is not for the backend of this item: of the CPU's kernels alone, or too large to interpret.

    Of the instruction sets, bodies about Python's side take the best one alone.
    """
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    backend = parameters.get("device", BEST)
    if backend.startswith("cpu-"):
        return backend != BEST and item.get_closest_marker("best_isa") is not None
    if item.get_closest_marker("cpu_kernels") or parameters.get("algorithm", "auto") != "auto":
        return True
    return backend == "triton-interpreted" and any(map(item.get_closest_marker, ("large", "twin_alone", "slow")))


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if _leaves_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not _leaves_out(item)]
    # files of long tests first: with -n 2 --dist loadfile no worker is left alone with one of them at the end
    items.sort(key=lambda item: not {"training", "d2l", "swapping"} & set(item.path.parts))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_is_too_small(monkeypatch):
    """Functions of one tensor, embeddings, losses and recurrent cells are ours for the small tensors of tests too."""
    for module in vars(pydl.ops).values():
        if isinstance(worth := getattr(module, "WORTH_A_CALL", None), dict):  # function -> numbers
            monkeypatch.setattr(module, "WORTH_A_CALL", dict.fromkeys(worth, 0))
    monkeypatch.setattr(pydl.ops.embedding, "WORTH_A_CALL", 0)
    monkeypatch.setattr(pydl.ops.embedding_bag, "WORTH_A_CALL", 0)
    monkeypatch.setattr(pydl.ops.instance_norm, "LEAST_PLACES", 1)
    monkeypatch.setattr(pydl.ops.recurrent_cells, "LEAST_BATCH", 1)
    monkeypatch.setattr(pydl.ops.conv3d, "WORTH_A_CALL", 0)
    monkeypatch.setattr(pydl.ops.conv3d, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(pydl.ops.conv3d, "LEAVES_STRIDED", False)
    monkeypatch.setattr(pydl.ops.pool3d, "WORTH_A_CALL", 0)


@pytest.fixture
def small_caches():
    """Of the CPU's kernels: results of more than 8 KB are written past the caches."""
    before = pydl._C.cpu_caches()
    pydl._C.set_cpu_caches(1 << 12, 1 << 13, 1 << 14)
    yield
    pydl._C.set_cpu_caches(*before)


@pytest.fixture(params=BACKENDS)
def device(request):
    """The device of one backend, which serves every call of the test."""
    with running(request.param) as device:
        yield device
