"""Curves that grow while a net trains: live in notebooks and in PyCharm, in a PNG file elsewhere."""

import io
import itertools
import sys
import time
import weakref
from pathlib import Path
from typing import ClassVar

from pydl.d2l.drawing import FMTS, notebook, numbers, pyplot, set_axes, use_svg_display

SHARE = 0.1  # of the time at most goes into drawing
_count = itertools.count(1)


class Animator:
    """Curves to which :meth:`add` appends points.

    In a notebook (Jupyter, VS Code, Colab) one picture is drawn again and again, in PyCharm's tool window a new one
    every few seconds. A script leaves the last state in ``<script>-<number>.png`` in the current folder, and opens no
    window by itself; ``d2l.plt.show()`` does.

    Attributes:
        X, Y: the points of each curve.
        fig, axes: the figure, and its axes as a list; curves are in the first one.
    """

    def __init__(
        self, xlabel=None, ylabel=None, legend=None, xlim=None, ylim=None, xscale="linear", yscale="linear",
        fmts=FMTS, nrows=1, ncols=1, figsize=(3.5, 2.5),
    ):  # fmt: skip
        use_svg_display()
        X, Y = [], []

        def draw(axes):
            curves(axes, zip(X, Y, strict=True), [((fmt,), {}) for fmt in fmts])
            set_axes(axes, xlabel, ylabel, xlim, ylim, xscale, yscale, legend)

        self.X, self.Y = X, Y
        self._chart = Chart(draw, figsize, nrows, ncols)
        self.fig, self.axes = self._chart.figure, self._chart.axes
        weakref.finalize(self, self._chart.flush)  # at the end of the process, too

    def add(self, x, y):
        """Appends ``y`` at ``x``: a number, or one for each curve, of which None adds none; ``x`` likewise."""
        y = _each(y)
        x = _each(x)
        x = x * len(y) if len(x) == 1 else x
        while len(self.Y) < len(y):
            self.X.append([]), self.Y.append([])
        for curve, (abscissa, ordinate) in enumerate(zip(x, y, strict=True)):
            if abscissa is not None and ordinate is not None:
                self.X[curve].append(abscissa)
                self.Y[curve].append(ordinate)
        self._chart.changed()


def _each(values):
    """A list of numbers, of one of them too."""
    values = numbers(values)
    if isinstance(values, list):
        return values
    return list(values) if getattr(values, "ndim", 0) else [values]


def curves(axes, points, styles):
    """Lines, by the styles in turn: further arguments of matplotlib's ``plot``, and options of it."""
    for number, (x, y) in enumerate(points):
        arguments, options = styles[number % len(styles)]
        # one point is no line
        axes.plot(x, y, *arguments, **options, marker="o" if len(x) == 1 else None)


class Chart:
    """A figure that is drawn again as it changes, and where it is shown.

    It holds nothing of who draws, and outlives it by the last drawing.

    Args:
        draw: a function of the axes, which are empty then.
        axes: to draw into, or None for new ones in a new figure.
    """

    def __init__(self, draw, figsize, nrows=1, ncols=1, axes=None):
        plt = pyplot()
        if axes is None:
            with plt.rc_context({"figure.max_open_warning": 0}):
                _, many = plt.subplots(nrows, ncols, figsize=figsize, squeeze=False, layout="constrained")
            self.axes = list(many.flat)
        else:
            self.axes = [axes]
        self.figure, self.draw = self.axes[0].figure, draw
        self.place = _place(plt, self)
        self.drawn, self.due = True, time.perf_counter() + self.place.wait

    def changed(self):
        """Draws, unless the last drawing was a moment ago."""
        self.drawn = False
        if time.perf_counter() >= self.due:
            self.flush()

    def flush(self):
        """Draws what is new."""
        if self.drawn:
            return
        began = time.perf_counter()
        self.axes[0].cla()
        self.draw(self.axes[0])
        self.place.show(self.figure)
        now = time.perf_counter()
        self.drawn, self.due = True, now + max((now - began) / SHARE, self.place.seconds)


def _place(plt, chart):
    display = notebook()
    if display is not None:
        return _Notebook(display, plt, chart)
    return _PyCharm() if "interagg" in plt.get_backend().lower() else _File()


class _Notebook:
    """The output of a cell: one picture, in the place of its former state."""

    wait, seconds = 0.0, 0.0  # before the first drawing, and between two of them
    _charts: ClassVar = weakref.WeakSet()  # those whose last points are drawn when their cell ends
    _listening = False

    def __init__(self, display, plt, chart):
        from IPython import get_ipython

        plt.close(chart.figure)  # or the cell would end with the picture a second time
        self.display, self.handle = display, None
        if not _Notebook._listening:
            _Notebook._listening = True
            get_ipython().events.register("post_execute", self._flush)
        self._charts.add(chart)

    @classmethod
    def _flush(cls):
        for chart in cls._charts:
            chart.flush()

    def show(self, figure):
        drawing = io.StringIO()
        figure.savefig(drawing, format="svg")
        picture = self.display.SVG(drawing.getvalue())
        if self.handle is None:
            self.handle = self.display.display(picture, display_id=True)
        else:
            self.handle.update(picture)


class _PyCharm:
    """The tool window for pictures, where each drawing is a new one."""

    wait, seconds = 0.0, 5.0

    def show(self, figure):
        figure.canvas.show()


class _File:
    """A PNG file in the current folder."""

    wait, seconds = 1.0, 1.0  # nobody looks at the first point alone

    def __init__(self):
        script = Path(sys.argv[0] if sys.argv else "").stem
        self.path = Path(f"{script or 'd2l'}-{next(_count)}.png")
        self.said = False

    def show(self, figure):
        figure.savefig(self.path, dpi=150)
        if not self.said:
            self.said = True
            print(f"d2l: the curves are in {self.path}")
