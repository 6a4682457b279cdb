"""The examples in the docstrings are run, and each function and layer has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import pydl
from pydl import functional, nn, optim, rlhf, text
from pydl.vision import boxes

NAMES = {"torch": torch, "pydl": pydl, "nn": nn, "F": functional, "rlhf": rlhf, "text": text, "boxes": boxes}


def modules():
    """All of pydl's modules; the Triton kernels need Triton, ``__main__`` is the command line."""
    for found in pkgutil.walk_packages(pydl.__path__, "pydl."):
        if not found.name.startswith("pydl.kernels") and not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)
    yield pydl


EXAMPLES = {
    example.name: example
    for module in modules()
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, globs=NAMES)
    if example.examples
}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_gives_what_it_says(name):
    torch.manual_seed(0)
    runner = doctest.DocTestRunner()
    report = []
    runner.run(EXAMPLES[name], out=report.append)
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("module", [functional, nn, optim], ids=lambda module: module.__name__)
def test_each_public_name_has_an_example(module):
    without = [n for n in module.__all__ if ">>>" not in (inspect.unwrap(getattr(module, n)).__doc__ or "")]
    assert without == []
