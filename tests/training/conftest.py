"""What the tests of language models share."""

import pytest

from pydl.text import prose


@pytest.fixture(scope="session")
def novel(tmp_path_factory):
    """The path of a text of 300 sentences, some 25,000 characters."""
    path = tmp_path_factory.mktemp("text") / "novel.txt"
    path.write_text(". ".join(prose.sentences(prose.topics()["types"])[:300]))
    return str(path)
