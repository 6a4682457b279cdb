"""Ctrl-C while the command ``pydl`` is still importing: a word and exit code 130, as at any later moment.

``pydl`` and ``python -m pydl`` import the package, and torch with it, before a line of :mod:`pydl.cli` runs.
"""

import os
import sys
from contextlib import contextmanager


def _in_the_command():
    if sys.argv[:1] == ["-m"]:  # what Python puts there while it looks for the module to run
        words = sys.orig_argv
        return "-m" in words[:-1] and words[words.index("-m") + 1] == "pydl"
    return os.path.basename(sys.argv[0] if sys.argv else "") == "pydl"


@contextmanager
def quiet_in_the_command():
    """Ends the process where Ctrl-C comes inside and the process is the command; else the exception goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if not _in_the_command():
            raise
        print("pydl: interrupted", file=sys.stderr)
        sys.exit(130)
