"""Other libraries' training steps beside ours: the same models, each in a process of its own."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pydl
from pydl import models

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no source tree around the tests")


@pytest.fixture(scope="module")
def peers():
    sys.path.insert(0, str(FOLDER))
    try:
        yield of_file("peers")
    finally:
        sys.path.remove(str(FOLDER))


def language(*args):
    """A language model of benchmarks/steps.py."""
    return of_file("steps").Language(*args)


def of_file(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def task(name, channels, size):
    return {"model": name, "input": [4, channels, size, size], "learning_rate": 0.01}


def test_layers_in_words(peers):
    assert peers.layers_of(models.mlp()) == [
        ["flatten"],
        *([["linear", 256], ["relu"], ["dropout", 0.2]]),
        *([["linear", 256], ["relu"], ["dropout", 0.5]]),
        ["linear", 10],
    ]
    resnet = peers.layers_of(models.resnet18())
    assert resnet[:4] == [["conv", 64, 7, 2, 3, True], ["batch_norm"], ["relu"], ["max_pool", 3, 2, 1]]
    blocks = [word for word in resnet if word[0] == "residual"]
    assert [len(side) for _, _, side in blocks] == [0, 0, 1, 0, 1, 0, 1, 0]
    assert resnet[-2:] == [["mean"], ["linear", 10]]
    assert peers.layers_of(language("LSTM", 7, 3)) == [["one_hot", 7], ["lstm", 3], ["linear", 7]]
    assert peers.layers_of(of_file("bert").OfTorch(0.1)) == [["bert", 2000, 128, 64, 2, 2, 0.1]]
    with pytest.raises(TypeError, match="peers: expected layers that peers have a word for, got GRU"):
        peers.layers_of(nn.Sequential(nn.GRU(2, 3, num_layers=2)))


def test_who_is_absent_is_named(peers, monkeypatch):
    monkeypatch.setattr(peers, "present", lambda: ["jax"])
    assert peers.absent() == 'left out, not installed: tensorflow (pip install "pydl-kernels[peers]")'
    monkeypatch.setattr(peers, "present", lambda: ["jax", "tensorflow"])
    assert peers.absent() == ""


@pytest.mark.parametrize("name", ["mkl", "jax", "tensorflow"])
def test_a_peer_takes_steps(peers, name):
    if name not in peers.present():
        pytest.skip(f"{name} is not here: not installed, or MKL takes its own path by itself")
    for model, channels, size in (("lenet_bn", 1, 28), ("mlp", 1, 28)) + (("resnet18", 1, 32),) * (name != "mkl"):
        peer = peers.Peer(name, getattr(models, model)(), task(model, channels, size))
        try:
            assert peer.seconds(2) > 0
        finally:
            peer.close()


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="the peer in torch is for torch with MKL")
def test_another_model_and_a_peer_that_fails_are_refused(peers, monkeypatch):
    monkeypatch.setattr(peers, "intel_cpu", lambda: None)
    with pytest.raises(RuntimeError, match="peers: expected mkl to have 61706 parameters, got 269322"):
        peers.Peer("mkl", models.lenet(), task("mlp", 1, 28))
    with pytest.raises(RuntimeError, match=r"(?s)peers: expected mkl to answer, got: .*no_such_model"):
        peers.Peer("mkl", models.lenet(), task("no_such_model", 1, 28))


def test_jax_computes_what_the_model_says(peers, monkeypatch):
    """With torch's parameters its layers give torch's result: batch norm, pooling, residual blocks."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    import numpy as np

    monkeypatch.setitem(sys.modules, "peers", peers)
    peer = of_file("peer_jax")
    torch.manual_seed(0)
    for kind in ("RNN", "GRU", "LSTM"):
        net, x = language(kind, 7, 5), torch.randint(7, (4, 3))
        parameters, state, _ = peer.init(peers.layers_of(net), (4, 3), np.random.default_rng(0))
        names = {"w": net.rnn.weight_ih_l0.T, "u": net.rnn.weight_hh_l0.T, "b": net.rnn.bias_ih_l0}
        parameters[1] = {k: np.asarray(p.detach()) for k, p in (names | {"c": net.rnn.bias_hh_l0}).items()}
        parameters[2] = {"w": np.asarray(net.output.weight.detach().T), "b": np.asarray(net.output.bias.detach())}
        actual, _ = peer.apply(peers.layers_of(net), parameters, state, np.asarray(x), jax.random.key(0))
        np.testing.assert_allclose(np.asarray(actual).reshape(12, 7), net(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    torchs = of_file("gpt").of_torch(0.1).eval()
    words, x = peers.layers_of(torchs), torch.randint(28, (2, 128))
    assert words == [["gpt", 28, 128, 128, 4, 4, 0.1]]
    (parameters,), _, shape = peer.init(words, (2, 128), np.random.default_rng(0))
    assert shape == (2, 128, 28)
    left = {name: np.asarray(p.detach()) for name, p in torchs.named_parameters()}
    parameters["tokens"], parameters["positions"] = (
        left.pop(f"{name}.weight") for name in ("embedding", "position_embedding")
    )

    def fill(target, path):
        target["w"], target["b"] = left.pop(f"{path}.weight").T, left.pop(f"{path}.bias")

    fill(parameters["norm"], "norm")
    paths = {"qkv": "attention.qkv", "output": "attention.output", "up": "feed_forward.up", "down": "feed_forward.down"}
    for i, block in enumerate(parameters["blocks"]):
        for name, target in block.items():
            fill(target, f"blocks.{i}.{paths.get(name, name)}")
    assert not left
    actual = peer.gpt(parameters, np.asarray(x), 4, 0.0, jax.random.key(0))
    np.testing.assert_allclose(np.asarray(actual).reshape(-1, 28), torchs(x).detach().numpy(), rtol=1e-3, atol=1e-4)
    flattened = {16 * 5 * 5: (16, 5, 5), 64 * 4 * 4: (64, 4, 4)}  # LeNet's and the CIFAR net's
    for name, size in (("lenet_bn", 28), ("resnet18", 64), ("cifar_net", 32)):
        channels = 3 if name == "cifar_net" else 1
        net = getattr(models, name)()
        words, x = peers.layers_of(net), torch.randn(4, channels, size, size)
        parameters, state, _ = peer.init(words, (4, size, size, channels), np.random.default_rng(0))
        left = [p.detach() for p in net.parameters()]

        def take(p, left=left):
            for key in ("main", "side"):
                for part in p.get(key, []):
                    take(part)
            for key in ("w", "b"):
                if key in p:
                    value = left.pop(0)
                    order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.dim()]
                    if value.dim() == 2 and value.shape[1] in flattened:  # images that lie channels last
                        images = value.unflatten(1, flattened[value.shape[1]])
                        value = images.permute(0, 2, 3, 1).flatten(1)
                    p[key] = np.asarray(value.permute(order))

        for p in parameters:
            take(p)
        assert not left
        images = np.asarray(x.permute(0, 2, 3, 1))
        actual, _ = peer.apply(words, parameters, state, images, jax.random.key(0))
        with pydl.backend.use("torch"):
            expected = net(x)
        np.testing.assert_allclose(np.asarray(actual), expected.detach().numpy(), rtol=1e-3, atol=1e-3)
