"""Fixtures: a seed before each test, and the backends as a parameter."""

import os

# A graph that inductor cached before an op's schema changed must not be what is tested.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

import pytest
import torch
from testing import BACKENDS, running


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=BACKENDS)
def device(request):
    """The device of one backend, which serves every call of the test."""
    with running(request.param) as device:
        yield device
