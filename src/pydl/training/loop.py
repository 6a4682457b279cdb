"""The loop over chunks of steps and over epochs, and what it keeps at the end of each.

A chunk is about as long as a refresh of the display, and the clock runs inside chunks only, so neither the display nor
the evaluation counts. In a comparison learners take turns chunk by chunk, so that whatever else the machine does
falls on both alike. Of several processes each runs the loop; the first one alone shows and writes.
"""

import statistics

from pydl.errors import CheckpointError, DataError, TrainingError, UserError
from pydl.text import perplexity
from pydl.training import checkpoint, curves, display, live, monitor, stopping
from pydl.training.board import Board
from pydl.training.live import Live
from pydl.training.processes import Elsewhere

SAMPLE_EVERY = 3  # epochs from one text that a language model writes to the next


class Interrupted(UserError):
    """Ctrl-C; the exit code is the one that shells expect."""

    exit_code = 130


class Clock:
    """Seconds and units of each chunk, per learner; the first chunk warms up and is left out where it can be."""

    def __init__(self, learners):
        self.chunks = [[] for _ in range(learners)]

    def add(self, index, units, seconds):
        self.chunks[index].append((units, seconds))

    def _warm(self, index, last):
        return (self.chunks[index][1:] or self.chunks[index])[-last:]

    def rate(self, index, last=10_000):
        """Examples or tokens per second: the median over chunks, which a neighbour's burst does not move."""
        return statistics.median(units / seconds for units, seconds in self._warm(index, last))

    def ratio(self, index=1, last=10_000):
        """Seconds of learner ``index``, torch's if none is named, over ours, chunk by chunk; the median."""
        pairs = zip(self._warm(0, last), self._warm(index, last), strict=True)
        return statistics.median(theirs / ours for (_, ours), (_, theirs) in pairs)

    def seconds(self, index):
        return sum(seconds for _, seconds in self.chunks[index])


def loop(result, learners, about, console):
    """Trains ``learners`` to the end of the run and fills in ``result``; ``about`` goes into each checkpoint.

    Raises:
        Interrupted: after Ctrl-C; the last finished epoch is on disk.
        TrainingError: for a loss that is not finite, or a disk that is full; likewise.
    """
    config, first = result.config, learners[0]
    total = first.total_steps if config.max_steps is None else min(first.total_steps, config.max_steps)
    if first.step >= total:
        console.print(f"nothing left to do: {first.step} of {total} steps are done; a larger --epochs goes on")
        return
    if stopping.over(config.patience, result.history):
        console.print(f"nothing left to do: {stopping.why(config.patience, result.history)}")
        return
    clock = Clock(len(learners))
    if live.shows(console):
        show = Live(console, result, first.epoch_steps, first.unit)
    elif console.is_terminal:
        number = len(result.history) + 1
        show = display.Bar(console, config.model, config.epochs, total, first.step, number, first.unit)
    else:
        show = display.Lines(console, config.epochs)
    try:
        with show:
            _chunks(result, learners, about, clock, show, total)
    except KeyboardInterrupt:
        if not first.processes.first:
            raise Interrupted("interrupted") from None
        raise Interrupted(f"interrupted in epoch {len(result.history) + 1}; {_kept(result)}") from None
    except (TrainingError, CheckpointError, DataError) as error:
        if isinstance(error, Elsewhere) or not first.processes.first:
            raise
        raise TrainingError(f"{error}; {_kept(result)}") from None
    finally:
        if result.board is not None:
            result.board.writer.flush()
    result.rates = [clock.rate(i) for i in range(len(learners))]
    result.seconds = [clock.seconds(i) for i in range(len(learners))]
    result.ratio = clock.ratio() if config.compare else None
    result.gain = clock.ratio(2) if len(learners) > 2 else None


