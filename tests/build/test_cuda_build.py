"""How setup.py decides on the CUDA library, without building it; and which GPUs a built one serves."""

import importlib.util
import stat
from pathlib import Path

import pytest

from pydl import backend

ROOT = Path(__file__).resolve().parents[2]
KNOWN = ("75", "80", "86", "90", "100", "120")


@pytest.fixture
def build(monkeypatch, tmp_path):
    """setup.py as a module, and an nvcc of a given release first on the path."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    spec = importlib.util.spec_from_file_location("pydl_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("PYDL_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)

    def nvcc(release, known=KNOWN):
        path = tmp_path / "bin" / "nvcc"
        path.parent.mkdir(exist_ok=True)
        codes = " ".join(f"sm_{name}" for name in known)
        path.write_text(f"#!/bin/sh\n[ $1 = --version ] && echo release {release}, V{release} || echo {codes}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
        return str(path)

    module.nvcc = nvcc
    return module


def refused(build, torch_cuda):
    with pytest.raises(SystemExit) as error:
        build.cuda_arguments(torch_cuda)
    return str(error.value)


def test_built_where_torch_has_cuda_and_nvcc_fits(build, monkeypatch):
    nvcc = build.nvcc("13.0")
    expected = [
        "-DPYDL_CUDA=ON",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        "-DPYDL_CUDA_ARCHITECTURES=75-real;80-real;90-real;100-real;120",
    ]
    assert build.cuda_arguments("13.0") == build.cuda_arguments("13.1") == expected
    assert build.cuda_arguments(None) == ["-DPYDL_CUDA=OFF"]
    monkeypatch.setenv("PYDL_CUDA", "1")
    assert build.cuda_arguments(None) == expected
    monkeypatch.setenv("PYDL_CUDA", "0")
    assert build.cuda_arguments("13.0") == ["-DPYDL_CUDA=OFF"]


def test_older_toolkits_leave_out_what_they_do_not_know(build):
    build.nvcc("12.4", ("75", "80", "90"))
    assert build.cuda_arguments("12.4")[2] == "-DPYDL_CUDA_ARCHITECTURES=75-real;80-real;90"


def test_torch_cuda_arch_list(build, monkeypatch):
    nvcc = build.nvcc("13.0")
    for text, expected in (("8.0;9.0+PTX", "80-real;90"), ("9.0a", "90a-real"), ("7.5 12.0", "75-real;120-real")):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
        assert build.cuda_architectures(nvcc) == expected
    for text, words in (("Hopper", "expected numbers"), ("7.0", "7.5 or newer"), ("8.1", "compiles for")):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
        assert f"got '{text}'" in refused(build, "13.0")
        assert words in refused(build, "13.0")


def test_what_does_not_fit_is_said_in_one_sentence(build, monkeypatch, tmp_path, capsys):
    build.nvcc("12.8")
    assert refused(build, "13.0") == (
        "pydl: nvcc is CUDA 12.8 but torch was built with CUDA 13.0; install the CUDA 13 toolkit, or set PYDL_CUDA=0 "
        "to build for the CPU alone."
    )
    build.nvcc("11.8")
    assert "install CUDA 12 or newer" in refused(build, "11.8")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert build.cuda_arguments("13.0") == ["-DPYDL_CUDA=OFF"]
    assert "nvcc was not found; GPU tensors will be served by Triton" in capsys.readouterr().err
    monkeypatch.setenv("PYDL_CUDA", "1")
    assert "PYDL_CUDA=1, but nvcc was not found" in refused(build, None)
    monkeypatch.setenv("PYDL_CUDA", "yes")
    assert refused(build, None) == "pydl: PYDL_CUDA must be 0 or 1, got 'yes'."


@pytest.mark.parametrize(
    "capability,compiled,runs",
    [
        ((8, 6), ("sm_80",), True),  # machine code of a family runs on its later members
        ((8, 0), ("sm_86",), False),
        ((9, 0), ("sm_80",), False),
        ((9, 0), ("sm_80", "compute_80"), True),  # PTX runs on whatever comes later
        ((9, 0), ("sm_90a",), True),
        ((10, 0), ("sm_90a",), False),
        ((7, 0), ("sm_75", "compute_120"), False),
        ((12, 1), ("sm_90", "sm_120"), True),
    ],
)
def test_which_gpus_a_library_serves(capability, compiled, runs):
    assert backend._runs_on(capability, compiled) is runs


def test_the_status_of_a_build_without_it():
    status = backend.available()["cuda"]
    assert status.ok or status.reason
    if not status.ok:
        with pytest.raises(RuntimeError, match="expected 'cuda' to be available, got: "), backend.use("cuda"):
            pass
