"""The caches that thresholds follow from: as the operating system has them, and taken otherwise for a test."""

import contextlib
import os

import pytest
import torch
import torch.nn.functional as F
from testing import assert_close

import pydl.functional as PF
from pydl import _C


@contextlib.contextmanager
def caches(*sizes):
    before = _C.cpu_caches()
    _C.set_cpu_caches(*sizes)
    try:
        yield
    finally:
        _C.set_cpu_caches(*before)


def test_sizes_are_the_systems():
    sizes = _C.cpu_caches()
    assert all(size >= 4096 for size in sizes)
    names = ("SC_LEVEL1_DCACHE_SIZE", "SC_LEVEL2_CACHE_SIZE", "SC_LEVEL3_CACHE_SIZE")
    for name, size in zip(names, sizes, strict=True):
        if name in os.sysconf_names and os.sysconf(name) > 0:
            assert size == os.sysconf(name)


def test_other_sizes():
    before = _C.cpu_caches()
    with caches(1 << 12, 1 << 14, 1 << 16):
        assert _C.cpu_caches() == (1 << 12, 1 << 14, 1 << 16)
        with pytest.raises(ValueError, match="caches: expected sizes in bytes to be positive, got 0"):
            _C.set_cpu_caches(1, 0, 1)
    assert _C.cpu_caches() == before


# what is written past the caches, kept in the second level, or fetched ahead, at sizes that a test can afford
CALLS = {
    "dropout": lambda f, x: f.dropout(x, 0.5) if f is F else f.dropout(x, 0.5, seed=torch.tensor(3)),
    "cross_entropy": lambda f, x: f.cross_entropy(x, torch.arange(64) % 3),
    "gelu": lambda f, x: f.gelu(x),
    "batch_norm": lambda f, x: f.batch_norm(x, None, None, training=True),
    "conv2d": lambda f, x: f.conv2d(x.view(1, 64, 32, 32), torch.ones(64, 64, 1, 1, dtype=x.dtype) / 8),
    "linear": lambda f, x: f.linear(x, (torch.arange(1 << 20).view(1024, 1024) % 7 - 3).to(x.dtype) / 32),
    "max_pool2d": lambda f, x: f.max_pool2d(x.view(1, 16, 64, 64), 2),
    "max_pool2d, channels_last": lambda f, x: f.max_pool2d(
        x.view(1, 16, 64, 64).contiguous(memory_format=torch.channels_last), 2),
    "max_pool2d, overlapping": lambda f, x: f.max_pool2d(
        x.view(1, 16, 64, 64).contiguous(memory_format=torch.channels_last), 3, 2, 1),
    "depthwise": lambda f, x: f.conv2d(x.view(1, 64, 32, 32).contiguous(memory_format=torch.channels_last),
                                       torch.ones(64, 1, 3, 3, dtype=x.dtype), groups=64),
    "cells": lambda f, x: f.conv_transpose2d(x.view(4, 16, 32, 32)[..., ::8, ::8],
                                             torch.ones(16, 2, 16, 16, dtype=x.dtype) / 8, stride=16),
}  # fmt: skip


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("name", CALLS)
def test_small_caches_change_no_result(name, device):
    x = torch.randn(64, 1024, requires_grad=True)
    results = []
    for sizes in (_C.cpu_caches(), (1 << 12, 1 << 10, 1 << 12)):
        with caches(*sizes):
            y = CALLS[name](PF, x)
            results.append((y.detach(), *torch.autograd.grad(y, x, torch.ones_like(y))))
    for p, q in zip(*results, strict=True):
        assert_close(q, p.double())
    if name != "dropout":  # whose mask is ours
        assert_close(results[1][0], CALLS[name](F, x.detach().double()), scale=10)
