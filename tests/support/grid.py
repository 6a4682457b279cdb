"""The ops of one tensor: a row for each, which all grids over all ops read.

A row stands in the test file of its op, as the literal ``ROWS = {name: {...}}``, by the name of the function, torch's
and ours: the layer that means the same, what the function is called with beside the tensor, and which options
tests/ops/test_options.py gives it in every form. The tensor may have any shape of two dimensions or more.
"""

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """What the grids call an op with."""

    layer: str  # the class, in torch.nn and in ours
    of_layer: dict = field(default_factory=dict)  # its arguments
    given: dict = field(default_factory=dict)  # arguments of each call of the function
    options: tuple = ()  # names of arguments that take several forms


def _rows():
    for path in sorted((Path(__file__).parents[1] / "ops").glob("test_*.py")):
        for literal in re.findall(r"^ROWS = (\{.*?^\})", path.read_text(), re.MULTILINE | re.DOTALL):
            yield from ast.literal_eval(literal).items()


ROWS = {name: Row(**row) for name, row in _rows()}


def _call(name):
    given = ROWS[name].given

    def call(library, x, **options):
        return getattr(library, name)(x, **(given | options))

    call.__name__ = name
    return call


CALLS = {name: _call(name) for name in ROWS}  # name -> call(library, x, **options): by torch.nn.functional or ours
