"""pydl train: penalties, mixed precision, early stopping, cross-validation, augmentation, workers."""

import math

import pytest
import torch
from runs import few, learner, no_pictures, numbers, one_thread, run  # noqa: F401  (fixtures)

from pydl import data, train
from pydl.errors import DataError, OptionError
from pydl.training import stopping
from pydl.training.config import Config
from pydl.training.not_finite import NotFinite


def test_l1_adds_the_sign_of_each_weight_to_its_gradient():
    options = {"optimizer": "sgd", "lr": 0.1}
    plain, penalised = learner("softmax_regression", **options), learner("softmax_regression", l1=0.02, **options)
    before = [p.detach().clone() for p in penalised.model.parameters()]
    plain.run(1), penalised.run(1)
    assert torch.equal(plain._losses, penalised._losses)  # what is shown is the loss of the data
    for start, one, other in zip(before, plain.model.parameters(), penalised.model.parameters(), strict=True):
        torch.testing.assert_close(other, one - 0.1 * 0.02 * start.sign(), rtol=1e-5, atol=1e-7)


def test_l1_makes_weights_sparse(tmp_path):
    options = {"model": "weight_decay", "weight_decay": 0.0, "epochs": 30}
    plain, penalised = (run(tmp_path / str(l1), l1=l1, **options)[0].model[0].weight for l1 in (0.0, 0.1))
    assert penalised.abs().median() < 0.1 * plain.abs().median()


@pytest.mark.parametrize(
    "model, options",
    [
        ("linear_regression", {"batch_size": 7}),
        ("softmax_regression", {"l1": 0.01, "augment": ["crop"]}),
        ("lenet", {"clip": 0.1}),
        ("ngram", {"num_steps": 5}),
        ("nnlm", {"num_steps": 5}),
        ("gru_lm", {"num_steps": 5, "options": {"hidden": 16, "layers": 2}}),
        ("lstm_lm", {"num_steps": 5, "options": {"hidden": 16, "layers": 2}}),
        ("gpt", {"num_steps": 8, "options": {"hidden": 16, "layers": 2, "dropout": 0.0}}),
        ("seq2seq_attention", {"options": {"hidden": 16, "embedding": 8, "dropout": 0.0}}),
        ("transformer", {"options": {"width": 16, "hidden": 16, "heads": 2, "dropout": 0.0}}),
    ],
)
def test_a_batch_in_parts_is_the_whole_batch(model, options):
    options = {"optimizer": "sgd", "lr": 0.1, "batch_size": 11, **options}
    whole, parts = (
        train.learners(Config(model, accumulate=count, **options).resolved(), ["cpu"])[0] for count in (1, 4)
    )
    for one in (whole, parts):
        one.run(3)
    torch.testing.assert_close(parts._losses[:3], whole._losses[:3], rtol=1e-5, atol=1e-6)
    assert int(parts._correct) == int(whole._correct)
    for p, q in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    if hasattr(whole, "_state"):
        torch.testing.assert_close(parts._state, whole._state, rtol=1e-5, atol=1e-6)


def test_parts_are_as_many_as_a_batch_has_room_for():
    options = {"batch_size": 8, "accumulate": 8, "optimizer": "sgd", "lr": 0.1}
    seen, one = [], learner("lenet", **options)
    one.model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    one.run(2)
    assert seen == [1] * 16
    one._batches = [batch[:3] for batch in one._batches]  # as the short batch at the end of an epoch
    one._coming, seen[:] = None, []
    one.run(1)
    assert seen == [1] * 3
    normalised = learner("lenet_bn", **options)  # two to a part
    assert normalised._parts(8) == 4
    assert normalised._parts(3) == 1
    normalised.run(1)
    with pytest.raises(OptionError, match="--accumulate: expected at most the batch size, 8, got 9"):
        learner("lenet", **{**options, "accumulate": 9})
    with pytest.raises(OptionError, match="--accumulate: expected a number of at least 1, got 0"):
        learner("lenet", **{**options, "accumulate": 0})


def test_a_loss_that_is_not_finite_in_a_part_leaves_the_weights(tmp_path):
    one = learner("lenet", batch_size=8, accumulate=4)
    before = [p.clone() for p in one.model.parameters()]
    one.train.images[one._batches[0][5]] = math.inf
    with pytest.raises(NotFinite, match="step 1"):
        one.run(1)
    assert all(torch.equal(p, q) for p, q in zip(before, one.model.parameters(), strict=True))


def test_amp_computes_in_bfloat16_on_a_cpu(tmp_path):
    seen = []
    one, exact = learner("lenet_bn", amp=True), learner("lenet_bn")
    for layer in one.model:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    one.run(5), exact.run(5)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in one.model.parameters()} == {torch.float32}
    torch.testing.assert_close(one._losses[:5], exact._losses[:5], rtol=0.05, atol=0.02)
    assert not torch.equal(one._losses[:5], exact._losses[:5])
    result, _ = run(tmp_path, "lenet", amp=True, epochs=6)
    assert result.history[-1]["test_accuracy"] > 0.8


