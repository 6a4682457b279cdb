"""pydl.report: what serves each layer, what is fused, and where the time of a step goes."""

import io
import re
import sys

import pytest
import torch
from swap_models import d2l_lenet, image, small_sequential
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import pydl


def test_report():
    net = pydl.swap(d2l_lenet())
    report = pydl.report(net)
    assert [(row.name, row.layer) for row in report.rows] == [
        (str(i), type(layer).__name__) for i, layer in enumerate(net)
    ]
    with pydl.backend.isa("baseline"):
        assert pydl.report(net).rows[0].served_by == "cpu baseline"
    assert report.rows[0].served_by == f"cpu {pydl.backend.current_isa()}"
    assert report.rows[1] == pydl.swapping.Row("1", "Sigmoid", report.rows[0].served_by, "", "in 0")
    assert report.rows[2] == pydl.swapping.Row("2", "AvgPool2d", report.rows[0].served_by, "")
    assert report.rows[6] == pydl.swapping.Row("6", "Flatten", "torch", "pydl has no kernel for Flatten")
    assert report.rows[8] == pydl.swapping.Row("8", "Sigmoid", report.rows[0].served_by, "", "in 7")
    with pydl.backend.use("torch"):
        assert pydl.report(net).rows[0].reason == "the backend torch was asked for"
    text = str(report)
    assert "served by" in text.splitlines()[0]
    assert text.endswith("pydl serves 11 of 12 layers")
    assert repr(report) == text
    from rich.console import Console

    console = Console(file=io.StringIO(), width=100)
    console.print(report)
    assert "Conv2d" in console.file.getvalue()
    loss = pydl.report(pydl.swap(nn.CrossEntropyLoss()))
    assert [(row.layer, row.reason) for row in loss.rows] == [("CrossEntropyLoss", "")]


def test_report_of_pydl_nn_and_of_meta_tensors():
    class Own(pydl.nn.Conv2d):
        def forward(self, input):
            return super().forward(input) + 1

    rows = pydl.report(nn.Sequential(pydl.nn.Conv2d(1, 2, 3), Own(1, 1, 1), nn.Sequential())).rows
    assert [row.reason for row in rows] == ["", "its forward is its own"]
    with pydl.backend.use("cpu"):
        row = pydl.report(pydl.swap(nn.Conv2d(1, 2, 3, device="meta"))).rows[0]
    assert (row.served_by, row.reason) == ("torch", "meta tensors hold no data")


def test_report_on_a_device_that_no_backend_serves():
    layer = pydl.swap(nn.Conv2d(1, 2, 3, bias=False))
    with FakeTensorMode():
        layer.weight = nn.Parameter(torch.empty(2, 1, 3, 3, device="mps"))
    row = pydl.report(layer).rows[0]
    assert row.served_by == "nothing"
    assert "got one on 'mps'; use('torch') serves it" in row.reason


def test_the_report_of_a_timed_step():
    net = pydl.swap(small_sequential())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    report = pydl.report(net, image())
    torch.manual_seed(3)
    first = torch.rand(1)
    torch.manual_seed(3)
    pydl.report(net, image())
    assert torch.equal(first, torch.rand(1)) or first.numel() == 1
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert 0 < report.timing.covered < 1
    assert sum(share for _, share in report.timing.others) <= 1 - report.timing.covered + 1e-6
    assert report.timing.step == "forward and backward"
    assert re.search(
        r"forward and backward: [\d.]+ ms, [\d.]+ ms by torch \([\d.]+×\); pydl's kernels take \d+ %", str(report)
    )
    assert pydl.report(net.eval(), image()).timing.step == "forward"
    with pytest.raises(TypeError, match="expected example to be tensors, got int"):
        pydl.report(net, 3)
    with pytest.raises(ValueError, match="expected an example beside compile=True"):
        pydl.report(net, compile=True)


def test_report_times_a_model_that_gives_none_beside_its_output():
    net = pydl.models.gpt(hidden=16, layers=1, positions=8)  # its state, which training has none of
    assert pydl.report(net, torch.zeros(2, 8, dtype=torch.int64)).timing.step == "forward and backward"


def test_the_report_of_a_compiled_step():
    from rich.console import Console

    report = pydl.report(pydl.swap(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())), image(), compile=True)
    assert set(report.timing.seconds) == {"swapped", "torch", "swapped compiled", "torch compiled"}
    assert "under torch.compile: " in report.summary()
    console = Console(file=io.StringIO(), width=200)
    console.print(report)
    assert "with 1" in console.file.getvalue()


def large_sequential():
    """Every kind of remark: fused, folded, left with a long reason."""

    class Doubling(nn.Conv2d):
        def forward(self, input):
            return 2 * super().forward(input)

    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Doubling(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid()))  # fmt: skip


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_table_fits_into_eighty_columns(training):
    from rich.console import Console

    report = pydl.report(pydl.swap(large_sequential()).train(training))
    lines = str(report).splitlines()
    assert max(map(len, lines[: len(lines) - len(report.summary().splitlines())])) <= 80
    assert len(lines) < 2 * len(report.rows) + 8
    console = Console(file=io.StringIO(), width=80)
    console.print(report)
    # rows of the rich table begin with the layer's name: none takes more than three lines
    body = console.file.getvalue().splitlines()
    assert len(body) < 3 * len(report.rows) + 8
    if not training:
        assert "folded if it pays" in str(report)


def test_the_form_for_notebooks():
    report = pydl.report(pydl.swap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())))
    found = report._repr_html_()
    assert found.count("<tr>") == len(report.rows) + 1
    for text in (*report.HEAD, "with 1", "in 0", "pydl has no kernel for Flatten", report.summary()):
        assert f">{text}<" in found
    report.rows.append(pydl.swapping.Row("<b>", "A & B", "torch", "<script>"))
    assert "<script>" not in report._repr_html_()
    assert "&lt;script&gt;" in report._repr_html_()


@pytest.mark.parametrize("layers", ["convolution and norm", "norm", "pooling", "dropout"])
def test_every_node_of_ours_is_booked_as_ours(layers):
    net = {
        "convolution and norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        "norm": lambda: nn.BatchNorm2d(3),
        "pooling": lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.MaxPool2d(2), nn.AvgPool2d(2)),
        "dropout": lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.Dropout(0.5)),
    }[layers]()
    timing = pydl.report(pydl.swap(net), image(8, 3, 20, 20)).timing
    assert timing.covered > 0
    assert not [name for name, _ in timing.others if "Batch" in name or "Eager" in name or "pydl" in name]


def test_the_profilers_own_log_is_not_seen(capfd):
    pydl.report(pydl.swap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), image())
    assert capfd.readouterr() == ("", "")
    print("seen", file=sys.stderr)
    assert capfd.readouterr().err == "seen\n"
