"""What a run came to: its numbers, its pictures, and the lines at the end."""

import base64
import dataclasses
import html
import io
import json
from dataclasses import dataclass, field

import torch

import pydl
from pydl import backend, models
from pydl._brief import html_table
from pydl.live import notebook, pyplot, use_svg_display
from pydl.swapping import Report
from pydl.training import curves, display, heatmaps, mistakes, scales
from pydl.training.board import Board
from pydl.training.config import Config
from pydl.training.folder import Folder
from pydl.training.pictures_of_feedback import fill_policy


@dataclass(repr=False)
class Result:
    """What a run came to.

    Attributes:
        backend: what served our layers.
        history: one dict per epoch, the lines of ``metrics.jsonl``.
        rates: units per second, ours and, in a comparison, the others': medians over chunks, without the first.
        seconds: spent in training steps, likewise.
        ratio: in a comparison, the median over chunks of torch's seconds over ours.
        gain: in a comparison of mixed precision, the same of float32's seconds over ours.
    """

    config: Config
    folder: Folder
    model: torch.nn.Module
    backend: str
    history: list
    rates: list = field(default_factory=list)
    seconds: list = field(default_factory=list)
    ratio: float | None = None
    gain: float | None = None
    board: Board | None = None

    def draw_curves(self):
        """Draws ``curves.png`` where matplotlib is installed; returns the names of the files drawn."""
        if not curves.available() or not self.history:
            return []
        self._figure().savefig(self.folder.curves)
        return [self.folder.curves.name]

    def _figure(self):
        from matplotlib.figure import Figure  # the object-oriented interface: no window, no global state

        figure = Figure(dpi=120, layout="constrained")
        self.fill(figure, self.config.title)
        return figure

    def fill(self, figure, title, running=((), ()), log=False):
        """Draws the history into a figure; ``running`` and ``log`` as :func:`pydl.training.curves.fill`.

        A policy's curves have no loss of single steps, and nothing before the first row.
        """
        if models.kind(self.config.model) != "policy":
            curves.fill(figure, self.history, title, self.config.compare, log, running)
        elif self.history:
            fill_policy(figure, self.history, title, self.config.compare)

    def plot(self, log=False):
        """A matplotlib figure of the losses and scores over the epochs, of the training and of the test.

        In a notebook it is the output of a cell that ends with it; in a script ``plt.show()`` opens it, and
        ``result.plot().savefig("curves.svg")`` keeps it.

        Args:
            log: the loss on a logarithmic axis.

        Raises:
            MissingExtra: without matplotlib.
            ValueError: for a run without a finished epoch, and for a logarithmic axis of a policy's rewards.
        """
        if not self.history:
            raise ValueError("plot: expected a run with a finished epoch, got one without")
        if log and models.kind(self.config.model) == "policy":
            raise ValueError("plot: expected log=True of a run that has a loss, got a policy's")
        plt = pyplot()
        use_svg_display()
        figure = plt.figure(dpi=100, layout="constrained")
        self.fill(figure, self.config.title, log=log)
        if notebook() is not None:
            plt.close(figure)  # or the cell would show it twice
        return figure

    def __repr__(self):
        return f"Result({display.headline(self) if self.history else f'{self.config.title}: no epoch finished'})"

    def _repr_html_(self):
        if not self.history:
            return html.escape(repr(self))
        size = sum(parameter.numel() for parameter in self.model.parameters())
        below = f"{self.config.title}: {size:,} parameters; {self.folder.path}"
        if self.seconds:
            below += f"; {self.seconds[0]:.1f} s of training steps"
        picture = ""
        if curves.available():
            drawing = io.BytesIO()
            self._figure().savefig(drawing, format="svg")
            source = base64.b64encode(drawing.getvalue()).decode()
            picture = f'<img alt="losses and scores over the epochs" src="data:image/svg+xml;base64,{source}">'
        return html_table(*display.scores(self), below) + picture

    def draw_mistakes(self, learner, classes):
        """Draws ``confusion.png`` and, if there is a mistake, ``mistakes.png``; returns the names of the files."""
        if not curves.available() or not (learner.classifies and learner.has_classes):
            return []
        probabilities = learner.probabilities()
        targets = learner.test.targets.cpu()
        counts = mistakes.confusion(targets, probabilities.argmax(1), len(classes))
        mistakes.draw_confusion(self.folder.path / "confusion.png", counts, classes)
        names, page = ["confusion.png"], self.folder.path / "mistakes.png"
        if not learner.shows_images:
            return names
        if mistakes.draw_mistakes(page, learner.test, targets, probabilities, classes):
            names.append(page.name)
        else:
            page.unlink(missing_ok=True)  # of the run that this one continued
        return names

    def draw_attention(self, learner):
        """Draws ``attention.png`` of a translator that has attention; returns the names of the files."""
        if not curves.available() or not hasattr(learner, "attention"):
            return []
        sentences = learner.attention()
        if sentences is None:
            return []
        path = self.folder.path / "attention.png"
        heatmaps.draw(path, sentences, f"{self.config.title}, test sentences")
        return [path.name]

    def draw_own(self, learner):
        """Draws what the learner has a picture of: word vectors, senses, pairs; returns the names of the files."""
        if not curves.available() or not hasattr(learner, "draw"):
            return []
        return learner.draw(self.folder.path, self.config.title)

    def draw_objects(self, learner):
        """Draws ``boxes.png`` of a detector, ``overlays.png`` of a segmenter; returns the names of the files."""
        if not curves.available() or not hasattr(learner, "draw_objects"):
            return []
        return learner.draw_objects(self.folder.path, f"{self.config.title}, test pictures")

    def drawn_by_epoch(self, learner):
        """The names of what a learner drew at the end of each epoch."""
        if not curves.available() or not hasattr(learner, "draw_epoch"):
            return []
        return [name for name in learner.pictures if (self.folder.path / name).exists()]

    def kernels(self):
        """The report of the model and of its loss: which kernels served which layer."""
        losses = {"regression": torch.nn.MSELoss, "vectors": torch.nn.BCEWithLogitsLoss}
        losses |= {"gan": pydl.nn.BCEWithLogitsLoss, "style": torch.nn.MSELoss, "reward": torch.nn.Softplus}
        with backend.use(self.backend):
            rows = pydl.report(self.model).rows
            loss = pydl.report(losses.get(models.kind(self.config.model), pydl.nn.CrossEntropyLoss)()).rows
        return Report(rows + [dataclasses.replace(row, name="loss") for row in loss])

    def draw_monitor(self):
        """Draws ``monitor.png`` of a run that was monitored; returns the names of the files."""
        if not curves.available() or not self.folder.monitor.exists():
            return []
        path = self.folder.path / "monitor.png"
        steps = [json.loads(line) for line in self.folder.monitor.read_text().splitlines()]
        scales.draw(path, steps, self.config.title)
        return [path.name]

    def finish(self, learner, classes, console, report=False):
        """Draws the pictures and says what the run came to and where everything lies; ``report`` adds each layer."""
        names = self.draw_curves() + self.draw_mistakes(learner, classes)
        names += self.draw_attention(learner) + self.draw_own(learner) + self.draw_objects(learner)
        names += self.draw_monitor() + self.drawn_by_epoch(learner)
        if self.board is not None:
            for name in names:
                self.board.picture(self.history[-1]["step"], name.removesuffix(".png"), self.folder.path / name)
            self.board.close()
        if self.config.compare:
            console.print(display.comparison(self))
        else:
            console.print(display.headline(self), soft_wrap=True, highlight=False)
        if report:
            console.print(self.kernels())
        kept = [self.folder.checkpoint, self.folder.best, self.folder.metrics, self.folder.samples, self.folder.monitor]
        kept.append(self.folder.pairs)
        names = [path.name for path in kept if path.exists()] + names
        console.print(f"{self.folder.path}/ holds {', '.join(names)}", soft_wrap=True, highlight=False)
        if not curves.available():
            console.print(
                'curves.png needs matplotlib, which is not installed; run pip install "pydl-kernels\\[train]"',
                soft_wrap=True,
            )
