"""pydl train: what it refuses, in which words, and that nothing is lost."""

import math

import pytest
import torch
from runs import learner, no_pictures, one_thread, run  # noqa: F401  (fixtures)

from pydl.errors import CheckpointError, OptionError, TrainingError
from pydl.training import checkpoint
from pydl.training.learner import Learner
from pydl.training.not_finite import NotFinite


def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    run(tmp_path, "lenet", epochs=1)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    step = Learner._one

    def poison(self, batch):
        if self.step + 1 == 30:
            with torch.no_grad():
                self.model[3].weight[0, 0, 0, 0] = math.nan
        step(self, batch)

    monkeypatch.setattr(Learner, "_one", poison)
    message = r"the loss became nan in step 30; 3 \(Conv2d\) is the first layer .* keeps epoch 1"
    with pytest.raises(TrainingError, match=message) as error:
        run(None, resume=tmp_path, epochs=3)
    assert error.value.exit_code == 1
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


def test_loss_that_is_not_finite_is_found_after_the_fact_too():
    """As on a GPU, where losses are looked at after a chunk of steps."""
    one = learner("softmax_regression")
    one.run(5)
    one._losses[2] = math.inf
    with pytest.raises(NotFinite, match="the loss became inf in step 3"):
        one._find_not_finite(5)


