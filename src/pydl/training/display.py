"""What ``pydl train`` shows: a live bar on a terminal, one line per epoch elsewhere, and what it came to at the end."""

import statistics

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pydl.text import perplexity

# A bar that is drawn more often than the eye reads it takes time from the cores that train.
REFRESH_SECONDS = 0.2
# Beside which a run is compared: torch, and float32 where the run is of mixed precision. Keys of their scores begin so.
SIDES = ("torch", "float32")
# what only some learners measure, with how it is shown
SCORES = {
    "exact_match": ("exact match", "{:.4f}"),
    "bleu": ("BLEU", "{:.2f}"),
    "pairs_found": ("pairs found", "{:.3f}"),
    "masked_right": ("masked words right", "{:.3f}"),
    "pairs_right": ("next sentence right", "{:.3f}"),
    "map50": ("mAP@0.5", "{:.3f}"),
    "map": ("mAP@0.5:0.95", "{:.3f}"),
    "mean_iou": ("mean IoU", "{:.3f}"),
    "pixel_accuracy": ("pixel accuracy", "{:.4f}"),
    "generator_loss": ("generator's loss", "{:.4f}"),
    "content_loss": ("content", "{:.4f}"),
    "style_loss": ("style", "{:.4f}"),
    "variation_loss": ("variation", "{:.4f}"),
    "reward": ("reward", "{:+.2f}"),
    "kl": ("KL", "{:.2f}"),
    "known": ("known words", "{:.3f}"),
    "pair_accuracy": ("pairs in order", "{:.3f}"),
    "pairs_before": ("new pairs in order by the old reward model", "{:.3f}"),
    "pairs_after": ("by the new one", "{:.3f}"),
    "senses_told": ("meanings told apart", "{:.3f}"),
    "static_told": ("by static vectors", "{:.3f}"),
}


class Lines:
    """One line per epoch, for files and pipes."""

    def __init__(self, console, epochs):
        self.console, self.epochs = console, epochs

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def update(self, done, loss, accuracy, rate, ratio):
        pass

    def print(self, thing):
        self.console.print(thing)

    def sample(self, text):
        self._line(_indented(text))

    def _line(self, text):  # not through rich: a line stays one line, however long
        if not self.console.quiet:
            print(text, file=self.console.file, flush=True)

    def epoch(self, row):
        text = f"epoch {row['epoch']}/{self.epochs}  step {row['step']}  {_scores(row)}"
        for side in SIDES:
            if f"{side}_loss" in row:
                text += f"  |  {side}: {_scores({key: row[f'{side}_{key}'] for key in row if f'{side}_{key}' in row})}"
        self._line(text)


def _indented(text):
    return "\n".join(f"  {line}" for line in text.splitlines())


def _scores(row):
    parts = [f"loss {row['loss']:.4f}"]
    if "test_accuracy" in row:
        parts += [f"train acc {row['train_accuracy']:.4f}", f"test acc {row['test_accuracy']:.4f}"]
    elif "perplexity" in row:
        parts += [f"perplexity {row['perplexity']:.3f}", f"test perplexity {row['test_perplexity']:.3f}"]
    else:
        parts.append(f"test loss {row['test_loss']:.4f}")
    parts += _special(row)
    unit = _unit(row)
    return "  ".join([*parts, f"{row[f'{unit}_per_second']:,.0f} {unit}/s"])


def _special(row):
    return [f"{label} {form.format(row[key])}" for key, (label, form) in SCORES.items() if key in row]


def _unit(row):
    return "tokens" if "tokens_per_second" in row else "examples"


class Bar:
    """A progress bar over all epochs with loss, scores and the rate; drawn when told to, never from a thread."""

    def __init__(self, console, model, epochs, total, done, epoch, unit):
        wide = console.width >= 100
        self.model, self.epochs, self.current, self.unit = model, epochs, epoch, unit
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24 if wide else 10),
            TextColumn("{task.fields[text]}"),
            *([TextColumn("{task.fields[test]}")] if wide else []),
            TimeRemainingColumn(compact=True),
            console=console,
            auto_refresh=False,
        )
        self.task = self.progress.add_task(model, total=total, completed=done, text="", test="")

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *exception):
        self.progress.refresh()
        self.progress.stop()

    def update(self, done, loss, accuracy, rate, ratio):
        text = progress(loss, accuracy, rate, ratio, self.unit)
        self.progress.update(
            self.task,
            completed=done,
            description=f"{self.model} {min(self.current, self.epochs)}/{self.epochs}",
            text=text,
            refresh=True,
        )

    def print(self, thing):
        self.progress.console.print(thing)

    def sample(self, text):
        self.progress.console.print(Text(_indented(text)))

    def epoch(self, row):
        self.current = row["epoch"] + 1
        names = (*SCORES, "test_accuracy", "test_perplexity", "test_loss")
        test = row[next(name for name in names if name in row)]
        self.progress.update(self.task, completed=row["step"], test=f"test {test:.3f}")


