"""Tables and figures of the other pages are those of the kept results."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "docs").is_dir():
    pytest.skip("no source tree around the tests", allow_module_level=True)

sys.path.insert(0, str(ROOT / "docs"))
import figures
import tables


@pytest.mark.parametrize("name", tables.PAGES)
def test_tables_are_made_of_the_results(name):
    """Mend with: python docs/tables.py."""
    assert (ROOT / "docs" / name).read_text() == tables.page(name)


def test_the_example_of_page_faults_is_as_measured():
    (case,) = (r for r in figures.records("A", "layer_norm") if r["case"] == "32768×256 f32")
    said = f"{case['ratio']:.2f} times as fast as it comes, and {figures.calm(case):.2f} times without page faults"
    assert said in " ".join((ROOT / "docs" / "speed.md").read_text().split())


def test_a_case_below_one_is_named():
    behind = tables.behind()
    worst = min(figures.records("B", "conv2d"), key=figures.calm)
    assert figures.calm(worst) < 1
    assert f"{figures.calm(worst):.2f}× {worst['case']}" in behind
