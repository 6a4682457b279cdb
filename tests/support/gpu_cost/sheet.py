"""The cost sheet: what every CUDA kernel does, counted on the host twin, and what that should take on a GPU.

``python tests/support/gpu_cost/sheet.py`` prints it, ``--renew`` writes benchmarks/results/gpu-cost.json and README's
table. Both need nvcc, for the registers that occupancy follows from, and a disassembler, for instructions.
kernels/cuda/COST.md says how to read it and what it cannot see.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SHEET = ROOT / "benchmarks" / "results" / "gpu-cost.json"
TWIN = HERE.parent / "cuda_on_host"
sys.path.insert(0, str(HERE.parent))

from gpu_cost import machine_code, table
from gpu_cost.model import GPUS, predict

ARCHITECTURES = sorted({gpu.architecture for gpu in GPUS.values()})
CXX = os.environ.get("CXX", "g++")
FLAGS = [*("-std=c++20", "-O2", "-fPIC", "-ffp-contract=off", "-w"), '-DPYDL_CUDA_ARCHITECTURES="host"']
# accesses are reported by calls, entries and exits of functions are not; nothing of the sanitizer is linked
REPORTED = ["-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"]


def jobs():
    return int(os.environ.get("MAX_JOBS", os.cpu_count()))


# ---- counts


def _unrolled(folder):
    """A copy of kernels/cuda whose loops g++ unrolls where nvcc does: what is asked for together must look so."""
    for source in [*ROOT.glob("kernels/cuda/**/*.h"), *ROOT.glob("kernels/cuda/**/*.cu")]:
        text = re.sub(r"#pragma unroll\b[ \t]*(\d*)", lambda m: f"#pragma GCC unroll {m[1] or 64}", source.read_text())
        target = Path(folder, source.relative_to(ROOT))
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file() or target.read_text() != text:
            target.write_text(text)


def build(folder):
    """Compiles kernels, twin, counter and cases into a program; returns its path."""
    folder = Path(folder)
    _unrolled(folder)
    include = [f"-I{path}" for path in (folder, TWIN, HERE, ROOT)]
    own = [TWIN / "twin.cpp", HERE / "count.cpp", HERE / "cases.cpp"]
    sources = [*sorted(folder.glob("kernels/cuda/**/*.cu")), *own]
    headers = [*folder.glob("kernels/cuda/**/*.h"), *ROOT.glob("kernels/*.h"), *TWIN.glob("*.h"), *HERE.glob("*.h")]
    newest = max(path.stat().st_mtime for path in headers)

    def compile_one(source):
        target = folder / f"{source.name}.o"
        if not target.is_file() or target.stat().st_mtime < max(newest, source.stat().st_mtime):
            reported = REPORTED if source not in own else []
            command = [CXX, *FLAGS, *reported, *include, "-x", "c++", "-c", str(source), "-o", str(target)]
            subprocess.run(command, check=True)
        return str(target)

    with ThreadPoolExecutor(jobs()) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / "cases"
    subprocess.run([CXX, *objects, "-ldl", "-o", str(program)], check=True)
    return program


def short(names):
    """Demangled kernel names without namespaces and parameters: ``conv2d_gemm_kernel<float, Forward>``."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    found = []
    for name in done.stdout.splitlines():
        name = re.sub(r"\(anonymous namespace\)::|pydl::cuda::|pydl::", "", name)
        match = re.search(r"(\w+_kernel)\b(<.*>)?\(", name)
        found.append(match[1] + (match[2] or "") if match else None)
    return found


def counts(program):
    """A dict from a case's name to its counts, kernels by name."""
    symbols = [
        line.split()
        for line in subprocess.run(["nm", str(program)], capture_output=True, text=True, check=True).stdout.splitlines()
        if "_kernel" in line
    ]
    at = {int(parts[0], 16): name for parts, name in zip(symbols, short([p[-1] for p in symbols]), strict=True)}
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    cases = {}
    for line in done.stdout.splitlines():
        case = json.loads(line)
        for launch in case["launches"]:
            launch["kernel"] = at[launch["kernel"]]
        cases[case.pop("case")] = case
    return cases


# ---- registers and instructions


def nvcc():
    """The compiler, or None."""
    home = os.environ.get("CUDA_HOME")
    found = str(Path(home, "bin", "nvcc")) if home else shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    return found if Path(found).is_file() else None


def nvcc_version():
    text = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release (\S+),", text)[1]


REPORT = re.compile(r"Compiling entry function '(\S+)' for '(sm_\d+)'\n(.*?)(?=\nptxas info    : Comp|\Z)", re.DOTALL)


