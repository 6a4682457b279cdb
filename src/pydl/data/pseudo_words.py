"""A text with pseudo-words: pairs of its words written as one."""

from dataclasses import dataclass

from pydl.data.sentences import RESERVED, SentenceDataset
from pydl.text import Vocab
from pydl.text.pseudo_words import chosen, written


@dataclass(repr=False)
class PseudoWordDataset(SentenceDataset):
    """A :class:`SentenceDataset` whose vocabulary has one word for each of ``pairs``; the sentences are as they were.

    Attributes:
        pairs: [(word, word)], see :func:`pydl.text.pseudo_words.chosen`; none in a text that is too short for them.
    """

    pairs: list

    def numbers(self, words):
        """The numbers of the words of a text, a list."""
        return self.vocab[[self._written.get(word, word) for word in words]]

    def __post_init__(self):
        self._written = written(self.pairs)


def with_pseudo_words(dataset, least=1):
    """The :class:`PseudoWordDataset` of a :class:`SentenceDataset`.

    Args:
        least: a word that occurs less often among those trained on is unknown.
    """
    train, test = ([line for _, lines in part for line in lines] for part in (dataset.train, dataset.test))
    pairs = chosen(train, test)
    name = written(pairs)
    vocab = Vocab([name.get(word, word) for line in train for word in line], least, RESERVED)
    return PseudoWordDataset(dataset.name, dataset.train, dataset.test, vocab, pairs)
