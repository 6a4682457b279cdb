"""What a step of the book's loop does besides the kernels, counted: a time would depend on the machine."""

import sys
from types import SimpleNamespace

import pytest

from pydl import d2l, models
from pydl.d2l import serving, training
from pydl.training.config import Config
from pydl.training.learner import Learner


def calls(function):
    """How many calls of functions, of Python's and of C's, there are in ``function()``."""
    found, before = [], sys.getprofile()
    sys.setprofile(lambda frame, event, value: found.append(event))
    try:
        function()
    finally:
        sys.setprofile(before)
    return sum(event in ("call", "c_call") for event in found)


def test_a_step_is_as_short_as_the_commands(monkeypatch):
    """LeNet by train_ch6 beside ``pydl train lenet``, whose kernels are the same."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    drawn = SimpleNamespace(add=lambda x, y: None, Y=[[0], [0], [0]])
    monkeypatch.setattr(training, "Animator", lambda *args, **options: drawn)
    monkeypatch.setattr(serving, "tell", lambda net, step, seconds: None)
    train_iter, test_iter = d2l.load_data_fashion_mnist(64)
    batches = list(train_iter)

    def train(steps):
        d2l.train_ch6(models.get("lenet"), batches[:steps], batches[:1], 1, 0.9, d2l.cpu())

    config = Config(
        model="lenet", options={}, size=28, epochs=1, batch_size=64, optimizer="sgd", lr=0.9, weight_decay=0.0,
        init="xavier", schedule="constant", warmup=0, label_smoothing=0.0, backend="cpu", device="cpu",
    )  # fmt: skip
    learner = Learner(config, train_iter.dataset.batches, test_iter.dataset.batches, 10, "cpu", "cpu")
    for function in (train, learner.run):
        function(2)  # what is done once
    ours, theirs = (calls(lambda f=f: f(9)) - calls(lambda f=f: f(4)) for f in (train, learner.run))
    assert 0 < ours <= theirs
