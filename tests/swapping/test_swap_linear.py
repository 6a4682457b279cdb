"""Linear under ``swap``: models of it, and layers of torch's that hold or read linear layers and stay torch's."""

import copy

import pytest
import torch
from swap_models import assert_as_unfused, d2l_lenet, fused, ops_of, outcome
from testing import assert_close
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import pydl
from pydl import models

# name -> (model, input size) of models whose linear layers are all ours
MODELS = {
    "the book's LeNet": (d2l_lenet, (4, 1, 28, 28)),
    "lenet": (lambda: models.get("lenet"), (4, 1, 28, 28)),
    "mlp": (lambda: models.get("mlp"), (4, 1, 28, 28)),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(9), nn.ReLU(), nn.LazyLinear(3)), (4, 5, 3)),
    "without bias, rows of rows": (lambda: nn.Sequential(nn.Linear(5, 7, bias=False), nn.Tanh()), (2, 3, 5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_no_linear_layer_is_left_to_torch(name):
    build, size = MODELS[name]
    net, x = pydl.swap(build()), torch.randn(size)
    net(x)
    rows = [row for row in pydl.report(net).rows if row.layer == "Linear"]
    assert rows
    assert {row.reason for row in rows} == {""}
    assert ops_of(net.eval(), x).count("pydl::linear_forward") == len(rows)


def test_chains_in_a_multilayer_perceptron():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Dropout(0.0), nn.Linear(20, 5), nn.Sigmoid())
    swapped = assert_as_unfused(net, torch.randn(6, 3, 4))
    assert fused(swapped) == {"1": "with 2", "2": "in 1", "4": "with 5", "5": "in 4"}
    assert_as_unfused(net, torch.randn(6, 3, 4), dtype=torch.float32)
    seen = []
    swapped[1].register_forward_hook(lambda module, args, output: seen.append(output.min().item()))
    swapped(torch.randn(6, 3, 4).double())
    assert seen[0] < 0  # before the ReLU
    assert fused(swapped) == {"4": "with 5", "5": "in 4"}


TRANSFORMERS = {
    "encoder layer": lambda: nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True),
    "encoder layer, norm first, GELU": lambda: nn.TransformerEncoderLayer(
        16, 4, 24, 0.0, F.gelu, batch_first=True, norm_first=True
    ),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True), 2),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_compute_what_they_did(name, training):
    """In evaluation without gradients torch takes a fast path, which reads the layers' weights."""
    net, x = TRANSFORMERS[name]().train(training), torch.randn(3, 5, 16)
    swapped = assert_as_unfused(net, x)
    rows = {row.name.rpartition(".")[2]: row for row in pydl.report(swapped).rows}
    assert rows["linear1"].reason == rows["linear2"].reason == ""
    assert "a subclass of Linear" in rows["out_proj"].reason
    plain = pydl.unswap(copy.deepcopy(swapped))
    mask = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 3 + [True] * 2])
    for no_grad in (torch.no_grad, torch.inference_mode):
        with no_grad():
            assert_close(swapped(x.double()), plain(x.double()))
            with_mask = swapped(x.double(), src_key_padding_mask=mask)
            assert_close(with_mask, plain(x.double(), src_key_padding_mask=mask))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_inside_a_swapped_block(name):
    net, x = TRANSFORMERS[name]().double(), torch.randn(3, 5, 16).double()
    expected = outcome(net, x)
    with pydl.swapped():
        actual = outcome(net, x)
    for key, value in expected.items():
        assert_close(actual[key], value, scale=10)


OTHERS = {
    "MultiheadAttention": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True),
        lambda net, x: net(x, x, x)[0],
    ),
    "Bilinear": (lambda: nn.Bilinear(8, 8, 3), lambda net, x: net(x, x)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_layers_that_read_weights_stay_torchs(name):
    build, call = OTHERS[name]
    net, x = build(), torch.randn(4, 3, 8)
    expected = call(net, x)
    assert torch.equal(call(pydl.swap(net), x), expected)
    with pydl.swapped():
        assert_close(call(net, x), expected.double(), scale=10)


def test_weights_in_common_and_parametrised():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.out = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
            self.out.weight = self.embedding.weight

        def forward(self, x):
            return self.out(self.embedding(x.long().abs() % 7))

    net = Tied()
    twin = pydl.swap(copy.deepcopy(net))
    x = torch.arange(12).view(3, 4)
    for model in (net, twin):
        model(x).square().sum().backward()
    assert_close(twin.out.weight.grad, net.out.weight.grad.double(), scale=10)
    assert_as_unfused(nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)), nn.ReLU()), torch.randn(3, 5))


def test_replaced_parts_are_honoured(monkeypatch):
    net, x = pydl.swap(nn.Sequential(nn.Linear(4, 3), nn.ReLU())), torch.randn(2, 4)
    before = net(x)
    monkeypatch.setattr(F, "linear", lambda input, weight, bias=None: input.new_full((2, 3), 7.0))
    assert (net(x) == 7).all()
    monkeypatch.undo()
    assert torch.equal(net(x), before)
