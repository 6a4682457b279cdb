"""What ends the command ``pydl`` while it is still importing is said as at any later moment: in a sentence.

``pydl`` and ``python -m pydl`` import the package, and torch with it, before a line of :mod:`pydl.cli` runs.
"""

import os
import sys
from contextlib import contextmanager

from pydl.errors import UserError


def _in_the_command():
    if sys.argv[:1] == ["-m"]:  # what Python puts there while it looks for the module to run
        words = sys.orig_argv
        return "-m" in words[:-1] and words[words.index("-m") + 1] == "pydl"
    return os.path.basename(sys.argv[0] if sys.argv else "") == "pydl"


@contextmanager
def in_words():
    """Ends the process where Ctrl-C or a user's error comes inside and the process is the command; else both go on."""
    try:
        yield
    except (KeyboardInterrupt, UserError) as error:
        if not _in_the_command():
            raise
        interrupted = isinstance(error, KeyboardInterrupt)
        print("pydl: interrupted" if interrupted else f"pydl: {str(error).removeprefix('pydl: ')}", file=sys.stderr)
        sys.exit(130 if interrupted else error.exit_code)
