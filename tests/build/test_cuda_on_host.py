"""The CUDA kernels on the CPU: the ordinary test bodies under the host twin, and the twin's own test."""

import os
import subprocess
import sys

import pytest
from cuda_on_host import run

from pydl.ops import _triton

pytestmark = [
    pytest.mark.cuda_on_host,
    pytest.mark.skipif("PYDL_CUDA_ON_HOST" in os.environ, reason="this is the process that these tests start"),
]


@pytest.fixture(scope="module")
def library():
    return run.build(run.ROOT / "build" / "cuda_on_host")


def other_dtypes(name):
    file = run.TESTS / "ops" / "test_other_dtypes.py"
    return [f"{file}::test_{name}_in_other_dtypes"] if f"def test_{name}_in" in file.read_text() else []


@pytest.mark.parametrize("name", _triton.ops())  # the same ops have CUDA kernels
def test_bodies_pass_under_the_sanitizers(library, name):
    bodies = [*sorted(run.TESTS.glob(f"ops/test_{name}*.py")), *other_dtypes(name)]
    done = subprocess.run(
        run.command(*map(str, bodies)),
        cwd=run.ROOT,
        env=run.environment(library),
        capture_output=True,
        text=True,
    )
    last = done.stdout.strip().splitlines()[-1:]
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert "passed" in last[0]


PLANTED = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
n, fault = 50, int(sys.argv[2])
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
memory = [ctypes.cast(malloc(ctypes.c_size_t(4 * n)), ctypes.POINTER(ctypes.c_float)) for _ in range(2)]
for i in range(n):
    memory[0][i], memory[1][i] = i, float("nan")
library.planted(*memory, n, fault)
print([memory[1][i] for i in range(n)] == [float(n - 1 - i) for i in range(n)])
"""
NONE, OUT_OF_BOUNDS, MISSING_BARRIER, UNWRITTEN_OUTPUT, LOST_THREAD = range(5)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    library = run.build(tmp_path_factory.mktemp("planted"), [run.HERE / "planted.cu"])

    def call(fault):
        return subprocess.run(
            [sys.executable, "-c", PLANTED, str(library), str(fault)],
            env=run.environment(library),
            capture_output=True,
            text=True,
        )

    return call


def test_planted_faults_are_caught(planted):
    sound = planted(NONE)
    assert (sound.returncode, sound.stdout) == (0, "True\n"), sound.stderr
    past_the_end = planted(OUT_OF_BOUNDS)
    assert past_the_end.returncode != 0
    assert "heap-buffer-overflow" in past_the_end.stderr
    assert "planted.cu" in past_the_end.stderr
    # nan where shared memory was read before it was written, or the output never was
    assert planted(MISSING_BARRIER).stdout == "False\n"
    assert planted(UNWRITTEN_OUTPUT).stdout == "False\n"
    lost = planted(LOST_THREAD)
    assert lost.returncode != 0
    assert "wait at a barrier" in lost.stderr