def compiled():
    """What ptxas says (-v) of every kernel, for the architectures of the sheet, and ``instructions`` of all."""
    codes = [f"-gencode=arch=compute_{a[3:]},code={a}" for a in ARCHITECTURES]

    def compile_one(source):
        with tempfile.TemporaryDirectory() as folder:
            flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xptxas", "-v", "-w", f"-I{ROOT}"]
            flags += ['-DPYDL_CUDA_ARCHITECTURES="none"', *codes]
            binary = Path(folder, "object")
            command = [nvcc(), *flags, "-c", str(source), "-o", str(binary)]
            log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            return log, instructions(binary)

    with ThreadPoolExecutor(jobs()) as pool:
        parts = list(pool.map(compile_one, sorted(ROOT.glob("kernels/cuda/**/*.cu"))))
    return "\n".join(log for log, _ in parts), {key: found for _, part in parts for key, found in part.items()}


def instructions(binary):
    """A dict from (kernel, architecture) to machine_code.per_access of it."""
    found = {}
    for architecture in ARCHITECTURES:
        functions = machine_code.disassembled(binary, architecture)
        for name, code in zip(short(functions), functions.values(), strict=True):
            found[name, architecture] = machine_code.per_access(code)
    return found


def registers(wanted, log):
    """A dict from each kernel of ``wanted`` to {architecture: registers, bytes of shared memory}, from ptxas' log."""
    reports = REPORT.findall(log)
    found = {}
    for name, (_, architecture, report) in zip(short([r[0] for r in reports]), reports, strict=True):
        if name in wanted and architecture in ARCHITECTURES:
            shared = re.search(r"(\d+) bytes smem", report)
            found.setdefault(name, {})[architecture] = {
                "registers": int(re.search(r"Used (\d+) registers", report)[1]),
                "bytes": int(shared[1]) if shared else 0,
            }
    return {name: dict(sorted(each.items())) for name, each in sorted(found.items())}


# ---- the sheet


def kernel_names(source):
    """The kernels that a .cu file defines."""
    return re.findall(r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", source)


def kernels_of(cases):
    return {launch["kernel"] for case in cases.values() for launch in case["launches"]}


def differences(stored, now):
    """In words, what the counts of two sheets do not share."""
    lines = [f"{name}: {'gone' if name in stored else 'new'}" for name in sorted(set(stored) ^ set(now))]
    for name in sorted(set(stored) & set(now)):
        before, after = stored[name]["launches"], now[name]["launches"]
        kernels = [[launch["kernel"] for launch in launches] for launches in (before, after)]
        if kernels[0] != kernels[1]:
            lines.append(f"{name}: launches {kernels[0]} -> {kernels[1]}")
            continue
        for a, b in zip(before, after, strict=True):
            flat = [
                {k: v for k, v in launch.items() if k != "tensors"}
                | {f"{t} {k}": v for t, each in launch["tensors"].items() for k, v in each.items()}
                for launch in (a, b)
            ]
            for key in sorted(set(flat[0]) | set(flat[1])):
                old, new = (f.get(key) for f in flat)
                if old != new:
                    lines.append(f"{name}: {a['kernel']}: {key} {old} -> {new}")
    return lines


def predictions(cases, kernels):
    """{case: {GPU: [microseconds, what bounds it] or None}}."""
    return {name: {gpu: predict(GPUS[gpu], case, kernels) for gpu in GPUS} for name, case in cases.items()}


def show(sheet):
    print(f"{'predicted microseconds, and what bounds the longest launch':<64}" + "".join(f"{g:>22}" for g in GPUS))
    for name, by_gpu in sheet["predicted"].items():
        cells = ("-" if found is None else f"{found[0]:.1f} {found[1]}" for found in by_gpu.values())
        print(f"{name:<64}" + "".join(f"{cell:>22}" for cell in cells))


def write(sheet):
    """Writes the sheet with one line for each innermost object or list, so that a change of one is a line of a diff."""
    text = json.dumps(sheet, indent=1)
    text = re.sub(r"[{\[]\n\s+[^{}\[\]]*?\n\s+[}\]]", lambda m: re.sub(r"\n\s+", " ", m[0]), text)
    SHEET.write_text(text + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--renew", action="store_true")
    arguments = parser.parse_args()
    cases = counts(build(ROOT / "build" / "gpu_cost"))
    if nvcc() is None:
        return "sheet.py: nvcc was not found; install the CUDA toolkit or set CUDA_HOME"
    if machine_code.disassembler() is None:
        return "sheet.py: cuobjdump and nvdisasm were not found; install them with the CUDA toolkit, or Triton"
    log, code = compiled()
    kernels = registers(kernels_of(cases), log)
    for name, by_architecture in kernels.items():
        for architecture, used in by_architecture.items():
            used |= code[name, architecture]
    sheet = {
        "what": "counted on the host twin and predicted; nothing was measured on a GPU (kernels/cuda/COST.md)",
        "nvcc": nvcc_version(),
        "predicted": predictions(cases, kernels),
        "kernels": kernels,
        "cases": cases,
    }
    if SHEET.is_file():
        print("\n".join(differences(json.loads(SHEET.read_text())["cases"], cases)) or "no count has changed")
    show(sheet)
    if arguments.renew:
        write(sheet)
        table.write(sheet)


if __name__ == "__main__":
    raise SystemExit(main())
