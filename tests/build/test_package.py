"""What is installed: setup.py's own commands, without compiling."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pydl import _torch_range

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="no source tree around the tests"),
    pytest.mark.skipif(find_spec("setuptools") is None, reason="setuptools is not installed here"),
]


def setup(*arguments):
    command = [sys.executable, "setup.py", "--quiet", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_kernels_and_benchmarks_come_along(tmp_path):
    setup("build_py", "--build-lib", tmp_path)
    package = tmp_path / "pydl"
    for name in ("py.typed", "cli.py", "training/loop.py", "kernels/triton/dropout/dropout.py"):
        assert (package / name).is_file(), name
    assert {path.name for path in (ROOT / "benchmarks").glob("*.py")} == {
        path.name for path in (package / "benchmarks").iterdir()
    }


def test_metadata(tmp_path):
    setup("egg_info", "--egg-base", tmp_path)
    (folder,) = tmp_path.glob("*.egg-info")
    head, *extras = (folder / "requires.txt").read_text().split("\n[")
    sys.path.insert(0, str(ROOT / "build_backend"))
    try:
        import torch_range
    finally:
        sys.path.pop(0)
    there = torch_range.installed_folder()  # none where torch is on the path but not in this environment
    bounds = {line.removeprefix("torch") for line in head.splitlines() if line.startswith("torch")}.pop().split(",")
    expected = _torch_range.requirement(torch.__version__ if there else None).removeprefix("torch").split(",")
    assert sorted(bounds) == sorted(expected)
    assert "pytest-benchmark>=5" in next(extra for extra in extras if extra.startswith("bench]"))
