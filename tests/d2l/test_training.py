"""Data, counting, losses, layers and what a training leaves behind."""

import math
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import pydl
from pydl import d2l
from pydl.d2l import images, serving
from pydl.errors import DataError
from pydl.swapping.layer import is_swapped


def test_sums_and_seconds():
    sums = d2l.Accumulator(3)
    sums.add(1, torch.tensor(2.5, requires_grad=True), True)
    sums.add(1, 2, 0)
    assert (sums[0], sums[1], sums[2]) == (2, 4.5, 1)
    sums.reset()
    assert sums.data == [0, 0, 0]
    with pytest.raises(ValueError, match="argument"):
        sums.add(1)
    timer = d2l.Timer()
    first = timer.stop()
    timer.start()
    second = timer.stop()
    assert timer.times == [first, second]
    assert timer.sum() == first + second
    assert timer.avg() == timer.sum() / 2
    assert timer.cumsum() == [first, first + second]


def test_accuracies():
    scores = torch.tensor([[0.1, 0.3, 0.6], [0.3, 0.2, 0.5]])
    y = torch.tensor([0, 2])
    assert d2l.accuracy(scores, y) == 1.0
    assert d2l.accuracy(torch.tensor([0.0, 2.0]), y) == 2.0
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(3, 3, bias=False))
    net[2].weight.data = torch.eye(3)
    batches = [(scores, y), (scores[:1], y[1:])]
    assert d2l.evaluate_accuracy(net, batches) == d2l.evaluate_accuracy_gpu(net, batches) == 2 / 3
    assert not net.training
    assert d2l.evaluate_accuracy(lambda X: X, batches) == 2 / 3
    assert d2l.evaluate_accuracy_gpu(lambda X: X[0], [([scores], y)]) == 0.5  # lists of inputs
    assert d2l.evaluate_loss(lambda X: X, [(torch.tensor([[1.0], [2.0]]), torch.zeros(2))], d2l.squared_loss) == 1.25
    with torch.no_grad():
        expected = nn.functional.cross_entropy(scores, y).item()
    loss = nn.CrossEntropyLoss(reduction="none")
    assert d2l.evaluate_loss(lambda X: X, [(scores, y)], loss) == pytest.approx(expected)


def test_linear_regression_by_hand():
    w, b = torch.tensor([[1.0], [2.0]], requires_grad=True), torch.zeros(1, requires_grad=True)
    X, y = torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([2.0, 4.0])
    loss = d2l.squared_loss(d2l.linreg(X, w, b), y)
    assert loss.flatten().tolist() == [0.5, 0.0]
    loss.sum().backward()
    d2l.sgd([w, b], lr=0.5, batch_size=2)
    assert w.flatten().tolist() == [0.75, 1.75]
    assert b.tolist() == [-0.25]
    assert w.grad.abs().sum() == b.grad.abs().sum() == 0


def test_made_up_data():
    torch.manual_seed(0)
    X, y = d2l.synthetic_data(torch.tensor([2, -3.4]), 4.2, 1000)
    assert (X.shape, y.shape) == ((1000, 2), (1000, 1))
    rest = y - (X @ torch.tensor([[2], [-3.4]]) + 4.2)
    assert 0.008 < rest.std() < 0.012
    for batches in (d2l.data_iter(64, X, y), d2l.load_array((X, y), 64)):
        found = list(batches)
        assert [len(x) for x, _ in found] == [64] * 15 + [40]
        parts = [torch.cat(part) for part in zip(*found, strict=True)]
        assert torch.equal(parts[0].sort(0).values, X.sort(0).values)
        assert not torch.equal(parts[0], X)
        assert ((parts[0] @ torch.tensor([[2], [-3.4]]) + 4.2 - parts[1]).abs() < 0.1).all()  # pairs stay pairs
    in_order = d2l.load_array((X, y), 64, is_train=False)
    assert len(in_order) == 16
    assert (in_order.batch_size, len(in_order.dataset)) == (64, 1000)
    assert isinstance(in_order, DataLoader)
    assert list(d2l.load_array((X[:0], y[:0]), 64, is_train=False)) == []
    assert torch.equal(torch.cat([x for x, _ in in_order]), X)


