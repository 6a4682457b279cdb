"""``pydl.explain``."""

import pytest
import torch
import torch.nn.functional as F
from swap_models import Residual, image
from torch import nn

import pydl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.block = Residual(4, 4)

    def forward(self, x):
        x = self.block(self.body(x))
        y = x.flatten(1).cumsum(1)
        return F.softmax(y, 0) + F.softmax(y, 1)


def test_what_became_what_and_why_something_stayed():
    net = Net()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    found = pydl.explain(net, image())
    rows = {(row.name, row.layer): row for row in found.rows}
    assert rows["body.0", "Conv2d"].fused == "with body.1, body.2"
    assert rows["body.2", "ReLU"].fused == "in body.0"
    assert rows["block.conv2", "Conv2d"].fused == "with block.bn2, iadd, relu"
    assert rows["", "cumsum"].served_by == "torch"
    assert rows["", "cumsum"].reason == "pydl has no kernel for cumsum"
    softmax = [row for row in found.rows if row.layer == "softmax"]
    assert [(row.served_by.startswith("cpu"), row.reason) for row in softmax] == [(True, "")] * 2
    assert str(found).endswith(f"of {len(found.rows)} calls")
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())  # a copy was called


def test_of_a_compiled_model_and_of_a_function():
    net = Net().eval()
    compiled = torch.compile(net, backend="pydl")
    rows = pydl.explain(compiled, image()).rows
    assert rows == pydl.explain(net, image()).rows
    assert rows[0].fused == "with body.1, body.2, folded where it pays"
    assert len(pydl.explain(F.relu_, image()).rows) <= 1
    (row,) = pydl.explain(lambda x: torch.relu_(x), image()).rows
    assert row.served_by == "torch"


def test_what_keeps_a_chain_apart_is_said():
    conv = nn.Conv2d(3, 4, 3)
    rows = pydl.explain(lambda x: (y := conv(x), F.relu(y) + y)[1], image()).rows
    assert rows[0].fused == "not fused: its value is read by others, too"
    norm = nn.BatchNorm2d(3)
    rows = pydl.explain(lambda x: (z := x * 1, y := norm(z), z.mul_(3), F.relu(y) + z)[3], image()).rows
    assert any("not fused: mul_ comes between and writes to what is read" in row.fused for row in rows)


def test_graph_breaks_are_said():
    def function(x):
        x = F.softmax(x, -1)
        torch._dynamo.graph_break()
        return F.softmax(x, -1)

    found = pydl.explain(function, image())
    assert len(found.rows) == 2
    assert "the model is compiled as 2 graphs" in str(found)


def test_bad_input():
    with pytest.raises(TypeError, match="expected net to be a module or a function, got int"):
        pydl.explain(3)
