"""Which nodes ``torch.compile(net, backend="pydl")`` fuses, and where that would be wrong."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from compiled import Recorder, assert_as_eager, assert_same, calls_of
from swap_models import Residual, small_sequential
from testing import assert_close
from torch import nn


def image(*shape):
    return torch.randn(shape or (2, 3, 8, 8), dtype=torch.float64)


class Net(nn.Module):
    """A convolution, a batch norm and a linear layer, used by a function."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(8, 8)
        self.transposed = nn.ConvTranspose2d(3, 3, 3, padding=1)
        self.function = function
        self.double()

    def forward(self, x):
        return self.function(self, x)


FUSED = {
    "convolution, ReLU": (lambda s, x: F.relu(s.conv(x)), ["conv2d"]),
    "transposed convolution, ReLU": (lambda s, x: F.relu(s.transposed(x), inplace=True), ["conv_transpose2d"]),
    "transposed convolution, batch norm, sigmoid": (
        lambda s, x: torch.sigmoid(s.norm(s.transposed(x))),
        ["convolution_batch_norm"],
    ),
    "in place": (lambda s, x: F.relu(s.conv(x), inplace=True), ["conv2d"]),
    "a method": (lambda s, x: s.conv(x).sigmoid(), ["conv2d"]),
    "a method in place": (lambda s, x: s.conv(x).relu_(), ["conv2d"]),
    "linear": (lambda s, x: torch.sigmoid(s.linear(x)), ["linear"]),
    "with dropout": (lambda s, x: F.dropout(torch.relu(s.linear(x)), 0.0), ["linear", "dropout"]),
    "batch norm, ReLU": (lambda s, x: F.relu(s.norm(x)), ["batch_norm"]),
    "residual": (lambda s, x: F.relu(x + s.norm(x)), ["batch_norm"]),
    "residual in place": (lambda s, x: F.relu(operator.iadd(s.norm(x), x)), ["batch_norm"]),
    "residual without activation": (lambda s, x: s.norm(s.conv(x)).add(x), ["convolution_batch_norm"]),
    "the residual comes later": (lambda s, x: F.relu(s.norm(x) + s.conv(x)), ["conv2d", "batch_norm"]),
    "all": (lambda s, x: F.relu(s.norm(s.conv(x)) + x), ["convolution_batch_norm"]),
}
# names of torch's own functions stand for what is not fused
APART = {
    "read by another": (lambda s, x: (y := s.conv(x), F.relu(y) + y)[1], "relu"),
    "read twice by one": (lambda s, x: (y := s.norm(x), F.relu(y + y))[1], "relu"),
    "returned": (lambda s, x: (y := s.conv(x), torch.cat([F.relu(y), y]))[1], "relu"),
    "a view of it is read": (lambda s, x: (y := s.conv(x), v := y.view(-1), F.relu_(y), v)[3], "relu_"),
    "added in place to the residual": (lambda s, x: (z := x * 1, operator.iadd(z, s.norm(x)), z)[2], "iadd"),
    "a residual that is scaled": (lambda s, x: torch.add(s.norm(x), x, alpha=2), "add"),
    "a residual that is broadcast": (lambda s, x: s.norm(x) + x[:1], "add"),
    "a residual of another dtype": (lambda s, x: s.norm(x) + x.float(), "add"),
    "a number": (lambda s, x: s.norm(x) + 1.5, "add"),
    "the residual is written to": (
        lambda s, x: (r := x * 1, y := s.norm(x) + r, r.mul_(2), F.relu(y) + r)[3], "relu",
    ),
    "the running mean is read": (
        lambda s, x: (y := s.norm(x), m := s.norm.running_mean * 2, F.relu(y) + m[:, None, None])[2], "relu",
    ),
    "another norm with the same statistics": (
        lambda s, x: (y := s.norm(x), z := s.norm(x * 2), F.relu(y + z))[2], "batch_norm",
    ),
    "an unknown function comes between": (lambda s, x: (y := s.conv(x), no_grad(x), F.relu(y))[2], "relu"),
}  # fmt: skip


def no_grad(x):
    with torch.no_grad():
        return x + 1


@pytest.mark.parametrize("name", FUSED)
def test_fused(name):
    function, expected = FUSED[name]
    recorder = Recorder()
    assert_as_eager(Net(function), image(), scale=10, backend=recorder)
    assert recorder.calls == [expected]


@pytest.mark.parametrize("name", APART)
def test_apart(name):
    function, expected = APART[name]
    recorder = Recorder()
    assert_as_eager(Net(function), image(), scale=10, backend=recorder)
    assert [expected in calls for calls in recorder.calls] == [True]


