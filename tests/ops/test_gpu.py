"""What only a GPU can show: no waiting for it, graph capture, streams of a user's own, offsets beyond 31 bits."""

import pytest
import torch
import torch.nn.functional as F
from philox import words
from testing import BACKENDS, assert_close

import pydl.functional as PF

pytestmark = pytest.mark.parametrize(
    "device", [p for p in BACKENDS if p.values[0] in ("cuda", "triton")], indirect=True
)
LAST = torch.channels_last
BF16 = torch.bfloat16


class Step:
    """One op, forward and backward, on inputs that stay where they are."""

    def __init__(self, name, device):
        self.name = name
        self.inputs = {
            "cross_entropy": lambda: [torch.randn(64, 1000, device=device, dtype=BF16)],
            "dropout": lambda: [torch.randn(100, 777, device=device)],
            "conv2d": lambda: [
                torch.randn(4, 32, 15, 13, device=device, dtype=BF16).to(memory_format=LAST),
                torch.randn(48, 32, 3, 3, device=device, dtype=BF16).to(memory_format=LAST),
            ],
            "batch_norm": lambda: [
                torch.randn(8, 24, 9, 11, device=device),
                torch.rand(24, device=device),
                torch.rand(24, device=device),
            ],
        }[name]()
        self.target = torch.randint(1000, (64,), device=device)
        self.seed = torch.tensor([7], device=device)
        self.statistics = torch.zeros(24, device=device), torch.ones(24, device=device)
        for t in self.inputs:
            t.requires_grad_()

    def __call__(self):
        if self.name == "cross_entropy":
            y = PF.cross_entropy(*self.inputs, self.target, label_smoothing=0.1)
        elif self.name == "dropout":
            y = PF.dropout(*self.inputs, 0.3, seed=self.seed)
        elif self.name == "conv2d":
            y = PF.conv2d(*self.inputs, stride=2, padding=1, activation="relu")
        else:
            x, w, b = self.inputs
            y = PF.batch_norm(x, *self.statistics, w, b, True, activation="relu")
        return y.detach(), *torch.autograd.grad(y, self.inputs, torch.full_like(y, 0.5))

    def change(self):
        with torch.no_grad():
            for t in self.inputs:
                t.copy_(torch.randn_like(t).abs_())


STEPS = ["cross_entropy", "dropout", "conv2d", "batch_norm"]


@pytest.mark.parametrize("name", STEPS)
def test_the_host_does_not_wait(device, name):
    step = Step(name, device)
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", STEPS)
def test_a_captured_graph_replays_on_new_data(device, name):
    step = Step(name, device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    step.change()
    graph.replay()
    replayed = [t.clone() for t in captured]
    for a, e in zip(replayed, step(), strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("name", STEPS)
def test_kernels_run_on_the_current_stream(device, name):
    step = Step(name, device)
    step()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # a tenth of a second: work on another stream would read the old inputs
        step.change()
        results = step()
    side.synchronize()
    for a, e in zip(results, step(), strict=True):
        assert torch.equal(a, e)


def test_dropout_beyond_31_bits(device):
    n = 2**31 + 5
    first = n - 105 & ~3
    y = PF.dropout(torch.ones(n, dtype=BF16, device=device), 0.25, seed=torch.tensor([7], device=device))
    kept = torch.from_numpy(words(n - first, 7, first) >= round(0.25 * 2**32))
    assert torch.equal(y[first:].cpu() != 0, kept)


def test_cross_entropy_beyond_31_bits(device):
    rows, classes = 524400, 4104
    x = torch.zeros(rows, classes, dtype=BF16, device=device)
    x[-2:] = torch.randn(2, classes, device=device)
    x.requires_grad_()
    target = torch.randint(classes, (rows,), device=device)
    loss = PF.cross_entropy(x, target, reduction="none")
    (grad,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
    tail = x.detach()[-2:].double().requires_grad_()
    expected = F.cross_entropy(tail, target[-2:], reduction="none")
    assert_close(loss[-2:], expected)
    assert_close(grad[-2:], torch.autograd.grad(expected.sum(), tail)[0])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_batch_norm_beyond_31_bits(device, memory_format):
    x = torch.randn(2, 8, 11600, 11600, dtype=BF16, device=device).contiguous(memory_format=memory_format)
    y = PF.batch_norm(x, None, None, training=True)
    corner = x[-1:, :, -3:, -3:].double()
    assert_close(y[-1:, :, -3:, -3:], corner, scale=2)  # the statistics of so many are 0 and 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_conv2d_beyond_31_bits(device, memory_format):
    x = torch.randn(1, 16, 11600, 11600, dtype=BF16, device=device).contiguous(memory_format=memory_format)
    w = (torch.randn(16, 16, 3, 3, device=device) / 12).to(BF16).contiguous(memory_format=memory_format)
    corner = (..., slice(-4, None), slice(-4, None))
    y = PF.conv2d(x, w)
    assert_close(y[0, :, -2:, -2:], F.conv2d(x[corner].double(), w.double())[0], scale=2)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(PF.conv2d(x, w), x, y)
    expected = F.conv_transpose2d(y[corner].double(), w.double())[..., -4:, -4:]
    assert_close(grad[0, :, -2:, -2:], expected[0, :, -2:, -2:], scale=4)