def progress(loss, accuracy, rate, ratio, unit):
    """Where a run stands, in one line: of the last step, and of the last seconds."""
    text = f"loss {loss:.4f}" + (f"  acc {accuracy:.3f}" if accuracy is not None else "")
    if unit == "tokens":
        text += f"  perplexity {perplexity(loss):.2f}"
    text += f"  {rate:,.0f} {unit}/s"
    return text if ratio is None else f"{text}  {ratio:.2f}× torch"


def headline(result):
    """What a run came to, in one line."""
    row = result.history[-1]
    scores = [f"test loss {row['test_loss']:.4f}"]
    if "test_accuracy" in row:
        scores.insert(0, f"test accuracy {row['test_accuracy']:.4f}")
    if "test_perplexity" in row:
        scores.insert(0, f"test perplexity {row['test_perplexity']:.3f}")
    scores[:0] = _special(row)
    text = f"{result.config.title}: {', '.join(scores)} after {count(row['epoch'], 'epoch')}"
    if result.rates:
        name = "torch" if result.backend == "torch" else f"pydl ({result.backend})"
        text += f"; {result.seconds[0]:.1f} s of training by {name}, {result.rates[0]:,.0f} {_unit(row)}/s"
    return text


def count(number, noun):
    """``1 epoch``, ``2 epochs``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def comparison(result):
    """The table of a run beside torch, and of mixed precision beside float32: all sides and their ratios."""
    head, rows = scores(result)
    table = Table(title=result.config.title, title_justify="left", title_style="bold")
    for name in head:
        table.add_column(name, justify="right" if name else "left")
    for cells in rows:
        table.add_row(*cells)
    return table


def scores(result):
    """(head, rows) of a table of what a run came to: a column, and of a comparison one for each side and ratio."""
    row, rows = result.history[-1], []
    mixed = "float32_loss" in row
    sides = [side for side in SIDES if f"{side}_loss" in row]
    head = ["", f"pydl ({result.backend})" if result.backend != "torch" else "torch"]
    if sides:
        head += ["torch", "pydl / torch"]
    if mixed:
        head = ["", "pydl, mixed", "torch", "/ torch", "float32", "/ float32"]

    def add(label, key, form):
        cells = [form.format(row[key])]
        for side in sides:
            difference = row[key] - row[f"{side}_{key}"]
            cells += [form.format(row[f"{side}_{key}"]), f"{difference:+.1e}" if difference else "equal"]
        rows.append([label, *cells])

    add("final loss", "loss", "{:.4f}")
    add("test loss", "test_loss", "{:.4f}")
    if "test_accuracy" in row:
        add("train accuracy", "train_accuracy", "{:.4f}")
        add("test accuracy", "test_accuracy", "{:.4f}")
    if "test_perplexity" in row:
        add("test perplexity", "test_perplexity", "{:.3f}")
    for key, (label, form) in SCORES.items():
        if key in row:
            add(label, key, form)
    if result.rates:
        cells = [f"{result.rates[0]:,.0f}"]
        for rate, ratio in zip(result.rates[1:], (result.ratio, result.gain), strict=False):
            cells += [f"{rate:,.0f}", f"{ratio:.2f}×"]
        rows.append([f"{_unit(row)}/s", *cells])
    rows.append(["epochs, steps", f"{row['epoch']}, {row['step']}"])
    return head, rows


def folds(results):
    """The table of a cross-validation: the last losses of every fold, their mean and standard deviation."""
    keys = [key for key in ("loss", "test_loss", "train_accuracy", "test_accuracy") if key in results[0].history[-1]]
    table = Table("fold", title=f"{len(results)}-fold cross-validation", title_justify="left", title_style="bold")
    for key in keys:
        label = {"loss": "train loss", "test_loss": "validation loss", "test_accuracy": "validation accuracy"}
        table.add_column(label.get(key, key.replace("_", " ")), justify="right")
    columns = [[result.history[-1][key] for result in results] for key in keys]
    for number, values in enumerate(zip(*columns, strict=True), 1):
        table.add_row(str(number), *(f"{value:.5f}" for value in values))
    table.add_section()
    table.add_row("mean", *(f"{statistics.mean(column):.5f} ± {statistics.stdev(column):.5f}" for column in columns))
    return table
