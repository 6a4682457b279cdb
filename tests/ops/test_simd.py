"""The half conversions of kernels/cpu/base/simd.h, through a public op, on every instruction set.

``torch.ops.pydl.dropout`` with every dimension shared takes one decision for the whole tensor. With a seed that keeps
it, the op widens each element to float, multiplies by 1 / (1 - p) and rounds once to the storage type; with a p so
small that it rounds to a threshold of 0, the factor is 1 and the op is the identity.
"""

import pytest
import torch
from philox import words

pytestmark = pytest.mark.cpu_kernels

HALVES = [torch.bfloat16, torch.float16]
KEPT = next(s for s in range(100) if words(1, s)[0] >= 0.99 * 2**32)


def all_patterns(dtype, device):
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).to(device)


def scaled(x, p):
    return torch.ops.pydl.dropout(x, p, torch.tensor([KEPT], device=x.device), x.dim())


def equal_to_the_bit(actual, expected):
    """Same bits, signed zeros too; any quiet nan for nan."""
    nan = expected.isnan()
    assert torch.equal(actual.isnan(), nan)
    assert torch.equal(actual[~nan].view(torch.int16), expected[~nan].view(torch.int16))


@pytest.mark.parametrize("dtype", HALVES)
def test_widen_and_narrow_every_pattern(device, dtype):
    x = all_patterns(dtype, device)
    equal_to_the_bit(scaled(x, 1e-12), x)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("p", [1e-4, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_narrow_rounds_to_nearest_even(device, dtype, p):
    # products of every half with factors from 1.0001 to 100: ties, carries into the exponent, subnormals, overflow
    x = all_patterns(dtype, device)
    factor = torch.tensor(1 / (1 - p), dtype=torch.float32, device=device)
    equal_to_the_bit(scaled(x, p), (x.float() * factor).to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_narrow_ties(device, dtype):
    # a factor of 1.5 puts every odd mantissa exactly half way between two halves
    x = all_patterns(dtype, device)
    equal_to_the_bit(scaled(x, 1 / 3), (x.float() * torch.tensor(1.5)).to(dtype))
    assert (x.float() * 1.5 != (x.float() * 1.5).to(dtype).float()).any()


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
@pytest.mark.parametrize("numel", range(1, 68))
def test_masked_loads_and_stores_touch_nothing_beyond(device, dtype, numel):
    x = torch.arange(1, numel + 1, device=device).to(dtype)
    assert torch.equal(scaled(x, 0.5), x * 2)
    padded = torch.full((numel + 64,), 7.0, dtype=dtype, device=device)
    padded[:numel] = float("inf")  # read beyond the row, it would show as inf or nan
    rows = torch.cat([padded, padded]).view(2, -1)[:, numel : numel + 3]
    assert torch.equal(scaled(rows, 0.5), torch.full((2, 3), 14.0, dtype=dtype, device=device))
