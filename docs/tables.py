"""The tables of index.md and speed.md, made of the benchmarks' kept results.

python docs/tables.py    writes them between their marker lines; tests/docs fails where they are not what this gives
"""

from pathlib import Path

from figures import MACHINES, calm, dates, records, results, times

DOCS = Path(__file__).parent
BEGIN, END = "<!-- made by docs/tables.py -->", "<!-- end of table -->"
SHOWN = 4  # the slowest of an op

# Steps of the front page, what they are in words, and the op and case of the results.
STEPS = {
    "multilayer perceptron, 256 images": ("models", "mlp, N 256 f32"),
    "LeNet, 256 images": ("models", "lenet, N 256 f32"),
    "ResNet-18, 32 images of 96×96": ("models", "resnet18, N 32 f32"),
    "GRU over characters, 256 units": ("language", "GRU 35×32×256 f32"),
    "GPT, 4 blocks of 128, with dropout": ("language", "GPT 4 blocks of 128, 16×128, dropout 0.1 f32"),
    "TinySSD, 16 images of 256×256": ("models", "ssd, N 16 f32"),
}


def _ms(microseconds):
    return f"{microseconds / 1000:.3g} ms"


def steps():
    """Training steps on the best machine: ours, torch's, and how they compare with the fastest of all."""
    letter = next(iter(MACHINES))
    lines = ["| training step | pydl | torch | times the fastest |", "|---|---:|---:|---:|"]
    for words, (op, case) in STEPS.items():
        record = next(r for r in records(letter, op) if r["case"] == case)
        lines.append(f"| {words} | {_ms(record['pydl_us'])} | {_ms(record['eager_us'])} | {times(record)} |")
    return "\n".join([*lines, "", f"Two cores of a {MACHINES[letter][1]} server, {dates(letter)}."])


def _behind(letter):
    for op, part in sorted(results(letter).items()):
        behind = sorted((calm(record), record["case"]) for record in part["records"] if calm(record) < 1)
        if behind:
            cases = "<br>".join(f"{ratio:.2f}× {case}" for ratio, case in behind[:SHOWN])
            yield f"| `{op}` | {len(behind)} of {len(part['records'])} | {cases} |"


def behind():
    """A table for each machine: how many of an op's cases are below 1, and the slowest of them."""
    lines = []
    for letter, (_, name) in MACHINES.items():
        lines += [f"**{name}**, {dates(letter)}, two cores, without page faults:", ""]
        lines += ["| op | cases behind | the furthest |", "|---|---:|---|", *_behind(letter), ""]
    return "\n".join(lines).rstrip()


PAGES = {"index.md": steps, "speed.md": behind}


def page(name):
    """A page with its table of now."""
    text = (DOCS / name).read_text()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:begin]}\n\n{PAGES[name]()}\n\n{text[end:]}"


if __name__ == "__main__":
    for name in PAGES:
        (DOCS / name).write_text(page(name))
