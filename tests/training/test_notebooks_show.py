"""What is seen in a notebook: a run's curves as they grow, its result, reports; and reprs that fit on a line."""

import re
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from runs import few, no_pictures, one_thread, pictures, run  # noqa: F401  (fixtures)

import pydl
from pydl import data, live
from pydl.detect import Found
from pydl.predict import Prediction
from pydl.rlhf.rollouts import Rollout
from pydl.train import Config, train
from pydl.training import display


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """IPython's real shell as a notebook's kernel has it; its display publisher keeps what it is sent."""
    shells = pytest.importorskip("IPython.core.interactiveshell", reason="IPython is no dependency")
    from IPython.core.displaypub import CapturingDisplayPublisher
    from traitlets.config import Config as Settings

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setattr(live._Notebook, "_listening", False)
    settings = Settings()
    settings.HistoryManager.enabled = False
    kept = sys.displayhook, sys.excepthook
    shell = shells.InteractiveShell.instance(config=settings)
    shell.display_pub = CapturingDisplayPublisher(parent=shell, shell=shell)
    shell.kernel = object()  # what tells a notebook from a terminal
    import matplotlib.pyplot as plt

    plt.switch_backend("module://matplotlib_inline.backend_inline")
    plt.close("all")
    yield shell
    shells.InteractiveShell.clear_instance()
    sys.displayhook, sys.excepthook = kept
    plt.switch_backend("Agg")


def unstyled(html):
    return re.sub(' style="[^"]*"', "", html)


def ran(shell, code, **names):
    """The value of a cell."""
    shell.push(names)
    found = shell.run_cell(code)
    found.raise_error()
    return found.result


@pytest.mark.usefixtures("pictures")
def test_a_run_is_one_picture_that_grows(shell, tmp_path, capsys):
    config = Config("mlp", epochs=3)
    result = ran(shell, "r = train(config, folder, dataset=digits); r", train=train, config=config, folder=tmp_path,
                 digits=few())  # fmt: skip
    sent = shell.display_pub.outputs
    assert all("image/svg+xml" in one["data"] for one in sent)
    names = {one["transient"]["display_id"] for one in sent}
    assert len(names) == 1
    assert [one["update"] for one in sent] == [False] + [True] * (len(sent) - 1)
    assert len(sent) >= 2
    assert "mlp on digits" in sent[-1]["data"]["image/svg+xml"]
    assert "epoch 3 of 3" not in sent[-1]["data"]["image/svg+xml"]  # the state of the run, while it ran
    out = capsys.readouterr().out
    assert "epoch 1/3" not in out  # the curves say it
    assert "test accuracy" in out
    assert f"{tmp_path}/ holds checkpoint.pt" in out
    assert len(result.history) == 3


def test_what_is_drawn_while_a_run_goes_on(shell, tmp_path, monkeypatch):
    from pydl.training import curves
    from pydl.training.live import POINTS, Live

    monkeypatch.setattr(curves, "available", lambda: True)
    monkeypatch.setattr(live, "SHARE", 1e9)  # each change is drawn
    result, _ = run(tmp_path, "mlp", dataset=few(), epochs=2)
    result.history = result.history[:1]
    show = Live(Console(quiet=True), result, epoch_steps=10, unit="examples")
    for step in range(10, 10 + 3 * POINTS):
        show.chart.due = torch.inf  # until the last
        show.update(step, 1.0, 0.5, 100.0, None)
    assert len(show.running[0]) <= POINTS
    assert show.running[0][:3] == [1.0, 1.4, 1.8]  # every fourth of three times as many
    show.chart.due = 0.0
    show.update(step, 1.0, 0.5, 100.0, 2.0)
    (drawn,) = shell.display_pub.outputs
    assert "epoch 2 of 2: loss 1.0000  acc 0.500  100 examples/s  2.00× torch" in drawn["data"]["image/svg+xml"]
    x, y = show.chart.figure.axes[0].lines[0].get_data()
    assert (list(x), list(y)) == tuple(map(list, show.running))


def test_a_text_takes_the_place_of_the_last_one(shell, tmp_path, capsys):
    from pydl.training.live import Live

    result, _ = run(tmp_path, "mlp", dataset=few(), epochs=1)
    show = Live(Console(), result, epoch_steps=1, unit="tokens")
    show.sample("first")
    show.sample("then")
    first, then = shell.display_pub.outputs
    assert (first["data"], then["data"]) == ({"text/plain": "first"}, {"text/plain": "then"})
    assert first["transient"] == then["transient"]
    assert (first["update"], then["update"]) == (False, True)
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("pictures")
def test_quiet_runs_show_nothing(shell, tmp_path, capsys):
    names = {"train": train, "config": Config("mlp", epochs=1), "folder": tmp_path, "digits": few()}
    ran(shell, "r = train(config, folder, dataset=digits, console=quiet)", **names, quiet=Console(quiet=True))
    assert shell.display_pub.outputs == []
    assert capsys.readouterr().out == ""


