"""English prose that every Python has: what the modules of its standard library say of themselves."""

import ast
import re
import sys
import sysconfig
from functools import cache
from pathlib import Path

from pydl.errors import DataError

DOCUMENTED = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
LEAST_WORDS = 4  # of a paragraph
NO_LIBRARY = {"idlelib", "lib2to3", "test", "tests"}  # an application, a tool, and tests, some of them of bad sources
CODE = re.compile(r"^\s*(>>>|\.\.\. )|[=|{}\\<>_]{2}|^[\w.]+\(.*\)|\s\s\s+\S", re.MULTILINE)


def paragraphs(docstring):
    """The paragraphs of a docstring that are prose: no examples, signatures, tables or lists of arguments."""
    found = []
    for paragraph in re.split(r"\n\s*\n", docstring):
        if CODE.search(paragraph.strip()):
            continue
        words = re.findall(r"(?<![^\s(\"'`])[A-Za-z][a-z']*(?![^\s.,:;!?)\"'`])", paragraph)
        if len(words) >= LEAST_WORDS and len(words) >= 0.7 * len(paragraph.split()):
            found.append(paragraph)
    return found


def module(source):
    """The prose of the docstrings in the text of a module, in their order: of itself, its classes and functions."""
    found, after = [], [ast.parse(source)]
    while after:
        node = after.pop()
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node)):
            found += paragraphs(docstring)
        after += reversed([each for each in getattr(node, "body", ()) if isinstance(each, DOCUMENTED)])
    return "\n\n".join(found)


@cache
def docstrings():
    """{file: text} of the modules of the standard library that say something, read without importing them.

    Files are named from its folder on, ``json/decoder.py``; which there are depends on Python's version.

    Raises:
        DataError: for a Python without the sources of its library.
    """
    root, found = Path(sysconfig.get_path("stdlib")), {}
    for name in sorted(sys.stdlib_module_names):
        for path in [root / f"{name}.py", *sorted((root / name).rglob("*.py"))]:
            file = path.relative_to(root)
            if NO_LIBRARY.isdisjoint(file.parts) and path.is_file() and (text := module(path.read_bytes())):
                found[file.as_posix()] = text
    if not found:
        raise DataError(f"data set 'documentation': this Python comes without the sources of its library in {root}")
    return found
