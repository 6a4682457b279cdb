"""``pydl train``: trains a model on a data set, shows how it goes, and keeps metrics, curves and a checkpoint.

The run is a sequence of chunks of steps, each about as long as a refresh of the display; the clock runs inside chunks
only, so neither the display nor the evaluation counts. With ``compare`` two learners take turns chunk by chunk, so that
whatever else the machine does falls on both alike.
"""

import dataclasses
import statistics
from dataclasses import dataclass, field

import torch
from rich.console import Console

import pydl
from pydl import backend, data, models
from pydl.errors import CheckpointError, OptionError, TrainingError, UserError
from pydl.swapping import Report
from pydl.training import checkpoint, curves, display
from pydl.training.config import Config
from pydl.training.folder import Folder
from pydl.training.learner import Learner


class Interrupted(UserError):
    """Ctrl-C; the exit code is the one that shells expect."""

    exit_code = 130


@dataclass
class Result:
    """What a run came to.

    Attributes:
        history: one dict per epoch, the lines of ``metrics.jsonl``.
        rates: examples/s, ours and (in a comparison) torch's: medians over chunks, without the first, which warms up.
        ratio: in a comparison, the median over chunks of torch's seconds over ours.
    """

    config: Config
    folder: Folder
    model: torch.nn.Module
    backend: str
    history: list
    rates: list = field(default_factory=list)
    seconds: list = field(default_factory=list)
    ratio: float | None = None


class Clock:
    """Seconds and examples of each chunk, per learner."""

    def __init__(self, learners):
        self.chunks = [[] for _ in range(learners)]

    def add(self, index, examples, seconds):
        self.chunks[index].append((examples, seconds))

    def _warm(self, index):
        return self.chunks[index][1:] or self.chunks[index]

    def rate(self, index):
        """Examples per second: the median over chunks, which a neighbour's burst does not move."""
        return statistics.median(examples / seconds for examples, seconds in self._warm(index))

    def ratio(self):
        """Torch's seconds over ours, chunk by chunk; the median."""
        return statistics.median(t[1] / o[1] for o, t in zip(self._warm(0), self._warm(1), strict=False))

    def seconds(self, index):
        return sum(seconds for _, seconds in self.chunks[index])


def train(config, out=None, resume=None, console=None):
    """Runs ``config`` (a :class:`Config`) and returns a :class:`Result`.

    Args:
        config: options; for ``resume`` those of the checkpoint, with what may change replaced (see :func:`resumed`).
        out: folder for metrics, curves and checkpoint; by default a new one under ``runs/``.
        resume: a checkpoint's content from :func:`resumed`; training continues as if it had never stopped.
        console: a rich Console; by default one on stdout.

    Raises:
        UserError: for all that a user can mend; see :mod:`pydl.errors`.
    """
    console = console or Console()
    if config.model not in models.names():
        raise OptionError(f"model: expected the name to be one of {', '.join(models.names())}, got {config.model!r}")
    config = config.resolved()
    name, device = place(config)
    if config.compare and name == "torch":
        raise OptionError("--compare: expected a backend of ours to compare with torch, got --backend torch")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    config = dataclasses.replace(config, backend=name, device=str(device), threads=torch.get_num_threads())

    options = {"size": (config.size, config.size)} if config.data == "folder" else {}
    dataset = data.get(config.data, root=config.root, **options)
    if resume is None:
        preprocessing = data.Preprocessing.fit(dataset.train.images, (config.size, config.size))
    else:
        preprocessing = data.Preprocessing(**{k: tuple(v) for k, v in resume["preprocessing"].items()})
    splits = [data.Batches(split, preprocessing, device) for split in (dataset.train, dataset.test)]
    learners = [
        Learner(config, *splits, len(dataset.classes), learner_backend, device)
        for learner_backend in ([name, "torch"] if config.compare else [name])
    ]
    history = []
    if resume is not None:
        history = _restore(learners, resume)
    folder = Folder.new(out, config.model) if resume is None or out is not None else Folder(resume["folder"])
    about = {
        "config": config.to_dict(),
        "classes": list(dataset.classes),
        "preprocessing": {k: list(v) for k, v in dataclasses.asdict(preprocessing).items()},
        "pydl": pydl.__version__,
    }
    result = Result(config, folder, learners[0].model, name, history)
    if history:
        folder.write_metrics(history)
    _loop(result, learners, about, console)
    _finish(result, console)
    return result


