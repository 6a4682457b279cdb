"""``pydl bench``: the benchmark suite from the command line, in any folder.

Its files are benchmarks/ of the source tree, which are installed as the folder ``benchmarks`` beside this one.
"""

import importlib.util
import json as json_format
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pydl.errors import DataError, MissingExtra, OptionError, did_you_mean

# in an editable install the source tree's own, elsewhere the one that was installed
_PLACES = [Path(__file__).resolve().parents[2] / "benchmarks", Path(__file__).resolve().parent / "benchmarks"]
FOLDER = next((place for place in _PLACES if (place / "bench_dropout.py").is_file()), _PLACES[-1])


def command(ops=None, quick=False, json=None, against=None):
    """Runs the benchmarks and prints one table per op; returns the exit code of the run.

    Args:
        ops: names of ops, e.g. ``["dropout"]``; all when not given.
        quick: a few cases of each op, in a few minutes.
        json: file that keeps the run's figures.
        against: a file that an earlier run kept; each case is then shown beside what it took there.

    Raises:
        MissingExtra: without pytest-benchmark; the message says how to get it.
        OptionError: for an unknown op; the message names those there are.
        DataError: for a file to compare with that is none of ``json``.
    """
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise MissingExtra("bench", "pytest-benchmark", extra="bench")
    there = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    for op in ops or []:
        if op not in there:
            raise OptionError(
                f"bench: expected the op to be one of {', '.join(there)}, got {op!r}" + did_you_mean(op, there)
            )
    files = [str(FOLDER / f"bench_{op}.py") for op in ops or there]
    options = ["--quick"] if quick else []
    if json is not None:
        options.append(f"--results={Path(json).resolve()}")
    if against is not None:
        _check_kept(against)
        options.append(f"--against={Path(against).resolve()}")
    # the suite's own settings, whatever the folder where it is started says about tests
    settings = ["-c", os.devnull, "--rootdir", str(FOLDER), "-p", "no:cacheprovider"]
    settings += ["-o", "python_files=bench_*.py", "-o", "python_functions=bench_*"]
    with tempfile.TemporaryDirectory() as storage:  # pytest-benchmark's own, which nobody reads here
        settings.append(f"--benchmark-storage=file://{storage}")
        call = [sys.executable, "-m", "pytest", "-q", *settings, *options, *files]
        return subprocess.run(call, check=False).returncode


def _check_kept(path):
    """Before minutes of timing: whether ``path`` holds the figures of a run."""
    try:
        kept = json_format.loads(Path(path).read_text())
    except OSError as error:
        raise DataError(f"bench: expected --against to be a file of --json, got {path}: {error.strerror}") from None
    except ValueError:
        kept = None
    if not isinstance(kept, dict) or not kept:
        raise DataError(f"bench: expected --against to be a file of --json, got {path}, which is something else")
