"""pydl train: a stopped run continues bit for bit, and nothing is lost."""

import json

import pytest
from runs import assert_same_state, no_pictures, numbers, one_thread, pictures, run  # noqa: F401  (fixtures)

from pydl import data, train
from pydl.errors import CheckpointError
from pydl.training.learner import Learner


@pytest.mark.parametrize("stop", [23, 30])  # epochs end at steps 23, 46, …: at an epoch's end, and inside one
@pytest.mark.parametrize(
    "model, optimizer",
    [("mlp", "adam"), ("lenet_bn", "momentum")],  # dropout's seeds; running statistics
)
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, model, optimizer, stop):
    options = {"epochs": 3, "optimizer": optimizer, "lr": 0.01, "schedule": "cosine", "warmup": 5, "clip": 1.0}
    unbroken, _ = run(tmp_path / "unbroken", model, **options)
    run(tmp_path / "parts", model, max_steps=stop, **options)
    result, _ = run(None, resume=tmp_path / "parts", max_steps=None)
    assert numbers(result.history) == numbers(unbroken.history)
    assert_same_state(tmp_path / "unbroken", tmp_path / "parts")
    rows = [json.loads(line) for line in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()]
    assert numbers(rows) == numbers(unbroken.history)


def interrupt_in_step(monkeypatch, number):
    step = Learner._one

    def one(self, batch):
        if self.step + 1 == number:
            raise KeyboardInterrupt
        step(self, batch)

    monkeypatch.setattr(Learner, "_one", one)


@pytest.mark.usefixtures("pictures")
def test_ctrl_c_keeps_the_last_finished_epoch(tmp_path, monkeypatch):
    unbroken, _ = run(tmp_path / "unbroken", epochs=3)
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 40)
        with pytest.raises(train.Interrupted, match=r"^interrupted in epoch 2; .*broken keeps epoch 1") as error:
            run(tmp_path / "broken", epochs=3)
    assert error.value.exit_code == 130
    assert {path.name for path in (tmp_path / "broken").iterdir()} == {"checkpoint.pt", "metrics.jsonl", "curves.png"}
    result, _ = run(None, resume=tmp_path / "broken/checkpoint.pt")
    assert numbers(result.history) == numbers(unbroken.history)


def test_ctrl_c_in_the_first_epoch_leaves_no_folder(tmp_path, monkeypatch):
    interrupt_in_step(monkeypatch, 2)
    with pytest.raises(train.Interrupted, match="no epoch was finished, so nothing was kept"):
        run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resume_into_another_folder_leaves_the_first_alone(tmp_path):
    run(tmp_path / "first", epochs=1)
    before = (tmp_path / "first/checkpoint.pt").read_bytes(), (tmp_path / "first/metrics.jsonl").read_text()
    result, _ = run(tmp_path / "second", resume=tmp_path / "first", epochs=2)
    assert before == ((tmp_path / "first/checkpoint.pt").read_bytes(), (tmp_path / "first/metrics.jsonl").read_text())
    assert len((tmp_path / "second/metrics.jsonl").read_text().splitlines()) == len(result.history) == 2


def test_resume_refuses_another_data_set_of_the_same_name(tmp_path, monkeypatch):
    run(tmp_path, max_steps=1)
    digits = data.get("digits")
    digits.train = data.Split(digits.train.images[:100], digits.train.targets[:100])
    monkeypatch.setattr(data, "get", lambda *arguments, **options: digits)
    with pytest.raises(CheckpointError, match=r"expected the 1,438 training examples and 10 classes .* got 100 and 10"):
        run(None, resume=tmp_path)


def test_resume_of_a_finished_run_does_nothing(tmp_path):
    first, _ = run(tmp_path, epochs=1)
    result, text = run(None, resume=tmp_path)
    assert "nothing left to do: 23 of 23 steps are done" in text
    assert result.history == first.history


def test_compare_is_resumed_exactly(tmp_path):
    unbroken, _ = run(tmp_path / "a", epochs=2, compare=True)
    run(tmp_path / "b", epochs=2, compare=True, max_steps=9)
    result, _ = run(None, resume=tmp_path / "b", max_steps=None)
    assert numbers(result.history) == numbers(unbroken.history)
