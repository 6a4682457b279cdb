"""Whole models by ``torch.compile(net, backend="pydl")`` beside torch's own layers in eager mode.

In float64, where what rounding leaves of a deep network's gradients cannot hide a wrong one.
"""

import copy

import pytest
import torch
from compiled import Recorder, assert_as_eager, assert_same
from swap_models import Residual, torchs
from testing import assert_close
from torch import nn

import pydl
from pydl import d2l, models

SMALL = {  # name -> (options of the model, shape of its input)
    "alexnet": ({"input_size": 96}, (2, 1, 96, 96)),
    "cifar_net": ({}, (2, 3, 32, 32)),
    "densenet": ({"input_size": 32, "blocks": (2, 2), "growth": 8}, (2, 1, 32, 32)),
    "googlenet": ({"input_size": 32}, (2, 1, 32, 32)),
    "lenet": ({}, (2, 1, 28, 28)),
    "lenet_bn": ({}, (2, 1, 28, 28)),
    "linear_regression": ({}, (3, 2)),
    "mlp": ({"hidden": (16, 8)}, (2, 1, 28, 28)),
    "nin": ({"input_size": 67}, (2, 1, 67, 67)),
    "polynomial_regression": ({}, (3, 1)),
    "preact_resnet18": ({"input_size": 32}, (2, 1, 32, 32)),
    "resnet18": ({"input_size": 32}, (2, 1, 32, 32)),
    "resnet50": ({"input_size": 64}, (4, 1, 64, 64)),
    "resnext50": ({"input_size": 64}, (4, 1, 64, 64)),
    "softmax_regression": ({}, (2, 1, 28, 28)),
    "vgg11": ({"input_size": 32, "ratio": 8}, (2, 1, 32, 32)),
    "vgg16": ({"input_size": 32, "ratio": 16}, (2, 1, 32, 32)),
    "weight_decay": ({"in_features": 5}, (3, 5)),
    "wide_resnet": ({"depth": 10, "width": 1}, (2, 3, 32, 32)),
}
SLOW = ("alexnet", "googlenet", "preact_resnet18", "resnet50", "resnext50")  # seconds to record, or large


def without_dropout(net):
    for layer in net.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return net


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in SMALL])
def test_the_models_train_and_predict_as_torch_does(name):
    options, shape = SMALL[name]
    net = without_dropout(torchs(models.get(name, **options))).double()
    x = torch.randn(shape, dtype=torch.float64)
    oracle = copy.deepcopy(net)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="pydl")
    for forward in (compiled, oracle):
        forward(x).square().mean().backward()
    for p, q in zip(net.parameters(), oracle.parameters(), strict=True):
        assert_close(p.grad, q.grad, scale=1000)
    for p, q in zip(net.buffers(), oracle.buffers(), strict=True):
        assert_same(p, q)
    net.eval(), oracle.eval()
    with torch.no_grad():
        assert_close(compiled(x), oracle(x), scale=100)


@pytest.mark.parametrize("name", models.names("language"))
def test_language_models_read_on_as_torch_does(name):
    net = torchs(models.get(name, vocab_size=7)).double()
    tokens = torch.randint(7, (3, 12))
    if hasattr(net, "count"):
        net.count(tokens.flatten())
    if hasattr(net, "positions"):
        net.eval()  # in training it keeps no state
    oracle = copy.deepcopy(net)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="pydl")
    for forward in (compiled, oracle):
        scores, state = forward(tokens[:, :6])
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        scores = torch.cat([scores, forward(tokens[:, 6:], state)[0]], 1)
        nn.functional.cross_entropy(scores.flatten(0, 1), tokens.flatten()).backward()
    for p, q in zip(net.parameters(), oracle.parameters(), strict=True):
        assert_close(p.grad, q.grad, scale=100)


def test_no_model_is_left_out():
    assert set(SMALL) == {*models.names("classifier"), *models.names("regression")}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_swapped_or_not_the_graph_is_the_same(training):
    graphs = []
    for swap in (False, True):
        torch._dynamo.reset()
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Residual(4, 4), nn.MaxPool2d(2))
        net.train(training)
        recorder = Recorder()
        torch.compile(pydl.swap(net) if swap else net, backend=recorder, fullgraph=True)(torch.randn(2, 3, 9, 9))
        graphs += recorder.calls
    assert graphs[0] == graphs[1] == ["convolution_batch_norm"] * 3 + ["max_pool2d"]


def test_other_backends_get_what_they_got_before():
    x, net = torch.randn(2, 3, 9, 9), pydl.swap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    torch.compile(net, backend="pydl")(x)
    torch._dynamo.reset()
    found = []

    def backend(graph, inputs):
        found.append(graph.code)
        return graph

    torch.compile(net, backend=backend)(x)
    assert "pydl.conv2d_forward" in found[0]


class Course(nn.Module):
    """Written as in a course: functions and methods of tensors among layers, a helper, a branch on a shape."""

    def __init__(self):
        super().__init__()
        self.embed, self.attend = nn.Embedding(7, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.feed, self.out = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU()), nn.Linear(16, 7)

    def forward(self, weights):
        x = self.embed(torch.arange(5).repeat(len(weights), 1)) * weights[:, :, None]
        x = self.norm(x + self.attend(x, x, x, need_weights=False)[0])
        scores = (x @ x.mT / 8**0.5).softmax(-1)
        x = self.feed(torch.bmm(scores, x)).tanh()
        if x.shape[0] > 1:
            x = torch.relu(x) + 0.1 * x
        return self.out(x).log_softmax(-1)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_course_style_model(training):
    assert_as_eager(Course().double().train(training), torch.randn(2, 5, dtype=torch.float64), scale=100)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = d2l.MultiHeadAttention(8, 2, 0.0)

    def forward(self, x):
        return self.attention(x, x, x, torch.tensor([2, 4]))


def test_the_books_attention():
    net, x = Attention(), torch.randn(2, 4, 8)
    net(x)  # lazy layers
    assert_as_eager(net, x, scale=10)


def test_a_language_model_with_a_graph_break_at_its_recurrent_layer():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.out = nn.GRU(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return torch.relu(self.out(self.gru(x)[0]))

    assert_as_eager(Model().double(), torch.randn(3, 2, 4, dtype=torch.float64))
