"""Figures that are drawn again as they change: live in notebooks and in PyCharm, in a PNG file elsewhere."""

import io
import itertools
import os
import sys
import time
import weakref
from pathlib import Path
from typing import ClassVar

from pydl.errors import MissingExtra

SHARE = 0.1  # of the time at most goes into drawing
_count = itertools.count(1)


def pyplot():
    """``matplotlib.pyplot``."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise MissingExtra("a picture", "matplotlib") from None
    return plt


def notebook():
    """``IPython.display`` in a notebook (Jupyter, VS Code, PyCharm's notebooks, Colab), else None."""
    if "IPython" not in sys.modules:
        return None
    from IPython import display, get_ipython

    return display if getattr(get_ipython(), "kernel", None) is not None else None


def pycharm():
    """Whether pyplot's figures go to PyCharm's tool window for pictures."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    return "interagg" in (os.environ.get("MPLBACKEND", "") if pyplot is None else pyplot.get_backend()).lower()


def use_svg_display():
    """Pictures in a notebook are SVG from now on; elsewhere nothing changes."""
    if notebook() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")


class Chart:
    """A figure that is drawn again as it changes, and where it is shown.

    It holds nothing of who draws, and outlives it by the last drawing.

    Args:
        draw: a function of the figure, which holds the last drawing.
        figure: a pyplot figure.
    """

    def __init__(self, draw, figure):
        self.figure, self.draw = figure, draw
        self.place = _place(pyplot(), self)
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
        self.draw(self.figure)
        self.place.show(self.figure)
        now = time.perf_counter()
        self.drawn, self.due = True, now + max((now - began) / SHARE, self.place.seconds)


def _place(plt, chart):
    display = notebook()
    if display is not None:
        return _Notebook(display, plt, chart)
    return _PyCharm() if pycharm() else _File()


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
