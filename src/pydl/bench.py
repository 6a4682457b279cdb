"""``pydl bench``: the benchmark suite of the source tree, from the command line.

The suite is no part of the installed package: it needs pytest-benchmark and the files of benchmarks/.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

# beside the package in an editable install; else where `pip install .` was typed
_PLACES = [Path(__file__).resolve().parents[2] / "benchmarks", Path("benchmarks").resolve()]
FOLDER = next((place for place in _PLACES if (place / "bench_dropout.py").is_file()), _PLACES[0])


def command(ops=None, quick=False, json=None):
    """Runs the benchmarks and prints one table per op; returns the exit code of the run.

    Args:
        ops: names of ops, e.g. ``["dropout"]``; all when not given.
        quick: a few cases of each op, in under two minutes.
        json: file that keeps the run's figures.

    Raises:
        RuntimeError: where the suite or what it needs is not at hand; the message says how to get it.
        ValueError: for an unknown op; the message names those there are.
    """
    if not (FOLDER / "conftest.py").is_file():
        raise RuntimeError(
            f"bench: expected to be started in pydl's source tree, which has the folder benchmarks, got {Path.cwd()}"
        )
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise RuntimeError("bench: expected pytest-benchmark to be installed, got none; pip install pytest-benchmark")
    there = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    for op in ops or []:
        if op not in there:
            raise ValueError(f"bench: expected the op to be one of {', '.join(there)}, got {op!r}")
    files = [str(FOLDER / f"bench_{op}.py") for op in ops or there]
    options = ["--quick"] if quick else []
    if json is not None:
        options.append(f"--results={Path(json).resolve()}")
    root = ["--rootdir", str(FOLDER.parent), "-c", str(FOLDER.parent / "pyproject.toml")]
    return subprocess.run([sys.executable, "-m", "pytest", "-q", *root, *options, *files], check=False).returncode
