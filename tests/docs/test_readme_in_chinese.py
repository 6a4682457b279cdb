"""README in Chinese says what README says: the same code, commands, options, files and figures."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "README.zh.md").is_file():
    pytest.skip("no source tree around the tests", allow_module_level=True)

ENGLISH, CHINESE = ((ROOT / name).read_text() for name in ("README.md", "README.zh.md"))


def without_tables(text):
    """The made tables (benchmarks, models, GPUs) are in README alone."""
    return re.sub(r"^<!-- \w+: made by .*?^<!-- end of \w+ -->$", "", text, flags=re.MULTILINE | re.DOTALL)


def blocks(text):
    return re.findall(r"^```\w*\n.*?^```$", text, re.MULTILINE | re.DOTALL)


def spans(text, pattern):
    prose = re.sub(r"^```.*?^```$", "", without_tables(text), flags=re.MULTILINE | re.DOTALL)
    found = {" ".join(span.split()) for span in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", prose)}
    return {span for span in found if re.match(pattern, span)}


def test_code_blocks_are_the_same():
    assert blocks(CHINESE) == blocks(ENGLISH)


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(r"(pydl|pip|pytest|python|torchrun) ", id="commands"),
        pytest.param(r"--", id="options"),
        pytest.param(r"pydl\.|with pydl\.|torch\.compile\(|PYDL_", id="names"),
        pytest.param(r"\S+\.(png|jsonl|txt|sh|md|jpg)$", id="files"),
    ],
)
def test_spans_are_the_same(pattern):
    assert spans(CHINESE, pattern) == spans(ENGLISH, pattern)


def test_every_ratio_of_the_translation_is_readmes():
    """Figures that are new in README fail here until the translation has them too, if it quotes that table."""
    ratios = set(re.findall(r"\d+\.\d+×|\d\.\d{3}", CHINESE))
    assert ratios <= set(re.findall(r"\d+\.\d+×|\d\.\d{3}", ENGLISH))
    assert len(ratios) > 40


def test_headings_are_as_many():
    assert len(re.findall(r"^## ", CHINESE, re.MULTILINE)) == len(re.findall(r"^## ", ENGLISH, re.MULTILINE))
