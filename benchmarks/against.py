"""``--against``: a run beside one that was kept before, case by case."""

import json
import statistics
from pathlib import Path

import report

# Medians of a case differ by so much between two runs of the same build on a calm machine.
NOISE = 0.05
COLUMNS = ("case", "before", "now", "before / now", "")


def load(path):
    """(records by (op, case), machine) of a file of ``--results``, or of a machine's kept results."""
    kept = json.loads(Path(path).read_text())
    runs = [kept] if "records" in kept else list(kept.values())
    records = {(r["op"], r["case"]): r for run in runs for r in run["records"]}
    return records, runs[-1]["machine"]


def rows(records, before):
    """(cells of each case that both runs have, the ratios before / now); without page faults where both have that."""
    table, ratios = [], []
    for record in records:
        old = before.get((record["op"], record["case"]))
        if old is None:
            continue
        pair = [report.without_page_faults(r) for r in (old, record)]
        was, now = (r["pydl_us"] for r in (pair if all(pair) else (old, record)))
        ratio = was / now
        ratios.append(ratio)
        word = "" if abs(ratio - 1) < NOISE else "faster" if ratio > 1 else "slower"
        cells = (f"{record['op']} {record['case']}", report.duration(was), report.duration(now), f"{ratio:.2f}×", word)
        table.append(cells)
    return table, ratios


def differences(machine, before):
    """In words, what else than pydl differs between the runs: times of two machines say nothing of a change."""
    names = ("processor", "threads", "isa", "torch", "python")
    return [
        f"{name}: {before.get(name)} before, {machine.get(name)} now"
        for name in names
        if before.get(name) != machine.get(name)
    ]


def show(records, machine, path):
    """Prints the comparison with the run kept in ``path``."""
    from rich.console import Console
    from rich.table import Table

    before, its_machine = load(path)
    cells, ratios = rows(records, before)
    console = Console()
    if not cells:
        console.print(f"{path} has none of these cases: nothing to compare", soft_wrap=True)
        return
    table = Table(title=f"pydl now beside {path}", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("case", "") else "right")
    for row in cells:
        table.add_row(*row)
    console.print(table)
    mean = statistics.geometric_mean(ratios)
    console.print(f"{len(cells)} cases, geometric mean {mean:.2f}× as fast as before", soft_wrap=True)
    for line in differences(machine, its_machine):
        console.print(f"not the same: {line}", soft_wrap=True, highlight=False)
