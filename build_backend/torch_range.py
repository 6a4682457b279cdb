"""src/pydl/_torch_range.py for the build, which cannot import pydl; run as a script it prints pip's requirement."""

import re
import runpy
import sysconfig
from pathlib import Path

_RANGE = runpy.run_path(str(Path(__file__).resolve().parents[1] / "src" / "pydl" / "_torch_range.py"))
requirement, why_not = _RANGE["requirement"], _RANGE["why_not"]


def installed_folder():
    """The folder of the target environment's torch, or None.

    Under pip's isolation ``sysconfig`` still names the target environment's folders.
    """
    for name in ("purelib", "platlib"):
        folder = Path(sysconfig.get_paths()[name], "torch")
        if (folder / "version.py").is_file():
            return folder
    return None


def versions(folder):
    """(version, CUDA version or None), read from torch/version.py: importing torch takes seconds."""
    text = (folder / "version.py").read_text()
    version = re.search(r"__version__ = '([^']+)'", text).group(1)
    cuda = re.search(r"^cuda(?:: [^=]+)? = '([^']+)'", text, re.MULTILINE)
    return version, cuda.group(1) if cuda else None


def requirement_here():
    """pip's requirement for this environment: as far as the torch that is installed in it."""
    folder = installed_folder()
    return requirement(versions(folder)[0] if folder else None)


if __name__ == "__main__":
    print(requirement_here())
