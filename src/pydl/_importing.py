"""Around the import of the package: what ends it in the command, what it goes without, and what waits for another's.

What ends the command ``pydl`` while it is still importing is said as at any later moment: in a sentence. ``pydl`` and
``python -m pydl`` import the package, and torch with it, before a line of :mod:`pydl.cli` runs.
"""

import gc
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


@contextmanager
def uncollected():
    """Without garbage collection inside: of what an import makes nothing is garbage, and a look at all that torch made
    would take a third of the time of ours.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _When:
    """A finder of modules that stands first until the one it waits for is executed; the other finders find that."""

    def __init__(self, name, then):
        self.name, self.then = name, then

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            self.then(module)

        spec.loader.exec_module = exec_module
        return spec


def when_imported(name, then):
    """Calls ``then(module)`` as soon as the module ``name`` has been imported, by whomever: now, if it is there."""
    if name in sys.modules:
        then(sys.modules[name])
    else:
        sys.meta_path.insert(0, _When(name, then))
