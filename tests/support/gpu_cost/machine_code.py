"""What a kernel's machine code says of its instructions: how many a warp issues beside the accesses that it makes.

The host twin counts accesses, not instructions: those are the compiler's. Of a kernel's innermost loops (without loops
all of it) that one counts for a kind of access which is within most other loops, and of such the one with most accesses
of the kind. Of a loop, the path with the most accesses is taken, and of such paths the shortest: slow divisions and
ends of rows are left out.

That finds the loop of a matrix product and of sums over taps. It does not find the one loop over device memory of the
other kernels: loops for zeros, ends of rows and other options have as many accesses. So those are not priced.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

FUNCTION = re.compile(r"Function : (\S+)\n(.*?)(?=\n\s*\.\.\.\.|\Z)", re.DOTALL)
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
# What warps access: device and shared memory, matrix instructions, shuffles and votes; and of what is said how many
# instructions go with it.
KINDS = {
    "device": ("LDG", "STG", "LDGSTS"),
    "shared": ("LDS", "STS", "LDSM"),
    "matrix": ("HMMA",),
    "shuffle": ("SHFL", "VOTE"),
}
PRICED = ("shared", "matrix")


def disassembler():
    """cuobjdump, of the CUDA toolkit or Triton's wheel, or None; it wants nvdisasm beside it."""
    places = [Path(os.environ["CUDA_HOME"], "bin")] if "CUDA_HOME" in os.environ else []
    found = shutil.which("cuobjdump")
    places += [Path(found).parent] if found else []
    triton = importlib.util.find_spec("triton")
    places += [Path(triton.origin).parent / "backends" / "nvidia" / "bin"] if triton and triton.origin else []
    whole = [place for place in places if (place / "cuobjdump").is_file() and (place / "nvdisasm").is_file()]
    return whole[0] / "cuobjdump" if whole else None


def instructions(text):
    """The instructions of a function: (address, predicate or None, name, operands)."""
    return [(int(at, 16), guard or None, name, rest) for at, guard, name, rest in INSTRUCTION.findall(text)]


def disassembled(binary, architecture):
    """A dict from a function's mangled name to its ``instructions``."""
    tool = disassembler()
    environment = {**os.environ, "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [str(tool), "-sass", "-arch", architecture, str(binary)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return {name: instructions(body) for name, body in FUNCTION.findall(text)}


def _kinds(name):
    """A 1 for the kind of access that an instruction is, among KINDS."""
    return [int(name.split(".")[0] in names) for names in KINDS.values()]


def _targets(code):
    """The index of the instruction that each branch goes to, by the branch's index in ``code``."""
    index = {at: i for i, (at, *_) in enumerate(code)}
    found = {}
    for i, (_, _, name, operands) in enumerate(code):
        to = re.search(r"0x([0-9a-f]+)", operands)
        if name.split(".")[0] == "BRA" and to:
            found[i] = index[int(to[1], 16)]
    return found


def _path(code, targets, first, last):
    """[accesses of each kind, instructions] of the path from ``first`` to ``last`` with the most accesses.

    Of several such paths the shortest. None where no path stays between the two.
    """
    best, ends = {first: (0, 0, (0,) * len(KINDS))}, []
    for i in range(first, last + 1):
        if i not in best:
            continue
        accesses, length, kinds = best[i]
        _, guard, name, _ = code[i]
        mine = _kinds(name)
        now = (accesses + sum(mine), length - 1, tuple(map(sum, zip(kinds, mine, strict=True))))
        after = [i + 1]
        if i in targets:
            after = [targets[i]] + ([i + 1] if guard else [])
        elif name == "EXIT":
            after = [i + 1] if guard else []
        if i == last or targets.get(i) == first or name == "EXIT":
            ends.append(now)
        for to in after:
            if i < to <= last:
                best[to] = max(best.get(to, now), now)
    if not ends:
        return None
    _, length, kinds = max(ends)
    return [*kinds, -length]


def per_access(code):
    """A dict from a kind of PRICED to the instructions that a warp issues for each access, where most are made."""
    targets = _targets(code)
    until = {}
    for i, to in targets.items():
        if to < i:
            until[to] = max(until.get(to, i), i)
    spans = list(until.items())
    around = {span: [other for other in spans if other[0] <= span[0] and span[1] <= other[1]] for span in spans}
    innermost = [span for span in spans if not any(span in around[other] for other in spans if other != span)]
    paths = [(len(around[span]), _path(code, targets, *span)) for span in innermost]
    paths = [(depth, path) for depth, path in paths if path and any(path[:-1])]
    paths = paths or [(0, _path(code, targets, 0, len(code) - 1))]
    found = {}
    for i, kind in enumerate(KINDS):
        _, path = max(paths, key=lambda one: (one[1][i] > 0, one[0], one[1][i], one[1][-1]))
        if kind in PRICED and path[i] > 0:
            found[kind] = round(path[-1] / path[i], 1)
    return found
