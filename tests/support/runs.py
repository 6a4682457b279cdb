"""What the tests of training share: one run, one learner, and the comparison of what runs leave behind."""

import io
import sys

import pytest
import torch
from rich.console import Console

from pydl import cli, data, train
from pydl.training import checkpoint, curves
from pydl.training.config import Config
from pydl.training.learner import Learner

# what a row measures and no rule decides
TIMES = {f"{side}{key}" for side in ("", "torch_") for key in ("examples_per_second", "tokens_per_second", "seconds")}


def run(out, model="mlp", resume=None, dataset=None, report=False, **options):
    """One run; returns (result, what it printed)."""
    console = Console(file=io.StringIO(), width=120)
    if resume is None:
        result = train.train(Config(model, **options), out=out, console=console, dataset=dataset, report=report)
    else:
        config, content = train.resumed(resume, **options)
        result = train.train(config, out=out, resume=content, console=console, dataset=dataset)
    return result, console.file.getvalue()


def numbers(history):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in history]


def assert_same_state(one, other):
    one, other = (checkpoint.load(path) for path in (one, other))
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name]), name
    for index, state in one["optimizer"]["state"].items():
        for name, value in state.items():
            same = torch.equal(value, other["optimizer"]["state"][index][name]) if torch.is_tensor(value) else True
            assert same, (index, name)
    assert torch.equal(one["random"]["cpu"], other["random"]["cpu"])
    assert torch.equal(one["order"], other["order"])


def learner(model="lenet", backend="cpu", device="cpu", **options):
    config = Config(model, **options).resolved()
    digits = data.get("digits")
    preprocessing = data.Preprocessing.fit(digits.train.images, (config.size, config.size))
    splits = [data.Batches(split, preprocessing, device) for split in (digits.train, digits.test)]
    return Learner(config, *splits, 10, backend, device)


def few(name="digits", train=64, test=32):
    """The first images of a data set, for tests of what does not depend on how many there are."""
    whole = data.get(name)
    splits = (data.Split(s.images[:n], s.targets[:n]) for s, n in ((whole.train, train), (whole.test, test)))
    return data.Dataset(name, *splits, whole.classes)


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Drawing takes longer than a test's training; tests that look at pictures ask for ``pictures``."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(curves, "available", lambda: False)


@pytest.fixture
def pictures():
    """Asks for the pictures of a run."""


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small gain nothing from a second core, and lose much where another process holds it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(name="pydl")
def command_line(monkeypatch, capsys, tmp_path):
    """Runs ``pydl ...`` in this process, in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a busy second core would slow models this small down, not speed them up

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pydl", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out = capsys.readouterr()
        return end.value.code or 0, out.out, out.err

    yield call
    torch.set_num_threads(threads)
