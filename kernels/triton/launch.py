"""What the launchers share: the launch itself, what they must know of a device, and index arithmetic.

A launcher sees tensors (a Triton kernel takes its pointers from them), chooses a configuration by coarse sizes and
starts kernels on the current stream. It never reads device memory, so it can be captured in a graph.
"""

import functools
import math
import os
import struct
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

ACCUMULATE = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.float32,
    torch.float16: tl.float32,
}


@dataclass(frozen=True)
class Device:
    """What configurations are chosen by."""

    multiprocessors: int
    shared_bytes: int  # the most that one program may use
    capability: int  # 10 * major + minor on NVIDIA's, 0 elsewhere
    tf32: bool = True  # whether Triton has products of float32 rounded so for it


@functools.cache
def _device(index):
    p = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return Device(p.multi_processor_count, 65536, 0, tf32=p.gcnArchName.startswith("gfx942"))
    return Device(p.multi_processor_count, p.shared_memory_per_block_optin, 10 * p.major + p.minor)


# what the interpreter takes a CPU for: small, so that splits are exercised
ELSEWHERE = Device(4, 99 * 1024, 80)


def device_of(tensor):
    """The :class:`Device` that holds ``tensor``, or ``ELSEWHERE`` if that is no GPU."""
    return _device(tensor.device.index) if tensor.is_cuda else ELSEWHERE


def require_device(op, of, like, **tensors):
    """Raises where one of ``tensors`` is on another device than ``like``, which the caller knows as ``of``."""
    for name, t in tensors.items():
        if t is not None and t.device != like.device:
            raise RuntimeError(
                f"{op}: expected {name} to be on the device of {of}, got one on {t.device} and {of} on {like.device}"
            )


def launch(kernel, programs, like, *arguments, **options):
    """Starts ``programs`` programs of ``kernel`` on the current stream of the device of the tensor ``like``."""
    if programs == 0:
        return
    if like.is_cuda and like.device.index != torch.cuda.current_device():
        with torch.cuda.device(like.device):
            kernel[(programs,)](*arguments, **options)
    else:
        kernel[(programs,)](*arguments, **options)


def power_of_2(n):
    """The smallest power of two that is at least ``n``."""
    return triton.next_power_of_2(max(int(n), 1))


def unit_of(*sizes):
    """The largest power of two, of 16 at most, that divides all of ``sizes`` (see ``arithmetic.multiple``)."""
    return math.gcd(16, *sizes)


def double_bits(value):
    """A float64 as an int64: Triton passes a Python float as float32."""
    return int.from_bytes(struct.pack("<d", value), "little", signed=True)


def merged_dims(sizes, *strides):
    """Merges neighbouring dimensions that every stride walks as one; returns sizes and strides, outermost first."""
    kept = []
    for size, *steps in zip(sizes, *strides, strict=True):
        if size == 1:
            continue
        if kept and all(outer == size * inner for outer, inner in zip(kept[-1][1:], steps, strict=True)):
            kept[-1] = [kept[-1][0] * size, *steps]
        else:
            kept.append([size, *steps])
    return [tuple(column) for column in zip(*kept, strict=True)] or [(1,)] * (1 + len(strides))
