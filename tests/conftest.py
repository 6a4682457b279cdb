"""Fixtures: a seed before each test, and the backends as a parameter."""

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
