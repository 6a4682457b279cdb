"""PYDL_VERBOSE=1: a line on stderr for each call of an op; nothing without it."""

import os
import re
import subprocess
import sys

import grid
import pytest

CODE = """
import torch, pydl.functional as PF
from grid import CALLS
x = torch.randn(2, 32, 12, 12, requires_grad=True).to(memory_format=torch.channels_last)
w = torch.randn(32, 32, 3, 3, requires_grad=True)
y = PF.batch_norm(PF.conv2d(x, w, torch.zeros(32, requires_grad=True), padding=1), None, None, training=True)
y = PF.dropout(PF.avg_pool2d(PF.max_pool2d(y, 2), 2), 0.5)
y = PF.linear(y.flatten(1), torch.randn(10, 288, requires_grad=True), torch.zeros(10, requires_grad=True))
y = PF.rms_norm(PF.layer_norm(y, (10,)), (10,))
PF.group_norm(torch.randn(2, 4, 3, requires_grad=True), 2).sum().backward()
PF.mm(torch.randn(128, 128), torch.randn(128, 128))
w = [torch.randn(15, 3, requires_grad=True), torch.randn(15, 5)]
PF.gru(torch.randn(4, 2, 3), torch.zeros(1, 2, 5), w, False, 1, 0.0, False, False, False)[0].sum().backward()
for call in CALLS.values():
    call(PF, torch.randn(3, 1 << 20, requires_grad=True)).sum().backward()
PF.mse_loss(torch.randn(1 << 18, requires_grad=True), torch.zeros(1 << 18)).backward()
PF.binary_cross_entropy_with_logits(torch.randn(1 << 18, requires_grad=True), torch.zeros(1 << 18)).backward()
PF.scaled_dot_product_attention(x, x, x).sum().backward(retain_graph=True)
PF.cross_entropy(y, torch.tensor([3, 5])).backward()
PF.linear_cross_entropy(x[:, 0, 0], torch.randn(5, 12), torch.tensor([3, 1]), reduction="none").sum().backward()
"""
LINE = re.compile(r"pydl,(\w+),([\w.-]+),(\w+),(contiguous|channels_last|strided),([\dx ]+),(\d+\.\d)")


def run(value):
    path = os.pathsep.join(filter(None, (os.path.dirname(grid.__file__), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYDL_VERBOSE": value, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    return [line for line in done.stderr.splitlines() if line.startswith("pydl,")]


@pytest.mark.skipif("PYDL_CUDA_ON_HOST" in os.environ, reason="a process of its own would lack the twin's library")
def test_a_line_for_each_call():
    found = [LINE.fullmatch(line) for line in run("1")]
    assert all(found)
    ops = {match[1]: match for match in found}
    assert {"conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight", "conv2d_backward_bias"} <= set(ops)
    assert {"max_pool2d", "max_pool2d_backward", "avg_pool2d", "avg_pool2d_backward", "dropout"} <= set(ops)
    assert {f"linear_{name}" for name in ("forward", "backward_input", "backward_weight", "backward_bias")} <= set(ops)
    assert {
        f"{name}_{of}" for name in ("layer_norm", "rms_norm", "group_norm") for of in ("forward", "backward")
    } <= set(ops)
    assert {f"{name}_{of}" for name in grid.CALLS for of in ("forward", "backward")} <= set(ops)
    losses = "difference_loss", "binary_cross_entropy_with_logits"
    assert {f"{name}_{of}" for name in losses for of in ("forward", "backward")} <= set(ops)
    assert {"attention_forward", "attention_backward"} <= set(ops)
    assert ops["recurrent_forward"][2] == ops["recurrent_backward"][2] == "gru"
    assert ops["matmul"][5] == "128x128 128x128"
    assert any(name.startswith("batch_norm") for name in ops)
    assert any(name.startswith("softmax_cross_entropy") for name in ops)
    assert {"linear_cross_entropy_forward", "linear_cross_entropy_backward"} <= set(ops)
    conv2d = ops["conv2d_forward"]
    assert conv2d[2] == "winograd.tiles"
    assert conv2d.group(3, 4, 5) == ("float32", "channels_last", "2x32x12x12 32x32x3x3")
    assert float(conv2d[6]) > 0


def test_nothing_is_said_without_it():
    assert run("0") == []
