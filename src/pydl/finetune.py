"""``pydl finetune``: what pretraining brings where examples are few, as a table."""

import io
import json
import statistics

import torch
from rich.console import Console
from rich.table import Table

from pydl import models
from pydl.data.digits import high_digits
from pydl.errors import OptionError, did_you_mean
from pydl.train import Config, train
from pydl.training import tuning
from pydl.training.folder import Folder

PRETRAINING, TASK = "digits-0-4", "digits-5-9"
PRETRAINED = 3  # epochs: of features that are trained on five classes for longer, less is of use for others
EPOCHS, BATCH = 5, 10  # of a training on few examples: the book's
# the options of each row beside those of the model's recipe
ROWS = {
    "from scratch": {},
    "frozen body": {"freeze": ["body"], "lr": 1e-2},
    "fine-tuned": {"lr": 3e-4, "head_lr_factor": 10.0},
}


def finetune(model, seeds=5, each=10, out=None, console=None, **options):
    """Pretrains ``model`` on the digits 0 to 4, then learns 5 to 9 from ``each`` examples of a class in three ways.

    Each way has the same few steps, in which one from scratch does not come to its end: what pretraining brings is a
    beginning. After 30 epochs in place of 5 ``resnet18`` from scratch is as good as fine-tuned.

    Source: d2l section "Fine-Tuning".

    Args:
        model: a classifier of images that ends in an affine layer.
        seeds: each draws its own examples and first weights.
        out: folder of the runs; by default a new one under ``runs/``.
        options: of :class:`pydl.train.Config`, for every run.

    Returns:
        {row: test accuracies}, which ``table.json`` in the folder keeps.

    Raises:
        UserError: for all that a user can mend.
    """
    if model not in models.names("classifier"):
        known = models.names("classifier")
        raise OptionError(
            f"finetune: expected MODEL to be one of {', '.join(known)}, got {model!r}" + did_you_mean(model, known)
        )
    with torch.device("meta"):
        tuning.head(models.get(model))
    if seeds < 1:
        raise OptionError(f"--seeds: expected a number of at least 1, got {seeds}")
    most = min((high_digits(each=None).train.targets == k).sum() for k in range(5))
    if not 1 <= each <= most:
        raise OptionError(f"--each: expected a number from 1 to the {most} examples of a class, got {each}")
    console, quiet = console or Console(), Console(file=io.StringIO())
    folder = Folder.new(out, f"{model}-finetune").path
    body = train(Config(model, PRETRAINING, epochs=PRETRAINED, **options), folder / "pretrained", console=quiet)
    accuracy = body.history[-1]["test_accuracy"]
    console.print(f"{model} pretrained on {PRETRAINING}: test accuracy {accuracy:.4f}", highlight=False)
    found = {name: [] for name in ROWS}
    for seed in range(seeds):
        few = high_digits(seed=seed, each=each)
        for name, changes in ROWS.items():
            begin = {"weights": str(folder / "pretrained"), "replace_head": len(few.classes)} if changes else {}
            config = Config(model, TASK, seed=seed, epochs=EPOCHS, batch_size=BATCH, **begin, **changes, **options)
            run = train(config, folder / f"{name.replace(' ', '-')}-{seed}", console=quiet, dataset=few)
            found[name].append(run.history[-1]["test_accuracy"])
    (folder / "table.json").write_text(json.dumps(found) + "\n")
    console.print(table(found, each))
    console.print(f"{folder}/ holds the runs and table.json", highlight=False, soft_wrap=True)
    return found


def table(found, each):
    """The accuracies as a rich table: mean and standard deviation of each row, and points over the one from scratch."""
    title = f"{TASK}, {each} examples of each class, {EPOCHS} epochs"
    out = Table("", title=title, title_justify="left", title_style="bold")
    for name in ("test accuracy", "over scratch"):
        out.add_column(name, justify="right")
    means = {name: statistics.mean(values) for name, values in found.items()}
    for name, values in found.items():
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        more = 100 * (means[name] - means["from scratch"])
        out.add_row(name, f"{means[name]:.4f}{spread}", "" if name == "from scratch" else f"{more:+.1f} points")
    return out