@pytest.fixture
def fashion(tmp_path):
    """The four files, of 6 + 4 made-up pictures."""
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", 6), ("t10k", 4)):
        pixels = torch.randint(256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        labels = torch.arange(count, dtype=torch.uint8)
        for values, kind in ((pixels, "images-idx3"), (labels, "labels-idx1")):
            sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
            raw = bytes((0, 0, 8, values.dim())) + sizes + values.numpy().tobytes()
            (tmp_path / f"{name}-{kind}-ubyte").write_bytes(raw)
    return tmp_path


@pytest.mark.parametrize("how", ["root", "variable", "folder"])
def test_files_are_found(how, fashion, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PYDL_DATA", raising=False)
    if how == "variable":
        monkeypatch.setenv("PYDL_DATA", str(fashion))
    if how == "folder":
        (tmp_path / "data").mkdir()
        for path in fashion.glob("*ubyte"):
            path.rename(tmp_path / "data" / path.name)
        monkeypatch.chdir(tmp_path)
    train_iter, test_iter = d2l.load_data_fashion_mnist(4, root=fashion if how == "root" else None)
    assert (len(train_iter), len(test_iter), train_iter.batch_size) == (2, 1, 4)
    image, label = train_iter.dataset[1]
    assert (image.shape, label) == ((1, 28, 28), 1)
    X, y = next(iter(test_iter))
    assert (X.shape, X.dtype, y.tolist()) == ((4, 1, 28, 28), torch.float32, [0, 1, 2, 3])
    assert X.min() == 0
    assert X.max() == 1
    assert d2l.get_fashion_mnist_labels(y) == ["t-shirt", "trouser", "pullover", "dress"]
    orders = [tuple(torch.cat([y for _, y in train_iter]).tolist()) for _ in range(8)]
    assert len(set(orders)) > 1
    assert {tuple(sorted(order)) for order in orders} == {(0, 1, 2, 3, 4, 5)}
    assert capsys.readouterr().out == ""
    root = tmp_path / "data" if how == "folder" else fashion
    for resize, shape in ((32, (32, 32)), ((20, 30), (20, 30))):
        X, _ = next(iter(d2l.load_data_fashion_mnist(4, resize, root=root)[0]))
        assert X.shape == (4, 1, *shape)


def test_digits_take_their_place_and_that_is_said_once(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    monkeypatch.setenv("PYDL_DATA", str(tmp_path))
    monkeypatch.setattr(images, "_said", set())
    for _ in range(2):
        train_iter, test_iter = d2l.load_data_fashion_mnist(256)
    said = capsys.readouterr().out
    assert said.count("\n") == said.count("these are scikit-learn's digits") == said.count(str(tmp_path)) == 1
    X, y = next(iter(train_iter))
    assert X.shape == (256, 1, 28, 28)
    assert d2l.get_fashion_mnist_labels(y[:3]) == [str(int(label)) for label in y[:3]]
    assert sum(len(y) for _, y in train_iter) + sum(len(y) for _, y in test_iter) == 1797


def test_a_folder_that_is_named_must_have_them(tmp_path, fashion, monkeypatch):
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        d2l.load_data_fashion_mnist(4, root=tmp_path / "nowhere")
    path = fashion / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setenv("PYDL_DATA", str(fashion))
    with pytest.raises(DataError, match="truncated"):  # and no digits in their place
        d2l.load_data_fashion_mnist(4)


def test_gradients_are_clipped_together():
    net = nn.Linear(2, 1)
    unused = nn.Parameter(torch.ones(1))
    net.unused = unused
    for theta, expected in ((1.0, [[0.6, 0.8]]), (10.0, [[3.0, 4.0]])):
        net.weight.grad, net.bias.grad = torch.tensor([[3.0, 4.0]]), torch.zeros(1)
        d2l.grad_clipping(net, theta)
        torch.testing.assert_close(net.weight.grad, torch.tensor(expected))

    class Scratch:
        params = (net.weight, net.bias)

    net.weight.grad = torch.tensor([[3.0, 4.0]])
    d2l.grad_clipping(Scratch(), 2.5)
    torch.testing.assert_close(net.weight.grad, torch.tensor([[1.5, 2.0]]))


def test_cross_correlation():
    X, K = torch.arange(9.0).reshape(3, 3), torch.tensor([[0.0, 1.0], [2.0, 3.0]], requires_grad=True)
    assert d2l.corr2d(X, K).tolist() == [[19, 25], [37, 43]]
    X, K = torch.randn(5, 7), torch.randn(2, 3)
    torch.testing.assert_close(d2l.corr2d(X, K), nn.functional.conv2d(X[None, None], K[None, None])[0, 0])


@pytest.mark.parametrize("arguments, lazy, shape", [
    (((3, 3), {}), False, (3, 6, 6)),
    (((3, 6), {"use_1x1conv": True, "strides": 2}), False, (6, 3, 3)),
    (((), {"input_channels": 3, "num_channels": 3}), False, (3, 6, 6)),
    (((3,), {}), True, (3, 6, 6)),
    (((6,), {"use_1x1conv": True, "strides": 2}), True, (6, 3, 3)),
    (((6, True, 2), {}), True, (6, 3, 3)),
])  # fmt: skip
def test_residual_blocks_of_both_editions(arguments, lazy, shape):
    block = d2l.Residual(*arguments[0], **arguments[1])
    assert isinstance(block.conv1, nn.LazyConv2d) == lazy
    X = torch.randn(4, 3, 6, 6)
    found = block(X)
    assert found.shape == (4, *shape)
    reference = nn.functional.relu(block.bn1(block.conv1(X)))
    reference = block.bn2(block.conv2(reference)) + (X if block.conv3 is None else block.conv3(X))
    torch.testing.assert_close(found, nn.functional.relu(reference))
    torch.testing.assert_close(pydl.swap(block)(X), found, rtol=1e-4, atol=1e-4)


def test_resnet18():
    assert (
        sum(p.numel() for p in d2l.resnet18(10).parameters()) == 11_175_818
    )  # of pydl.models.resnet18, with a 3×3 stem for the 7×7 one


def test_devices():
    assert d2l.cpu() == torch.device("cpu")
    assert d2l.try_gpu(1000) == d2l.cpu()
    there = d2l.num_gpus()
    assert d2l.try_gpu() == (d2l.gpu() if there else d2l.cpu())
    assert len(d2l.try_all_gpus()) == max(there, 1)


class Remembers(nn.Module):
    """A batch norm from scratch keeps its statistics as mere attributes; attention keeps tensors of the last graph."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.calls = torch.zeros(1)

    def forward(self, X):
        if self.training:
            self.calls = self.calls + 1
        self.weights = self.norm(self.inner(X))
        return self.weights


def test_the_comparison_with_torch_leaves_the_net_as_it_is(capsys):
    net = Remembers()
    X = torch.randn(8, 4)
    assert serving.serve(net, True)
    net(X).sum().backward()
    gradient, calls, mean = net.inner.weight.grad.clone(), net.calls.clone(), net.norm.running_mean.clone()
    state = torch.get_rng_state()
    serving.tell(net, lambda net: net(X).square().sum(), seconds=0.5)
    assert torch.equal(net.inner.weight.grad, gradient)
    assert torch.equal(net.norm.running_mean, mean)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(net.calls, calls)
    out = capsys.readouterr().out
    assert re.fullmatch(r"pydl serves 2 of \d layers: a step takes [\d.]+ ms, [\d.]+ ms by torch \([\d.]+×\)\n", out), (
        out
    )


def test_a_training_is_served_as_a_whole():
    """The optimizer and torch's large tensors too, while it lasts."""
    possible = pydl.memory.serve_torch()
    pydl.memory.serve_torch(False)
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with serving.training(False, optimizer):
        assert type(optimizer) is torch.optim.SGD
        assert not pydl.memory.stats()["serves_torch"]
    with serving.training(True, optimizer):
        assert type(optimizer) is pydl.optim.SGD
        assert pydl.memory.stats()["serves_torch"] == possible
    assert not pydl.memory.stats()["serves_torch"]
    with serving.training(True, d2l.sgd):  # a function stays one
        pass


def test_what_cannot_be_swapped_is_left():
    assert not serving.serve(lambda X: X, True)
    net = nn.Linear(2, 2)
    assert not serving.serve(net, False)
    assert not is_swapped(net)


def test_losses_that_are_means_and_sums(capsys):
    """train_epoch_ch3 gives the mean over examples, for losses of each example and for means, the last batch too."""
    batches = [(torch.ones(3, 2), torch.tensor([0, 1, 1])), (torch.ones(1, 2), torch.tensor([1]))]
    for reduction in ("none", "mean"):
        net = nn.Linear(2, 2)
        nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)
        loss = nn.CrossEntropyLoss(reduction=reduction)
        found, right = d2l.train_epoch_ch3(net, batches, loss, torch.optim.SGD(net.parameters(), lr=0.0))
        assert found == pytest.approx(math.log(2))
        assert right == 0.25
