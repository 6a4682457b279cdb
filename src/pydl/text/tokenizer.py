"""One interface to all kinds of tokens: text to numbers and back."""

from pydl.errors import OptionError
from pydl.text.bpe import BytePairEncoding
from pydl.text.byte_bpe import BytePairs
from pydl.text.prose import letters
from pydl.text.vocabulary import Vocab, count_corpus

KINDS = ("letters", "char", "word", "bpe", "byte-bpe")
LEAST_WORD = 2  # a word that occurs once is unknown
MERGES = 1000


class Tokenizer:
    """Text to token numbers and back.

    Args:
        kind: ``letters`` (characters of the text in small letters and blanks), ``char`` (characters as they stand),
            ``word`` (what blanks part; those that occur once are unknown), ``bpe`` (pieces of words, of at most 1,000
            merges) or ``byte-bpe`` (pieces of bytes, of as many, by the ``tokenizers`` library).
        tokens: of the vocabulary, the first of which is ``<unk>``.
        state: of ``byte-bpe``, what the attribute ``state`` was.

    Attributes:
        vocab: a :class:`pydl.text.Vocab`.
        state: what is needed besides the tokens to make it again, a text; None where they are enough.
    """

    def __init__(self, kind, tokens, state=None):
        self.kind, self.vocab, self.state = kind, Vocab(reserved_tokens=tokens), state
        self._bpe = None
        if kind == "bpe":
            self._bpe = BytePairEncoding(tokens[1:])
        elif kind == "byte-bpe":
            self._bpe = BytePairs(state)

    @classmethod
    def fit(cls, kind, text):
        """The tokenizer whose vocabulary is that of ``text``."""
        if kind == "letters":
            text = letters(text)
        if kind == "byte-bpe":
            pairs = BytePairs.train(text, MERGES)
            return cls(kind, pairs.pieces, pairs.state())
        if kind == "bpe":
            vocab = Vocab(reserved_tokens=BytePairEncoding.train(count_corpus(text.split() or [""]), MERGES).pieces)
        elif kind == "word":
            vocab = Vocab(text.split(), min_freq=LEAST_WORD)
        else:
            vocab = Vocab(list(text))
        return cls(kind, vocab.idx_to_token)

    def split(self, text):
        """The tokens of ``text``, known or not."""
        if self._bpe is not None:
            return self._bpe.encode(text)
        if self.kind == "word":
            return text.split()
        return list(letters(text) if self.kind == "letters" else text)

    def encode(self, text):
        """The numbers of the tokens of ``text``; 0 for unknown ones."""
        return self.vocab[self.split(text)]

    def encode_known(self, text):
        """As :meth:`encode`, for a text that is typed: blanks at its ends count, capitals are small for ``letters``.

        Raises:
            OptionError: for a text without a token, or with one that the vocabulary lacks.
        """
        tokens = list(text.lower()) if self.kind == "letters" else self.split(text)
        for token in tokens:
            if token not in self.vocab or token == "<unk>":
                what = "a piece" if self.kind == "bpe" else repr(token)
                raise OptionError(
                    f"PREFIX: expected tokens out of the run's vocabulary ({len(self.vocab)} of kind {self.kind}), "
                    f"got {what} that it lacks"
                )
        if not tokens:
            raise OptionError("PREFIX: expected at least one token, got none")
        return self.vocab[tokens]

    def decode(self, numbers):
        """The text of token numbers."""
        tokens = self.vocab.to_tokens(list(numbers))
        if self._bpe is not None:
            return self._bpe.decode(tokens)
        return (" " if self.kind == "word" else "").join(tokens)
