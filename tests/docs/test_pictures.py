"""Every picture of the pages is drawn by its script, legibly, and comes out the same each time."""

import re
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the pictures are drawn by matplotlib, which is not installed")

DOCS = Path(__file__).parents[2] / "docs"
if not DOCS.is_dir():
    pytest.skip("no source tree around the tests", allow_module_level=True)

SCRIPTS = sorted((DOCS / "pictures").glob("*.py"))
PAGES = sorted((DOCS / "ops").glob("*.md"))


@pytest.fixture
def draw(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "pictures"))

    def run(script, output):
        monkeypatch.setattr(sys, "argv", [str(script), str(output)])
        runpy.run_path(str(script), run_name="__main__")
        return output

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_draws_the_same_picture_twice(script, draw, tmp_path):
    first, second = (draw(script, tmp_path / f"{i}.svg").read_text() for i in range(2))
    assert first == second
    assert first.count("<path") > 10


def test_a_picture_with_letters_on_letters_is_refused(draw, monkeypatch):
    from shared import card

    figure, axes = card.card(1)
    card.write(axes, 50, 12, "one text")
    assert card.faults(figure) == []
    card.write(axes, 52, 12, "another")
    card.write(axes, 1, 12, "far to the left")
    card.write(axes, 80, 20, "tiny", size=8)
    found = "\n".join(card.faults(figure))
    assert "'one text' and 'another' lie on one another" in found
    assert "'far to the left' is cut off" in found
    assert "'tiny' has 7.1 points" in found
    card.plt.close(figure)


def test_pages_show_the_pictures_that_there_are():
    shown = {name for page in PAGES for name in re.findall(r"\.\./pictures/build/(\w+)\.svg", page.read_text())}
    assert shown == {script.stem for script in SCRIPTS}
