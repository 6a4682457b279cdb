"""What the linker made of one source per instruction set: no wide instruction outside the namespace of its set.

An inline function that several instruction sets compile becomes a weak symbol, of which the linker keeps one copy for
all. Were that copy the AVX-512 one, pydl would die of an illegal instruction on a CPU without it.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pydl import _C

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = sorted(ROOT.glob("build/temp*/**/CMakeFiles/kernels_cpu_*.dir/kernels/cpu/**/*.o"))
FOREIGN = ("std::", "torch", "c10::", "__gnu_cxx")


def run(tool, *arguments):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def isa_of(path):
    """The instruction set that an object was compiled for, out of .../kernels_cpu_avx2.dir/kernels/cpu/..."""
    (part,) = (part for part in path.parts if part.startswith("kernels_cpu_"))
    return part.removeprefix("kernels_cpu_").removesuffix(".dir")


@pytest.mark.skipif(not OBJECTS, reason="no object files: this is not the folder that pydl was built in")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: f"{isa_of(path)}-{path.parent.name}-{path.stem}")
def test_weak_symbols_stay_in_their_namespace(path):
    isa = isa_of(path)
    assert isa in ("baseline", "avx2", "avx512")
    leaks = []
    for line in run("nm", "--demangle", "--defined-only", str(path)).splitlines():
        match = re.match(r"[0-9a-f]* ([A-Za-z]) (.*)", line)
        if match is None or match[1] not in "uVvWw":  # unique, weak object, weak function
            continue
        if f"{isa}::" not in match[2] or any(word in match[2] for word in FOREIGN):
            leaks.append(match[2])
    assert not leaks


def test_the_text_is_small():
    """Everything that is loaded, all layers of the book for three instruction sets: 8 MB are the most it may be."""
    modules = [path for name in ("_C", "_torch") for path in Path(_C.__file__).parent.glob(f"{name}.*.so")]
    sizes = [int(run("size", str(module)).splitlines()[1].split()[0]) for module in modules]
    assert len(sizes) == 2
    if "__asan_init" in run("nm", "--dynamic", _C.__file__):
        pytest.skip("built with sanitizers")
    assert sum(sizes) < 6.7e6


@pytest.fixture(scope="module")
def instructions():
    """(function, instruction) of the installed module itself, so what is held to it holds for a wheel too."""
    if os.uname().machine not in ("x86_64", "amd64"):
        pytest.skip("one instruction set on this architecture")
    if _C.avx512_is_emulated():
        pytest.skip("the avx512 kernels are compiled for AVX2")
    if "pydl::cpu::" not in run("nm", "--demangle", _C.__file__):
        pytest.skip("the module is stripped of its symbols")
    owner, found = "", []
    for line in run("objdump", "--disassemble", "--demangle", "--no-show-raw-insn", _C.__file__).splitlines():
        if line.endswith(">:"):
            owner = line.split("<", 1)[1][:-2]
        else:
            found.append((owner, line))
    return found


def test_wide_registers_stay_in_their_namespace(instructions):
    leaks, seen = set(), set()
    for owner, line in instructions:
        if "%zmm" in line or "%k1" in line:
            seen.add("avx512")
            if "avx512" not in owner:
                leaks.add((owner, "avx512"))
        elif "%ymm" in line:
            seen.add("avx2")
            if "avx2" not in owner and "avx512" not in owner:
                leaks.add((owner, "avx2"))
    assert seen == {"avx2", "avx512"}  # else the test would see nothing
    assert not leaks


def test_matrix_products_multiply_from_registers(instructions):
    """A microkernel whose operands the compiler keeps on the stack takes twice the time, and nothing else shows it."""
    if "GCC: (" not in (built_by := run("readelf", "--string-dump=.comment", _C.__file__)) or ") 12." not in built_by:
        pytest.skip("registers are handed out by the compiler, and this holds for g++ 12")
    if "__asan_init" in run("nm", "--dynamic", _C.__file__):
        pytest.skip("built with sanitizers")
    multiplies = [
        (owner, line) for owner, line in instructions if "::gemm::" in owner and re.search(r"\bv(fmadd|dpbf16)", line)
    ]
    assert len(multiplies) > 2000  # else the test would see nothing
    assert not {owner for owner, line in multiplies if "(%rsp)" in line or "(%rbp)" in line}
