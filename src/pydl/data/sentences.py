"""The texts of :mod:`pydl.data.text` sentence by sentence, for what learns from words in their sentences."""

from dataclasses import dataclass, field

from pydl._brief import Brief
from pydl.data.text import articles, parts
from pydl.errors import DataError, OptionError
from pydl.text import Vocab
from pydl.text import prose as pieces
from pydl.text.docstrings import docstrings

RESERVED = ("<pad>", "<mask>", "<cls>", "<sep>")
PAD, MASK, CLS, SEP = 1, 2, 3, 4  # their numbers: 0 is <unk>
FIRST_WORD = 5


@dataclass(repr=False)
class SentenceDataset(Brief):
    """Documents of sentences, to train and to test on.

    Attributes:
        train, test: lists of (name, sentences), each sentence a list of words.
        vocab: of the words of ``train``, with ``<pad>``, ``<mask>``, ``<cls>`` and ``<sep>``.
        collections: how many documents of ``train`` are from each of the places that it was collected at, in order.
    """

    name: str
    train: list
    test: list
    vocab: Vocab
    collections: tuple = field(default=(), kw_only=True)

    kind = "sentences"

    @property
    def classes(self):
        """The words, by number."""
        return tuple(self.vocab.idx_to_token)


def sentences(name, root="data", least=1):
    """The :class:`SentenceDataset` called ``name``.

    A document of ``prose`` is a topic, of ``documentation`` a topic or a module of the standard library, of ``wiki`` an
    article, of ``text`` the file.

    Words are small letters; which documents are the test is as for language models.

    Args:
        least: a word that occurs less often among those trained on is unknown.

    Raises:
        OptionError: for another name.
        DataError: for a text without words, and as :func:`pydl.data.get`.
    """
    modules = docstrings() if name == "documentation" else {}
    if name == "text":
        found = [[(part, pieces.sentences(text))] for part, text in zip(("train", "test"), parts(root), strict=True)]
    elif name in ("prose", "documentation"):
        found = pieces.split_documents(pieces.topics(), modules)
    elif name == "wiki":
        found = pieces.split_documents(articles())
    else:
        raise OptionError(f"data: expected the name of a text, prose, documentation, wiki or text, got {name!r}")
    train, test = ([(title, [line.split() for line in lines]) for title, lines in part if lines] for part in found)
    if not train or not test:
        raise DataError(f"data set {name!r}: expected sentences to train on and to test on, got too few")
    vocab = Vocab([word for _, lines in train for line in lines for word in line], least, RESERVED)
    count = sum(title in modules for title, _ in train)
    return SentenceDataset(name, train, test, vocab, collections=(len(train) - count, count) if count else ())
