"""Fixtures: a seed before each test, and the backends as a parameter."""

import os
from importlib.util import find_spec

# A graph that inductor cached before an op's schema changed must not be what is tested.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

import pytest
import torch
from testing import BACKENDS, running

if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
    import interpreter

    interpreter.install()


def pytest_collection_modifyitems(config, items):
    """Takes the large sizes out of what Triton's interpreter runs: it needs seconds for a million elements."""
    slow = [
        item
        for item in items
        if "triton-interpreted" in item.nodeid and any(map(item.get_closest_marker, ("large", "slow")))
    ]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=BACKENDS)
def device(request):
    """The device of one backend, which serves every call of the test."""
    with running(request.param) as device:
        yield device
