"""Counts what Triton's kernels access in memory, from the pointers that the interpreter is given.

For each kernel, loads and stores apart: the 32-byte sectors that its accesses touch, those that their bytes would fill,
and how many different ones there are, which is the least that device memory moves. An access is that of a whole
program, not of a warp: which lanes go together is the compiler's choice, and not known here.
"""

import contextlib
from dataclasses import dataclass, field

import numpy as np
from triton.runtime import interpreter

SECTOR = 32


@dataclass
class Accesses:
    """Of one kernel, loads or stores."""

    sectors: int = 0
    bytes: int = 0
    seen: list = field(default_factory=list)

    def note(self, pointers, mask, size):
        at = np.unique(pointers[np.broadcast_to(mask, pointers.shape)])  # lanes that ask for one address share it
        touched = np.unique(np.concatenate([at // SECTOR, (at + np.uint64(size - 1)) // SECTOR]))
        self.sectors += len(touched)
        self.bytes += len(at) * size
        self.seen.append(touched)

    def summary(self):
        different = len(np.unique(np.concatenate(self.seen)))
        return {"sectors": self.sectors, "ideal": -(-self.bytes // SECTOR), "different": different}


@contextlib.contextmanager
def counted():
    """Yields a dict that has, after the block, {kernel: {"loads": ..., "stores": ...}} of what ran in it."""
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, run = builder.create_masked_load, builder.create_masked_store, executor.__call__
    running, found, result = [], {}, {}

    def note(kind, pointers, mask):
        accesses = found.setdefault((running[-1], kind), Accesses())
        accesses.note(pointers.data, mask.data, max(pointers.get_element_ty().primitive_bitwidth // 8, 1))

    def counted_load(self, pointers, mask, *rest):
        note("loads", pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self, pointers, value, mask, *rest):
        note("stores", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def counted_run(self, *arguments, **options):
        running.append(self.fn.__name__)
        try:
            return run(self, *arguments, **options)
        finally:
            running.pop()

    builder.create_masked_load, builder.create_masked_store, executor.__call__ = (
        counted_load,
        counted_store,
        counted_run,
    )
    try:
        yield result
    finally:
        builder.create_masked_load, builder.create_masked_store, executor.__call__ = load, store, run
    for (kernel, kind), accesses in found.items():
        if accesses.bytes:
            result.setdefault(kernel, {})[kind] = accesses.summary()