def test_without_a_notebook_nothing_is_live(tmp_path, capsys, monkeypatch):
    from pydl.training import curves

    monkeypatch.setattr(curves, "available", lambda: True)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    train(Config("mlp", epochs=2), tmp_path, dataset=few())
    assert re.findall(r"epoch (\d)/2", capsys.readouterr().out) == ["1", "2"]


def test_pycharm_has_curves_and_lines(tmp_path, capsys, monkeypatch):
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from pydl.training import curves

    shown = []
    plt.switch_backend("Agg")
    monkeypatch.setattr(FigureCanvasAgg, "show", lambda canvas: shown.append(canvas), raising=False)
    monkeypatch.setattr(plt, "get_backend", lambda: "module://backend_interagg")
    monkeypatch.setattr(curves, "available", lambda: True)
    train(Config("mlp", epochs=2), tmp_path, dataset=few())
    assert re.findall(r"epoch (\d)/2", capsys.readouterr().out) == ["1", "2"]
    assert len(shown) == 2  # the first state, and the last: another one every few seconds


@pytest.mark.usefixtures("pictures")
def test_a_result_is_a_table_with_its_curves(shell, tmp_path):
    result, _ = run(tmp_path, "lenet", dataset=few(), epochs=2)
    shown = shell.display_formatter.format(result)[0]
    row, html, text = result.history[-1], unstyled(shown["text/html"]), shown["text/plain"]
    assert f"<td>test accuracy</td><td>{row['test_accuracy']:.4f}</td>" in html
    assert f"<td>final loss</td><td>{row['loss']:.4f}</td>" in html
    assert re.search(r"<td>examples/s</td><td>[\d,]+</td>", html)
    assert "61,706 parameters" in html
    assert html.count('src="data:image/svg+xml;base64,') == 1
    assert text == f"Result({display.headline(result)})"
    assert len(text.splitlines()) == 1


def test_a_result_without_matplotlib_has_its_table(tmp_path):
    result, _ = run(tmp_path, "mlp", dataset=few(), epochs=1, compare=True)
    html = unstyled(result._repr_html_())
    assert "<img" not in html
    assert "<th>torch</th><th>pydl / torch</th>" in html
    assert f"<td>{result.ratio:.2f}×</td>" in html
    result.history.clear()
    assert repr(result) == "Result(mlp on digits: no epoch finished)"
    assert "no epoch finished" in result._repr_html_()


def test_plot_gives_a_figure_that_is_shown_once(shell, tmp_path):
    result, _ = run(tmp_path, "mlp", dataset=few(), epochs=2)
    figure = ran(shell, "r.plot()", r=result)
    import matplotlib.pyplot as plt

    assert not plt.get_fignums()  # the inline backend would show it at the end of the cell, too
    assert "image/svg+xml" in shell.display_formatter.format(figure)[0]
    loss, accuracy = figure.axes
    assert [list(line.get_ydata()) for line in loss.lines if line.get_label() in ("train", "test")] == [
        [row[key] for row in result.history] for key in ("loss", "test_loss")
    ]
    assert [line.get_label() for line in accuracy.lines] == ["train", "test"]
    assert loss.get_yscale() == "linear"
    assert result.plot(log=True).axes[0].get_yscale() == "log"
    result.history.clear()
    with pytest.raises(ValueError, match="expected a run with a finished epoch"):
        result.plot()


def test_reports_are_tables(shell):
    net = pydl.swap(pydl.models.lenet())
    for report in (pydl.report(net), pydl.explain(net, torch.randn(2, 1, 28, 28))):
        shown = shell.display_formatter.format(report)[0]
        assert shown["text/html"].count("<tr>") == len(report.rows) + 1
        assert f"pydl serves {sum(not row.reason for row in report.rows)} of" in shown["text/html"]
        assert shown["text/plain"] == str(report)


def test_reprs_hold_sizes_in_the_place_of_tensors():
    digits, linear = data.get("digits"), data.get("linear")
    assert repr(digits.test) == "Split(images: float32 (359, 1, 8, 8), targets: int64 (359,))"
    things = [digits, linear, data.get("prose"), data.get("scenes"), data.get("photographs")]
    things += [data.sentences("prose"), data.topics("prose"), data.get("scenes").test.take(torch.arange(2), (64, 64))]
    things += [data.get("numbers", trained=20, tested=5)]
    many = [("3", 0.9871, (1, 2, 30, 40))] * 40
    things += [Found(Path("a.png"), torch.zeros(3, 8, 8, dtype=torch.uint8), many, torch.zeros(8, 8))]
    things += [Rollout(torch.zeros(4, 70, dtype=torch.long), torch.ones(4), torch.ones(4))]
    for thing in things:
        text = repr(thing)
        assert text.startswith(f"{type(thing).__name__}(")
        assert "tensor(" not in text
        assert " at 0x" not in text
        assert "\n" not in text
        assert len(text) < 600, text
    found = Found(Path("a.png"), torch.zeros(3, 8, 8), [("3", 0.98713, (1, 2, 30, 40))])
    assert "objects: [('3', 0.9871, (1, 2, 30, 40))]" in repr(found)
    assert "ranking: [('7', 0.5), ('1', 0.25)]" in repr(Prediction(Path("a.png"), [("7", 0.5), ("1", 0.25)]))
