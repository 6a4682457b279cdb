"""Runs pytest with the CUDA kernels compiled for the CPU.

``python tests/support/cuda_on_host/run.py tests/ops/test_dropout.py``

Every .cu file is compiled by the host compiler beside twin.h, with AddressSanitizer and UndefinedBehaviorSanitizer,
into a library of the CUDA library's own interface; ``PYDL_CUDA_ON_HOST`` names it to pydl, which then sends CPU tensors
to it. The sanitizers have to be in the process from its start, so pytest runs in one of its own.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CXX = os.environ.get("CXX", "g++")
FLAGS = [
    *(
        "-std=c++20",
        "-O1",
        "-g1",
        "-fPIC",
        "-ffp-contract=off",
        "-Wall",
        "-Wno-unknown-pragmas",
        "-Wno-unused-function",
    ),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
    *("-I", str(HERE), "-I", str(ROOT), '-DPYDL_CUDA_ARCHITECTURES="host"'),
]


def compile_one(source, folder):
    """Compiles one source where an object of an earlier call is older than any source; returns the object."""
    target = Path(folder, source.name + ".o")
    inputs = [source, *HERE.glob("*.h"), *ROOT.glob("kernels/*.h"), *ROOT.glob("kernels/cuda/**/*.h")]
    if not target.is_file() or target.stat().st_mtime < max(path.stat().st_mtime for path in inputs):
        subprocess.run([CXX, *FLAGS, "-x", "c++", "-c", str(source), "-o", str(target)], check=True)
    return target


def build(folder, sources=None):
    """Compiles and links the library in ``folder``; returns its path."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    if sources is None:
        sources = sorted(ROOT.glob("kernels/cuda/**/*.cu"))
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count()))) as pool:
        objects = list(pool.map(lambda source: compile_one(source, folder), [*sources, HERE / "twin.cpp"]))
    library = Path(folder, "libpydl_cuda_on_host.so")
    subprocess.run([CXX, *FLAGS, "-shared", *map(str, objects), "-o", str(library)], check=True)
    return library


def runtime(name):
    return subprocess.run([CXX, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()


def environment(library):
    """The environment of a process that loads ``library``."""
    return {
        **os.environ,
        "PYTHONPATH": str(HERE.parent),  # of the plugin below
        "PYDL_CUDA_ON_HOST": str(library),
        "PYDL_MEMORY_POOL": "0",  # memory of its own for each tensor, so that overruns are seen
        # libstdc++ beside libasan, or torch's exceptions abort
        "LD_PRELOAD": ":".join(map(runtime, ("libasan.so", "libubsan.so", "libstdc++.so"))),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",  # Python and torch hold memory until exit
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_NUM_THREADS": "1",
    }


def command(*pytest_arguments):
    """pytest over the bodies for the host twin, but for what compiles graphs or handles many elements."""
    chosen = ["-m", "cuda_on_host and not slow and not large"]
    if "-k" not in pytest_arguments:
        chosen += ["-k", "not compile and not opcheck"]
    plugins = ["-p", "no:cacheprovider", "-p", "cuda_on_host.selection"]
    return [sys.executable, "-m", "pytest", "-q", *plugins, *chosen, *pytest_arguments]


TESTS = ROOT / "tests"


if __name__ == "__main__":
    words = [str(Path(word).resolve()) if Path(word.split("::")[0]).exists() else word for word in sys.argv[1:]]
    library = build(ROOT / "build" / "cuda_on_host")
    line = command(*(words or [str(TESTS)]))
    os.execve(line[0], line, environment(library))
