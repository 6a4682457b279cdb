"""The chapter map: what it names exists, and both of its pages are what chapters.yml and the results make of them."""

import importlib
import shlex
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import pydl
from pydl import models
from pydl.commands import app

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "docs").is_dir():
    pytest.skip("no source tree around the tests", allow_module_level=True)
yaml = pytest.importorskip("yaml", reason="pip install '.[docs]'")

sys.path.insert(0, str(ROOT / "docs"))
import chapters

SECTIONS = [s for c in yaml.safe_load((ROOT / "docs/chapters.yml").read_text())["chapters"] for s in c["sections"]]
USES = sorted({use for section in SECTIONS for use in section.get("use", ())})
FILES = {"example": "examples/{}.py", "program": "tests/d2l/programs/{}.py", "notebook": "notebooks/{}.ipynb"}


@pytest.mark.parametrize("language", chapters.PAGES)
def test_pages_are_made_of_their_sources(language):
    """Mend with: python docs/chapters.py."""
    assert chapters.PAGES[language].read_text() == chapters.page(language)


def test_every_name_is_one_of_pydls():
    for section in SECTIONS:
        for name in section.get("pydl", ()):
            module, _, attribute = name.rpartition(".")
            if module == "models" and attribute in models.names():
                continue
            place = pydl if module == "pydl" else importlib.import_module(f"pydl.{module or 'functional'}")
            assert hasattr(place, attribute), f"{section['en']}: {name}"


@pytest.mark.parametrize("use", USES)
def test_what_can_be_run_is_there(use):
    kind, _, rest = use.partition(" ")
    if kind in FILES:
        assert (ROOT / FILES[kind].format(rest)).is_file()
        return
    words = shlex.split(use) if kind != "train" else ["pydl", *use.split()]
    words = words[words.index("pydl") + 1 :]
    command = get_command(app).commands[words[0]]
    if words[0] == "train":
        assert words[1] in models.names()
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_every_model_example_program_and_notebook_has_its_place():
    named = {kind: {use.partition(" ")[2] for use in USES if use.startswith(f"{kind} ")} for kind in FILES}
    for kind, pattern in FILES.items():
        folder, suffix = pattern.split("{}")
        assert named[kind] == {path.stem for path in (ROOT / folder).glob(f"*{suffix}")}
    trained = {use.split()[1] for use in USES if use.startswith("train ")}
    assert trained == set(models.names())


def test_a_figure_that_nobody_measured_is_refused():
    with pytest.raises(KeyError, match="no machine's results have"):
        chapters._ratio("matmul/never measured", {}, "")
    with pytest.raises(KeyError, match="does not say"):
        chapters._ratio("notes kernels/cpu/optim/NOTES.md: 99.9", {"notes": ""}, "")