def test_the_running_mean_is_written_to_in_between():
    net = Net(lambda s, x: (y := s.norm(x), s.norm.running_mean.add_(1), F.relu(y))[2])
    oracle, x = copy.deepcopy(net), image()
    with torch.no_grad():  # with gradients torch refuses it
        assert "relu" in calls_of(copy.deepcopy(net), x)
        assert_close(torch.compile(net, backend="pydl")(x), oracle(x))
    assert_close(net.norm.running_mean, oracle.norm.running_mean)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.relu(x, inplace=True),
        lambda x: torch.relu(torch.add(x, x, out=torch.empty_like(x))),
        lambda x: F.softmax(x.double(), 0) + F.softmax(x, -1, dtype=torch.float64),
        lambda x: torch.matmul(x, x.mT, out=torch.empty(2, 3, 8, 8, dtype=x.dtype)),
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: F.max_pool2d(x, 2, return_indices=True)[1],
        lambda x: torch.batch_norm(x, None, None, x.new_zeros(3), x.new_ones(3), False, 0.1, 1e-5, False),
        lambda x: F.layer_norm(x, (8,)) + torch.rms_norm(x, (8,)),
        lambda x: F.cross_entropy(x, x.softmax(1), reduction="sum", label_smoothing=0.1),
        lambda x: F.embedding((x > 0).long(), x[0, 0]),
        lambda x: (x * 100).to(torch.int64).relu(),
    ],
)
def test_single_calls_mean_what_torchs_mean(function):
    x = torch.rand(2, 3, 8, 8)
    torch._dynamo.reset()
    assert_same(torch.compile(function, backend="pydl", fullgraph=True)(x.clone()), function(x.clone()))


def test_an_input_that_is_written_to():
    def step(x):
        x.relu_()
        return x.add_(1)

    x = image()
    expected = step(x.clone())
    assert torch.compile(step, backend="pydl")(x) is x
    assert torch.equal(x, expected)


TARGET = torch.tensor([1, 0, 3])


def loss(s, x, target=TARGET, **options):
    return F.cross_entropy(s.linear(x), target, **options)


@pytest.mark.parametrize("worth", [0, 1 << 30], ids=["one call", "two calls"])
@pytest.mark.parametrize("options", [{}, {"reduction": "sum", "label_smoothing": 0.1, "ignore_index": 0}])
def test_the_last_layer_and_the_loss(monkeypatch, worth, options):
    monkeypatch.setattr("pydl.compiling.run.WORTH_ONE_CALL", worth)
    net = Net(lambda s, x: loss(s, x, **options))
    assert calls_of(net, image(3, 8)) == ["linear_cross_entropy"]
    assert_as_eager(net, image(3, 8))


def test_the_last_layer_and_losses_of_other_forms(monkeypatch):
    monkeypatch.setattr("pydl.compiling.run.WORTH_ONE_CALL", 0)
    assert_as_eager(Net(lambda s, x: loss(s, x, torch.full((3, 8), 0.125, dtype=x.dtype))), image(3, 8))
    assert_as_eager(Net(lambda s, x: loss(s, x, torch.zeros(3, 8).long())), image(3, 8, 8))
    apart = Net(lambda s, x: (y := s.linear(x), F.cross_entropy(y, y.argmax(1)))[1])
    assert "linear_cross_entropy" not in calls_of(apart, image(3, 8))
    assert_as_eager(apart, image(3, 8))


def test_the_count_of_batches_is_kept():
    net = Net(lambda s, x: F.relu(s.norm(x)))
    compiled = torch.compile(net, backend="pydl")
    for _ in range(3):
        compiled(image())
    assert net.norm.num_batches_tracked == 3
    torch._dynamo.reset()
    net.norm.momentum = None
    assert_as_eager(net, image())


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_batch_norm_folds_into_the_convolution_by_what_both_hold_at_the_call(layer):
    net = nn.Sequential(layer(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()).double().eval()
    x = torch.randn(2, 3, 160, 160, dtype=torch.float64)
    compiled = torch.compile(net, backend="pydl")
    with torch.no_grad():
        for _ in range(2):
            assert_close(compiled(x), net(x), scale=10)
            net[0].weight.data.mul_(2)
            net[1].running_mean += 0.3
    assert_as_eager(net, x, scale=100)  # with gradients


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype, training):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), Residual(4, 4)).to(dtype)
    x = image().to(dtype)
    oracle = copy.deepcopy(net).double().train(training)
    output = torch.compile(net.train(training), backend="pydl")(x)
    assert output.dtype == dtype
    assert_close(output, oracle(x.double()), dtype, scale=20)


def test_channels_last():
    net = small_sequential()[:3].to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    output = torch.compile(net, backend="pydl")(x)
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_hooks_that_were_there_see_and_change_values():
    net, seen = Net(lambda s, x: F.relu(s.norm(s.conv(x)))), []
    net.conv.register_forward_hook(lambda module, args, output: output * 2)
    net.norm.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert_as_eager(net, image(), scale=10)
    assert len(seen) == 2


def test_a_backward_hook_sees_its_gradient():
    net, x = Net(lambda s, x: F.relu(s.conv(x))), image()
    net.conv.register_full_backward_hook(lambda module, grad_input, grad_output: (grad_input[0] * 0 + 7,))
    compiled = torch.compile(net, backend="pydl")
    x.requires_grad_()
    compiled(x).sum().backward()
    assert (x.grad == 7).all()
