"""The stand-ins for AVX-512 instructions (tests/support/avx512), beside the instructions where this CPU has them."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_bf16"}


def cpu_flags():
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return set(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


def test_stand_ins_give_what_the_instructions_give(tmp_path):
    if absent := NEEDED - cpu_flags():
        pytest.skip(f"this CPU has no {', '.join(sorted(absent))}")
    compiler = shutil.which("g++")
    if compiler is None or int(subprocess.check_output([compiler, "-dumpversion"], text=True).split(".")[0]) < 12:
        pytest.skip("g++ 12 or newer is not installed")
    program = tmp_path / "compare"
    flags = ["-std=gnu++20", "-O2", "-march=x86-64-v4", "-mavx512bf16", "-Wno-psabi"]
    source = ROOT / "tests/support/avx512/compare.cpp"
    subprocess.run([compiler, *flags, f"-I{ROOT}", str(source), "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout or f"ended by signal {-done.returncode}"
