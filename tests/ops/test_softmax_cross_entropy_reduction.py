"""The mean and the sum over many rows: GPU backends add them up in parts, and parts of parts."""

import pytest
import torch
import torch.nn.functional as F
from testing import assert_close

import pydl.functional as PF


# the most rows that one block of the CUDA kernels adds up; several blocks, the last one not full
@pytest.mark.parametrize("rows", [4096, 5003])
@pytest.mark.parametrize("options", ["plain", "weight", "weight, smoothing"])
def test_losses_of_many_rows(device, rows, options):
    x = torch.randn(rows, 4, device=device)
    target = torch.randint(4, (rows,), device=device)
    target[::7] = -100
    weight = torch.rand(4, device=device) if "weight" in options else None
    more = {"label_smoothing": 0.1 if "smoothing" in options else 0.0, "reduction": "sum" if weight is None else "mean"}
    first, second = (PF.cross_entropy(x, target, weight, **more) for _ in range(2))
    expected = F.cross_entropy(
        x.cpu().double(), target.cpu(), None if weight is None else weight.cpu().double(), **more
    )
    assert_close(first, expected)
    assert torch.equal(first, second)
