"""The pool that large outputs on the CPU come from.

The C library maps a large buffer anew at each allocation, and the operating system zeroes its pages at first touch,
which takes longer than the ops that fill it. Outputs of at least 1 MB therefore come from a pool of recycled memory in
huge pages. Memory returns to the pool when its tensor dies, on whatever thread; a forked child starts with none idle.
Idle memory stays below a limit (an eighth of the machine's memory unless :func:`set_limit` says otherwise), and idle
plus used memory below twice the most that was ever in use at once, or 64 MB over it.

An output of the pool cannot be resized (``resize_``, ``untyped_storage().resize_``): ``clone()`` it first, or let
:func:`serve_torch` give the pool to torch's own tensors too, which can. ``PYDL_MEMORY_POOL=0`` in the environment
switches the pool off; torch's allocator serves every output then.
"""

import contextlib
import os

from pydl import _C
from pydl.ops import _nodes

if os.environ.get("PYDL_MEMORY_POOL", "1") not in ("0", "1"):
    raise ValueError(f"memory: expected PYDL_MEMORY_POOL to be 0 or 1, got {os.environ['PYDL_MEMORY_POOL']!r}")


def stats():
    """A dict of what the pool holds and has done.

    ``enabled``; ``serves_torch`` (:func:`serve_torch`); in bytes ``used`` (in tensors now), ``idle`` (kept for reuse),
    ``peak`` (most in use at once) and ``limit`` (most kept idle); in buffers ``fresh`` (mapped), ``reused`` (handed out
    again) and ``given_back`` (unmapped).

    >>> pydl.memory.stats()["limit"] > 0
    True
    """
    return _C.memory_stats()


def serve_torch(on=True):
    """Lets the pool serve every tensor on the CPU of at least 1 MB, whatever op of torch's makes it, or no longer.

    For the whole process; tensors that there are stay where they are. torch's allocator serves what is smaller or over
    the limit of :func:`set_limit`, shared or pinned memory, and all of it once this is off again. The pool's memory is
    resident from the first moment on, used or not.

    Returns:
        Whether the pool serves torch now, which it does not where ``PYDL_MEMORY_POOL=0`` or where ``pydl._torch`` is
        not loaded (``pydl info`` says why).
    """
    if not on:
        _C.memory_serve_torch(False)
    elif _nodes.serve_memory(_C.memory_capsule()):
        _C.memory_serve_torch(True)
    return stats()["serves_torch"]


@contextlib.contextmanager
def serving_torch(wanted=True):
    """:func:`serve_torch` while the context lasts, where ``wanted``; what the pool keeps idle is given back at its end.

    Where the pool serves torch already, and where it cannot, the context does nothing.

    >>> with pydl.memory.serving_torch():
    ...     x = torch.ones(1024, 1024)
    >>> x.sum()
    tensor(1048576.)
    """
    if not wanted or stats()["serves_torch"] or not serve_torch():
        yield
        return
    try:
        yield
    finally:
        serve_torch(False)
        empty_cache()


def empty_cache():
    """Gives all idle memory back to the operating system; tensors keep theirs.

    >>> pydl.memory.empty_cache()
    """
    _C.memory_empty_cache()


def set_limit(bytes):
    """Keeps at most this many bytes idle; what is over goes back at once. 0 keeps none.

    Raises:
        TypeError: when bytes is not an integer.
        ValueError: when it is negative.
    """
    if not isinstance(bytes, int) or isinstance(bytes, bool):
        raise TypeError(f"memory: expected the limit to be an integer number of bytes, got {bytes!r}")
    if bytes < 0:
        raise ValueError(f"memory: expected the limit to be 0 or more bytes, got {bytes}")
    _C.memory_set_limit(min(bytes, 2**63 - 1))
