"""Curves that grow while a net trains: live in notebooks and in PyCharm, in a PNG file elsewhere."""

import weakref

from pydl.d2l.drawing import FMTS, numbers, set_axes
from pydl.live import Chart, pyplot, use_svg_display


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

        def draw(figure):
            axes = figure.axes[0]
            curves(axes, zip(X, Y, strict=True), [((fmt,), {}) for fmt in fmts])
            set_axes(axes, xlabel, ylabel, xlim, ylim, xscale, yscale, legend)

        self.X, self.Y = X, Y
        self.fig, self.axes = subplots(figsize, nrows, ncols)
        self._chart = Chart(draw, self.fig)
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


def subplots(figsize, nrows=1, ncols=1):
    """(a new pyplot figure, its axes as a list); of any number of them pyplot does not warn."""
    plt = pyplot()
    with plt.rc_context({"figure.max_open_warning": 0}):
        figure, axes = plt.subplots(nrows, ncols, figsize=figsize, squeeze=False, layout="constrained")
    return figure, list(axes.flat)


def curves(axes, points, styles):
    """Lines in the place of the old, by the styles in turn: further arguments of matplotlib's ``plot``, and options."""
    axes.cla()
    for number, (x, y) in enumerate(points):
        arguments, options = styles[number % len(styles)]
        # one point is no line
        axes.plot(x, y, *arguments, **options, marker="o" if len(x) == 1 else None)
