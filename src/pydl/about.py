"""``pydl info``: what is installed, what this machine offers, which kernels would run, and why."""

import os
import platform

import torch
from rich.console import Console
from rich.table import Table

import pydl
from pydl import _C, backend, data, models
from pydl.ops import _nodes


def facts():
    """(label, text) pairs, in the order they are shown."""
    isas = backend.isas()
    chosen = backend.current_isa()
    forced = f" (best is {isas[-1]})" if chosen != isas[-1] else ""
    rows = [
        ("pydl", f"{pydl.__version__}, compiled by {_C.compiler}"),
        ("torch", torch.__version__),
        ("calls and gradients", "in C++" if _nodes.why_not is None else f"in Python: {_nodes.why_not}"),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("instruction set", f"{chosen}{forced}; this CPU runs {', '.join(isas)}"),
        ("caches of a core", ", ".join(f"{size >> 10} KB" for size in _C.cpu_caches())),
        ("threads", f"{torch.get_num_threads()} of {os.cpu_count()} CPUs"),
    ]
    for name, status in backend.available().items():
        rows.append((f"backend {name}", f"{'yes' if status else 'no'}: {status.reason}"))
    rows += [
        ("CUDA", f"torch has {torch.version.cuda or 'none'}; {_gpus()}"),
        ("Triton", _triton()),
        ("GPU architectures compiled", ", ".join(backend.cuda_architectures()) or "none"),
        ("models", ", ".join(models.names())),
        ("data sets", ", ".join(data.names())),
    ]
    for name in ("PYDL_BACKEND", "PYDL_CPU_ISA", "PYDL_NODES"):
        if name in os.environ:
            rows.append((name, os.environ[name]))
    return rows


def _gpus():
    if not torch.cuda.is_available():
        return "no GPU is seen"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _triton():
    try:
        import triton
    except ImportError:
        return "not installed"
    return triton.__version__


def show(console=None):
    """Prints the facts as a table."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in facts():
        table.add_row(label, text)
    (console or Console()).print(table)
