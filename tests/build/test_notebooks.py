"""notebooks/: each is a valid notebook without outputs, uses what this project is about, and runs without an error."""

import ast
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="reads notebooks")

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
SECONDS = 20  # of one quiet machine with two cores; a busy one may take a few times as long
BUSY = 15


def read(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def plain(source):
    """Code whose IPython commands are replaced by ``pass``, as deep as they stood."""
    lines = []
    for line in source.splitlines():
        bare = line.lstrip()
        lines.append(line[: len(line) - len(bare)] + "pass" if bare.startswith(("%", "!")) else line)
    return "\n".join(lines)


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 15
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in range(1, 16)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_and_without_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    ids = [cell.id for cell in notebook.cells]  # which the format asks for from 4.5 on
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        assert cell.source.strip()
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            assert cell.metadata == {}
    assert notebook.cells[0].source.startswith("# ")
    assert path.read_text() == json.dumps(json.loads(path.read_text()), indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_swaps_and_reports(path):
    trees = [ast.parse(plain(cell.source)) for cell in read(path).cells if cell.cell_type == "code"]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    assert {"pydl.swap", "pydl.report"} <= called
    private = {name for node in nodes if isinstance(node, ast.Attribute) and (name := node.attr).startswith("_")}
    assert not {name for name in private if not name.startswith("__")}


def test_the_first_one_installs_only_what_is_missing():
    first = next(cell for cell in read(NOTEBOOKS[0]).cells if cell.cell_type == "code")
    (_, condition) = ast.parse(plain(first.source)).body
    assert isinstance(condition, ast.If)
    assert ast.unparse(condition.test) == "importlib.util.find_spec('pydl') is None"
    assert '%pip install --quiet "pydl-kernels[train]"' in first.source


def test_names_are_defined_and_used():
    ruff = shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is no dependency of the tests; pre-commit runs it")
    found = subprocess.run([ruff, "check", "--select", "F", *NOTEBOOKS], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, capsys, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="runs notebooks; it comes with the extra docs")
    pytest.importorskip("ipykernel", reason="runs notebooks; it comes with the extra docs")
    # as a user has it: of the settings of tests one warns in a notebook that compiles, one is for busy machines
    for name in ("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    notebook, began = read(path), time.perf_counter()
    nbclient.NotebookClient(
        notebook, timeout=BUSY * SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    seconds = time.perf_counter() - began
    with capsys.disabled():
        print(f"\n{path.stem}: {seconds:.1f} s")
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs
    assert not [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]  # warnings are seen there
    assert all(len(o.text) < 5000 for o in outputs if o.output_type == "stream")
