"""Which machine this is, and which versions run on it: the head of every kept result."""

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

import pydl
from pydl import _C

# glibc maps every buffer above 32 MB anew, and the kernel zeroes its pages on first touch. With these settings freed
# memory is kept and reused, so that torch's time holds no page faults.
NO_PAGE_FAULTS = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:"
    "glibc.malloc.top_pad=268435456"
}

# The source tree that these files are part of; None where they are an installed package's.
_PARENT = Path(__file__).resolve().parents[1]
TREE = _PARENT if (_PARENT / "pyproject.toml").is_file() else None


def processor():
    """The CPU's name as the operating system gives it, and its generation, which virtual machines leave out of it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""

    def field(name):
        match = re.search(rf"^{name}\s*:\s*(.+)", text, re.MULTILINE)
        return match[1].strip() if match else None

    brand, family, model = field("model name"), field("cpu family"), field("model")
    if brand is None:
        return platform.processor() or platform.machine()
    return f"{brand} (family {family}, model {model})" if family and model else brand


def last_level_cache():
    """Bytes of the largest cache, 32 MB where the operating system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KM]?)", path.read_text().strip())
        if match:
            sizes.append(int(match[1]) << {"": 0, "K": 10, "M": 20}[match[2]])
    return max(sizes, default=32 << 20)


def commit():
    """The source tree's commit, with a + when files differ from it; None outside a git checkout."""
    if TREE is None:
        return None
    try:
        describe = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return describe.stdout.strip()


def name():
    """A file name for this machine: processor, instruction set, threads."""
    words = f"{processor()} {_C.cpu_isa()} {torch.get_num_threads()} threads"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def describe():
    """Everything that a figure needs beside it."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": _C.cpu_isa(),
        "system": platform.system(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "pydl": pydl.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiler": _C.compiler,
        "commit": commit(),
    }
