"""What counted work should take on a GPU: for each launch several floors, and the time is the largest of them.

Nothing here was measured by pydl. Bandwidths are those of a device copy and of public microbenchmarks of the second
level cache, latency is that of a loaded read of device memory; a first run on a device should correct them here.
"""

from dataclasses import dataclass

from gpu_cost.machine_code import PRICED

SECTOR = 32


@dataclass(frozen=True)
class Gpu:
    """Constants of a GPU; seconds, bytes, operations a second."""

    architecture: str
    multiprocessors: int
    hertz: float
    memory: float  # bytes a second that a copy moves
    cache: float  # bytes a second out of the second-level cache
    latency: float
    launch: float  # of a node of a graph, start to start, with nothing to do
    matrix: float  # half-precision operations a second by mma.sync; 0 where these kernels have none
    plain: float  # float32 operations a second on plain cores
    registers: int = 65536
    threads: int = 2048
    blocks: int = 32
    shared: int = 0  # bytes of a multiprocessor


GPUS = {
    "H200": Gpu("sm_90", 132, 1.755e9, 4.3e12, 5.5e12, 650e-9, 2.5e-6, 490e12, 59e12, shared=228 << 10),
    "A100": Gpu("sm_80", 108, 1.41e9, 1.35e12, 4.0e12, 600e-9, 2.5e-6, 280e12, 19.5e12, shared=164 << 10),
    "T4": Gpu(
        "sm_75", 40, 1.35e9, 0.26e12, 1.2e12, 550e-9, 2.5e-6, 0, 6.9e12, threads=1024, blocks=16, shared=64 << 10
    ),
}


def resident(gpu, threads, registers, shared):
    """Blocks that a multiprocessor holds at a time; registers come in units of 256 a warp, shared memory of 1 KB."""
    warps = threads // 32
    by_registers = gpu.registers // (-(-registers * 32 // 256) * 256 * warps)
    by_shared = gpu.shared // (-(-shared // 1024) * 1024 + 1024) if shared else gpu.blocks
    return max(min(by_registers, gpu.threads // threads, by_shared, gpu.blocks), 1)


def floors(gpu, launch, used, multiply_adds=0):
    """A dict from what bounds a launch to the seconds that it takes at the least.

    used: what its kernel uses on ``gpu``: registers, bytes of shared memory, and machine_code.per_access.

    issue: a multiprocessor issues an instruction of four warps in a cycle.
    latency: blocks come in waves, and a block takes as long as its longest thread waits: once for each link of its
    chain. That is also the bound of the bytes in flight, by Little's law.
    """
    busy = min(gpu.multiprocessors, launch["blocks"])
    cycles = busy * gpu.hertz
    tensors = launch["tensors"].values()
    at_once = resident(gpu, launch["threads"], used["registers"], used["bytes"])
    waves = -(-launch["blocks"] // (gpu.multiprocessors * at_once))
    instructions = [launch[kind] * used.get(kind, 0) for kind in PRICED]
    found = {
        "memory": sum(t["different"] for t in tensors) * SECTOR / gpu.memory,
        "cache": sum(t["sectors"] for t in tensors) * SECTOR / gpu.cache,
        "latency": waves * launch["chain"] * gpu.latency,
        # the load and store unit: 128 bytes of shared memory, or four sectors, a cycle
        "access": (launch["wavefronts"] + sum(max(t["requests"], t["sectors"] / 4) for t in tensors)) / cycles,
        "exp2": launch["special"] / 16 / cycles,
        "issue": max(instructions) / 4 / cycles,
    }
    if launch["matrix"]:
        found["matrix"] = launch["matrix"] * 2 * 16 * 8 * 16 / gpu.matrix if gpu.matrix else float("inf")
    elif multiply_adds:
        found["multiply-adds"] = 2 * multiply_adds / gpu.plain
    return found


def predict(gpu, case, kernels):
    """(microseconds, what bounds the longest launch) of a case, or None where the GPU cannot run it."""
    total, longest = 0.0, (0.0, "launch")
    for i, launch in enumerate(case["launches"]):
        used = kernels[launch["kernel"]][gpu.architecture]
        terms = floors(gpu, launch, used, case["multiply_adds"] if i == 0 else 0)
        name, seconds = max(terms.items(), key=lambda term: term[1])
        if seconds == float("inf"):
            return None
        total += gpu.launch + seconds
        longest = max(longest, (seconds, name if seconds > gpu.launch else "launch"))
    return round(total * 1e6, 1), longest[1]
