"""The folder of a run: ``metrics.jsonl``, ``curves.png``, ``checkpoint.pt``, and what options ask for besides."""

import contextlib
import json
import os
from pathlib import Path

from pydl.errors import OptionError, TrainingError
from pydl.training import checkpoint


class Folder:
    """A run's folder under ``runs/`` (``lenet``, ``lenet-2``, …) or where ``--out`` says."""

    def __init__(self, path):
        self.path = Path(path)
        self.checkpoint = self.path / checkpoint.NAME
        self.best = self.path / "best.pt"
        self.metrics = self.path / "metrics.jsonl"
        self.monitor = self.path / "monitor.jsonl"
        self.curves = self.path / "curves.png"
        self.samples = self.path / "samples.txt"
        self.pairs = self.path / "pairs.jsonl"

    @classmethod
    def new(cls, out, model, parent="runs"):
        """Makes the folder. An ``out`` that holds a run already is refused, so that nothing is overwritten."""
        try:
            if out is not None:
                folder = cls(out)
                if folder.checkpoint.exists() or folder.metrics.exists():
                    raise OptionError(f"--out: {out} already holds a run; --resume {out} continues it")
                folder.path.mkdir(parents=True, exist_ok=True)
                return folder
            number = 1
            while True:  # mkdir decides, so that two runs started at once take two folders
                path = Path(parent, model if number == 1 else f"{model}-{number}")
                try:
                    path.mkdir(parents=True)
                    return cls(path)
                except FileExistsError:
                    number += 1
        except OSError as error:
            raise TrainingError(f"{error.filename}: the run's folder cannot be made: {error.strerror}") from None

    def write_metrics(self, history):
        """All lines anew, atomically: what was written after the checkpoint that is resumed goes."""
        temporary = self.metrics.with_suffix(".tmp")
        with _in_words(self.metrics):
            temporary.write_text("".join(json.dumps(row) + "\n" for row in history))
            os.replace(temporary, self.metrics)

    def write_samples(self, history):
        """What a language model wrote, epoch by epoch."""
        with _in_words(self.samples):
            blocks = [f"epoch {row['epoch']}\n{row['sample']}\n" for row in history if "sample" in row]
            self.samples.write_text("\n".join(blocks), encoding="utf-8")

    def append_metrics(self, row):
        """One line, in the file when this returns."""
        self._append(self.metrics, row)

    def append_monitor(self, epoch, monitor):
        """One line with the scales of every layer in the first step of the epoch."""
        self._append(self.monitor, {"epoch": epoch, "step": monitor.step, "layers": monitor.rows})

    def _append(self, path, row):
        with _in_words(path), open(path, "a") as file:
            file.write(json.dumps(row) + "\n")


@contextlib.contextmanager
def _in_words(path):
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror}; the last checkpoint is kept") from None
