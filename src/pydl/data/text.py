"""Texts for language models, as token numbers: prose that comes with Python or gensim, and any text file."""

import bz2
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from pydl._brief import Brief
from pydl.errors import DataError, MissingExtra
from pydl.text import Tokenizer
from pydl.text import prose as pieces
from pydl.text.docstrings import docstrings

WIKI = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
HELD_OUT = 0.1  # of a file without a test file beside it


@dataclass(repr=False)
class TextDataset(Brief):
    """A train and a test text as token numbers.

    Attributes:
        train, test: int64 tensors (N,).
        tokenizer: the :class:`pydl.text.Tokenizer` fitted to the train text.
    """

    name: str
    train: torch.Tensor
    test: torch.Tensor
    tokenizer: Tokenizer

    kind = "text"

    @property
    def classes(self):
        """The tokens, by number."""
        return tuple(self.tokenizer.vocab.idx_to_token)


def prose(root=None, seed=0, tokens="letters"):
    """English prose that every Python has, the topics of its language reference, in small letters and blanks.

    A sentence that they repeat stays once; the test part, about a tenth, is whole topics. How long it is depends on
    Python's version: about 260,000 characters and 28 tokens.
    """
    return _dataset("prose", *pieces.split(pieces.topics()), tokens)


def documentation(root=None, seed=0, tokens="letters"):
    """:func:`prose`, and beside it to train on the docstrings of the standard library, of what they have in prose.

    About 210,000 words, of which the test part is that of ``prose``: what its topics say is in no docstring here.
    """
    return _dataset("documentation", *pieces.split(pieces.topics(), docstrings()), tokens)


def wiki(root=None, seed=0, tokens="letters"):
    """The sample of English Wikipedia that gensim ships, in small letters and blanks, cut as :func:`prose` is.

    About 100 articles, 470,000 words.

    Raises:
        MissingExtra: where gensim is not installed.
        DataError: where it came without its sample.
    """
    return _dataset("wiki", *pieces.split(articles()), tokens)


def articles():
    """{title: text} of gensim's sample; the errors are those of :func:`wiki`."""
    try:
        from gensim.corpora.wikicorpus import extract_pages, filter_wiki
        from gensim.test.utils import datapath
    except ImportError:
        raise MissingExtra("data set 'wiki'", "gensim", "wiki") from None
    path = datapath(WIKI)
    try:
        with bz2.open(path) as file:
            pages = [(title, page) for title, page, _ in extract_pages(file, filter_namespaces=("0",))]
    except OSError as error:
        raise DataError(f"{path}: the sample of gensim cannot be read: {error.strerror or error}") from None
    return {title: filter_wiki(page) for title, page in pages if not page.lstrip().lower().startswith("#redirect")}


def text(root="data", seed=0, tokens="letters"):
    """The text of the file ``root``, in UTF-8.

    The test part is the file beside it whose name has ``test`` (or ``valid``) where this one has ``train``, as those of
    Penn Treebank and WikiText-2; without one, the last tenth of the lines.

    Raises:
        DataError: for a path that is no file, no text, or empty.
    """
    return _dataset("text", *parts(root), tokens)


def parts(root):
    """(train, test) of the file ``root``; the errors are those of :func:`text`."""
    path = Path(root)
    if not path.is_file():
        raise DataError(f"data set 'text': expected --root to be a file of text, got {str(root)!r}")
    beside = (path.with_name(re.sub("train", word, path.name)) for word in ("test", "valid"))
    other = next((each for each in beside if each != path and each.is_file()), None)
    train = _read(path)
    if other is not None:
        return train, _read(other)
    lines = train.splitlines(keepends=True)
    held = max(1, round(HELD_OUT * len(lines)))
    if len(lines) > 1:
        return "".join(lines[:-held]), "".join(lines[-held:])
    cut = len(train) - round(HELD_OUT * len(train))  # one long line
    return train[:cut], train[cut:]


def _read(path):
    try:
        found = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected text in UTF-8, got byte {error.object[error.start]:#x}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if not found.strip():
        raise DataError(f"{path}: expected text, got an empty file")
    return found


def _dataset(name, train, test, tokens):
    tokenizer = Tokenizer.fit(tokens, train)
    return TextDataset(name, *(torch.tensor(tokenizer.encode(part)).long() for part in (train, test)), tokenizer)
