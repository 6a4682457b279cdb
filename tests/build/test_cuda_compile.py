"""The CUDA library compiled for every architecture, and what ptxas says of each kernel: no GPU needed, but nvcc."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from gpu_cost import machine_code, sheet

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")
pytestmark = pytest.mark.cuda_compile

SHARED_MEMORY = 48 << 10  # that every architecture gives a block without being asked


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The library and what its build prints; ptxas reports on each kernel because the build asks it to (-v)."""
    nvcc = sheet.nvcc()
    assert nvcc, "nvcc was not found; install the CUDA toolkit or set CUDA_HOME"
    build = tmp_path_factory.mktemp("cuda")
    wanted = ";".join(name.replace("sm_", "") + "-real" for name in ARCHITECTURES)
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
        *("-DPYDL_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DPYDL_CUDA_ARCHITECTURES={wanted}"),
    ]
    subprocess.run(configure, check=True, capture_output=True)
    done = subprocess.run(
        ["cmake", "--build", str(build), "--target", "pydl_cuda", "--verbose"], capture_output=True, text=True
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-6000:]
    return build / "libpydl_cuda.so", text


@pytest.fixture(scope="module")
def library(built):
    assert built[0].is_file()
    return built[0]


@pytest.fixture(scope="module")
def log(built):
    return built[1]


@pytest.fixture(scope="module")
def kernels(log):
    """(architecture, mangled name, bytes of stack frame, spilled, registers, shared memory) of each kernel."""
    found = []
    for name, architecture, report in sheet.REPORT.findall(log):
        frame, stores, loads = map(
            int,
            re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report).groups(),
        )
        registers = int(re.search(r"Used (\d+) registers", report)[1])
        shared = re.search(r"(\d+) bytes smem", report)
        found.append((architecture, name, frame, stores + loads, registers, int(shared[1]) if shared else 0))
    return found


def test_every_kernel_is_compiled_for_every_architecture(kernels):
    written = set()
    for source in ROOT.glob("kernels/cuda/**/*.cu"):
        written |= set(sheet.kernel_names(source.read_text()))
    assert len(written) > 10
    for architecture in ARCHITECTURES:
        names = [name for a, name, *_ in kernels if a == architecture]
        assert {kernel for kernel in written if any(kernel in name for name in names)} == written


def test_no_kernel_spills(kernels):
    """No register goes to local memory, and no array is kept there."""
    bad = [
        (architecture, name, frame, spilled)
        for architecture, name, frame, spilled, *_ in kernels
        if frame > 0 or spilled > 0
    ]
    assert not bad, "\n".join(map(str, bad))


def test_shared_memory_and_registers_fit(kernels):
    """Eight warps a block and at least two blocks on a multiprocessor of 65,536 registers."""
    assert not [kernel for kernel in kernels if kernel[5] > SHARED_MEMORY or kernel[4] > 128]


def test_registers_are_those_of_the_cost_sheet(log):
    """Occupancy, from which the sheet predicts, follows from them."""
    stored = json.loads(sheet.SHEET.read_text())
    if sheet.nvcc_version() != stored["nvcc"]:
        pytest.skip(f"the sheet is of nvcc {stored['nvcc']}, this is {sheet.nvcc_version()}")
    expected = {
        name: {a: {key: used[key] for key in ("registers", "bytes")} for a, used in by_architecture.items()}
        for name, by_architecture in stored["kernels"].items()
    }
    assert sheet.registers(sheet.kernels_of(stored["cases"]), log) == expected


@pytest.mark.skipif(machine_code.disassembler() is None, reason="cuobjdump and nvdisasm are not installed")
def test_instructions_are_those_of_the_cost_sheet(library):
    """A loop that grew is a kernel that may issue longer than it waits for memory."""
    stored = json.loads(sheet.SHEET.read_text())
    if sheet.nvcc_version() != stored["nvcc"]:
        pytest.skip(f"the sheet is of nvcc {stored['nvcc']}, this is {sheet.nvcc_version()}")
    found = sheet.instructions(library)
    changed = [
        (name, architecture, used, found[name, architecture])
        for name, by_architecture in stored["kernels"].items()
        for architecture, used in by_architecture.items()
        if {kind: used[kind] for kind in machine_code.PRICED if kind in used} != found[name, architecture]
    ]
    assert not changed, "renew the sheet if this is meant:\n" + "\n".join(map(str, changed))


def test_only_the_table_is_exported(library):
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    symbols = subprocess.run(
        ["nm", "--dynamic", "--defined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[-1] for line in symbols.splitlines() if " T " in line] == ["pydl_cuda_library"]
