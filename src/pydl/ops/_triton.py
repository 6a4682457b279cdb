"""Registers the Triton kernels as ``pydl_triton``'s implementations, where Triton is present.

The kernels are imported at the first call, not here: ``import pydl`` does not wait for Triton.
"""

import functools
import importlib
import importlib.util
import os
import re
from pathlib import Path

import torch

OLDEST = (3, 6)  # what torch 2.11 brings; 3.4 refuses a kernel (kernels/triton/NOTES.md)


@functools.cache
def version():
    """Triton's version as text, or None without Triton; read from its files, without importing it."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    found = re.search(r"__version__ = ['\"]([^'\"]+)", Path(spec.origin).read_text())
    return found.group(1) if found else None


@functools.cache
def why_not():
    """Why the Triton backend cannot be used, in words; None when it can."""
    if version() is None:
        return "triton is not installed (or does not state its version)"
    if tuple(int(part) for part in re.findall(r"\d+", version())[:2]) < OLDEST:
        return f"triton {version()} is too old; install triton {'.'.join(map(str, OLDEST))} or newer"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "torch sees no GPU (TRITON_INTERPRET=1 runs the Triton kernels on CPU tensors, slowly)"
    return None


def interpreted():
    """Whether Triton runs kernels by its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


_module_of = {}  # name of an op -> the module below pydl.kernels.triton with its launcher


def ops():
    """The names of the ops that have GPU kernels, as their files are called: ``["batch_norm", "conv2d", ...]``."""
    return sorted({module.split(".")[-1] for module in _module_of.values()})


def launcher(name):
    """The function that implements the op ``name``: it has the op's name. Imported at the first call."""
    return getattr(importlib.import_module(f"pydl.kernels.triton.{_module_of[name]}"), name)


def implement(name, module):
    """Registers the function ``name`` of ``pydl.kernels.triton.<module>`` as the op."""
    _module_of[name] = module

    def run(*arguments, **options):
        return launcher(name)(*arguments, **options)

    torch.library.impl(f"pydl_triton::{name}", "cuda", run)
    if interpreted():
        torch.library.impl(f"pydl_triton::{name}", "cpu", run)
