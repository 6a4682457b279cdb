"""Which torch pydl takes: in pip's metadata, in the build, at import."""

import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pydl
from pydl import _torch_range

ROOT = Path(__file__).resolve().parents[2]
in_tree = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="no source tree around the tests")


@pytest.mark.parametrize(
    "installed, expected",
    [
        (None, "torch>=2.11,<2.14"),  # nothing there: not several GB of a build for GPUs
        ("2.11.0", "torch>=2.11,<2.14"),
        ("2.13.0+cpu", "torch>=2.11,<2.14"),
        ("2.14.1+cu130", "torch>=2.11,<2.15"),
        ("2.15.0", "torch>=2.11,<2.16"),
    ],
)
def test_metadata_leaves_the_installed_torch_in_place(installed, expected):
    assert _torch_range.requirement(installed) == expected


@pytest.mark.parametrize("version", ["2.11.0", "2.12.1", "2.13.0+cpu", "2.14.1", "2.15.0", "2.15.0a0+gitabc"])
def test_every_torch_of_the_range_is_taken(version):
    assert _torch_range.why_not(version) is None


@pytest.mark.parametrize("version", ["2.10.1", "1.13.1", "2.16.0", "2.16.0.dev20261101+cpu", "3.0.0"])
def test_another_torch_is_refused_at_import_in_words(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    message = f"pydl: expected torch to be of version 2.11 to 2.15, got {version}; pip install 'torch>=2.11,<2.16'"
    with pytest.raises(ImportError, match=re.escape(message)):
        importlib.reload(pydl)
    monkeypatch.undo()
    importlib.reload(pydl)


@in_tree
def test_the_build_reads_the_range_that_the_package_checks(tmp_path):
    script = ROOT / "build_backend" / "torch_range.py"
    names = runpy.run_path(str(script))
    assert names["requirement"](None) == _torch_range.requirement(None)
    (tmp_path / "version.py").write_text("__version__ = '2.15.0+cu130'\ncuda: Optional[str] = '13.0'\n")
    assert names["versions"](tmp_path) == ("2.15.0+cu130", "13.0")
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout.strip()
    folder = names["installed_folder"]()
    assert printed == _torch_range.requirement(torch.__version__ if folder else None)