def _loop(result, learners, about, console):
    config, history, folder, first = result.config, result.history, result.folder, learners[0]
    total = config.epochs * first.epoch_steps
    if config.max_steps is not None:
        total = min(total, config.max_steps)
    if first.step >= total:
        console.print(f"nothing left to do: {first.step} of {total} steps are done; a larger --epochs goes on")
    clock = Clock(len(learners))
    if console.is_terminal:
        show = display.Bar(console, config.model, config.epochs, total, first.step)
    else:
        show = display.Lines(console, config.epochs)
    steps, turn = 1, 0
    try:
        with show:
            while first.step < total:
                chunk = min(steps, first.epoch_steps - first.step_in_epoch, total - first.step)
                order = list(enumerate(learners))
                for index, learner in order[:: -1 if turn % 2 else 1]:
                    clock.add(index, *learner.run(chunk))
                turn += 1
                slowest = max(chunks[-1][1] for chunks in clock.chunks)
                steps = max(1, min(2 * chunk, round(chunk * display.REFRESH_SECONDS / max(slowest, 1e-6))))
                show.update(first.step, *first.running(), clock.rate(0), clock.ratio() if config.compare else None)
                if first.step_in_epoch == first.epoch_steps or first.step == total:
                    history.append(_epoch_row(learners, config, len(history) + 1))
                    _save(folder, learners, history, about)
                    show.epoch(history[-1])
    except KeyboardInterrupt:
        kept = _kept(result)
        raise Interrupted(f"interrupted in epoch {len(history) + 1}; {kept}") from None
    except TrainingError as error:
        raise TrainingError(f"{error}; {_kept(result)}") from None
    if clock.chunks[0]:
        result.rates = [clock.rate(i) for i in range(len(learners))]
        result.seconds = [clock.seconds(i) for i in range(len(learners))]
        result.ratio = clock.ratio() if config.compare else None


def _kept(result):
    """Draws what there is after a stop, and says where the last finished epoch lies."""
    folder = result.folder
    if not result.history:
        if not any(folder.path.iterdir()):
            folder.path.rmdir()
        return "no epoch was finished, so nothing was kept"
    _draw(result)
    last = result.history[-1]
    return (
        f"{folder.path} keeps epoch {last['epoch']} (test accuracy {last['test_accuracy']:.4f}); "
        f"`pydl train --resume {folder.path}` goes on from there"
    )


def _epoch_row(learners, config, number):
    """The line of metrics.jsonl for the epoch that ends now."""
    row = {"epoch": number, "step": learners[0].step}
    for learner, prefix in zip(learners, ("", "torch_"), strict=False):
        epoch, (test_loss, test_accuracy) = learner.end_epoch(), learner.evaluate()
        row |= {
            f"{prefix}loss": epoch.loss,
            f"{prefix}train_accuracy": epoch.accuracy,
            f"{prefix}test_loss": test_loss,
            f"{prefix}test_accuracy": test_accuracy,
            f"{prefix}examples_per_second": round(epoch.examples / epoch.seconds, 1),
            f"{prefix}seconds": round(epoch.seconds, 4),
        }
    row["lr"] = config.lr
    return row


def _save(folder, learners, history, about):
    reference = {"reference": learners[1].state_dict()} if len(learners) > 1 else {}
    checkpoint.save(
        folder.checkpoint,
        {**learners[0].state_dict(), **reference, **about, "epoch": len(history), "history": list(history)},
    )
    folder.append_metrics(history[-1])


def resumed(path, **changes):
    """(config, content) of the checkpoint at ``path``, with ``changes`` to what a resumed run may change.

    Raises:
        CheckpointError: for a file that is no checkpoint of ``pydl train``.
    """
    content = checkpoint.load(path)
    try:
        config = dataclasses.replace(Config(**content["config"]), **changes)
    except TypeError:
        raise CheckpointError(f"{path}: the checkpoint was written by another version of pydl") from None
    content["folder"] = checkpoint.find(path).parent
    return config, content


def _restore(learners, content):
    """Puts the learners where the checkpoint was written; returns the history of finished epochs."""
    states = [content, content.get("reference")]
    try:
        for learner, state in zip(learners, states, strict=False):
            learner.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise CheckpointError(f"{content['folder']}: the checkpoint does not fit the model ({reason})") from None
    history = list(content["history"])
    if content["step_in_epoch"]:  # it ended by --max-steps inside an epoch, whose line comes again when it is whole
        history.pop()
    return history


def _draw(result):
    if not curves.available():
        return False
    config = result.config
    curves.draw(result.folder.curves, result.history, f"{config.model} on {config.data}", config.compare)
    return True


def kernels(result):
    """The report of the model and of its loss: which kernels served which layer."""
    with backend.use(result.backend):
        rows = pydl.report(result.model).rows
        loss = pydl.report(pydl.nn.CrossEntropyLoss()).rows
    return Report(rows + [dataclasses.replace(row, name="loss") for row in loss])


def _finish(result, console):
    """Curves, tables, and where everything lies."""
    drawn = _draw(result)
    console.print(display.summary(result))
    console.print(kernels(result))
    names = ["checkpoint.pt", "metrics.jsonl"] + (["curves.png"] if drawn else [])
    console.print(f"{result.folder.path}/ holds {', '.join(names)}", soft_wrap=True, highlight=False)
    if not drawn:
        console.print(
            'curves.png needs matplotlib, which is not installed; run pip install "pydl-kernels\\[train]"',
            soft_wrap=True,
        )
