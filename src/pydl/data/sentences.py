"""The texts of :mod:`pydl.data.text` sentence by sentence, for what learns from words in their sentences."""

from dataclasses import dataclass

from pydl._brief import Brief
from pydl.data.text import articles, parts
from pydl.errors import DataError, OptionError
from pydl.text import Vocab
from pydl.text import prose as pieces

RESERVED = ("<pad>", "<mask>", "<cls>", "<sep>")
PAD, MASK, CLS, SEP = 1, 2, 3, 4  # their numbers: 0 is <unk>
FIRST_WORD = 5


@dataclass(repr=False)
class SentenceDataset(Brief):
    """Documents of sentences, to train and to test on.

    Attributes:
        train, test: lists of (name, sentences), each sentence a list of words.
        vocab: of the words of ``train``, with ``<pad>``, ``<mask>``, ``<cls>`` and ``<sep>``.
    """

    name: str
    train: list
    test: list
    vocab: Vocab

    kind = "sentences"

    @property
    def classes(self):
        """The words, by number."""
        return tuple(self.vocab.idx_to_token)


def sentences(name, root="data", least=1):
    """The :class:`SentenceDataset` of ``prose`` (a document is a topic), ``wiki`` (an article) or ``text`` (the file).

    Words are small letters; which documents are the test is as for language models.

    Args:
        least: a word that occurs less often among those trained on is unknown.

    Raises:
        OptionError: for another name.
        DataError: for a text without words, and as :func:`pydl.data.get`.
    """
    if name == "text":
        found = [[(part, pieces.sentences(text))] for part, text in zip(("train", "test"), parts(root), strict=True)]
    elif name in ("prose", "wiki"):
        found = pieces.split_documents(pieces.topics() if name == "prose" else articles())
    else:
        raise OptionError(f"data: expected the name of a text, prose, wiki or text, got {name!r}")
    train, test = ([(title, [line.split() for line in lines]) for title, lines in part if lines] for part in found)
    if not train or not test:
        raise DataError(f"data set {name!r}: expected sentences to train on and to test on, got too few")
    vocab = Vocab([word for _, lines in train for line in lines for word in line], least, RESERVED)
    return SentenceDataset(name, train, test, vocab)
