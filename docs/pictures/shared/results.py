"""The committed figures of the machine whose results have every op."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "amd-epyc-family-26-model-2-avx512-2-threads.json"
MACHINE = "two Zen 5 cores, AVX-512"


def results():
    """What ``pytest benchmarks`` has kept, by op: ``machine``, ``ceilings`` and ``records``."""
    return json.loads(RESULTS.read_text())


def record(kept, op, case):
    """One case of an op; an error if it is gone, so that no picture shows something else in silence."""
    return next(r for r in kept[op]["records"] if r["case"] == case)
