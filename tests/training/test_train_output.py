"""pydl train: the files that a run leaves and what it prints."""

import io
import json
import math
import sys

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from runs import few, learner, no_pictures, one_thread, pictures, run  # noqa: F401  (fixtures)

from pydl.errors import MissingExtra
from pydl.training import curves, mistakes, monitor


@pytest.mark.usefixtures("pictures")
def test_what_a_run_writes_and_prints(tmp_path):
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
    row = rows[-1]
    end = (
        f"lenet on digits: test accuracy {row['test_accuracy']:.4f}, test loss {row['test_loss']:.4f} after 2 epochs; "
    )
    assert lines[2].startswith(end)
    assert "s of training by pydl (cpu)," in lines[2]
    assert lines[3].startswith(f"{tmp_path}/ holds checkpoint.pt, metrics.jsonl, curves.png")
    assert len(lines) == 4  # the layers are listed on request


def test_the_report_lists_the_layers_on_request(tmp_path):
    _, text = run(tmp_path, "lenet", max_steps=1, report=True)
    assert "Conv2d" in text
    assert "CrossEntropyLoss" in text


def drawn(monkeypatch):
    """The figures that are saved from now on, open to questions."""
    figures, save = [], Figure.savefig

    def keep(self, *arguments, **options):
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves_have_whole_epochs_and_room_above(epochs):
    one = {"loss": 2.3, "test_loss": 2.2, "train_accuracy": 1.0, "test_accuracy": 1.0}
    history = [{"epoch": epoch, **one} for epoch in range(1, epochs + 1)]
    figure = Figure()
    curves.fill(figure, history, "title")
    loss, accuracy = figure.axes
    for axes, top in ((loss, 2.3), (accuracy, 1.0)):
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == round(tick) for tick in ticks)
        if epochs == 1:
            assert ticks == [1]
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] >= 1.04 * top


def test_curves_of_a_loss_that_was_not_finite():
    row = {"loss": math.inf, "test_loss": math.nan, "train_accuracy": 0.1, "test_accuracy": 0.1}
    figure = Figure()
    curves.fill(figure, [{"epoch": 1, **row}, {"epoch": 2, **row, "loss": 2.0}], "title")
    assert figure.axes[0].get_ylim()[1] == pytest.approx(2.2)


@pytest.mark.usefixtures("pictures")
def test_monitor_draws_sizes_per_layer_over_steps(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    run(tmp_path, "lenet", dataset=few(), epochs=3, monitor=True)
    assert (tmp_path / "monitor.png").read_bytes().startswith(b"\x89PNG")
    figure = next(figure for figure in figures if len(figure.axes) == 3)
    outputs, gradients, weights = figure.axes
    assert [line.get_label() for line in outputs.lines][:2] == ["0 Conv2d", "1 Sigmoid"]
    assert len(outputs.lines) == len(gradients.lines) == 12
    assert len(weights.lines) == 5  # of the layers that have one
    assert list(outputs.lines[0].get_xdata()) == [1, 2, 3]
    kept = [json.loads(line) for line in (tmp_path / "monitor.jsonl").read_text().splitlines()]
    assert list(gradients.lines[3].get_ydata()) == [line["layers"][3]["gradient"] for line in kept]
    assert all(axes.get_yscale() == "log" for axes in figure.axes)


def test_mistakes_are_counted_by_class(tmp_path):
    targets, predicted = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 2, 1, 2])
    assert mistakes.confusion(targets, predicted, 3).tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    one = learner("softmax_regression")
    right = torch.nn.functional.one_hot(one.test.targets, 10).float()
    assert mistakes.draw_mistakes(tmp_path / "none.png", one.test, one.test.targets, right, range(10)) is False
    assert not (tmp_path / "none.png").exists()


@pytest.mark.usefixtures("pictures")
def test_tensorboard_has_scalars_pictures_and_the_graph(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result, _ = run(tmp_path, "lenet_bn", dataset=few(), epochs=2, tensorboard=True, monitor=True)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    for tag, key in (("loss/train", "loss"), ("accuracy/test", "test_accuracy"), ("run/lr", "lr")):
        got = [(event.step, event.value) for event in events.Scalars(tag)]
        assert got == [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in result.history]
    assert [event.step for event in events.Scalars("activation/0")] == [1, 2]
    assert {"examples", "curves", "confusion"} <= {tag.split("/")[0] for tag in events.Tags()["images"]}
    assert events.Images("curves")[0].encoded_image_string.startswith(b"\x89PNG")
    operators = {node.op for node in events.Graph().node}
    assert {"aten::_convolution", "aten::batch_norm", "aten::sigmoid", "aten::linear"} <= operators
    assert result.model.training is False  # left as the last evaluation left it


def test_tensorboard_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match=r'needs tensorboard, .*pip install "pydl-kernels\[tensorboard\]"'):
        run(tmp_path / "out", tensorboard=True)
    assert not (tmp_path / "out").exists()


def test_monitor_measures_what_the_layers_give_and_get(tmp_path):
    one = learner("lenet", monitor=True)
    twin = learner("lenet")
    images, targets = twin.train[twin._batches[0]]
    output = twin.model[:2](images).detach().requires_grad_()
    twin.criterion(twin.model[2:](output), targets).backward()
    one.run(1)
    rows = {row["name"]: row for row in one.monitor.rows}
    assert list(rows) == [str(i) for i in range(12)]
    assert one.monitor.step == 1
    assert rows["1"]["activation"] == pytest.approx(output.square().mean().sqrt().item(), rel=1e-5)
    assert rows["1"]["gradient"] == pytest.approx(output.grad.square().mean().sqrt().item(), rel=1e-4)
    weight = twin.model[3].weight.grad.square().mean().sqrt().item()
    assert rows["3"]["weight_gradient"] == pytest.approx(weight, rel=1e-4)
    assert not one.model[0]._forward_hooks


def test_monitor_shows_vanishing_and_exploding(tmp_path):
    _, text = run(tmp_path, "lenet", dataset=few(), epochs=3, monitor=True)
    assert text.count("scales in step") == 2  # of the first epoch and of the last
    assert "vanishing" in text  # the book's own example: sigmoids
    assert [json.loads(line)["step"] for line in (tmp_path / "monitor.jsonl").read_text().splitlines()] == [1, 2, 3]
    row = {"name": "a", "kind": "Linear", "activation": 1.0, "zeros": 0.0, "gradient": 1e-9}
    rows = [row, {**row, "gradient": 1.0}, {**row, "activation": 1e9}, {**row, "gradient": math.nan}]
    assert [monitor.verdict(each, rows) for each in rows] == ["vanishing", "", "exploding", "exploding"]
    assert all(word in str_of(monitor.table(rows, 7)) for word in ("step 7", "vanishing", "exploding"))


def str_of(thing):
    console = Console(file=io.StringIO(), width=120)
    console.print(thing)
    return console.file.getvalue()


def test_new_runs_take_new_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [run(None, "softmax_regression", max_steps=1)[0].folder.path for _ in range(3)]
    assert [str(folder) for folder in folders] == [
        "runs/softmax_regression",
        "runs/softmax_regression-2",
        "runs/softmax_regression-3",
    ]


def test_without_matplotlib_training_works_and_says_so(tmp_path):
    _, text = run(tmp_path, max_steps=1)
    assert 'curves.png needs matplotlib, which is not installed; run pip install "pydl-kernels[train]"' in text
    assert not (tmp_path / "curves.png").exists()