def test_amp_agrees_with_torchs(tmp_path):
    result, _ = run(tmp_path, "lenet_bn", amp=True, compare=True, max_steps=10)
    assert result.history[-1]["loss"] == pytest.approx(result.history[-1]["torch_loss"], rel=0.02)


def test_amp_says_what_it_gains_over_float32(tmp_path):
    """A third side of a comparison: the very losses of a run without --amp; it goes on where it stopped."""
    result, text = run(tmp_path / "amp", "lenet_bn", amp=True, compare=True, max_steps=6)
    exact, _ = run(tmp_path / "float32", "lenet_bn", max_steps=6)
    row = result.history[-1]
    assert row["float32_loss"] == exact.history[-1]["loss"]
    assert row["float32_test_accuracy"] == exact.history[-1]["test_accuracy"]
    assert row["loss"] != row["float32_loss"]
    assert row["loss"] == pytest.approx(row["float32_loss"], rel=0.02)
    assert len(result.rates) == 3
    assert result.gain > 0
    assert f"  |  float32: loss {row['float32_loss']:.4f}" in text
    assert "pydl, mixed ┃" in text
    assert f"{result.gain:.2f}×" in text
    again, _ = run(tmp_path / "again", resume=tmp_path / "amp", max_steps=9)
    whole, _ = run(tmp_path / "whole", "lenet_bn", max_steps=9)
    assert again.history[-1]["float32_loss"] == whole.history[-1]["loss"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_amp_scales_the_loss_on_a_gpu():
    one = learner("lenet_bn", backend="torch", device="cuda", amp=True)
    assert one.stepper.scaler.is_enabled()
    one.run(10)
    assert one._losses[9] < one._losses[0]
    other = learner("lenet_bn", backend="torch", device="cuda", amp=True)
    other.load_state_dict(one.state_dict())
    assert other.stepper.scaler.get_scale() == one.stepper.scaler.get_scale()


def test_first_weights_are_what_is_asked_for():
    torchs, xavier, kaiming = (learner("lenet", init=name).model[3].weight for name in ("torch", "xavier", "kaiming"))
    bounds = {"torch": (1 / 150) ** 0.5, "xavier": (6 / (150 + 400)) ** 0.5, "kaiming": (6 / 150) ** 0.5}
    for weight, bound in zip((torchs, xavier, kaiming), bounds.values(), strict=True):
        assert 0.95 * bound < weight.abs().max() <= bound  # uniform; 150 inputs and 400 outputs of each number
    assert torch.equal(learner("lenet").model[3].weight, xavier)  # as the book has it


def history(*losses):
    return [{"test_loss": loss} for loss in losses]


def test_when_to_stop_early():
    assert stopping.best(history(3, 1, 2, 1)) == 2
    assert stopping.best(history(math.nan, 5)) == 2
    assert not stopping.over(None, history(1, 2, 3, 4))
    assert not stopping.over(2, [])
    assert not stopping.over(2, history(1, 2))
    assert stopping.over(2, history(1, 2, 3))
    assert not stopping.over(2, history(1, 2, 0.5))


def test_early_stopping_keeps_the_best_epoch(tmp_path, monkeypatch):
    from pydl.training.learner import Learner

    losses = iter([0.9, 0.5, 0.7, 0.6, 0.4])
    monkeypatch.setattr(Learner, "evaluate", lambda self: (next(losses), 0.5))
    result, text = run(tmp_path, "softmax_regression", dataset=few(), epochs=5, patience=2)
    assert [row["test_loss"] for row in result.history] == [0.9, 0.5, 0.7, 0.6]
    assert (
        "stopped early: the test loss has not fallen for 2 epochs since epoch 2 (0.5000), which best.pt keeps" in text
    )
    assert "holds checkpoint.pt, best.pt, metrics.jsonl" in text
    best, last = (torch.load(tmp_path / name, weights_only=True) for name in ("best.pt", "checkpoint.pt"))
    assert (best["epoch"], last["epoch"]) == (2, 4)
    _, text = run(None, resume=tmp_path, dataset=few())
    assert "nothing left to do: the test loss has not fallen for 2 epochs" in text
    result, _ = run(None, resume=tmp_path, dataset=few(), patience=3)  # a longer patience goes on
    assert len(result.history) == 5


def test_folds_are_a_partition_of_the_training_set():
    whole = data.get("linear", seed=0)
    parts = list(data.folds(whole, 3, seed=1))
    assert [len(part.test) for part in parts] == [334, 333, 333]
    held = torch.cat([part.test.images for part in parts])
    assert torch.equal(held.sort(0).values, whole.train.images.sort(0).values)
    for part in parts:
        both = torch.cat([part.train.targets, part.test.targets])
        assert torch.equal(both.sort(0).values, whole.train.targets.sort(0).values)


def test_cross_validation_trains_once_per_fold(tmp_path):
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    results = train.cross_validate(Config("linear_regression", epochs=1), 3, tmp_path / "cv", console)
    assert [str(result.folder.path) for result in results] == [f"{tmp_path}/cv/fold-{i}" for i in (1, 2, 3)]
    losses = [result.history[-1]["test_loss"] for result in results]
    assert len(set(losses)) == 3
    text = console.file.getvalue()
    assert "fold 3 of 3: 667 examples to train on, 333 to test on" in text
    assert "3-fold cross-validation" in text
    assert f"{sum(losses) / 3:.5f} ± " in text
    for folds, message in ((1, "a number from 2 to the 1000 examples, got 1"), (1001, "got 1001")):
        with pytest.raises(OptionError, match=f"--folds: expected {message}|{message}"):
            train.cross_validate(Config("linear_regression"), folds, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_crop_cuts_windows_of_the_padded_image():
    images = torch.arange(1.0, 33.0).view(2, 1, 4, 4)
    from pydl.data.augment import crop

    padded = torch.nn.functional.pad(images, (1,) * 4)
    got = crop(padded, torch.tensor([0, 2]), torch.tensor([1, 0]), 4, 4)
    assert torch.equal(got[0], padded[0, :, 0:4, 1:5])
    assert torch.equal(got[1], padded[1, :, 2:6, 0:4])


def test_augmentation_depends_on_seed_and_step_alone():
    images = torch.rand(64, 2, 16, 16)
    both = data.Augment(["crop", "flip"], seed=3)
    one = both(images, 7)
    torch.manual_seed(99)
    assert torch.equal(one, data.Augment(["crop", "flip"], seed=3)(images, 7))
    assert not torch.equal(one, both(images, 8))
    assert not torch.equal(one, data.Augment(["crop", "flip"], seed=4)(images, 7))
    # a part of a batch is treated as it is within the whole
    assert torch.equal(one[20:45], both(images[20:45], 7, size=64, start=20))
    flipped = data.Augment(["flip"], seed=0)(images, 0)
    mirrored = [bool(torch.equal(a, b.flip(2))) for a, b in zip(flipped, images, strict=True)]
    assert 16 < sum(mirrored) < 48
    same = [bool(torch.equal(a, b)) for a, b in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))


def test_augmented_runs_differ_and_resume_exactly(tmp_path):
    options = {"epochs": 2, "augment": ["crop"], "model": "lenet_bn"}
    unbroken, _ = run(tmp_path / "a", dataset=few(train=100), **options)
    run(tmp_path / "b", dataset=few(train=100), max_steps=3, **options)
    result, _ = run(None, resume=tmp_path / "b", dataset=few(train=100), max_steps=None)
    assert numbers(result.history) == numbers(unbroken.history)
    plain, _ = run(tmp_path / "c", dataset=few(train=100), epochs=2, model="lenet_bn")
    assert plain.history[-1]["loss"] != unbroken.history[-1]["loss"]


def write_images(folder, classes=("dark", "light"), count=12):
    from PIL import Image

    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (9, 9), 40 + 150 * number + i).save(folder / name / f"{i}.png")


