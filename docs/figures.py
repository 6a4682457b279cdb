"""The kept results of the benchmarks, for the pages that quote them."""

import functools
import json
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
# A letter for each machine, best first: a case is quoted from the first that has it.
MACHINES = {
    "A": ("amd-epyc-family-26-model-2-avx512-2-threads.json", "Zen 5, AVX-512"),
    "B": ("amd-epyc-family-25-model-17-avx512-2-threads.json", "Zen 4, AVX-512"),
    "C": ("amd-epyc-family-25-model-1-avx2-2-threads.json", "Zen 3, AVX2"),
}


@functools.cache
def results(letter):
    """{op: {"machine": …, "records": …}} of a machine."""
    return json.loads((RESULTS / MACHINES[letter][0]).read_text())


def records(letter, op):
    """The cases of an op, none where the machine has not run it."""
    return results(letter).get(op, {"records": []})["records"]


def calm(record):
    """The ratio without page faults, or as it comes where nothing else was measured."""
    return (record.get("no_page_faults") or record)["ratio"]


def times(record):
    """``2.24× (2.16×)``: as it comes and, where it was measured, without page faults."""
    return f"{record['ratio']:.2f}×" + (f" ({calm(record):.2f}×)" if record.get("no_page_faults") else "")


def dates(letter):
    """The first and the last day of a machine's results, or the one."""
    days = sorted({part["machine"]["date"] for part in results(letter).values()})
    return " – ".join(dict.fromkeys((days[0], days[-1])))
