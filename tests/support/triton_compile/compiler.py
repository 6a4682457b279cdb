"""Compiles what the launchers would launch on a target, on a machine without it.

The launchers are run on meta tensors with Triton's driver replaced by one that names a target, so what is compiled is
what they would launch there: the same signatures, specialisations and configurations. What several cases launch is
compiled once, by two processes.
"""

import contextlib
import io
import multiprocessing
import os
import re
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import torch
import triton
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from pydl.kernels.triton import launch
from triton_compile.cases import ALL_CASES, ALL_TARGETS


class Compiler:
    """Collects what the cases of a test run launch, and compiles each different kernel once, in two processes."""

    def __init__(self):
        self.sources = []  # (source, target, options) of each different kernel, in the order of their numbers
        self.numbers = {}  # of a source's hash, target and options
        self.wanted = {}  # numbers of (case, architecture)
        self.launches = {}  # (number, programs) of each launch of (case, architecture)
        self.futures = None

    def collect(self, name, architecture, monkeypatch):
        """Runs the launchers of a case as on an architecture."""
        target, device = ALL_TARGETS[architecture]
        number = list(ALL_TARGETS).index(
            architecture
        )  # a device number of its own: a kernel caches what it compiled by it
        active = SimpleNamespace(
            get_current_device=lambda: number,
            get_current_stream=lambda _: 0,
            get_current_target=lambda: target,
        )
        wanted = self.wanted.setdefault((name, architecture), {})
        launches = self.launches.setdefault((name, architecture), [])
        run = JITFunction.run

        def record(source, target, options, **_):
            key = (source.hash(), architecture, str(sorted(options.items())))
            if key not in self.numbers:
                self.numbers[key] = len(self.sources)
                self.sources.append((source, target, options))
            wanted[self.numbers[key]] = None
            return SimpleNamespace(number=self.numbers[key])

        def look_up(self_, *arguments, grid, warmup, **options):
            # a kernel that another case launched comes from Triton's cache, without a compilation
            kernel = run(self_, *arguments, grid=grid, warmup=True, **options)
            wanted[kernel.number] = None
            launches.append((kernel.number, *grid))
            return kernel

        with monkeypatch.context() as patch:
            patch.setattr(driver, "_active", active)
            patch.setattr(launch, "ELSEWHERE", device)
            patch.setattr(triton.compiler, "compile", record)
            patch.setattr(JITFunction, "run", look_up)
            ALL_CASES[name]()

    def start(self, folder):
        # forked workers see self.sources, which need not be pickled then
        self.pool = ProcessPoolExecutor(2, multiprocessing.get_context("fork"), _begin, (self.sources, folder))
        self.futures = [self.pool.submit(_compile, number) for number in range(len(self.sources))]

    def reports(self, name, architecture):
        return [self.futures[number].result() for number in self.wanted[name, architecture]]

    def launched(self, name, architecture):
        """The report of each launch, in order, with its number of programs."""
        return [self.futures[n].result() | {"programs": programs} for n, programs in self.launches[name, architecture]]


def _begin(sources, folder):
    global _sources
    _sources = sources
    os.environ["TRITON_CACHE_DIR"] = str(folder)  # an empty one: what is cached reports no spills
    triton.knobs.nvidia.dump_ptxas_log = True
    torch.set_num_threads(1)


def _compile(number):
    """A dict that says what became of a kernel: name, error, shared memory, spills, registers."""
    source, target, options = _sources[number]
    report = {"name": source.name, "error": None}
    begun = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()) as log:
        try:
            kernel = triton.compiler.compile(source, target=target, options=options)
        except Exception as error:  # whatever a compiler raises is a finding of the test
            return report | {"error": f"{type(error).__name__}: {error}"}
    report |= {"shared": kernel.metadata.shared, "warps": kernel.metadata.num_warps}
    report["seconds"] = round(time.monotonic() - begun, 1)
    if target.backend == "cuda":
        spills, registers = r"(\d+) bytes spill (?:stores|loads)", r"Used (\d+) registers"
        text, scalar = log.getvalue(), []
        report["instructions"] = instructions(kernel.asm["ptx"])
    else:
        # .private_segment_fixed_size: bytes of memory that a lane has for spills and arrays
        spills, registers = r"\.(?:vgpr_spill_count|private_segment_fixed_size):\s*(\d+)", r"\.vgpr_count:\s*(\d+)"
        text = kernel.asm["amdgcn"]
        scalar = re.findall(r"\.sgpr_spill_count:\s*(\d+)", text)
    found = re.findall(spills, text)
    if not found:
        return report | {"error": "no report of spills"}
    return report | {
        "spilled": sum(map(int, found)),
        "scalar": sum(map(int, scalar)),
        "registers": int(re.findall(registers, text)[0]),
    }


WIDTH = r"(?:\.(v[248]))?\.[bfsu](\d+)"
KINDS = {  # of PTX's instructions, but for those that are counted by their bytes a thread
    "matrix": r"wgmma\.mma_async|mma\.sync|tcgen05\.mma",
    "barriers": r"bar(?:rier)?\.(?:cta\.)?sync",
    "shuffles": r"shfl\.sync",
    "exp2": r"ex2\.approx",
    "float64": r"\w+(?:\.\w+)*\.f64",
    "division": r"(?:div|rem)(?:\.\w+)*\.[su](?:32|64)",
}


def instructions(ptx):
    """A dict from kinds of instructions to how often PTX has them: as written, loops counted once."""
    body = re.findall(r"^\s+(?:@!?%\w+ +)?([a-z]\w*(?:[.:]+\w+)*)([^;]*);", ptx, re.MULTILINE)
    found = Counter(all=len(body))
    for name, operands in body:
        if match := re.match(r"(ld|st)\.(global|shared)\S*?" + WIDTH + "$", name):
            what = {"ld": "load", "st": "store"}[match[1]]
            found[f"{match[2]} {what} {int(match[3][1:] if match[3] else 1) * int(match[4]) // 8}"] += 1
        elif match := re.match(r"cp\.async\.c[ag]", name):
            found[f"global copy {int(re.findall(r'0x[0-9a-f]+', operands)[0], 16)}"] += 1
        for kind, pattern in KINDS.items():
            found[kind] += bool(re.match(pattern, name))
    return {kind: n for kind, n in sorted(found.items()) if n}
