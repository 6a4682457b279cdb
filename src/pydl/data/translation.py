"""Pairs of sentences for translators: numbers in words, without end and without download, and any file of pairs."""

import random
import re
from dataclasses import dataclass
from pathlib import Path

from pydl._brief import Brief
from pydl.errors import DataError, MissingExtra, OptionError
from pydl.text import Vocab
from pydl.text.pairs import is_held_out, spaced, vocabulary

LANGUAGES = ("fr", "de", "es")
LARGEST = 99_999
TRAINED, TESTED = 10_000, 1_000  # numbers: they are spelled in seconds, and suffice
RARE = 2  # a word of a file that occurs less often is unknown


@dataclass(repr=False)
class TranslationDataset(Brief):
    """Train and test pairs of sentences, words between blanks.

    Attributes:
        train, test: lists of (source, target).
        source_vocab, target_vocab: of the words of ``train``, with ``<pad>``, ``<bos>`` and ``<eos>``.
    """

    name: str
    train: list
    test: list
    source_vocab: Vocab
    target_vocab: Vocab

    kind = "pairs"

    @property
    def classes(self):
        """The target's tokens, by number."""
        return tuple(self.target_vocab.idx_to_token)

    @property
    def source(self):
        """The source's tokens, by number."""
        return tuple(self.source_vocab.idx_to_token)


def numbers(root=None, seed=0, language=None, longest=None, trained=TRAINED, tested=TESTED):
    """Numbers from 0 to 99,999 in English words, and in French, German or Spanish ones, by ``num2words``.

    Small letters, without commas and hyphens; German is written in the parts of its words. A tenth of the numbers,
    chosen by a checksum, is never trained on.

    Args:
        language: of the target: ``fr`` (if None), ``de`` or ``es``.
        trained, tested: how many pairs to train and to test on, drawn from all there are.

    Raises:
        OptionError: for another language.
        MissingExtra: without ``num2words``.
    """
    language = "fr" if language is None else language
    if language not in LANGUAGES:
        raise OptionError(f"--language: expected one of {', '.join(LANGUAGES)}, got {language!r}")
    try:
        from num2words import num2words
    except ImportError:
        raise MissingExtra("data set 'numbers'", "num2words") from None
    order = list(range(LARGEST + 1))
    random.Random(seed).shuffle(order)
    parts = [[n for n in order if is_held_out(str(n)) == test] for test in (False, True)]

    def spelled(number):
        words = num2words(number, lang=language)
        if language == "de":
            words = re.sub("(hundert|tausend|und)", r" \1 ", words)
        return parted(num2words(number)), parted(words)

    train, test = (list(map(spelled, part[:count])) for part, count in zip(parts, (trained, tested), strict=True))
    return _dataset("numbers", train, test, longest, 0)


def parted(words):
    """``words`` in small letters, blanks for hyphens and commas."""
    return " ".join(re.sub("[-,]", " ", words.lower()).split())


def pairs(root="data", seed=0, language=None, longest=None):
    """The pairs of the file ``root``: a sentence, a tab, its translation a line; what follows a second tab is left out.

    That is the form of Tatoeba's pairs, and of the book's ``fra-eng``. A tenth of the sources, chosen by a checksum, is
    never trained on; words that occur once among the others are unknown.

    Args:
        longest: pairs with a sentence of more words are left out; None for none.

    Raises:
        DataError: for a path that is no file, no text or empty, and for a line without a tab or a sentence.
        OptionError: for a language, which the file has.
    """
    if language is not None:
        raise OptionError(f"--language: expected the data set numbers to take it, got pairs and {language!r}")
    path = Path(root)
    if not path.is_file():
        raise DataError(f"data set 'pairs': expected --root to be a file of sentence pairs, got {str(root)!r}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected text in UTF-8, got byte {error.object[error.start]:#x}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = [" ".join(spaced(part).split()) for part in line.split("\t")[:2]]
        if len(parts) < 2:
            raise DataError(f"{path}: expected a tab between two sentences, got none in line {number}")
        if not all(parts):
            raise DataError(f"{path}: expected a sentence on both sides of the tab, got none in line {number}")
        found.append(tuple(parts))
    if not found:
        raise DataError(f"{path}: expected sentence pairs, got an empty file")
    train, test = ([pair for pair in found if is_held_out(pair[0]) == side] for side in (False, True))
    random.Random(seed).shuffle(test)
    return _dataset("pairs", train, test, longest, RARE)


# how a sentence that is typed is made one of the data set's
CLEANED = {"numbers": parted, "pairs": lambda text: " ".join(spaced(text).split())}


def _dataset(name, train, test, longest, min_freq):
    train, test = (
        [p for p in part if longest is None or max(len(s.split()) for s in p) <= longest] for part in (train, test)
    )
    if not train or not test:
        short = "" if longest is None else f" of at most {longest} words"
        raise DataError(
            f"data set {name!r}: expected sentence pairs{short} to train on and a tenth to test on, "
            f"got {len(train):,} and {len(test):,}"
        )
    return TranslationDataset(name, train, test, *(vocabulary([p[side] for p in train], min_freq) for side in (0, 1)))