def test_workers_give_the_same_run(tmp_path, monkeypatch):
    from pydl.data import dataset

    write_images(tmp_path / "images")
    for name in ("KEEP_BYTES", "KEEP_DECODED"):  # as for a set that does not fit: each batch decodes its own files
        monkeypatch.setattr(dataset, name, 0)
    options = {"data": "folder", "root": str(tmp_path / "images"), "size": 16, "epochs": 2, "batch_size": 8}
    results = [run(tmp_path / f"{n}", "lenet_bn", workers=n, **options)[0] for n in (0, 2)]
    assert numbers(results[0].history) == numbers(results[1].history)


def test_workers_pass_on_the_sentence_of_a_bad_image(tmp_path):
    write_images(tmp_path)
    got = data.get("folder", root=tmp_path)
    bad = got.train.images.paths[5]
    with open(bad, "r+b") as file:
        file.truncate(40)
    with pytest.raises(DataError, match="not a readable image") as error:
        list(data.in_order(Files(got.train), [torch.arange(4), torch.arange(4, 8)], 1, "cpu"))
    assert str(error.value).startswith(f"{bad}: ")
    assert "\n" not in str(error.value)


class Files:
    """A split whose images are decoded when they are asked for."""

    def __init__(self, split):
        self.split = split

    def __getitem__(self, indices):
        return self.split.images.index_select(0, indices), self.split.targets[indices]
