"""The table of rules, and the order in which the files of swapping import each other."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import pydl
from pydl import functional
from pydl.swapping.rules import RULES

FOLDER = Path(pydl.swapping.__file__).parent


def imports(path):
    """The files of swapping that one of them imports, wherever in it."""
    names = {other.stem for other in FOLDER.glob("*.py")}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pydl.swapping"):
            tail = node.module.removeprefix("pydl.swapping").lstrip(".")
            found |= {tail} if tail else {alias.name for alias in node.names if alias.name in names} or {"__init__"}
        elif isinstance(node, ast.Import):
            found |= {alias.name.rpartition(".")[2] for alias in node.names if alias.name.startswith("pydl.swapping.")}
    return found


def test_no_circle_of_imports():
    left = {path.stem: imports(path) for path in FOLDER.glob("*.py")}
    assert left["bind"] == {"bound", "container", "layer", "rules"}  # so that the test sees anything
    while left:
        free = {name for name, needs in left.items() if not needs & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


def test_no_import_inside_a_function():
    for path in FOLDER.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                inside = [n for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
                names = [(getattr(n, "module", None) or n.names[0].name).partition(".")[0] for n in inside]
                assert "pydl" not in names, f"{path.name}: {function.name}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.torchs.__name__)
def test_every_rule_is_whole(rule):
    assert rule.ours.__name__ == rule.torchs.__name__
    assert rule.ours.__name__ in pydl.nn.__all__
    assert callable(getattr(functional, rule.name))
    assert rule.own.forward is rule.torchs.forward
    assert rule.name in rule.torchs.forward.__code__.co_names or rule.own.methods
    assert all(callable(call) for call in rule.calls)


def test_every_layer_of_pydl_nn_has_a_rule():
    assert {rule.ours.__name__ for rule in RULES} == {n for n in pydl.nn.__all__ if "Lazy" not in n}


def test_an_activation_of_a_rule_is_one_that_the_kernels_know():
    for rule in RULES:
        if rule.role == "activation":
            net = pydl.swap(nn.Sequential(nn.Conv2d(1, 2, 1), rule.torchs()))
            assert pydl.report(net).rows[1].fused == "in 0"
            x = torch.randn(2, 1, 3, 3)
            torch.testing.assert_close(net(x), rule.calls[1](nn.functional.conv2d(x, net[0].weight, net[0].bias)))
