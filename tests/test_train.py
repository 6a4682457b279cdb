"""pydl train: what it computes, what it writes, and that a stopped run continues bit for bit."""

import io
import json
import math
import struct

import pytest
import torch
from rich.console import Console

from pydl import data, models, train
from pydl.errors import CheckpointError, OptionError, TrainingError
from pydl.training import checkpoint, curves, events, mistakes, schedule
from pydl.training.config import Config
from pydl.training.learner import Learner, NotFinite
from pydl.training.recipes import RECIPES

MODELS = ["softmax_regression", "mlp", "lenet", "lenet_bn"]
# what a row measures and no rule decides
TIMES = {"examples_per_second", "seconds", "torch_examples_per_second", "torch_seconds"}


def run(out, model="mlp", resume=None, **options):
    """One run; returns (result, what it printed)."""
    console = Console(file=io.StringIO(), width=120)
    if resume is None:
        result = train.train(Config(model, **options), out=out, console=console)
    else:
        config, content = train.resumed(resume, **options)
        result = train.train(config, out=out, resume=content, console=console)
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


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    """Drawing takes longer than a test's training; tests that look at pictures ask for ``pictures``."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(curves, "available", lambda: False)


@pytest.fixture
def pictures():
    """Asks for the pictures of a run."""


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small gain nothing from a second core, and lose much where another process holds it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns(tmp_path, model, backend):
    result, _ = run(tmp_path, model, max_steps=46, backend=backend, lr=5e-3, optimizer="adam")
    assert result.backend == backend
    assert [row["step"] for row in result.history] == [23, 46]
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.history[-1]["test_accuracy"] > 0.4


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_optimizers_are_torchs(optimizer):
    trained = learner("softmax_regression", optimizer=optimizer, lr=0.01)
    model = torch.nn.Linear(784, 10)
    model.load_state_dict({key.removeprefix("1."): value for key, value in trained.model.state_dict().items()})
    kinds = {
        "sgd": lambda p: torch.optim.SGD(p, 0.01),
        "momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, 0.01),
        "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    }
    reference = kinds[optimizer](model.parameters())
    for batch in trained._batches[:5]:
        images, targets = trained.train[batch]
        reference.zero_grad()
        torch.nn.functional.cross_entropy(model(images.flatten(1)), targets).backward()
        reference.step()
    trained.run(5)
    torch.testing.assert_close(trained.model[1].weight, model.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["lenet", "lenet_bn"])  # without dropout, whose masks are not torch's
def test_pydl_and_torch_agree_over_20_steps(model):
    ours, torchs = learner(model, "cpu"), learner(model, "torch")
    for one, other in zip(ours.model.parameters(), torchs.model.parameters(), strict=True):
        assert torch.equal(one, other)
    ours.run(20), torchs.run(20)
    torch.testing.assert_close(ours._losses[:20], torchs._losses[:20], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["linear_regression", "polynomial_regression", "weight_decay"])
def test_regressions(tmp_path, model, pictures):
    steps = {"linear_regression": 200, "polynomial_regression": 200, "weight_decay": 12}[model]
    result, text = run(tmp_path, model, max_steps=steps)
    first, last = result.history[0], result.history[-1]
    assert last["loss"] < 0.5 * first["loss"]
    assert "test_accuracy" not in last
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "confusion.png").exists()
    assert "test loss" in text
    assert "MSELoss" in text
    if model == "linear_regression":
        torch.testing.assert_close(result.model[0].weight[0], torch.tensor([2.0, -3.4]), rtol=0, atol=0.01)
    again, _ = run(None, resume=tmp_path, max_steps=steps + 4)
    assert again.history[-1]["step"] == steps + 4


# the deep ones with the narrowest option, one step of a small batch each, on either backend
DEEP = {
    "alexnet": {"size": 67},
    "cifar_net": {},
    "vgg11": {"size": 32, "options": {"ratio": 16}},
    "nin": {"size": 67},
    "googlenet": {"size": 32},
    "resnet18": {"size": 16},
    "resnet50": {"size": 16},
    "resnext50": {"size": 16},
    "preact_resnet18": {"size": 16},
    "wide_resnet": {"size": 8, "options": {"depth": 10, "width": 1}},
}


def test_every_model_has_a_recipe_and_a_test():
    assert set(RECIPES) == set(models.names())
    assert set(RECIPES) == {*MODELS, *DEEP, "linear_regression", "polynomial_regression", "weight_decay"}


@pytest.mark.parametrize("model", sorted(DEEP))
def test_deep_models_take_a_step_as_torch_does(model):
    # not Adam, whose first step is the sign of the gradient: rounding decides it where a gradient is nearly zero
    losses = {}
    for backend in ("cpu", "torch"):
        one = learner(model, backend, batch_size=8, optimizer="sgd", lr=0.01, **DEEP[model])
        torch.manual_seed(0)
        for layer in one.model.modules():
            if isinstance(layer, torch.nn.Dropout):  # its masks are not torch's
                layer.p = 0.0
        one.run(2)
        losses[backend] = one._losses[:2]
    assert losses["cpu"].isfinite().all()
    # Fifty layers of batch norm over few values are chaotic: torch's own second loss moves by a tenth when its weights
    # are changed by 1e-7, so only the first can be compared.
    same = 1 if model in ("resnet50", "resnext50") else 2
    torch.testing.assert_close(losses["cpu"][:same], losses["torch"][:same], rtol=1e-3, atol=1e-4)


def test_model_options_and_sizes_that_do_not_fit_are_said(tmp_path):
    for options, message in (
        ({"model": "vgg11", "options": {"depth": 3}}, r"--option: expected one of vgg11's \(ratio\), got 'depth'"),
        ({"model": "lenet", "options": {"depth": 3}}, r"--option: expected one of lenet's \(none\), got 'depth'"),
        ({"model": "polynomial_regression", "options": {"degree": -1}}, "cannot be built with its options: .*degree"),
        ({"model": "lenet", "size": 3}, "lenet cannot be built with --size 3: "),
        ({"model": "lenet", "data": "linear"}, "--data: expected a set that fits lenet, got 'linear', which is a regr"),
        ({"model": "weight_decay", "data": "digits"}, "fits weight_decay, got 'digits', which is a classification"),
    ):
        with pytest.raises(OptionError, match=message):
            run(tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_an_epoch_sees_every_example_once_in_another_order_each_time():
    one = learner("softmax_regression")
    orders = []
    for _ in range(2):
        orders.append(torch.cat(one._batches))
        one.run(one.epoch_steps)
        one.end_epoch()
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(len(one.train)))
    assert not torch.equal(*orders)


def test_a_last_batch_of_one_joins_the_one_before():
    one = learner("lenet_bn", batch_size=3)
    assert len(one.train) % 3 == 1
    assert [len(batch) for batch in one._batches[-2:]] == [3, 4]


def test_losses_and_accuracies_are_means_over_examples(tmp_path):
    result, _ = run(tmp_path, "softmax_regression", epochs=1, batch_size=1000, lr=1e-12, optimizer="sgd")
    model, row = result.model, result.history[0]
    one = learner("softmax_regression")
    for split, loss, accuracy in ((one.train, "loss", "train_accuracy"), (one.test, "test_loss", "test_accuracy")):
        images, targets = split[torch.arange(len(split))]
        logits = model(images).double()
        assert row[loss] == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)
        assert row[accuracy] == (logits.argmax(1) == targets).double().mean().item()


def test_seeds_decide_weights_order_and_dropout(tmp_path):
    runs = [run(tmp_path / name, max_steps=3, seed=seed)[0] for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    losses = [result.history[0]["loss"] for result in runs]
    assert losses[0] == losses[1] != losses[2]


def test_training_leaves_the_callers_random_state_alone(tmp_path):
    before = torch.get_rng_state()
    run(tmp_path, max_steps=2)
    assert torch.equal(torch.get_rng_state(), before)


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


def test_ctrl_c_keeps_the_last_finished_epoch(tmp_path, monkeypatch, pictures):
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


def test_compare_trains_torch_from_the_same_weights_and_batches(tmp_path):
    result, text = run(tmp_path / "both", "lenet", max_steps=30, compare=True)
    alone, _ = run(tmp_path / "torch", "lenet", max_steps=30, backend="torch")
    for row, reference in zip(result.history, alone.history, strict=True):
        for key in ("loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert row[f"torch_{key}"] == reference[key]
        assert row["loss"] == pytest.approx(row["torch_loss"], rel=1e-4)
    assert len(result.rates) == 2
    assert result.ratio > 0
    for words in ("pydl / torch", "final loss", "test accuracy", "examples/s", f"{result.ratio:.2f}×"):
        assert words in text


def test_compare_is_resumed_exactly(tmp_path):
    unbroken, _ = run(tmp_path / "a", epochs=2, compare=True)
    run(tmp_path / "b", epochs=2, compare=True, max_steps=9)
    result, _ = run(None, resume=tmp_path / "b", max_steps=None)
    assert numbers(result.history) == numbers(unbroken.history)


def test_what_a_run_writes_and_prints(tmp_path, pictures):
    result, text = run(tmp_path, "lenet", epochs=2, max_steps=40)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 23), (2, 40)]
    for name in ("curves.png", "confusion.png", "mistakes.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert content["config"]["model"] == "lenet"
    assert content["classes"] == list("0123456789")
    assert {"model", "optimizer", "random", "order", "epoch", "preprocessing", "history"} <= set(content)
    lines = text.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/2", "2/2"]
    for words in ("final loss", "test accuracy", "examples/s", "Conv2d", "CrossEntropyLoss", "holds checkpoint.pt"):
        assert words in text


def test_mistakes_are_counted_by_class(tmp_path):
    targets, predicted = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 2, 1, 2])
    assert mistakes.confusion(targets, predicted, 3).tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    one = learner("softmax_regression")
    right = torch.nn.functional.one_hot(one.test.targets, 10).float()
    assert mistakes.draw_mistakes(tmp_path / "none.png", one.test, one.test.targets, right, range(10)) is False
    assert not (tmp_path / "none.png").exists()


def test_schedules():
    at = [0, 4, 5, 10, 49, 50, 75, 99]
    constant, step, cosine = ([schedule.factor(name, i, 100, 5) for i in at] for name in ("constant", "step", "cosine"))
    assert constant == [0.2, 1, 1, 1, 1, 1, 1, 1]
    assert step == pytest.approx([0.2, 1, 1, 1, 1, 0.1, 0.01, 0.01])
    assert cosine == pytest.approx([0.2, 1] + [0.5 * (1 + math.cos(math.pi * (i - 5) / 95)) for i in at[2:]])


def test_schedule_clip_and_weight_decay_reach_the_optimizer():
    options = {"optimizer": "sgd", "lr": 0.1, "epochs": 1}
    ours = learner("softmax_regression", schedule="step", warmup=2, clip=0.5, weight_decay=0.3, **options)
    weight = ours.model[1].weight.detach().double().clone()
    bias = ours.model[1].bias.detach().double().clone()
    for number in range(15):
        images, targets = ours.train[ours._batches[number]]
        weight.requires_grad_(), bias.requires_grad_()
        logits = images.flatten(1).double() @ weight.T + bias
        gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets), [weight, bias])
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        scale, lr = min(1.0, 0.5 / norm), 0.1 * schedule.factor("step", number, 23, 2)
        weight, bias = (
            value.detach() - lr * (scale * gradient + 0.3 * value.detach())
            for value, gradient in zip((weight, bias), gradients, strict=True)
        )
    ours.run(15)
    assert ours.lr == pytest.approx(0.01)
    torch.testing.assert_close(ours.model[1].weight.double(), weight, rtol=1e-4, atol=1e-6)


def test_tensorboard_file_holds_scalars_and_pictures(tmp_path, pictures):
    result, _ = run(tmp_path, epochs=2, tensorboard=True)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    raw, records = path.read_bytes(), []
    while raw:  # length, its checksum, the event, its checksum
        length = int.from_bytes(raw[:8], "little")
        record = raw[12 : 12 + length]
        assert int.from_bytes(raw[8:12], "little") == events._masked_crc(raw[:8])
        assert int.from_bytes(raw[12 + length : 16 + length], "little") == events._masked_crc(record)
        records.append(record)
        raw = raw[16 + length :]
    assert b"brain.Event:2" in records[0]
    assert len(records) == 1 + 2 + 3
    for row, record in zip(result.history, records[1:3], strict=True):
        tag, value = b"loss/train", struct.pack("<f", row["loss"])
        assert tag + b"\x15" + value in record
    assert all(b"\x89PNG" in record for record in records[3:])


def test_checksum_of_the_event_file_is_crc32c():
    crc = 0xE3069283  # of "123456789", the published check value of CRC-32C
    assert events._masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_new_runs_take_new_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [run(None, "softmax_regression", max_steps=1)[0].folder.path for _ in range(3)]
    assert [str(folder) for folder in folders] == [
        "runs/softmax_regression",
        "runs/softmax_regression-2",
        "runs/softmax_regression-3",
    ]


def test_an_out_folder_with_a_run_is_refused(tmp_path):
    run(tmp_path, max_steps=1)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(OptionError, match=r"--out: .* already holds a run; --resume .* continues it"):
        run(tmp_path, max_steps=1)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_without_matplotlib_training_works_and_says_so(tmp_path):
    _, text = run(tmp_path, max_steps=1)
    assert 'curves.png needs matplotlib, which is not installed; run pip install "pydl-kernels[train]"' in text
    assert not (tmp_path / "curves.png").exists()


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
        ({"data": "mnits"}, "data: expected the name to be one of digits, "),
        ({"model": "lenett"}, "model: expected the name to be one of .*lenet, .*got 'lenett'"),
        ({"compare": True, "backend": "torch"}, "--compare: expected a backend of ours"),
        ({"model": "lenet_bn", "batch_size": 1}, "--batch-size: expected at least 2 for lenet_bn"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(OptionError, match=message) as error:
        run(tmp_path / "out", **{"model": "mlp", **options})
    assert error.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_absent_backend_names_those_present(tmp_path):
    from pydl import backend

    absent = [name for name, status in backend.available().items() if not status]
    if not absent:
        pytest.skip("every backend is present on this machine")
    with pytest.raises(
        OptionError, match=r"^--backend: expected '.*' to be available, got: .*; present are torch, cpu"
    ):
        run(tmp_path / "out", backend=absent[0])


@pytest.mark.parametrize(
    "kind", ["absent", "text", "empty", "truncated", "foreign", "state_dict", "code", "newer", "lacking"]
)
def test_unreadable_or_foreign_checkpoints_are_one_sentence(tmp_path, kind):
    path = tmp_path / "checkpoint.pt"
    if kind == "text":
        path.write_text("hello, world\n")
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        run(tmp_path / "run", max_steps=1)
        path.write_bytes((tmp_path / "run/checkpoint.pt").read_bytes()[:5000])
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
    with pytest.raises(CheckpointError, match="checkpoint") as error:
        run(None, resume=path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert (path.read_bytes() if path.exists() else None) == before


def test_checkpoint_that_does_not_fit_its_model(tmp_path):
    run(tmp_path, max_steps=1)
    content = checkpoint.load(tmp_path)
    content["model"] = {"1.weight": torch.zeros(3)}
    checkpoint.save(tmp_path / "checkpoint.pt", content)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(CheckpointError, match="the checkpoint does not fit the model"):
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_no_step_waits_for_the_gpu():
    one = learner("lenet_bn", backend="torch", device="cuda")
    one.run(2)  # allocations and first launches may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        with one.use():
            for batch in one._batches[2:5]:
                one._one(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_defaults_reach_the_accuracy_that_is_promised(tmp_path, model):
    result, _ = run(tmp_path, model)
    assert result.history[-1]["test_accuracy"] >= {"softmax_regression": 0.95}.get(model, 0.97)
