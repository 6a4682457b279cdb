"""What Triton's kernels access in memory has not changed unseen: benchmarks/results/triton-accesses.json.

``PYDL_RENEW=1 TRITON_INTERPRET=1 pytest -m triton -k accesses`` writes that file anew where a change is meant. Sizes
are small, but tiles are those of an H200.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from testing import BACKENDS, INTERPRETED

import pydl.functional as PF

if INTERPRETED:  # else their marker leaves these bodies out
    from triton_accesses import counted

    from pydl.kernels.triton import launch

pytestmark = pytest.mark.parametrize(
    "device", [b for b in BACKENDS if b.values == ("triton-interpreted",)], indirect=True
)
SHEET = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "triton-accesses.json"
BF16, LAST = torch.bfloat16, torch.channels_last


def backward(y):
    y.backward(torch.ones_like(y))


def cross_entropy(classes):
    x = torch.zeros(24, classes, dtype=BF16, requires_grad=True)
    backward(PF.cross_entropy(x, torch.zeros(24, dtype=torch.int64)))


def batch_norm(memory_format):
    x = torch.zeros(4, 32, 14, 14, dtype=BF16).to(memory_format=memory_format).requires_grad_()
    w, b = (torch.ones(32, requires_grad=True) for _ in range(2))
    backward(PF.batch_norm(x, None, None, w, b, True, activation="relu"))


def conv2d(dtype, channels, kernel, groups=1, memory_format=LAST):
    x = torch.zeros(2, channels, 10, 10, dtype=dtype).to(memory_format=memory_format).requires_grad_()
    w = (
        torch.zeros(64, channels // groups, kernel, kernel, dtype=dtype)
        .to(memory_format=memory_format)
        .requires_grad_()
    )
    backward(PF.conv2d(x, w, padding=kernel // 2, groups=groups))


CASES = {
    "dropout 2^14 bf16": lambda: PF.dropout(torch.zeros(1 << 14, dtype=BF16), 0.5, seed=torch.tensor([1])),
    "cross_entropy 24x1000 bf16": lambda: cross_entropy(1000),
    "cross_entropy 24x1001 bf16": lambda: cross_entropy(1001),
    "batch_norm+relu 4x32x14x14 bf16 NCHW": lambda: batch_norm(torch.contiguous_format),
    "batch_norm+relu 4x32x14x14 bf16 channels_last": lambda: batch_norm(LAST),
    "conv2d 64@10 3x3 -> 64 bf16 channels_last": lambda: conv2d(BF16, 64, 3),
    "conv2d 64@10 3x3 -> 64 f32 NCHW": lambda: conv2d(torch.float32, 64, 3, memory_format=torch.contiguous_format),
    "conv2d 3@10 5x5 -> 64 bf16 channels_last": lambda: conv2d(BF16, 3, 5),
    "conv2d 64@10 3x3 -> 64, 64 groups bf16 channels_last": lambda: conv2d(BF16, 64, 3, 64),
}


@pytest.mark.parametrize("name", CASES)
def test_accesses_are_those_of_the_sheet(device, name, monkeypatch):
    monkeypatch.setattr(launch, "ELSEWHERE", launch.Device(132, 227 << 10, 90))
    with counted() as found:
        CASES[name]()
    sheet = json.loads(SHEET.read_text()) if SHEET.is_file() else {}
    if os.environ.get("PYDL_RENEW") == "1":
        sheet[name] = found
        lines = [
            f" {json.dumps(case)}: {{\n"
            + ",\n".join(f"  {json.dumps(kernel)}: {json.dumps(each)}" for kernel, each in kernels.items())
            + "\n }"
            for case, kernels in sheet.items()
        ]
        SHEET.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    assert found == sheet[name]
