"""Where curves go: a file, a notebook, PyCharm; and what is drawn."""

import gc
import sys
import types
from pathlib import Path

import pytest
import torch

from pydl import d2l
from pydl import live as module

pytest.importorskip("matplotlib", reason="about what matplotlib draws")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    yield
    d2l.plt.close("all")


def files():
    return sorted(path.name for path in Path().iterdir())


def test_a_script_leaves_the_last_state(monkeypatch, capsys):
    clock = types.SimpleNamespace(perf_counter=lambda: seconds)
    monkeypatch.setattr(module, "time", clock)
    seconds = 0.0
    animator = d2l.Animator("epoch", legend=["a", "b"], xlim=[1, 1])  # limits that are equal: an epoch of one
    seconds = 0.9
    animator.add(0, (2.0, None))
    assert files() == []
    seconds = 1.1
    animator.add(1, (1.0, None))
    (name,) = files()
    first = Path(name).read_bytes()
    seconds = 2.0
    for epoch in range(2, 60):
        animator.add(epoch, (1.0 / epoch, torch.tensor(0.5, requires_grad=True)))
    assert [list(range(60)), list(range(2, 60))] == animator.X
    assert animator.Y[1] == [0.5] * 58
    assert Path(name).read_bytes() == first  # less than a second ago
    del animator
    gc.collect()
    assert Path(name).read_bytes() != first
    assert capsys.readouterr().out == f"d2l: the curves are in {name}\n"
    assert name.startswith("train-")


def test_animators_have_a_file_each():
    for _ in range(2):
        d2l.Animator().add([1, 2], [3, 4])
    assert len(files()) == 2


def test_many_animators_are_no_warning(recwarn):
    animators = [d2l.Animator() for _ in range(25)]
    assert len(animators) == 25
    assert not recwarn.list


def test_nothing_is_shown_by_itself(monkeypatch):
    from matplotlib import pyplot

    shown = []
    monkeypatch.setattr(pyplot, "show", lambda *args, **options: shown.append(args))
    d2l.Animator().add(1, 2)
    d2l.plot([1, 2, 3])
    assert shown == []
    assert d2l.plt is pyplot


@pytest.fixture
def kernel(monkeypatch):
    """A stand-in for IPython in a notebook, since it is no dependency: what is displayed, and what ends a cell."""
    shown, ends = [], []

    class Handle:
        def update(self, picture):
            shown[-1] = picture

    def show(picture, display_id):
        assert display_id
        shown.append(picture)
        return Handle()

    fake = types.ModuleType("IPython")
    fake.version_info = (9, 0)  # matplotlib asks
    fake.display = types.SimpleNamespace(display=show, SVG=lambda text: text)
    events = types.SimpleNamespace(register=lambda event, call: ends.append((event, call)))
    fake.get_ipython = lambda: types.SimpleNamespace(kernel=object(), events=events)
    inline = types.ModuleType("matplotlib_inline.backend_inline")
    inline.set_matplotlib_formats = lambda kind: None
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setitem(sys.modules, "matplotlib_inline", types.ModuleType("matplotlib_inline"))
    monkeypatch.setitem(sys.modules, "matplotlib_inline.backend_inline", inline)
    monkeypatch.setattr(module._Notebook, "_listening", False)
    return shown, ends


def test_a_notebook_has_one_picture_of_each_that_grows(kernel):
    shown, ends = kernel
    animator = d2l.Animator()
    for x in range(3):
        animator.add(x, x)
    assert len(shown) == 1
    assert shown[0].count("</svg>") == 1
    ends = [end for event, end in ends if event == "post_execute" and end.__qualname__.startswith("_Notebook")]
    (end,) = ends  # matplotlib has one of its own
    before = shown[0]
    animator.add(3, 0)  # too soon after the first drawing
    end()
    assert len(shown) == 1
    assert shown[0] != before
    assert not d2l.plt.get_fignums()  # or the cell would show it once more
    assert files() == []
    d2l.Animator().add(1, 1)
    assert len(shown) == 2
    assert len([end for _, end in kernel[1] if end.__qualname__.startswith("_Notebook")]) == 1


def test_pycharm_shows_each_state(monkeypatch):
    from matplotlib import pyplot
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    shown = []
    monkeypatch.setattr(FigureCanvasAgg, "show", lambda canvas: shown.append(canvas), raising=False)
    monkeypatch.setattr(pyplot, "get_backend", lambda: "module://backend_interagg")
    animator = d2l.Animator()
    animator.add(1, 1)
    animator.add(2, 1)
    assert len(shown) == 1
    assert files() == []
    del animator
    gc.collect()
    assert len(shown) == 2


@pytest.mark.parametrize("X, Y, curves", [
    ([1, 2, 3], None, [([0, 1, 2], [1, 2, 3])]),
    (torch.arange(2.0), [torch.ones(2), torch.zeros(2, requires_grad=True)], [([0, 1], [1, 1]), ([0, 1], [0, 0])]),
    ([[1, 2], [3, 4]], [[5, 6], [7, 8]], [([1, 2], [5, 6]), ([3, 4], [7, 8])]),
    ([1, 2], torch.tensor([[5, 6], [7, 8]]), [([1, 2], [5, 6]), ([1, 2], [7, 8])]),
])  # fmt: skip
def test_plot(X, Y, curves):
    d2l.plot(X, Y, "x", "y", legend=["a", "b"][: len(curves)], xlim=[0, 9], yscale="log", figsize=(4, 3))
    d2l.plot(X, Y, "x", "y", legend=["a", "b"][: len(curves)], xlim=[0, 9], yscale="log")  # in place of the first
    axes = d2l.plt.gca()
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines] == curves
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xlim(), axes.get_yscale()) == ("x", "y", (0, 9), "log")
    assert len(axes.get_legend().get_texts()) == len(curves)


def test_pictures_and_tables():
    axes = d2l.show_images(torch.rand(3, 5, 5), 2, 2, titles=["a", "b", "c"])
    assert [place.get_title() for place in axes] == ["a", "b", "c", ""]
    d2l.show_heatmaps(torch.rand(2, 3, 4, 5), "keys", "queries", titles=["1", "2", "3"])
    shown = d2l.plt.gcf().axes[:6]
    assert [place.get_xlabel() for place in shown] == [""] * 3 + ["keys"] * 3
    assert [place.get_title() for place in shown[:3]] == ["1", "2", "3"]
    d2l.plt.figure()
    d2l.show_bboxes(d2l.plt.gca(), torch.tensor([[1.0, 2.0, 4.0, 8.0]] * 2), labels=["one"], colors=["w", "b"])
    first, _ = d2l.plt.gca().patches
    assert (first.get_xy(), first.get_width(), first.get_height()) == ((1, 2), 3, 6)
    assert [text.get_text() for text in d2l.plt.gca().texts] == ["one"]


def test_predictions_are_drawn():
    d2l.predict_ch3(lambda X: torch.eye(10)[:4], [(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 4]))], n=4)
    titles = [axes.get_title() for axes in d2l.plt.gcf().axes]
    assert [len(set(title.split("\n"))) for title in titles] == [1, 1, 1, 2]