def _chunks(result, learners, about, clock, show, total):
    first, history, config = learners[0], result.history, result.config
    steps, turn = 1, 0
    while first.step < total:
        chunk = min(steps, first.epoch_steps - first.step_in_epoch, total - first.step)
        pairs = list(enumerate(learners))
        for index, learner in pairs[:: -1 if turn % 2 else 1]:  # ours first, torch first, by turns
            clock.add(index, *learner.run(chunk))
        turn += 1
        slowest = max(chunks[-1][1] for chunks in clock.chunks)
        steps = max(1, min(2 * chunk, round(chunk * display.REFRESH_SECONDS / max(slowest, 1e-6))))
        if len(learners) > 1:  # the learners of all processes must take turns alike
            steps = first.processes.gather(steps)[0]
        ratio = clock.ratio(last=50) if len(learners) > 1 else None
        show.update(first.step, *first.running(), clock.rate(0, last=50), ratio)
        if first.step_in_epoch == first.epoch_steps or first.step == total:
            row = _row(learners, len(history) + 1, first.step == total)
            _keep(result, learners, about, row)
            show.epoch(row)
            if "sample" in row:
                show.sample(row["sample"])
            over = stopping.over(config.patience, history)
            if config.monitor and first.monitor.rows and (len(history) == 1 or first.step == total or over):
                show.print(monitor.table(first.monitor.rows, first.monitor.step))
            if over:
                show.print(f"stopped early: {stopping.why(config.patience, history)}")
                return


def _row(learners, number, last):
    """The line of metrics.jsonl for the epoch that ends now, the ``last`` or not."""
    row = {"epoch": number, "step": learners[0].step, "lr": learners[0].lr}
    for learner, prefix in zip(learners, ("", *(f"{name}_" for name in display.SIDES)), strict=False):
        epoch, (test_loss, test_accuracy) = learner.end_epoch(), learner.evaluate()
        row |= {f"{prefix}loss": epoch.loss, f"{prefix}test_loss": test_loss}
        if test_accuracy is not None:
            row |= {f"{prefix}train_accuracy": epoch.accuracy, f"{prefix}test_accuracy": test_accuracy}
        elif learner.unit == "tokens":
            row |= {f"{prefix}perplexity": perplexity(epoch.loss), f"{prefix}test_perplexity": perplexity(test_loss)}
        row |= {f"{prefix}{name}": score for name, score in learner.scores().items()}
        row |= {
            f"{prefix}{learner.unit}_per_second": round(epoch.units / epoch.seconds, 1),
            f"{prefix}seconds": round(epoch.seconds, 4),
        }
    if learners[0].samples and (number % SAMPLE_EVERY == 1 or last):
        row["sample"] = learners[0].sample(number)
    return row


def _keep(result, learners, about, row):
    """The epoch's checkpoint, then its line: an epoch counts as finished once its checkpoint is whole."""
    history, config = [*result.history, row], result.config
    others = zip(("reference", "float32"), learners[1:], strict=False)
    content = {**learners[0].state_dict(), **{name: learner.state_dict() for name, learner in others}}
    content |= {**about, "epoch": len(history), "history": history}

    def write():
        checkpoint.save(result.folder.checkpoint, content)
        if config.patience is not None and stopping.best(history) == row["epoch"]:
            checkpoint.save(result.folder.best, content)
        result.folder.append_metrics(row)
        if "sample" in row:
            result.folder.write_samples(history)
        if curves.available() and hasattr(learners[0], "draw_epoch"):
            learners[0].draw_epoch(result.folder.path, row["epoch"])
        if config.monitor and learners[0].monitor.rows:  # none in an epoch that was resumed after its first step
            result.folder.append_monitor(row["epoch"], learners[0].monitor)
        if config.tensorboard:
            _log(result, learners[0], row)

    learners[0].processes.by_first(write)
    result.history.append(row)


def _log(result, learner, row):
    if result.board is None:
        result.board = Board(result.folder.path)
        result.board.begin(learner)
    result.board.epoch(row)
    if learner.monitor is not None:
        result.board.monitor(learner.monitor.rows, learner.monitor.step)


def _kept(result):
    """Draws what there is after a stop, and says where the last finished epoch lies."""
    folder = result.folder
    if not result.history:
        if not any(folder.path.iterdir()):
            folder.path.rmdir()
        return "no epoch was finished, so nothing was kept"
    result.draw_curves()
    result.draw_monitor()
    last = result.history[-1]
    name = next(name for name in ("test_accuracy", *display.SCORES, "test_perplexity", "test_loss") if name in last)
    score = f"{name.replace('_', ' ')} {last[name]:.4f}"
    return (
        f"{folder.path} keeps epoch {last['epoch']} ({score}); `pydl train --resume {folder.path}` goes on from there"
    )
