"""English prose that every Python has: the topics of its language reference, without what they repeat."""

import re
import zlib

from pydl.errors import DataError

TEST_SHARE = 0.1


def letters(text):
    """``text`` in small letters, with one blank for whatever lies between them.

    Source: d2l section "Converting Raw Text into Sequence Data", preprocessing.

    >>> text.letters("The Time-Machine, by H. G. Wells")
    'the time machine by h g wells'
    """
    return re.sub("[^A-Za-z]+", " ", text).strip().lower()


def sentences(text):
    """The sentences of ``text`` in letters and blanks, in order; those without a letter are left out."""
    paragraphs = re.split(r"\n\s*\n", text)
    pieces = (piece for paragraph in paragraphs for piece in re.split(r"(?<=[.!?:;])\s+", paragraph))
    return [cleaned for piece in pieces if (cleaned := letters(piece))]


def topics():
    """{name: text} of Python's topics.

    Raises:
        DataError: for a Python without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError("data set 'prose': this Python comes without its reference (pydoc_data)") from None
    return topics


def split_documents(texts, more=None):
    """(train, test) of a dictionary of texts by name: lists of (name, its sentences), of letters and blanks.

    A sentence that occurs several times, in whatever topics, stays once. The test part is whole topics, a tenth of the
    text at most, picked by a checksum of their names; what they say is not in the training part.

    Args:
        more: a dictionary of texts that are trained on beside the others, after them.
    """
    room, seen = TEST_SHARE * sum(map(len, texts.values())), set()
    test = set()
    for name in sorted(texts, key=lambda name: zlib.crc32(name.encode())):
        if len(texts[name]) <= room:
            room -= len(texts[name])
            test.add(name)
    parts = [], []  # train, test; the test's topics come first, so that they keep all they say
    order = sorted(texts.items(), key=lambda item: (item[0] not in test, item[0]))
    for i, (name, text) in enumerate([*order, *sorted((more or {}).items())]):
        fresh = [sentence for sentence in dict.fromkeys(sentences(text)) if sentence not in seen]
        seen.update(fresh)
        parts[i < len(test)].append((name, fresh))
    return parts


def split(texts, more=None):
    """(train, test) of :func:`split_documents`, each as one text."""
    return tuple(" ".join(" ".join(lines) for _, lines in part if lines) for part in split_documents(texts, more))
