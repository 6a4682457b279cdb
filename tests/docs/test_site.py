"""What builds the site: links that lead to pages of it, and the check of links in what was built."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "docs").is_dir():
    pytest.skip("no source tree around the tests", allow_module_level=True)

sys.path.insert(0, str(ROOT / "docs"))
import links
import sources


@pytest.mark.parametrize(
    "page, link, led",
    [
        ("chapters.md", "[gru](../examples/gru_from_scratch.py)", "[gru](examples/gru_from_scratch.md)"),
        ("zh/chapters.md", "[gru](../../examples/gru_from_scratch.py)", "[gru](../examples/gru_from_scratch.md)"),
        ("ops/layer_norm.md", "[notes](../../kernels/cpu/norm/NOTES.md)", "[notes](../notes/kernels-cpu-norm.md)"),
        ("add_an_op.md", "[it](../CONTRIBUTING.md#add-an-op)", "[it](contributing.md#add-an-op)"),
        ("contributing.md", "[it](docs/speed.md)", "[it](speed.md)"),
        ("zh/chapters.md", "[it](../../README.zh.md)", "[it](readme.md)"),
        ("readme.md", "[it](docs/chapters.md)", "[it](chapters.md)"),
        ("zh/readme.md", "[it](docs/zh/chapters.md)", "[it](chapters.md)"),
        ("readme.md", "[over\ntwo lines](docs/add_an_op.md)", "[over\ntwo lines](add_an_op.md)"),
        ("speed.md", "[it](../pyproject.toml)", "it"),
        ("speed.md", "[it](chapters.md#x)", "[it](chapters.md#x)"),
        ("speed.md", "[it](https://d2l.ai)", "[it](https://d2l.ai)"),
        ("speed.md", "[it](#what-is-timed)", "[it](#what-is-timed)"),
        ("speed.md", "[it](nowhere.md)", "[it](nowhere.md)"),
        ("ops/dropout.md", "![it](../pictures/build/philox.svg)", "![it](../pictures/build/philox.svg)"),
    ],
)
def test_links_lead_to_pages_of_the_site(page, link, led):
    assert sources.relink(f"See {link}.", page) == f"See {led}."


def test_every_example_and_note_has_a_page():
    shown = sources.places()
    assert {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")} <= shown.keys()
    assert "kernels/cpu/conv2d/winograd/NOTES.md" in shown
    assert len(set(shown.values())) == len(shown)


def test_broken_links_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text('<a href="sub/"></a><a href="sub/index.html#there"></a><img src="gone.svg">')
    (tmp_path / "sub" / "index.html").write_text(
        '<p id="there"></p><a href="../index.html#not"></a><a href="#there"></a><a href="https://d2l.ai/x">'
    )
    broken, elsewhere = links.check(tmp_path)
    assert broken == ["index.html: gone.svg", "sub/index.html: ../index.html#not (no such place on the page)"]
    assert elsewhere == ["https://d2l.ai/x"]
