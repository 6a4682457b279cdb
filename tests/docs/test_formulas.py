"""The pages of the ops: their code runs and finds each stated gradient right, and what they point to is there."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
if not (ROOT / "docs").is_dir():
    pytest.skip("no source tree around the tests", allow_module_level=True)

PAGES = sorted(path for path in (ROOT / "docs" / "ops").glob("*.md") if path.stem != "index")
WITHOUT_GRADIENT = ("memory", "optimizers")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"`((?:kernels|csrc|src|benchmarks|tests|docs)/[\w./]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_code_of_the_page_holds(page):
    blocks = BLOCK.findall(page.read_text())
    assert any("assert_close" in block for block in blocks)
    assert page.stem in WITHOUT_GRADIENT or any("autograd.grad(" in block for block in blocks)
    namespace = {}
    torch.manual_seed(0)
    for block in blocks:  # one after another, as a reader runs them
        exec(compile(block, page.name, "exec"), namespace)
    tensors = [value for value in namespace.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    assert tensors
    assert all(tensor.dtype == torch.float64 for tensor in tensors)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_files_that_the_page_names_are_there(page):
    names = NAMED.findall(page.read_text())
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_index_names_every_page():
    linked = set(re.findall(r"\]\((\w+)\.md\)", (ROOT / "docs" / "ops" / "index.md").read_text()))
    assert linked == {page.stem for page in PAGES}
