"""Docstrings of the standard library as prose, and the data set that has them beside the language reference."""

import sysconfig

import pytest

from pydl import data
from pydl.errors import DataError
from pydl.text import docstrings, prose

SOURCE = '''
"""The module's purpose is told here.

    Usage: module.py [-h] FILE

>>> add(1, 2)
3
"""
import missing_module


class Thing:
    """A thing that holds other things.

    Arguments:
      first      what comes first
      second     what comes second

    It is made once and kept for as long as it is needed.
    """

    def method(self):
        "Return the number of things that are held."

        def inner():
            """Functions inside of functions are read as well."""

    def other(self):
        pass


async def run():
    """run(loop, *, timeout=None) -> Task

    Wait until the loop has nothing left to do.
    """
'''


def test_what_is_prose_in_a_module():
    found = prose.sentences(docstrings.module(SOURCE))
    assert found == [
        "the module s purpose is told here",
        "a thing that holds other things",
        "it is made once and kept for as long as it is needed",
        "return the number of things that are held",
        "functions inside of functions are read as well",
        "wait until the loop has nothing left to do",
    ]


def test_documentation_is_prose_and_docstrings():
    """The test part is that of ``prose``, and no run of ten words of it is in a docstring."""
    whole, topics = (data.sentences(name, least=3) for name in ("documentation", "prose"))
    assert whole.test == topics.test
    assert whole.train[: len(topics.train)] == topics.train
    modules = whole.train[len(topics.train) :]
    assert whole.collections == (len(topics.train), len(modules))
    assert topics.collections == ()
    assert {"json/decoder.py", "threading.py"} < {name for name, _ in modules}
    said, asked = ([line for _, lines in part for line in lines] for part in (modules, whole.test))
    assert sum(map(len, said)) > 2 * sum(len(line) for _, lines in topics.train for line in lines)
    runs = ({tuple(line[i : i + 10]) for line in lines for i in range(len(line) - 9)} for lines in (said, asked))
    assert set.isdisjoint(*runs)
    text = data.get("documentation", tokens="word")
    assert len(text.test) == len(data.get("prose", tokens="word").test)
    assert len(text.train) == sum(len(line) for _, lines in whole.train for line in lines)


def test_a_python_without_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="data set 'documentation': this Python comes without the sources of its"):
        docstrings.docstrings.__wrapped__()
