"""Ctrl-C at any moment of the command: a word, exit code 130, no traceback."""

import subprocess
import sys

import pytest


def interrupted(command, module):
    """(exit code, stderr) of ``command``, which gets Ctrl-C as it starts to import ``module``."""
    code = f"""
import builtins, os, runpy, signal, sys
original = builtins.__import__
def look(name, *arguments, **options):
    if name == {module!r} and not look.sent:
        look.sent = True
        os.kill(os.getpid(), signal.SIGINT)
    return original(name, *arguments, **options)
look.sent = False
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so do its children
builtins.__import__ = look
sys.argv = {command!r}
sys.orig_argv = ["python", *sys.argv]
if sys.argv[0] == "-m":
    runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=False)
else:
    from pydl.cli import main
    main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


PYDL, AS_MODULE = ["/usr/bin/pydl", "info"], ["-m", "pydl", "info"]


# from Typer on, which pydl.cli imports, the two go the same way
@pytest.mark.parametrize(
    "command, module",
    [(AS_MODULE, "torch"), (AS_MODULE, "pydl.swapping"), *((PYDL, m) for m in ("torch", "typer", "rich.console"))],
    ids=str,
)
def test_while_it_imports(command, module):
    assert interrupted(command, module) == (130, "pydl: interrupted\n")


def test_a_program_that_imports_pydl_keeps_its_exception():
    _, err = interrupted(["program.py"], "pydl.swapping")
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert "pydl: interrupted" not in err