def test_model_options_and_sizes_that_do_not_fit_are_said(tmp_path):
    for options, message in (
        ({"model": "vgg11", "options": {"depth": 3}}, r"--option: expected one of vgg11's \(ratio=1\), got 'depth'"),
        ({"model": "lenet", "options": {"depth": 3}}, r"--option: expected one of lenet's \(none\), got 'depth'"),
        ({"model": "polynomial_regression", "options": {"degree": -1}}, "--option degree=-1: .*default, degree=3"),
        ({"model": "mlp", "options": {"dropout": 1.5}}, r"--option dropout=1.5: .*; the form is .*, dropout=0.2,0.5"),
        ({"model": "mlp", "options": {"dropout": (0.5, 1.5)}}, "--option dropout=0.5,1.5: .*got 1.5; the form is that"),
        ({"model": "lenet", "size": 3}, "lenet cannot be built with --size 3: "),
        ({"model": "lenet", "data": "linear"}, "--data: expected a set that fits lenet, got 'linear', which is a regr"),
        ({"model": "weight_decay", "data": "digits"}, "fits weight_decay, got 'digits', which is a classification"),
    ):
        with pytest.raises(OptionError, match=message):
            run(tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": math.nan}, "--lr: expected a finite number above 0, got nan"),
        ({"lr": 0.0}, "--lr: expected a finite number above 0, got 0.0"),
        ({"epochs": 0}, "--epochs: expected a number of at least 1, got 0"),
        ({"batch_size": -1}, "--batch-size: expected a number of at least 1, got -1"),
        ({"weight_decay": -0.1}, "--weight-decay: expected a finite number of at least 0, got -0.1"),
        ({"warmup": -1}, "--warmup: expected a finite number of at least 0, got -1"),
        ({"clip": 0.0}, "--clip: expected a number above 0, got 0.0"),
        ({"schedule": "wavy"}, "--schedule: expected one of constant, step, cosine, got 'wavy'"),
        ({"seed": -1}, "--seed: expected a number from 0"),
        ({"optimizer": "rmsprop"}, "--optimizer: expected one of sgd, momentum, adam, adamw, got 'rmsprop'"),
        ({"backend": "metal"}, "--backend: expected one of torch, cpu, cuda, triton, got 'metal'"),
        ({"device": "mps"}, "--device: expected cpu or cuda, got 'mps'"),
        ({"device": "fridge"}, "--device: expected cpu or cuda, or cuda:N, got 'fridge'"),
        ({"device": "cuda:99"}, "--device: expected a device of this machine, got 'cuda:99'"),
        ({"data": "mnits"}, r"data: expected the name to be one of digits, .*, got 'mnits'; did you mean mnist\?"),
        ({"model": "lenett"}, r"model: expected the name to be one of .*lenet, .*got 'lenett'; did you mean lenet\?$"),
        ({"model": "q"}, "model: expected the name to be one of .*, got 'q'$"),
        ({"optimizer": "adm"}, r"--optimizer: .*, got 'adm'; did you mean adam\?"),
        ({"schedule": "cosin"}, r"--schedule: .*, got 'cosin'; did you mean cosine\?"),
        ({"compare": True, "backend": "torch"}, "--compare: expected a backend of ours"),
        ({"model": "lenet_bn", "batch_size": 1}, "--batch-size: expected at least 2 for lenet_bn"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(OptionError, match=message) as error:
        run(tmp_path / "out", **{"model": "mlp", **options})
    assert error.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_an_out_folder_with_a_run_is_refused(tmp_path):
    run(tmp_path, max_steps=1)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(OptionError, match=r"--out: .* already holds a run; --resume .* continues it"):
        run(tmp_path, max_steps=1)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_absent_backend_names_those_present(tmp_path):
    from pydl import backend

    absent = [name for name, status in backend.available().items() if not status]
    if not absent:
        pytest.skip("every backend is present on this machine")
    with pytest.raises(
        OptionError, match=r"^--backend: expected '.*' to be available, got: .*; present are torch, cpu"
    ):
        run(tmp_path / "out", backend=absent[0])


WORDS = {
    "absent": "there is no such checkpoint",
    "text": "not a readable checkpoint: the file was cut off or damaged, or was never one",
    "empty": "not a readable checkpoint: the file is empty",
    "truncated": "not a readable checkpoint: the file was cut off or damaged, or was never one",
    "scrambled": "not a readable checkpoint: ",
    "foreign": "not a checkpoint of `pydl train`",
    "state_dict": "not a checkpoint of `pydl train`",
    "code": "not a readable checkpoint: it holds objects other than tensors, numbers and text, which could be code",
    "newer": "expected version 1 of the checkpoint format, got 99",
    "lacking": "the checkpoint lacks ",
}


@pytest.mark.parametrize("kind", WORDS)
def test_unreadable_or_foreign_checkpoints_are_one_sentence(tmp_path, kind):
    path = tmp_path / "checkpoint.pt"
    if kind == "text":
        path.write_text("hello, world\n")
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        run(tmp_path / "run", max_steps=1)
        path.write_bytes((tmp_path / "run/checkpoint.pt").read_bytes()[:5000])
    elif kind == "scrambled":  # bytes in the middle, the end of the file in place
        run(tmp_path / "run", max_steps=1)
        whole = bytearray((tmp_path / "run/checkpoint.pt").read_bytes())
        whole[40:4000] = bytes(255 - byte for byte in whole[40:4000])
        path.write_bytes(whole)
    elif kind == "foreign":
        torch.save({"format": "another", "epoch": 3}, path)
    elif kind == "state_dict":
        torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    elif kind == "code":
        torch.save(torch.nn.Linear(2, 2), path)  # a pickled module: refused, not executed
    elif kind == "newer":
        torch.save({"format": checkpoint.FORMAT, "version": 99}, path)
    elif kind == "lacking":
        torch.save({"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "model": {}}, path)
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(CheckpointError, match=WORDS[kind]) as error:
        run(None, resume=path)
    assert "\n" not in str(error.value)
    for foreign in ("torch.load", "weights_only", "Weights only", "PyTorch", "Unpickl", "pickle", "zip", "archive"):
        assert foreign not in str(error.value)
    assert str(path) in str(error.value)
    assert (path.read_bytes() if path.exists() else None) == before


def test_checkpoint_that_does_not_fit_its_model(tmp_path):
    run(tmp_path, max_steps=1)
    content = checkpoint.load(tmp_path)
    content["model"] = {"1.weight": torch.zeros(3)}
    checkpoint.save(tmp_path / "checkpoint.pt", content)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(
        CheckpointError, match=r"fit the model: expected 1.weight to be of shape \(256, 784\), got \(3,\)"
    ):
        run(None, resume=tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_failed_write_keeps_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"epoch": 1})
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"could not be written: .*No space left on device; the last one is kept"):
        checkpoint.save(path, {"epoch": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
