"""What ``train`` shows in a notebook and in PyCharm: curves that grow."""

import sys

from pydl import live
from pydl.training import curves, display

POINTS = 500  # of single steps that are drawn; of more, every second one is left out


def shows(console):
    """Whether what is printed on the console is seen where a picture can grow, and there is something to draw it."""
    seen = console.file is sys.stdout and not console.quiet
    return seen and curves.available() and (live.notebook() is not None or live.pycharm())


class Live(display.Lines):
    """Curves that grow, with the state of the run as their title, and in PyCharm a line per epoch too.

    Args:
        result: the run's :class:`pydl.training.result.Result`, to whose history the loop appends.
        epoch_steps: steps of an epoch.
        unit: ``examples`` or ``tokens``.
    """

    def __init__(self, console, result, epoch_steps, unit):
        super().__init__(console, result.config.epochs)
        live.use_svg_display()
        self.result, self.epoch_steps, self.unit = result, epoch_steps, unit
        self.running, self.every, self.updates = ([], []), 1, 0
        self.title, self.shown = result.config.title, None
        self.chart = live.Chart(self._draw, live.pyplot().figure(dpi=100, layout="constrained"))

    def _draw(self, figure):
        self.result.fill(figure, self.title, self.running)

    def __exit__(self, *exception):
        self.title = self.result.config.title
        self.chart.changed()
        self.chart.flush()

    def update(self, done, loss, accuracy, rate, ratio):
        if self.updates % self.every == 0:
            for values, value in zip(self.running, (done / self.epoch_steps, loss), strict=True):
                values.append(value)
        if len(self.running[0]) > POINTS:
            for values in self.running:
                del values[1::2]
            self.every *= 2
        self.updates += 1
        epoch = min(len(self.result.history) + 1, self.epochs)
        progress = display.progress(loss, accuracy, rate, ratio, self.unit)
        self.title = f"{self.result.config.title}, epoch {epoch} of {self.epochs}: {progress}"
        self.chart.changed()

    def sample(self, text):
        """In a notebook a text takes the place of the last one, as the curves do."""
        display = live.notebook()
        if display is None:
            super().sample(text)
        elif self.shown is None:
            self.shown = display.display({"text/plain": text}, raw=True, display_id=True)
        else:
            self.shown.update({"text/plain": text}, raw=True)

    def epoch(self, row):
        if live.notebook() is None:
            super().epoch(row)
        self.chart.changed()
