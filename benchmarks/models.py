"""Every model with its recipe: parameters, accuracy on its data, and the speed of a step beside torch's.

python benchmarks/models.py                      # all of it: full trainings, then timings; about 15 minutes on 2 cores
python benchmarks/models.py resnet18 lenet       # those models alone; the others keep their last figures
python benchmarks/models.py --only speed         # or --only accuracy
python benchmarks/models.py --readme README.md   # writes the table between the marker lines there, runs nothing

Figures are kept in benchmarks/results/models/<machine>.json. In a timing our learner and torch's take a step each by
turns, from the same weights on the same batches, and the ratio is the median over these pairs.
"""

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from machine import describe, name
from rich.console import Console

from pydl import models, train
from pydl.training import feedback
from pydl.training.config import Config

BEGIN, END = "<!-- models: made by benchmarks/models.py -->", "<!-- end of models -->"
SECONDS, LEAST, MOST = 4.0, 4, 200  # of a timing, and pairs of steps in it


def prepare(model):
    """The learners of the recipe, ours and torch's, and what is counted rather than measured."""
    config = Config(model).resolved()
    learners = train.learners(config, ("cpu", "torch"))
    parameters = sum(p.numel() for p in learners[0].model.parameters())
    first = learners[0]  # style transfer has no input but its picture
    inputs = first.model.image if first.train is None else first.train[first._batches[0]][0]
    shape = list((inputs[0] if isinstance(inputs, tuple) else inputs).shape)  # of a translator, its source
    return learners, {"input": shape, "parameters": parameters, "epoch_steps": learners[0].epoch_steps}


def accuracy(model):
    """One full training by the recipe on our kernels."""
    with tempfile.TemporaryDirectory() as folder:
        console = Console(file=io.StringIO())
        result = train.train(Config(model), out=Path(folder) / model, console=console)
    row, config = result.history[-1], result.config
    names = "test_accuracy", "exact_match", "pairs_found", "map50", "mean_iou", "test_perplexity", "test_loss"
    score = {key: row[key] for key in names if key in row}
    return {
        **prepare(model)[1],
        **score,
        "data": config.data,
        "epochs": row["epoch"],
    }


def speed(model):
    """Milliseconds of a training step, ours and torch's, and the median ratio."""
    learners, about = prepare(model)
    pairs, begin = [], None
    while len(pairs) < MOST:
        pair = [0.0, 0.0]
        for i in (0, 1) if len(pairs) % 2 else (1, 0):
            pair[i] = learners[i].run(1)[1]
        for learner in learners:
            if learner.step_in_epoch == learner.epoch_steps:
                learner.end_epoch()
        if begin is None:  # the first pair warms up
            begin = time.perf_counter()
            continue
        pairs.append(pair)
        if time.perf_counter() - begin > SECONDS and len(pairs) >= LEAST:
            break
    ours, torchs = ([pair[i] for pair in pairs] for i in (0, 1))
    return {
        **about,
        "step_ms": 1e3 * statistics.median(ours),
        "torch_step_ms": 1e3 * statistics.median(torchs),
        "ratio": statistics.median(b / a for a, b in pairs),
        "pairs": len(pairs),
    }


def table(kept):
    """The figures in Markdown."""
    head = kept["machine"]
    lines = [
        f"{head['processor']}, {head['threads']} threads, {head['isa']}; torch {head['torch']}, commit "
        f"{head['commit']}, {head['date']}. `pydl train MODEL` with no option; an epoch is its steps' time by pydl.",
        "",
        "| model | input of a step | parameters | epochs | test accuracy | an epoch | step, pydl | torch | ratio |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model, row in sorted(kept["models"].items(), key=lambda item: item[1]["parameters"]):
        cells = [model, "×".join(map(str, row["input"])), f"{row['parameters']:,}", "–", "–", "–", "–", "–", "–"]
        if "epochs" in row:
            score = f"{row['test_accuracy']:.4f}" if "test_accuracy" in row else f"loss {row['test_loss']:.2g}"
            if "test_perplexity" in row:
                score = f"perplexity {row['test_perplexity']:.3f}"
            if "exact_match" in row:
                score = f"exact match {row['exact_match']:.3f}"
            if "map50" in row:
                score = f"mAP@0.5 {row['map50']:.3f}"
            if "mean_iou" in row:
                score = f"mean IoU {row['mean_iou']:.3f}"
            cells[3:5] = str(row["epochs"]), score
            if "pairs_found" in row:
                score = f"pairs found {row['pairs_found']:.3f}"
        if "ratio" in row:
            epoch = f"{row['step_ms'] * row['epoch_steps'] / 1e3:.2g} s"
            cells[5:] = epoch, f"{row['step_ms']:.3g} ms", f"{row['torch_step_ms']:.3g} ms", f"{row['ratio']:.2f}×"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def insert(readme, text):
    """Puts the table between the marker lines of a file."""
    page = readme.read_text()
    if BEGIN not in page or END not in page:
        sys.exit(f"models: expected {readme} to hold the lines {BEGIN!r} and {END!r}, got neither or one")
    before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    readme.write_text(f"{before}\n\n{text}\n\n{after}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all")
    parser.add_argument("--only", choices=("accuracy", "speed"), help="one half of the figures")
    parser.add_argument("--readme", type=Path, help="write the kept table into this file, run nothing")
    options = parser.parse_args()
    if unknown := set(options.models) - set(models.names()):
        sys.exit(f"models: expected names among {', '.join(models.names())}, got {', '.join(sorted(unknown))}")
    path = Path(__file__).parent / "results" / "models" / f"{name()}.json"
    if options.readme:
        insert(options.readme, table(load(path)))
        return
    alone = [model for model in models.names() if models.kind(model) not in feedback.KINDS]  # with no other run first
    for model in options.models or alone:
        row = {}
        for kind, measure in (("accuracy", accuracy), ("speed", speed)):
            if options.only in (None, kind):
                row |= measure(model)
        print(model, row, flush=True)
        kept = load(path)  # read again each time: another run may have added to it
        kept["machine"] = describe()
        kept["models"][model] = kept["models"].get(model, {}) | row
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept, indent=1) + "\n")
    print(table(load(path)))


def load(path):
    """What is kept so far."""
    return json.loads(path.read_text()) if path.exists() else {"models": {}}


if __name__ == "__main__":
    main()
