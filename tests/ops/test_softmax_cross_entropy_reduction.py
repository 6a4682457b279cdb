"""The mean and the sum over many rows: GPU backends add them up in parts, and parts of parts."""

import pytest
import torch
import torch.nn.functional as F
from testing import assert_close

import pydl.functional as PF


@pytest.mark.parametrize("rows", [4095, 4097, 9001])
def test_losses_of_many_rows(device, rows):
    x = torch.randn(rows, 4, device=device)
    target = torch.randint(4, (rows,), device=device)
    target[::7] = -100
    weight = torch.rand(4, device=device)
    for options in ({}, {"weight": weight}, {"weight": weight, "label_smoothing": 0.1}):
        for reduction in ("mean", "sum"):
            first, second = (PF.cross_entropy(x, target, reduction=reduction, **options) for _ in range(2))
            wide = {key: value.cpu().double() if key == "weight" else value for key, value in options.items()}
            expected = F.cross_entropy(x.cpu().double(), target.cpu(), reduction=reduction, **wide)
            assert_close(first, expected)
            assert torch.equal(first, second)
